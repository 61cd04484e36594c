"""Deconvolutions and interpolations as what iPixelDCL is made of: one kernel on the input for each phase.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820), Fig. 3: the phases of a
deconvolution of stride 2 are convolutions of the input, independent of one another. So are those of an
interpolation x2 whose weights are the same everywhere.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .arguments import check_choice
from .interleave import PHASE_OFFSETS

__all__ = [
    "INTERPOLATIONS",
    "deconvolution_kernels",
    "from_deconvolution",
    "from_interpolation",
    "interpolation_kernels",
]

KERNEL_SIZES = (3, 5, 7)
#: Modes of ``F.interpolate`` whose x2, without ``align_corners``, weighs neighbours alike everywhere.
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")

_Layer = TypeVar("_Layer", bound=nn.Module)


def deconvolution_kernels(deconv: nn.ConvTranspose2d) -> Tensor:
    """Return the convolution kernel of each phase of a deconvolution that doubles the size.

    Output row ``2i + a`` meets input row ``i + d`` in the tap t with ``2 d = a + padding - t dilation``.

    Returns:
        Tensor of shape ``(4, C, Cin / groups, k, k)``, phases as in ``PHASE_OFFSETS``, k the smallest of 3, 5
        and 7 that holds every tap.

    Raises:
        ValueError: If it is no deconvolution, does not double the size, or has taps beyond 7 x 7.
    """
    if not isinstance(deconv, nn.ConvTranspose2d):
        raise ValueError(f"deconv must be an nn.ConvTranspose2d, got {type(deconv).__name__}")
    if is_lazy(deconv.weight):
        raise ValueError("deconv has no weights yet: run it once, it is lazy")
    if tuple(deconv.stride) != (2, 2):
        raise ValueError(f"stride must be 2, got {deconv.stride}")
    axes = [_axis_taps(deconv, axis) for axis in (0, 1)]
    reach = max(abs(shift) for axis in axes for taps in axis for _, shift in taps)
    size = max(2 * reach + 1, KERNEL_SIZES[0])
    if size > KERNEL_SIZES[-1]:
        raise ValueError(
            f"taps must reach {KERNEL_SIZES[-1] // 2} input pixels at most, those of "
            f"kernel_size={deconv.kernel_size}, dilation={deconv.dilation} reach {reach}"
        )
    groups = deconv.groups
    weight = deconv.weight.detach().unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    kernels = weight.new_zeros(len(PHASE_OFFSETS), *weight.shape[:2], size, size)
    for kernel, (row, column) in zip(kernels, PHASE_OFFSETS, strict=True):
        for tap_y, dy in axes[0][row]:
            for tap_x, dx in axes[1][column]:
                kernel[:, :, size // 2 + dy, size // 2 + dx] = weight[:, :, tap_y, tap_x]
    return kernels


def _axis_taps(deconv: nn.ConvTranspose2d, axis: int) -> list[list[tuple[int, int]]]:
    """List the taps of the even and of the odd outputs of one axis, each with its shift on the input."""
    size, padding, dilation, output_padding = (
        getattr(deconv, name)[axis] for name in ("kernel_size", "padding", "dilation", "output_padding")
    )
    excess = dilation * (size - 1) + output_padding - 2 * padding - 1
    if excess:
        raise ValueError(
            f"the output must be twice the input, with kernel_size={deconv.kernel_size}, "
            f"padding={deconv.padding}, output_padding={deconv.output_padding}, "
            f"dilation={deconv.dilation} it has {abs(excess)} pixels {'more' if excess > 0 else 'fewer'}"
        )
    shifts = [[(tap, phase + padding - tap * dilation) for tap in range(size)] for phase in (0, 1)]
    return [[(tap, twice // 2) for tap, twice in taps if twice % 2 == 0] for taps in shifts]


def interpolation_kernels(mode: str, scale_factor: int = 2) -> Tensor:
    """Return the kernel of each phase of an interpolation x2: what it makes of a single bright pixel.

    Returns:
        Tensor of shape ``(4, 1, 1, k, k)``, phases as in ``PHASE_OFFSETS``.

    Raises:
        ValueError: If the mode is another one, or repeating its x2 does not give ``scale_factor``.
    """
    check_choice("mode", mode, INTERPOLATIONS)
    if scale_factor != 2 and not mode.startswith("nearest"):
        raise ValueError(f"scale_factor must be 2: {mode} x2, repeated, is not {mode} x{scale_factor}")
    radius = KERNEL_SIZES[-1] // 2
    pixel = torch.zeros(1, 1, 4 * radius + 1, 4 * radius + 1, dtype=torch.float64)
    pixel[..., 2 * radius, 2 * radius] = 1
    spread = F.interpolate(pixel, scale_factor=2, mode=mode)
    phases = torch.stack([spread[..., row::2, column::2] for row, column in PHASE_OFFSETS])
    kernels = phases[..., radius:-radius, radius:-radius].flip(-2, -1)
    for size in KERNEL_SIZES:
        margin = (kernels.size(-1) - size) // 2
        inner = F.pad(kernels, [-margin] * 4)
        if inner.count_nonzero() == kernels.count_nonzero():
            break
    return inner


def from_deconvolution(layer_type: type[_Layer], deconv: nn.ConvTranspose2d, **options: Any) -> _Layer:
    """Make an iPixelDCL layer that computes what a deconvolution does.

    With the kernels on the earlier maps at zero every phase is a convolution of the input. No random
    numbers are drawn.

    Raises:
        ValueError: If it cannot compute the same; the message names why.
    """
    kernels = deconvolution_kernels(deconv)
    # Depthwise the first map, which otherwise mixes all channels, and the mixing before it are cheaper.
    depthwise = deconv.groups == deconv.in_channels > 1
    options |= dict(separable=True) if depthwise else dict(groups=deconv.groups)
    with torch.device("meta"):
        layer = layer_type(
            deconv.in_channels,
            deconv.out_channels,
            kernel_size=kernels.size(-1),
            bias=deconv.bias is not None,
            **options,
        )
    layer = layer.to(deconv.weight.dtype).to_empty(device=deconv.weight.device)
    _fill(layer, kernels)
    if deconv.bias is not None:
        layer.get_parameter("bias").data.copy_(deconv.bias)
    return layer.requires_grad_(deconv.weight.requires_grad).train(deconv.training)


def from_interpolation(
    layer_type: type[_Layer],
    channels: int,
    mode: str,
    *,
    scale_factor: int = 2,
    conv: nn.Conv2d | None = None,
    **options: Any,
) -> _Layer:
    """Make a separable iPixelDCL layer that interpolates.

    Args:
        layer_type: IPixelDCL.
        channels: Channels of the output.
        mode: One of ``INTERPOLATIONS``.
        scale_factor: 2, or more with the nearest pixel.
        conv: A plain 1x1 convolution before or after the interpolation, with which that commutes: the
            weights of an output pixel add up to one.
        **options: Of the layer.

    Raises:
        ValueError: If it cannot compute the same; the message names why.
    """
    kernels = interpolation_kernels(mode, scale_factor)
    with torch.device("meta"):
        layer = layer_type(
            channels if conv is None else conv.in_channels,
            channels,
            kernel_size=kernels.size(-1),
            scale_factor=scale_factor,
            padding_mode="replicate",
            separable=True,
            bias=conv is not None and conv.bias is not None,
            **options,
        )
    layer = layer.to_empty(device=torch.get_default_device() if conv is None else conv.weight.device)
    for step in layer.modules():
        _fill(step, kernels.expand(-1, channels, -1, -1, -1))
    if conv is not None:
        layer.to(conv.weight.dtype).requires_grad_(conv.weight.requires_grad)
        layer.get_parameter("weight_pointwise").data.copy_(conv.weight)
        if conv.bias is not None:
            layer.get_parameter("bias").data.copy_(conv.bias)
    return layer


@torch.no_grad()
def _fill(layer: nn.Module, kernels: Tensor) -> None:
    """Make a layer compute each phase from the input alone: kernels ``(4, C, Cin / groups, k, k)``."""
    for parameter in layer.parameters(recurse=False):
        parameter.zero_()
    first, *others = kernels
    layer.get_parameter("weight_from_x").copy_(torch.cat(others))
    # The first map mixes all channels where those of the others are grouped.
    weight, per_group = layer.get_parameter("weight_p00"), first.size(1)
    groups = weight.size(1) // per_group
    for index, (rows, block) in enumerate(zip(weight.chunk(groups), first.chunk(groups), strict=True)):
        rows[:, index * per_group : (index + 1) * per_group].copy_(block)
    if layer.separable:  # hands each channel on to one of the output, or to several
        pointwise = layer.get_parameter("weight_pointwise")
        out_channels, in_channels = pointwise.shape[:2]
        readers = torch.arange(out_channels)
        pointwise[readers, readers * in_channels // out_channels] = 1
