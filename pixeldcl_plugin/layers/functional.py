"""Pixel deconvolution as functions of tensors: plain torch, no state.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820), Figs. 5 and 6.

Every function maps ``(N, Cin, H, W)`` to ``(N, C, 2H, 2W)``. The output is made of four *phases*, the
sub-grids ``out[..., a::2, b::2]``, named ``p00 p11 p01 p10`` by their offset ``(a, b)`` and always listed
in the order in which the paper makes them: each of them is a low-resolution map ``(N, C, H, W)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from .interleave import PHASE_OFFSETS, add_up, interleave, interleave_sums, memory_format

__all__ = ["PHASE_OFFSETS", "interleave", "ipixel_dcl", "live_taps", "pixel_dcl", "pixel_dcl_full"]

Activation = Callable[[Tensor], Tensor]


def live_taps(kernel_size: int) -> tuple[int, int]:
    """Count the even and the odd offsets of a centred kernel, e.g. 3 -> (1, 2), 5 -> (3, 2), 7 -> (3, 4).

    The mask of Fig. 6 keeps the taps (dy, dx) with dy + dx odd. They fall into two dense kernels on the
    low-resolution maps: ``even x odd`` (dy even, dx odd) and ``odd x even`` (dy odd, dx even).
    """
    radius = kernel_size // 2
    return 2 * (radius // 2) + 1, 2 * ((radius + 1) // 2)


def pixel_dcl(
    x: Tensor,
    weight_p00: Tensor,
    weight_p11: Tensor,
    weight_h: Tensor,
    weight_v: Tensor,
    *,
    padding_mode: str = "zeros",
    groups: int = 1,
    inner_act: Activation | None = None,
) -> Tensor:
    """Efficient PixelDCL (Fig. 6), computed on the live taps at low resolution.

    The paper dilates p00 and p11 onto the 2H x 2W grid and runs a masked ``k x k`` convolution there. Of
    its ``4 k^2`` products a low-resolution pixel only ``k^2 - 1`` meet neither the mask nor a hole of the
    grid. With ``(l, r)`` and ``(u, d)`` the horizontal and vertical taps (k = 3) they are::

        p01[i, j] = l p00[i, j] + r p00[i, j + 1] + u p11[i - 1, j] + d p11[i, j]
        p10[i, j] = u p00[i, j] + d p00[i + 1, j] + l p11[i, j - 1] + r p11[i, j]

    so one small convolution of each map with each of two kernels gives everything. Zero padding of the
    dilated grid is zero padding of the maps; 'replicate' pads each map by its own border.

    Args:
        x: Input, shape ``(N, Cin, H, W)``.
        weight_p00: Kernel of the first map, ``(C, Cin, k, k)``, or ``(C, Cin / g, k, k)`` for g groups.
        weight_p11: Kernel of the second map on the first, ``(C, C / groups, k, k)``.
        weight_h: Live taps at even rows and odd columns, ``(C, C / groups, e, o)`` with
            ``e, o = live_taps(k)``; for k = 3 these are left and right, ``(C, C / groups, 1, 2)``.
        weight_v: Live taps at odd rows and even columns, ``(C, C / groups, o, e)``; for k = 3 up and down.
        padding_mode: 'zeros' or 'replicate'.
        groups: Groups of every convolution but the first.
        inner_act: Activation through which a map passes before the next maps are made from it.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` in the memory format of ``x``.
    """
    p00 = _first_map(x, weight_p00, padding_mode)
    source00 = inner_act(p00) if inner_act else p00
    p11 = _same_conv(source00, weight_p11, padding_mode, groups)
    source11 = inner_act(p11) if inner_act else p11
    # An even number of taps has no centre: padded equally on both sides it gives one row or column too
    # many. The two phases want the same windows but for one step, so both are slices of that result.
    p01 = (
        _same_conv(source00, weight_h, padding_mode, groups)[..., 1:],
        _same_conv(source11, weight_v, padding_mode, groups)[..., :-1, :],
    )
    p10 = (
        _same_conv(source00, weight_v, padding_mode, groups)[..., 1:, :],
        _same_conv(source11, weight_h, padding_mode, groups)[..., :-1],
    )
    return interleave_sums((p00,), (p11,), p01, p10)


def pixel_dcl_full(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    padding_mode: str = "zeros",
    groups: int = 1,
    inner_act: Activation | None = None,
) -> Tensor:
    """PixelDCL as in Fig. 5 (solid lines): each map from all the maps before it.

    Convolution is linear, so a convolution of concatenated maps is a sum of one convolution a map. The
    kernels are kept by source: each map is convolved once, with the stacked kernels of all its readers.

    Args:
        x: Input, shape ``(N, Cin, H, W)``.
        weights: Four kernels: x -> p00 ``(C, Cin, k, k)`` or grouped; p00 -> p11, p01, p10
            ``(3C, C / groups, k, k)``; p11 -> p01, p10 ``(2C, C / groups, k, k)``; p01 -> p10
            ``(C, C / groups, k, k)``.
        padding_mode: 'zeros' or 'replicate'.
        groups: Groups of every convolution but the first.
        inner_act: Activation through which a map passes before the next maps are made from it.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` in the memory format of ``x``.
    """
    first, *by_source = weights
    p00 = _first_map(x, first, padding_mode)
    return _finish_sequence(p00, [[], [], []], by_source, padding_mode, groups, inner_act)


def ipixel_dcl(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    padding_mode: str = "zeros",
    groups: int = 1,
    inner_act: Activation | None = None,
) -> Tensor:
    """iPixelDCL (Fig. 5, solid and dashed lines): each map from the input and all the maps before it.

    Args:
        x: Input, shape ``(N, Cin, H, W)``.
        weights: Kernels by source: x -> p00 ``(C, Cin, k, k)`` or grouped; x -> p11, p01, p10
            ``(3C, Cin / groups, k, k)``; p00 -> p11, p01, p10 ``(3C, C / groups, k, k)``; p11 -> p01, p10
            ``(2C, C / groups, k, k)``; and for the full form p01 -> p10 ``(C, C / groups, k, k)``.
            Without the last one this is the efficient form, whose p10 does not see p01.
        padding_mode: 'zeros' or 'replicate'.
        groups: Groups of every convolution but the first.
        inner_act: Activation through which a map passes before the next maps are made from it.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` in the memory format of ``x``.
    """
    first, from_x, *by_source = weights
    p00 = _first_map(x, first, padding_mode)
    terms = [[term] for term in _conv_to_maps(x, from_x, p00.size(1), padding_mode, groups)]
    return _finish_sequence(p00, terms, by_source, padding_mode, groups, inner_act)


def _finish_sequence(
    p00: Tensor,
    terms: list[list[Tensor]],
    by_source: Sequence[Tensor],
    padding_mode: str,
    groups: int,
    inner_act: Activation | None,
) -> Tensor:
    """Make p11, p01 and p10 one after the other; ``terms`` holds what each of them has received so far."""
    source = p00
    for step, weight in enumerate(by_source):
        if step > 0:
            source = add_up(terms[step - 1])
            terms[step - 1] = [source]
        source_in = inner_act(source) if inner_act else source
        received = _conv_to_maps(source_in, weight, p00.size(1), padding_mode, groups)
        for term, new in zip(terms[-len(received) :], received, strict=True):
            term.append(new)
    return interleave_sums((p00,), *terms)


def _first_map(x: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """Convolve the input; the kernel's shape says in how many groups."""
    return _same_conv(x, weight, padding_mode, groups=x.size(1) // weight.size(1))


def _conv_to_maps(
    source: Tensor, weight: Tensor, channels: int, padding_mode: str, groups: int
) -> Sequence[Tensor]:
    """Convolve one source with the stacked kernels of several maps; returns one tensor a map."""
    if groups == 1:
        return _same_conv(source, weight, padding_mode).split(channels, dim=1)
    # A grouped convolution hands neighbouring output channels to one group, a stack of maps does not.
    return [_same_conv(source, w, padding_mode, groups) for w in weight.split(channels)]


def _same_conv(x: Tensor, weight: Tensor, padding_mode: str, groups: int = 1) -> Tensor:
    """Stride-1 convolution padded by half the kernel on each side (one more output for an even kernel)."""
    pad_h, pad_w = weight.size(2) // 2, weight.size(3) // 2
    if padding_mode == "zeros":
        return F.conv2d(x, weight, padding=(pad_h, pad_w), groups=groups)
    if padding_mode != "replicate":
        raise ValueError(f"padding_mode must be 'zeros' or 'replicate', got {padding_mode!r}")
    return F.conv2d(replicate_pad(x, pad_h, pad_w), weight, groups=groups)


def replicate_pad(x: Tensor, pad_h: int, pad_w: int) -> Tensor:
    """Pad a map by its own border, also an empty batch; in the memory format of ``x``."""
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h), mode="replicate" if x.numel() else "constant")
    return padded.contiguous(memory_format=memory_format(x))
