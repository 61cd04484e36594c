"""GuidedResidual, SAPA, FADE and JointBilateralUpsample: against literal references, and the forms of use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import reference_guided as reference
import torch
from torch import Tensor, nn

from pixeldcl_plugin.layers import FADE, SAPA, GuidedResidual, JointBilateralUpsample

VARIANTS: dict[str, tuple[type[nn.Module], Callable[..., Tensor], dict[str, Any]]] = {
    "sapa": (SAPA, reference.sapa, dict(embed_channels=6)),
    "sapa_k3": (SAPA, reference.sapa, dict(embed_channels=2, up_kernel=3)),
    "fade": (FADE, reference.fade, dict(compressed_channels=5)),
    "fade_k3": (FADE, reference.fade, dict(compressed_channels=4, up_kernel=3, encoder_kernel=1)),
    "joint_bilateral": (JointBilateralUpsample, reference.joint_bilateral, dict(embed_channels=5)),
    "joint_bilateral_k3": (
        JointBilateralUpsample,
        reference.joint_bilateral,
        dict(embed_channels=4, up_kernel=3),
    ),
    "residual_k3": (GuidedResidual, reference.guided_residual, dict(hidden_channels=5)),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)
# A compiler takes as long as the window is large.
each_small_variant = pytest.mark.parametrize("name", [name for name in VARIANTS if name.endswith("k3")])
each_type = pytest.mark.parametrize("layer_type", [SAPA, FADE, JointBilateralUpsample, GuidedResidual])


def make(
    name: str, in_channels: int = 4, guide_channels: int | tuple[int, ...] = 3, **more: Any
) -> nn.Module:
    torch.manual_seed(0)
    layer_type, _, options = VARIANTS[name]
    layer = layer_type(4, guide_channels, **options, **more)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def inputs(n: int = 2, h: int = 3, w: int = 4, guide_channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, h, w, generator=generator)
    return x, torch.randn(n, guide_channels, 2 * h, 2 * w, generator=generator)


@each_variant
@pytest.mark.parametrize(("size", "guide_channels"), [((3, 4), 3), ((1, 2), 4)])
def test_equals_literal_reference(name: str, size: tuple[int, int], guide_channels: int) -> None:
    layer = make(name, guide_channels=guide_channels).double()
    x, guide = (t.double().requires_grad_() for t in inputs(2, *size, guide_channels=guide_channels))
    actual, expected = layer(x, guide), VARIANTS[name][1](x, guide, layer.steps[0])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)

    leaves = [x, guide, *layer.parameters()]
    weight = torch.randn_like(actual)
    grads = torch.autograd.grad((actual * weight).sum(), leaves)
    expected_grads = torch.autograd.grad((expected * weight).sum(), leaves)
    torch.testing.assert_close(grads, expected_grads, rtol=0, atol=1e-10)
    assert all(grad.abs().max() > 1e-6 for grad in grads)  # the comparison is of something


@pytest.mark.parametrize("name", ["sapa", "joint_bilateral"])
def test_means_keep_constants_up_to_the_border(name: str) -> None:
    out = make(name)(torch.full((2, 4, 3, 4), 0.7), inputs()[1])
    torch.testing.assert_close(out, torch.full_like(out, 0.7))


def test_an_untrained_joint_bilateral_layer_prefers_the_near() -> None:
    layer = JointBilateralUpsample(1, 1)
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    out = layer(x, torch.zeros(1, 1, 18, 18))[0, 0]
    torch.testing.assert_close(out[8:10, 8:10], out.max().expand(2, 2))
    torch.testing.assert_close(out, out.flip(0))
    torch.testing.assert_close(out, out.T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale_factor=3), r"scale_factor .*\(2, 4, 8\), got 3"),
        (dict(in_channels=0), "in_channels.*0"),
        (dict(guide_channels=2.5), "guide_channels.*2.5"),
        (dict(guide_channels=(3, 2)), r"guide_channels .* one to 1 of them.*, got \(3, 2\)"),
    ],
)
@each_type
def test_refuses_arguments(layer_type: type[nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_type(**{"in_channels": 4, "guide_channels": 3, **options})


@pytest.mark.parametrize("layer_type", [SAPA, FADE, JointBilateralUpsample])
def test_a_window_has_a_centre(layer_type: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="up_kernel must be odd, got 4"):
        layer_type(4, 3, up_kernel=4)


@each_small_variant
def test_larger_scales_are_steps_with_a_guide_each(name: str) -> None:
    layer = make(name, guide_channels=(3, 2), scale_factor=8).eval()
    x, guide = inputs()
    finer, finest = torch.randn(2, 2, 12, 16), torch.randn(2, 2, 24, 32)
    expected = layer.steps[1](layer.steps[0](x, guide), nn.functional.avg_pool2d(finest, 2))
    torch.testing.assert_close(layer(x, [guide, finest]), layer.steps[2](expected, finest))
    assert layer(x, [guide, finer]).shape == (2, 4, 24, 32)


def test_an_untrained_residual_is_none() -> None:
    torch.manual_seed(0)
    layer = GuidedResidual(4, 3, scale_factor=4)
    x, guide = inputs()
    expected = x
    for _ in layer.steps:
        expected = nn.functional.interpolate(expected, scale_factor=2, mode="bilinear")
    assert torch.equal(layer(x, 1000 * guide), expected)


@each_type
def test_refuses_inputs(layer_type: type[nn.Module]) -> None:
    layer = layer_type(4, 3)
    x, guide = inputs()
    with pytest.raises(ValueError, match=r"\(N, 4, H, W\), got"):
        layer(x[:, :3], guide)
    with pytest.raises(ValueError, match=r"guide of shape \(2, 3, H, W\), got \(1, 3, 6, 8\)"):
        layer(x, guide[:1])


@each_variant
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (1, 7, 5)])
def test_sizes(name: str, shape: tuple[int, int, int]) -> None:
    layer = make(name)
    x, guide = inputs(*shape)
    x.requires_grad_()
    out = layer(x, guide[..., :-1])  # of another size
    assert out.shape == (shape[0], 4, 2 * shape[1], 2 * shape[2])
    out.square().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in (x, *layer.parameters()))


@each_variant
def test_channels_last_and_autocast(name: str) -> None:
    layer = make(name)
    x, guide = inputs(2, 6, 5)
    expected = layer(x, guide)
    channels_last = [t.contiguous(memory_format=torch.channels_last) for t in (x, guide)]
    torch.testing.assert_close(layer(*channels_last), expected)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, guide)
    assert (out.float() - expected).norm() / expected.norm() < 0.05
    out.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@each_small_variant
def test_compiles_and_exports(name: str) -> None:
    layer = make(name)
    x, guide = inputs()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, guide), layer(x, guide))
    dims = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(layer, (x, guide), dynamic_shapes=(dims, dims)).module()
    x, guide = inputs(3, 2, 5)
    torch.testing.assert_close(exported(x, guide), layer(x, guide))


@each_type
def test_holds_no_conv2d(layer_type: type[nn.Module]) -> None:
    assert not [module for module in layer_type(4, 3).modules() if isinstance(module, nn.Conv2d)]
