"""Pixel deconvolution as functions of tensors: plain torch, no state.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820), Figs. 5 and 6.

Every function maps ``(N, Cin, H, W)`` to ``(N, C, 2H, 2W)``. The output is made of four *phases*, the
sub-grids ``out[..., a::2, b::2]``, named ``p00 p11 p01 p10`` by their offset ``(a, b)`` and always listed
in the order in which the paper makes them: each of them is a low-resolution map ``(N, C, H, W)``.

A volume ``(N, Cin, D, H, W)`` becomes ``(N, C, 2D, 2H, 2W)``, of eight phases ``out[..., a::2, b::2, c::2]``
that the authors' code makes in four stages: ``p000``, then ``p111``, then ``p110 p101 p011`` together, then
``p100 p001 p010`` together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from .channelwise import in_two_calls, last_phases, suits_last_phases, suits_two_calls
from .interleave import PHASE_OFFSETS, PHASE_OFFSETS_3D, Cut, add_up, interleave, interleave_sums
from .same_conv import same_conv

__all__ = [
    "EDGE_PARITIES",
    "FACE_PARITIES",
    "PHASE_OFFSETS",
    "PHASE_OFFSETS_3D",
    "interleave",
    "ipixel_dcl",
    "live_taps",
    "pixel_dcl",
    "pixel_dcl_3d",
    "pixel_dcl_full",
]

Activation = Callable[[Tensor], Tensor]
Offset = tuple[int, ...]

#: Parities of the offsets at which the two masked kernels of :func:`pixel_dcl_3d` have live taps.
FACE_PARITIES = PHASE_OFFSETS_3D[2:]
EDGE_PARITIES = (PHASE_OFFSETS_3D[1], *PHASE_OFFSETS_3D[5:])
#: The first phase that is made from each of the phases in turn, by the dimensions of the input. A volume's
#: phases 2, 3 and 4 are made together, and so are 5, 6 and 7.
_FIRST_MADE = {4: (1, 2, 3), 5: (1, 2, 5, 5, 5)}


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
    if suits_two_calls(p00, weight_h):
        return in_two_calls(p00, source00, weight_p11, weight_h, weight_v, padding_mode, inner_act)
    p11 = same_conv(source00, weight_p11, padding_mode, groups)
    source11 = inner_act(p11) if inner_act else p11
    if suits_last_phases(p00, weight_h, padding_mode):
        return interleave(p00, p11, *last_phases(source00, source11, weight_h, weight_v))
    sources: dict[Offset, Tensor] = {(0, 0): source00, (1, 1): source11}
    taps: dict[Offset, Tensor] = {(0, 1): weight_h, (1, 0): weight_v}
    sums = [_from_live_taps(sources, offset, taps, padding_mode, groups) for offset in PHASE_OFFSETS[2:]]
    return interleave_sums((p00,), (p11,), *sums)


def pixel_dcl_3d(
    x: Tensor,
    weight_p000: Tensor,
    weight_p111: Tensor,
    face_taps: Sequence[Tensor],
    edge_taps: Sequence[Tensor],
    *,
    padding_mode: str = "zeros",
    groups: int = 1,
    inner_act: Activation | None = None,
) -> Tensor:
    """Efficient PixelDCL of a volume: Fig. 6 carried over to the authors' order of eight phases.

    Neither the paper nor the authors' code has it. Two masked ``k x k x k`` kernels on the 2D x 2H x 2W
    grid take the place of one: the first makes p110, p101 and p011 out of p000 and p111, the second p100,
    p001 and p010 out of p000 and those three. Which tap joins which phases depends on the parities of its
    offset alone. So a masked kernel is a dense one for each triple of parities, and each of these is
    applied at low resolution, to the phases that it joins.

    Args:
        x: Input, shape ``(N, Cin, D, H, W)``.
        weight_p000: Kernel of the first map, ``(C, Cin, k, k, k)`` or grouped.
        weight_p111: Kernel of the second map on the first, ``(C, C / groups, k, k, k)``.
        face_taps: Live taps of the first masked kernel, one tensor for each of :data:`FACE_PARITIES`. Along
            an axis of parity 0 or 1 there are ``e, o = live_taps(k)`` of them: those of parities (1, 1, 0)
            have the shape ``(C, C / groups, o, o, e)``.
        edge_taps: Live taps of the second masked kernel, for each of :data:`EDGE_PARITIES`.
        padding_mode: 'zeros' or 'replicate'.
        groups: Groups of every convolution but the first.
        inner_act: Activation through which a map passes before the next maps are made from it.

    Returns:
        Tensor of shape ``(N, C, 2D, 2H, 2W)`` in the memory format of ``x``.
    """
    p000 = _first_map(x, weight_p000, padding_mode)
    source000 = inner_act(p000) if inner_act else p000
    p111 = same_conv(source000, weight_p111, padding_mode, groups)
    source111 = inner_act(p111) if inner_act else p111
    corner, centre, *faces = PHASE_OFFSETS_3D[:5]

    taps = dict(zip(FACE_PARITIES, face_taps, strict=True))
    sources = {corner: source000, centre: source111}
    received = [_from_live_taps(sources, face, taps, padding_mode, groups) for face in faces]
    made = [add_up([cut.view() for cut in cuts]) for cuts in received]

    taps = dict(zip(EDGE_PARITIES, edge_taps, strict=True))
    sources = dict(zip(faces, map(inner_act, made) if inner_act else made, strict=True))
    sources[corner] = source000
    sums = [_from_live_taps(sources, edge, taps, padding_mode, groups) for edge in PHASE_OFFSETS_3D[5:]]
    return interleave_sums((p000,), (p111,), *((face,) for face in made), *sums)


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
        x: Input, shape ``(N, Cin, H, W)`` or ``(N, Cin, D, H, W)``.
        weights: Four kernels: x -> p00 ``(C, Cin, k, k)`` or grouped; p00 -> p11, p01, p10
            ``(3C, C / groups, k, k)``; p11 -> p01, p10 ``(2C, C / groups, k, k)``; p01 -> p10
            ``(C, C / groups, k, k)``. For a volume six, as the authors connect its phases:
            x -> p000; p000 -> p111 and the six after it ``(7C, C / groups, k, k, k)``; p111 -> p110, p101,
            p011 ``(3C, ...)``; each of these three -> p100, p001, p010 ``(3C, ...)``.
        padding_mode: 'zeros' or 'replicate'.
        groups: Groups of every convolution but the first.
        inner_act: Activation through which a map passes before the next maps are made from it.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` or ``(N, C, 2D, 2H, 2W)`` in the memory format of ``x``.
    """
    first, *by_source = weights
    terms = [[_first_map(x, first, padding_mode)], *([] for _ in range(2 ** (x.dim() - 2) - 1))]
    return _finish_sequence(terms, by_source, padding_mode, groups, inner_act)


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
        x: Input, shape ``(N, Cin, H, W)`` or ``(N, Cin, D, H, W)``.
        weights: Kernels by source: x -> p00 ``(C, Cin, k, k)`` or grouped; x -> p11, p01, p10
            ``(3C, Cin / groups, k, k)``; p00 -> p11, p01, p10 ``(3C, C / groups, k, k)``; p11 -> p01, p10
            ``(2C, C / groups, k, k)``; and for the full form p01 -> p10 ``(C, C / groups, k, k)``.
            Without the last one this is the efficient form, whose p10 does not see p01. For a volume seven,
            as the authors connect its phases: x -> p000; x -> the other seven ``(7C, Cin / groups, k, k,
            k)``; p000 -> the seven; p111 -> the six after it ``(6C, C / groups, k, k, k)``; each of p110,
            p101, p011 -> p100, p001, p010 ``(3C, ...)``.
        padding_mode: 'zeros' or 'replicate'.
        groups: Groups of every convolution but the first.
        inner_act: Activation through which a map passes before the next maps are made from it.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` or ``(N, C, 2D, 2H, 2W)`` in the memory format of ``x``.
    """
    first, from_x, *by_source = weights
    p00 = _first_map(x, first, padding_mode)
    terms = [[p00], *([term] for term in _conv_to_maps(x, from_x, p00.size(1), padding_mode, groups))]
    return _finish_sequence(terms, by_source, padding_mode, groups, inner_act)


def _finish_sequence(
    terms: list[list[Tensor]],
    by_source: Sequence[Tensor],
    padding_mode: str,
    groups: int,
    inner_act: Activation | None,
) -> Tensor:
    """Make the phases one after the other; ``terms`` holds what each of them has received so far."""
    p00 = terms[0][0]
    for number, weight in enumerate(by_source):
        source = add_up(terms[number])
        terms[number] = [source]
        source_in = inner_act(source) if inner_act else source
        received = _conv_to_maps(source_in, weight, p00.size(1), padding_mode, groups)
        for made, new in enumerate(received, start=_FIRST_MADE[p00.dim()][number]):
            terms[made].append(new)
    return interleave_sums(*terms)


def _from_live_taps(
    sources: Mapping[Offset, Tensor],
    made: Offset,
    taps: Mapping[Offset, Tensor],
    padding_mode: str,
    groups: int,
) -> list[Cut]:
    """Return what a phase receives from others through a masked kernel, whose live taps are by parities.

    An even number of taps has no centre: padded equally on both sides it gives one row too many along its
    axis. Phases before and after their source want the same windows but for one step, so all are slices.
    """
    received = []
    for offset, source in sources.items():
        parities = tuple(a ^ b for a, b in zip(offset, made, strict=True))
        result = same_conv(source, taps[parities], padding_mode, groups)
        after = zip(made, parities, strict=True)
        windows = tuple((slice(1, None) if at else slice(-1)) if odd else slice(None) for at, odd in after)
        received.append(Cut(result, windows))
    return received


def _first_map(x: Tensor, weight: Tensor, padding_mode: str) -> Tensor:
    """Convolve the input; the kernel's shape says in how many groups."""
    return same_conv(x, weight, padding_mode, groups=x.size(1) // weight.size(1))


def _conv_to_maps(
    source: Tensor, weight: Tensor, channels: int, padding_mode: str, groups: int
) -> Sequence[Tensor]:
    """Convolve one source with the stacked kernels of several maps; returns one tensor a map."""
    if groups == 1:
        return same_conv(source, weight, padding_mode).split(channels, dim=1)
    # A grouped convolution hands neighbouring output channels to one group, a stack of maps does not.
    return [same_conv(source, w, padding_mode, groups) for w in weight.split(channels)]
