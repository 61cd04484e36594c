"""The paper transcribed literally, slow and obvious, for the fast paths to be compared with.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820), Figs. 1-3, 5 and 6. Here
are the grids full of holes, the masks and the concatenations that the package avoids. Nothing here knows
of groups or of live taps: the converters at the end write a layer's parameters out as the paper's kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    return x


# --- building blocks -----------------------------------------------------------------------------


def pad(x: Tensor, size: int, mode: str) -> Tensor:
    """``size`` pixels more on all four sides: zeros, or copies of the nearest border pixel."""
    height, width = x.shape[-2:]
    rows, columns = torch.arange(-size, height + size), torch.arange(-size, width + size)
    padded = x[..., rows.clamp(0, height - 1), :][..., columns.clamp(0, width - 1)]
    if mode == "replicate":
        return padded
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    return padded * (inside_rows[:, None] & inside_columns[None, :]).to(x)


def conv(x: Tensor, kernel: Tensor, mode: str) -> Tensor:
    """``x * kernel``: stride 1, output of the size of ``x``."""
    return F.conv2d(pad(x, kernel.size(-1) // 2, mode), kernel)


def interleave(p00: Tensor, p11: Tensor, p01: Tensor, p10: Tensor) -> Tensor:
    """Periodical shuffling of four maps."""
    n, c, h, w = p00.shape
    out = p00.new_zeros(n, c, 2 * h, 2 * w)
    out[..., 0::2, 0::2] = p00
    out[..., 1::2, 1::2] = p11
    out[..., 0::2, 1::2] = p01
    out[..., 1::2, 0::2] = p10
    return out


def dilate(p00: Tensor, p11: Tensor) -> Tensor:
    """The grid G of Fig. 6: two maps on its diagonals, zeros elsewhere."""
    return interleave(p00, p11, torch.zeros_like(p00), torch.zeros_like(p00))


def odd_mask(kernel_size: int) -> Tensor:
    """The mask M of Fig. 6: one at the taps (dy, dx) with dy + dx odd."""
    offset = torch.arange(kernel_size) - kernel_size // 2
    return (offset[:, None] + offset[None, :]) % 2


# --- regular deconvolution (Figs. 1-3) -----------------------------------------------------------


def deconvolution_1d(x: Tensor, kernel: Tensor) -> Tensor:
    """Transposed convolution, kernel ``(Cin, C, 4)``, stride 2, as two maps from one input each (Fig. 2).

    The taps (1, 3) make one map and (2, 4) the other; every input pixel strews its taps, so that each map
    is a convolution with its taps reversed.
    """
    maps = [
        F.conv1d(F.pad(x, (1, 1)), taps.transpose(0, 1).flip(2))
        for taps in (kernel[..., [0, 2]], kernel[..., [1, 3]])
    ]
    out = x.new_zeros(*maps[0].shape[:2], 2 * maps[0].size(2))
    out[..., 0::2], out[..., 1::2] = maps
    return out


def sub_kernels(kernel: Tensor) -> list[Tensor]:
    """The four kernels that a stride-2 deconvolution kernel ``(Cin, C, k, k)`` is made of (Fig. 3).

    As convolution kernels ``(C, Cin, ., .)``, ordered p00, p11, p01, p10 by the taps that they hold.
    """
    return [
        kernel[..., row::2, column::2].transpose(0, 1).flip(2, 3)
        for row, column in ((0, 0), (1, 1), (0, 1), (1, 0))
    ]


def deconvolution_kernel6(x: Tensor, kernel: Tensor) -> Tensor:
    """Transposed convolution, kernel 6, stride 2, padding 2: four independent 3x3 convolutions."""
    return interleave(*(conv(x, sub_kernel, "zeros") for sub_kernel in sub_kernels(kernel)))


# --- pixel deconvolution (Figs. 5 and 6) ---------------------------------------------------------


def pixel_dcl_fig6(
    x: Tensor, k1: Tensor, k2: Tensor, k3: Tensor, mode: str, act: Activation = identity
) -> Tensor:
    """Efficient PixelDCL: dilate, add, masked convolution on the full-resolution grid."""
    f1 = conv(x, k1, mode)
    f2 = conv(act(f1), k2, mode)
    masked = k3 * odd_mask(k3.size(-1)).to(k3)
    if mode == "zeros":
        return dilate(f1, f2) + conv(dilate(act(f1), act(f2)), masked, mode)
    # Each map goes on beyond its own border, with the holes of the grid in between.
    radius = k3.size(-1) // 2
    grid = dilate(pad(act(f1), radius, mode), pad(act(f2), radius, mode))
    valid = F.conv2d(grid, masked)
    height, width = x.shape[-2:]
    cropped = valid[..., radius : radius + 2 * height, radius : radius + 2 * width]
    return dilate(f1, f2) + cropped


def pixel_dcl_fig5(
    x: Tensor,
    k1: Tensor,
    k2: Tensor,
    k3: Tensor,
    k4: Tensor,
    mode: str,
    act: Activation = identity,
) -> Tensor:
    """PixelDCL, the solid lines of Fig. 5: each map from all the maps before it."""
    f1 = conv(x, k1, mode)
    f2 = conv(act(f1), k2, mode)
    f3 = conv(torch.cat([act(f1), act(f2)], 1), k3, mode)
    f4 = conv(torch.cat([act(f1), act(f2), act(f3)], 1), k4, mode)
    return interleave(f1, f2, f3, f4)


def ipixel_dcl_full(
    x: Tensor,
    k1: Tensor,
    k2: Tensor,
    k3: Tensor,
    k4: Tensor,
    mode: str,
    act: Activation = identity,
) -> Tensor:
    """iPixelDCL, solid and dashed lines of Fig. 5: each map from the input and all the maps before it."""
    f1 = conv(x, k1, mode)
    f2 = conv(torch.cat([x, act(f1)], 1), k2, mode)
    f3 = conv(torch.cat([x, act(f1), act(f2)], 1), k3, mode)
    f4 = conv(torch.cat([x, act(f1), act(f2), act(f3)], 1), k4, mode)
    return interleave(f1, f2, f3, f4)


def ipixel_dcl_efficient(
    x: Tensor, k1: Tensor, k2: Tensor, k34: Tensor, mode: str, act: Activation = identity
) -> Tensor:
    """Efficient iPixelDCL: the last two maps from one convolution with ``k34`` (2C, Cin + 2C, k, k)."""
    f1 = conv(x, k1, mode)
    f2 = conv(torch.cat([x, act(f1)], 1), k2, mode)
    f34 = conv(torch.cat([x, act(f1), act(f2)], 1), k34, mode)
    f3, f4 = f34.chunk(2, 1)
    return interleave(f1, f2, f3, f4)


#: The forms of the layers, by class name and ``efficient``.
LITERAL = {
    ("PixelDCL", True): pixel_dcl_fig6,
    ("PixelDCL", False): pixel_dcl_fig5,
    ("IPixelDCL", True): ipixel_dcl_efficient,
    ("IPixelDCL", False): ipixel_dcl_full,
}


# --- from a layer's parameters to the paper's kernels --------------------------------------------


def dense(weight: Tensor, groups: int) -> Tensor:
    """A grouped kernel ``(C, Cin / groups, *taps)`` as ``(C, Cin, *taps)``, zero across groups."""
    rows = []
    for index, block in enumerate(weight.chunk(groups)):
        before = torch.cat([torch.zeros_like(block)] * index + [block[:, :0]], 1)
        after = torch.cat([torch.zeros_like(block)] * (groups - 1 - index) + [block[:, :0]], 1)
        rows.append(torch.cat([before, block, after], 1))
    return torch.cat(rows)


def shared_kernel(weight_h: Tensor, weight_v: Tensor, kernel_size: int) -> Tensor:
    """The ``k x k`` kernel k3 of Fig. 6 from its live taps, zero where the mask is.

    ``weight_h`` holds the taps with dy even and dx odd, ``weight_v`` those with dy odd and dx even, both
    in reading order.
    """
    radius = kernel_size // 2
    remaining_h, remaining_v = (list(w.flatten(2).unbind(2)) for w in (weight_h, weight_v))
    taps = []
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if (dy + dx) % 2 == 0:
                taps.append(torch.zeros_like(weight_h[:, :, 0, 0]))
            else:
                taps.append((remaining_h if dy % 2 == 0 else remaining_v).pop(0))
    if remaining_h or remaining_v:
        raise ValueError(f"more taps than a masked kernel of size {kernel_size} has")
    return torch.stack(taps, 2).unflatten(2, (kernel_size, kernel_size))


def literal_kernels(layer: nn.Module) -> list[Tensor]:
    """The paper's dense kernels k1, k2, ... of a layer, as differentiable functions of its parameters.

    Those of a separable layer read what its 1 x 1 convolution made of the input.
    """
    w = layer.effective_weights()
    k1 = dense(w["weight_p00"], layer.groups if layer.separable else 1)
    if type(layer).__name__ == "PixelDCL" and layer.efficient:
        h, v = dense(w["weight_h"], layer.groups), dense(w["weight_v"], layer.groups)
        return [k1, dense(w["weight_p11"], layer.groups), shared_kernel(h, v, layer.kernel_size)]

    # What each map reads, in the order of the concatenation.
    reads: dict[str, list[Tensor]] = {"p11": [], "p01": [], "p10": []}
    for name in ("weight_from_x", "weight_from_p00", "weight_from_p11", "weight_from_p01"):
        if name in w:
            stacked = w[name].split(layer.out_channels)
            targets = ("p11", "p01", "p10")[3 - len(stacked) :]
            for target, weight in zip(targets, stacked, strict=True):
                reads[target].append(dense(weight, layer.groups))
    k2, k3, k4 = (torch.cat(kernels, 1) for kernels in reads.values())
    if layer.efficient:
        return [k1, k2, torch.cat([k3, k4])]
    return [k1, k2, k3, k4]


def upsample(layer: nn.Module, x: Tensor) -> Tensor:
    """What a ``PixelDCL`` or ``IPixelDCL`` should return for ``x``."""
    literal = LITERAL[type(layer).__name__, layer.efficient]
    if layer.separable:
        x = torch.einsum("od,ndyx->noyx", layer.weight_pointwise[:, :, 0, 0], x)
    out = literal(x, *literal_kernels(layer), layer.padding_mode, layer.inner_act or identity)
    return out if layer.repeat is None else upsample(layer.repeat, out)
