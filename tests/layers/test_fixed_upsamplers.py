"""Deconvolutions and interpolations taken over by IPixelDCL, exactly."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixeldcl_plugin import IPixelDCL, PixelDCL

EXACT = dict(rtol=0, atol=1e-12)
#: Everything that doubles the size, by kernel.
DECONVOLUTIONS: list[dict[str, Any]] = [
    dict(kernel_size=1, output_padding=1),
    dict(kernel_size=2),
    dict(kernel_size=3, padding=1, output_padding=1),
    dict(kernel_size=4, padding=1),
    dict(kernel_size=5, padding=2, output_padding=1),
    dict(kernel_size=6, padding=2),
    dict(kernel_size=(2, 6), padding=(0, 2)),
    dict(kernel_size=8, padding=3),
    dict(kernel_size=10, padding=4),
    dict(kernel_size=14, padding=6),
    dict(kernel_size=3, dilation=2, padding=2, output_padding=1),
]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def deconvolution(in_channels: int = 4, out_channels: int = 6, **options: Any) -> nn.ConvTranspose2d:
    torch.manual_seed(0)
    return nn.ConvTranspose2d(in_channels, out_channels, stride=2, **options).double()


@pytest.mark.parametrize("efficient", [True, False])
@pytest.mark.parametrize("options", DECONVOLUTIONS, ids=str)
def test_deconvolution_is_taken_over_exactly(options: dict[str, Any], efficient: bool) -> None:
    deconv = deconvolution(**options)
    layer = IPixelDCL.from_deconvolution(deconv, efficient=efficient)
    assert layer.efficient is efficient
    for size in ((5, 7), (1, 1), (2, 3)):
        x = random(2, 4, *size)
        torch.testing.assert_close(layer(x), deconv(x), **EXACT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("options", [dict(kernel_size=2), dict(kernel_size=4, padding=1)], ids=str)
def test_groups_and_biases_are_taken_over(options: dict[str, Any], groups: int, bias: bool) -> None:
    deconv = deconvolution(4, 8, groups=groups, bias=bias, **options)
    layer, x = IPixelDCL.from_deconvolution(deconv), random(2, 4, 5, 6)
    torch.testing.assert_close(layer(x), deconv(x), **EXACT)
    assert (layer.bias is not None) is bias
    assert layer.separable is (groups == 4)
    assert layer.groups == (8 if groups == 4 else groups)


def test_gradients_of_the_input_are_the_deconvolutions_and_every_kernel_learns() -> None:
    deconv, x = deconvolution(kernel_size=4, padding=1), random(2, 4, 5, 6).requires_grad_()
    layer = IPixelDCL.from_deconvolution(deconv)
    (wanted,) = torch.autograd.grad(deconv(x).pow(2).sum(), x)
    layer(x).pow(2).sum().backward()
    torch.testing.assert_close(x.grad, wanted, **EXACT)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


def test_it_stands_where_the_deconvolution_stood() -> None:
    deconv = deconvolution(kernel_size=4, padding=1).bfloat16().eval().requires_grad_(False)
    before, state = torch.get_rng_state(), copy.deepcopy(deconv.state_dict())
    layer = IPixelDCL.from_deconvolution(deconv)
    assert torch.equal(torch.get_rng_state(), before)
    assert not layer.training
    for parameter in layer.parameters():
        assert parameter.dtype == torch.bfloat16
        assert not parameter.requires_grad
        parameter.fill_(1)
    torch.testing.assert_close(deconv.state_dict(), state)


@pytest.mark.parametrize(
    ("deconv", "message"),
    [
        (nn.Conv2d(4, 4, 2), "nn.ConvTranspose2d, got Conv2d"),
        (nn.LazyConvTranspose2d(4, 2, stride=2), "lazy"),
        (nn.ConvTranspose2d(4, 4, 4, stride=4), r"stride must be 2, got \(4, 4\)"),
        (nn.ConvTranspose2d(4, 4, 3), r"stride must be 2, got \(1, 1\)"),
        (nn.ConvTranspose2d(4, 4, 3, stride=2), r"twice the input, .*kernel_size=\(3, 3\).* 1 pixels more"),
        (nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1), "twice the input, .* 1 pixels fewer"),
        (nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, output_padding=1), "twice .* 1 pixels more"),
        (
            nn.ConvTranspose2d(4, 4, 16, stride=2, padding=7),
            r"3 input pixels .*kernel_size=\(16, 16\).* reach 4",
        ),
    ],
)
def test_refuses_what_it_cannot_hold(deconv: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IPixelDCL.from_deconvolution(deconv)


@pytest.mark.parametrize("efficient", [True, False])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
def test_interpolation_is_taken_over_exactly(mode: str, efficient: bool) -> None:
    layer = IPixelDCL.from_interpolation(3, mode, efficient=efficient).double()
    assert layer.separable
    assert layer.kernel_size == (5 if mode == "bicubic" else 3)
    for size in ((5, 7), (1, 1), (2, 3)):
        x = random(2, 3, *size)
        torch.testing.assert_close(layer(x), F.interpolate(x, scale_factor=2, mode=mode), **EXACT)


@pytest.mark.parametrize("scale_factor", [4, 8])
def test_the_nearest_pixel_is_repeated(scale_factor: int) -> None:
    layer, x = (
        IPixelDCL.from_interpolation(2, "nearest", scale_factor=scale_factor).double(),
        random(1, 2, 3, 4),
    )
    torch.testing.assert_close(layer(x), F.interpolate(x, scale_factor=scale_factor), **EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "area"), "mode must be one of .*'bilinear'.*, got 'area'"),
        ((0, "bilinear"), "in_channels must be a positive integer, got 0"),
    ],
)
def test_refuses_other_interpolations(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IPixelDCL.from_interpolation(*arguments)
    with pytest.raises(ValueError, match="scale_factor must be 2: bilinear x2, repeated, is not bilinear x4"):
        IPixelDCL.from_interpolation(3, "bilinear", scale_factor=4)


def test_pixel_dcl_holds_interpolations_only_nearly() -> None:
    """Three of its phases see the earlier ones alone, and no finite kernel undoes the first one's blur."""
    x = random(8, 4, 32, 32)
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear")
    for efficient in (True, False):
        layer = PixelDCL(4, 4, efficient=efficient, padding_mode="replicate", separable=True).double()
        off = (layer(x) - bilinear).square().mean().sqrt() / bilinear.std()
        assert 0.1 < off < 0.5, off
