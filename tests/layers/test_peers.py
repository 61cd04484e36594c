"""PixelShuffleICNR, TorchCARAFE and DySample: against literal references, and under UNet's contract."""

from __future__ import annotations

from typing import Any

import pytest
import reference_peers as reference
import torch
import torch.nn.functional as F
from mmcv.cnn import build_upsample_layer
from mmengine.registry import MODELS
from mmseg.models.backbones import UNet
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pixeldcl_plugin.layers import carafe
from pixeldcl_plugin.layers.carafe import TorchCARAFE
from pixeldcl_plugin.layers.dysample import DySample
from pixeldcl_plugin.layers.pixel_shuffle import PixelShuffleICNR

TYPES = ["PixelShuffleICNR", "TorchCARAFE", "DySample"]
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "pixel_shuffle": (PixelShuffleICNR, {}),
    "pixel_shuffle_k1": (PixelShuffleICNR, dict(kernel_size=1)),
    "carafe": (TorchCARAFE, dict(compressed_channels=5)),
    "carafe_k3": (TorchCARAFE, dict(compressed_channels=3, up_kernel=3, encoder_kernel=1)),
    "dysample_lp": (DySample, {}),
    "dysample_pl": (DySample, dict(style="pl", groups=2)),
    "dysample_lp_dynamic": (DySample, dict(dynamic_scope=True, groups=2)),
    "dysample_pl_dynamic": (DySample, dict(style="pl", dynamic_scope=True)),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)
# The 25 taps of CARAFE make 25 times the graph of one, and take a compiler as long.
each_small_variant = pytest.mark.parametrize("name", [name for name in VARIANTS if name != "carafe"])
each_type = pytest.mark.parametrize("kind", TYPES)


def make(name: str, in_channels: int = 8, out_channels: int = 8, *, random: bool = True) -> nn.Module:
    """A variant; with random parameters, as what begins at zero would leave much of it unseen."""
    torch.manual_seed(0)
    layer_type, options = VARIANTS[name]
    layer = layer_type(in_channels, out_channels, **options)
    if random:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
    return layer


def refer(name: str, layer: nn.Module, x: Tensor) -> Tensor:
    parameters = dict(layer.named_parameters())
    if name.startswith("pixel_shuffle"):
        return reference.periodic_shuffle(reference.conv(x, parameters["conv.weight"]))
    if name.startswith("carafe"):
        return reference.carafe(x, parameters, layer.up_kernel)
    return reference.dysample(x, parameters, layer.style, layer.groups)


# --- values --------------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize(("in_channels", "size"), [(8, (2, 3)), (6, (2, 1))])
def test_equals_literal_reference(name: str, in_channels: int, size: tuple[int, int]) -> None:
    layer = make(name, in_channels).double()
    x = torch.randn(2, in_channels, *size, dtype=torch.double, requires_grad=True)
    actual, expected = layer(x), refer(name, layer, x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)

    inputs = [x, *layer.parameters()]
    weight = torch.randn_like(actual)
    actual_grads = torch.autograd.grad((actual * weight).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    for actual_grad, expected_grad in zip(actual_grads, expected_grads, strict=True):
        assert expected_grad.abs().max() > 1e-3  # the comparison is of something
        torch.testing.assert_close(actual_grad, expected_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("limit", [1, 3 * 9 * 25 * 4 * 8, 10**9], ids=["row", "rows", "all"])
def test_carafe_chunks_do_not_show(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carafe, "_CHUNK_BYTES", {"cpu": limit})
    x = torch.randn(3, 4, 7, 9, dtype=torch.double, requires_grad=True)
    logits = torch.randn(3, 25, 4, 7, 9, dtype=torch.double, requires_grad=True)
    kernels = logits.softmax(1)
    chunked, by_tap = carafe.reassemble(x, kernels), carafe._reassemble_by_tap(x, kernels)
    torch.testing.assert_close(chunked, by_tap, rtol=0, atol=1e-12)
    weight = torch.randn_like(chunked)
    grads = [torch.autograd.grad(y, (x, logits), weight, retain_graph=True) for y in (chunked, by_tap)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


def test_carafe_gradcheck() -> None:
    x = torch.randn(2, 2, 3, 2, dtype=torch.double, requires_grad=True)
    kernels = torch.rand(2, 9, 4, 3, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(carafe.reassemble, (x, kernels))


def test_carafe_kernels_are_weights_of_a_mean() -> None:
    layer = make("carafe")
    kernels = layer.reassembly_kernels(torch.randn(2, 8, 6, 5))
    assert kernels.shape == (2, 25, 4, 6, 5)
    assert (kernels > 0).all()
    torch.testing.assert_close(kernels.sum(1), torch.ones(2, 4, 6, 5))
    constant = layer(torch.full((1, 8, 8, 8), 3.0))[..., 4:-4, 4:-4]
    torch.testing.assert_close(constant, torch.full_like(constant, 3.0))


def test_carafe_keeps_less_than_the_windows() -> None:
    layer = make("carafe")
    x = torch.randn(1, 8, 16, 16)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    kernels = 25 * 4 * x[:, :1].nbytes
    assert sum(saved.values()) < 25 * x.nbytes + kernels  # the windows alone would be 25 times x


# --- initialisation ------------------------------------------------------------------------------


def test_icnr_begins_without_checkerboard() -> None:
    layer = make("pixel_shuffle", 6, 8, random=False)
    sub_kernels = layer.conv.weight.unflatten(0, (8, 4))
    assert (sub_kernels == sub_kernels[:, :1]).all()
    assert sub_kernels[:, 0].std().item() == pytest.approx((6 * 9) ** -0.5, rel=0.1)
    out = layer(torch.randn(2, 6, 5, 4))
    nearest = F.interpolate(out[..., ::2, ::2], scale_factor=2, mode="nearest")
    torch.testing.assert_close(out, nearest, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("dysample")])
def test_dysample_begins_bilinear(name: str) -> None:
    x = torch.randn(2, 8, 7, 5)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(make(name, random=False)(x), expected, rtol=1e-5, atol=1e-5)


def test_dysample_scope() -> None:
    """Static: a quarter of the prediction; dynamic: between none and half of it."""
    x = torch.arange(16.0).view(1, 1, 1, 16).repeat(1, 4, 16, 1)  # every pixel holds its column
    begin = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    for logit, factor in ((None, 0.25), (0.0, 0.25), (-100.0, 0.0), (100.0, 0.5)):
        layer = DySample(4, 4, dynamic_scope=logit is not None)
        nn.init.ones_(layer.offset.bias)
        if logit is not None:
            nn.init.constant_(layer.scope.weight, logit)
        moved = (layer(x) - begin)[..., 8:24]  # away from the borders, and where x is at least 1
        torch.testing.assert_close(moved, torch.full_like(moved, factor), rtol=0, atol=1e-4)


def test_carafe_begins_as_a_mean() -> None:
    kernels = TorchCARAFE(8, 8).reassembly_kernels(torch.randn(2, 8, 6, 6))
    torch.testing.assert_close(kernels, torch.full_like(kernels, 1 / 25), rtol=0.1, atol=0)


@each_type
def test_unet_leaves_the_initialisation_alone(kind: str) -> None:
    model = unet(kind)
    before = {name: value.clone() for name, value in model.state_dict().items() if ".layer." in name}
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    conv_before = convs[0].weight.clone()
    model.init_weights()
    after = model.state_dict()
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(convs[0].weight, conv_before)  # init_weights did run


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer_type", "options", "message"),
    [
        *[(t, dict(scale_factor=4), "scale_factor.*4") for t in (PixelShuffleICNR, TorchCARAFE, DySample)],
        *[(t, dict(in_channels=0), "in_channels.*0") for t in (PixelShuffleICNR, TorchCARAFE, DySample)],
        (PixelShuffleICNR, dict(out_channels=2.5), "out_channels.*2.5"),
        (PixelShuffleICNR, dict(kernel_size=4), "kernel_size must be odd, got 4"),
        (PixelShuffleICNR, dict(kernel_size=-1), "kernel_size.*-1"),
        (TorchCARAFE, dict(up_kernel=2), "up_kernel must be odd, got 2"),
        (TorchCARAFE, dict(encoder_kernel=2), "encoder_kernel must be odd, got 2"),
        (TorchCARAFE, dict(compressed_channels=0), "compressed_channels.*0"),
        (DySample, dict(style="linear"), "style.*'lp', 'pl'.*'linear'"),
        (DySample, dict(groups=3), "groups must divide out_channels, got 3 with out_channels=8"),
        (DySample, dict(groups=0), "groups.*0"),
        (DySample, dict(style="pl", groups=2, out_channels=6), "multiple of 4, got 6"),
    ],
)
def test_refuses_arguments(layer_type: type[nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_type(**{"in_channels": 8, "out_channels": 8, **options})


@each_variant
@pytest.mark.parametrize("shape", [(8, 4, 4), (1, 7, 4, 4), (1, 8, 4, 4, 4)])
def test_refuses_inputs(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 8, H, W\), got"):
        make(name)(torch.zeros(shape))


# --- forms of use --------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("out_channels", [4, 8, 16])
@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_shapes_and_gradients(name: str, out_channels: int, size: tuple[int, int]) -> None:
    layer = make(name, 8, out_channels)
    x = torch.randn(2, 8, *size, requires_grad=True)
    out = layer(x)
    assert out.shape == (2, out_channels, 2 * size[0], 2 * size[1])
    out.square().sum().backward()
    grads = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@each_variant
def test_empty_batch(name: str) -> None:
    layer = make(name)
    x = torch.zeros(0, 8, 5, 6, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, 8, 10, 12)
    out.sum().backward()
    assert x.grad.shape == x.shape
    assert all((parameter.grad == 0).all() for parameter in layer.parameters())


@each_variant
def test_channels_last(name: str) -> None:
    layer = make(name)
    x = torch.randn(2, 8, 6, 7)
    expected, actual = layer(x), layer(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected)
    if isinstance(layer, TorchCARAFE):
        assert actual.is_contiguous(memory_format=torch.channels_last)


@each_variant
@pytest.mark.parametrize("in_channels", [8, 6])
def test_autocast(name: str, in_channels: int) -> None:
    layer = make(name, in_channels)
    x = torch.randn(2, in_channels, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    expected = layer(x)
    error = (out - expected).norm() / expected.norm()
    assert error < 0.03
    out.float().square().sum().backward()
    assert x.grad.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_dysample_samples_large_maps_exactly_in_bfloat16() -> None:
    """Columns up to 255 are bfloat16 numbers; places such as 200.25 are not, and must not be rounded."""
    x = torch.arange(256.0).view(1, 1, 1, 256).repeat(1, 4, 2, 1)
    out = DySample(4, 4).bfloat16()(x.bfloat16())
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).bfloat16()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@each_small_variant
def test_compile(name: str) -> None:
    layer = make(name)
    x = torch.randn(2, 8, 5, 4, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outs = layer(x), compiled(x)
    torch.testing.assert_close(outs[0], outs[1])
    grads = [torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]) for out in outs]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


@each_small_variant
def test_export_with_dynamic_shape(name: str) -> None:
    layer = make(name)
    dims = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (torch.randn(2, 8, 6, 5),), dynamic_shapes=(dims,))
    for shape in ((1, 8, 9, 4), (3, 8, 2, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_variant
def test_gpu_equals_cpu(name: str) -> None:
    layer = make(name).double()
    x = torch.randn(2, 8, 6, 5, dtype=torch.double)
    expected = layer(x)
    torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), expected)


# --- under the contract --------------------------------------------------------------------------


def unet(kind: str, **kwargs: Any) -> UNet:
    return UNet(
        base_channels=4,
        num_stages=3,
        strides=(1, 1, 1),
        enc_num_convs=(1, 1, 1),
        dec_num_convs=(1, 1),
        downsamples=(True, True),
        enc_dilations=(1, 1, 1),
        dec_dilations=(1, 1),
        upsample_cfg=dict(type=kind),
        **kwargs,
    )


@each_type
def test_unet_trains(kind: str) -> None:
    model = unet(kind)
    model.init_weights()
    outs = model(torch.randn(2, 3, 16, 24))
    assert [tuple(out.shape) for out in outs] == [(2, 16, 4, 6), (2, 8, 8, 12), (2, 4, 16, 24)]
    outs[-1].square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@each_type
def test_registered_in_the_root_registry_only_once(kind: str) -> None:
    assert MODELS.get(kind).__name__ == f"{kind}Upsample"
    assert MODELS.get(kind).layer_type.__name__ == kind
    lower = [name.lower() for name in MODELS.module_dict]
    assert lower.count(kind.lower()) == 1  # no name that differs in case only


@each_type
def test_contract_of_norm_and_activation(kind: str) -> None:
    layer = build_upsample_layer(
        dict(type=kind, scale_factor=2),
        in_channels=8,
        out_channels=4,
        with_cp=False,
        norm_cfg=dict(type="GN", num_groups=2),
        act_cfg=dict(type="LeakyReLU"),
    )
    assert isinstance(layer.norm, nn.GroupNorm)
    assert isinstance(layer.act, nn.LeakyReLU)
    bare = build_upsample_layer(
        dict(type=kind), in_channels=8, out_channels=4, with_cp=False, norm_cfg=None, act_cfg=None
    )
    bare.layer.load_state_dict(layer.layer.state_dict())
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(layer(x), layer.act(layer.norm(bare(x))))


@each_type
def test_checkpointing_changes_nothing(kind: str) -> None:
    plain, checkpointed = (
        build_upsample_layer(dict(type=kind), in_channels=8, out_channels=4, with_cp=with_cp)
        for with_cp in (False, True)
    )
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    grads = []
    for layer in (plain, checkpointed):
        grads.append(torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(plain.state_dict(), checkpointed.state_dict())


@each_type
def test_unknown_option_is_refused(kind: str) -> None:
    with pytest.raises(TypeError, match="kernel_sise"):
        build_upsample_layer(dict(type=kind, kernel_sise=3), in_channels=8, out_channels=4)
