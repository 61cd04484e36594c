"""Every layer on a GPU: equal to the CPU, in half precision, in both memory formats (`make gpu-check`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pixeldcl_plugin import layers

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CHANNELS, GUIDE = 8, 6
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "pixeldcl": lambda: layers.PixelDCL(CHANNELS, CHANNELS),
    "pixeldcl-full": lambda: layers.PixelDCL(CHANNELS, CHANNELS, efficient=False),
    "pixeldcl-free": lambda: layers.PixelDCL(CHANNELS, CHANNELS, checkerboard_free=True),
    "pixeldcl-replicate": lambda: layers.PixelDCL(CHANNELS, CHANNELS, padding_mode="replicate"),
    "pixeldcl-depthwise": lambda: layers.PixelDCL(CHANNELS, CHANNELS, groups="out_channels"),
    "pixeldcl-separable": lambda: layers.PixelDCL(CHANNELS, CHANNELS, separable=True),
    "ipixeldcl": lambda: layers.IPixelDCL(CHANNELS, CHANNELS),
    "pixel-shuffle": lambda: layers.PixelShuffleICNR(CHANNELS, CHANNELS),
    "carafe": lambda: layers.TorchCARAFE(CHANNELS, CHANNELS),
    "dysample": lambda: layers.DySample(CHANNELS, CHANNELS),
    "guided": lambda: layers.GuidedPixelDCL(CHANNELS, GUIDE),
    "guided-pixeldcl": lambda: layers.GuidedPixelDCL(CHANNELS, GUIDE, order="pixeldcl"),
    "guided-groups": lambda: layers.GuidedPixelDCL(CHANNELS, GUIDE, order=None, groups=2),
    "guided-residual": lambda: layers.GuidedPixelDCL(CHANNELS, GUIDE, residual=True),
    "guided-control": lambda: layers.GuidedResidual(CHANNELS, GUIDE),
    "sapa": lambda: layers.SAPA(CHANNELS, GUIDE),
    "fade": lambda: layers.FADE(CHANNELS, GUIDE),
    "joint-bilateral": lambda: layers.JointBilateralUpsample(CHANNELS, GUIDE),
}

each_layer = pytest.mark.parametrize("name", LAYERS)
each_format = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, list[Tensor]]:
    """Return a layer with weights of which none is zero, and its inputs, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(
                dtype
            )
    sizes = [(2, CHANNELS, 9, 7)]
    if hasattr(layer, "guide_channels"):
        sizes.append((2, GUIDE, 18, 14))
    return layer, [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes]


def run(layer: nn.Module, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the output and the gradients of its squared mean, on the CPU, in the precision of the inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = layer(*inputs)
    grads = torch.autograd.grad(out.double().square().mean(), [*inputs, *layer.parameters()])
    return out.detach().cpu(), [grad.cpu() for grad in grads]


def on_device(
    layer: nn.Module, inputs: list[Tensor], layout: torch.memory_format
) -> tuple[nn.Module, list[Tensor]]:
    return layer.to(DEVICE, memory_format=layout), [x.to(DEVICE, memory_format=layout) for x in inputs]


@each_format
@each_layer
def test_equals_cpu(name: str, layout: torch.memory_format) -> None:
    layer, inputs = case(name, torch.double)
    expected = run(layer, inputs)
    actual = run(*on_device(layer, inputs, layout))
    torch.testing.assert_close(actual, expected)


@each_format
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_layer
def test_autocast(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    layer, inputs = case(name)
    expected, _ = run(layer, inputs)
    layer, inputs = on_device(layer, inputs, layout)
    with torch.autocast(DEVICE, dtype=dtype):
        out, grads = run(layer, inputs)
    assert all(grad.isfinite().all() for grad in grads)
    difference = (out.float() - expected).abs().max() / expected.abs().max()
    assert difference < (0.02 if dtype == torch.float16 else 0.1)


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"dysample"}))  # grid_sample of groups is NCHW
def test_channels_last_is_kept(name: str) -> None:
    layer, inputs = on_device(*case(name), torch.channels_last)
    assert layer(*inputs).is_contiguous(memory_format=torch.channels_last)


@each_layer
def test_compiled(name: str) -> None:
    layer, inputs = on_device(*case(name), torch.contiguous_format)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(layer, fullgraph=True)(*inputs), layer(*inputs), rtol=1e-3, atol=1e-3
        )
