"""Efficient PixelDCL with ``kernel_size=3`` channel by channel: in fewer calls, or tap by tap.

As four depthwise convolutions the last two phases cost calls on small maps, and on large ones in NCHW the
reorderings that the library makes around each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .interleave import being_traced, interleave
from .same_conv import same_conv

__all__ = ["in_two_calls", "last_phases", "suits_last_phases", "suits_two_calls"]

#: Values of a map up to which calls of depthwise convolutions cost more than their products.
_FEW = 2**16


def suits_two_calls(p00: Tensor, weight_h: Tensor) -> bool:
    """Tell whether :func:`in_two_calls` is the fastest way: for small maps on a CPU."""
    return _channel_by_channel(p00, weight_h) and p00.numel() <= _FEW


def suits_last_phases(p00: Tensor, weight_h: Tensor, padding_mode: str) -> bool:
    """Tell whether :func:`last_phases` is the fastest way: in NCHW on a CPU, with full precision."""
    return (
        _channel_by_channel(p00, weight_h)
        and padding_mode == "zeros"
        and p00.dtype in (torch.float32, torch.float64)
        and p00.is_contiguous()
    )


def _channel_by_channel(p00: Tensor, weight_h: Tensor) -> bool:
    # An exported file is to hold few operations, a compiler needs no help.
    return tuple(weight_h.shape[1:]) == (1, 1, 2) and p00.device.type == "cpu" and not being_traced()


def in_two_calls(
    p00: Tensor,
    source00: Tensor,
    weight_p11: Tensor,
    weight_h: Tensor,
    weight_v: Tensor,
    padding_mode: str,
    inner_act: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Make p11, p01 and p10: all that reads p00 in one convolution, then all that reads p11.

    The live taps stand in kernels of 3 x 3 with zeros around them, so that nothing is cut off.

    Args:
        p00: The first map, ``(N, C, H, W)``.
        source00: The same after the activation between the maps.
        weight_p11: Kernel of p11, ``(C, 1, 3, 3)``.
        weight_h: Left and right, ``(C, 1, 1, 2)``.
        weight_v: Up and down, ``(C, 1, 2, 1)``.
        padding_mode: 'zeros' or 'replicate'.
        inner_act: That activation.

    Returns:
        The four phases interleaved, ``(N, C, 2H, 2W)``.
    """
    channels = p00.size(1)
    # p01 begins at the pixel of p00 and ends at that of p11, p10 likewise: (left, right, top, bottom) zeros.
    from00 = torch.cat([weight_p11, F.pad(weight_h, (1, 0, 1, 1)), F.pad(weight_v, (1, 1, 1, 0))])
    from11 = torch.cat([F.pad(weight_v, (1, 1, 0, 1)), F.pad(weight_h, (0, 1, 1, 1))])
    made = same_conv(torch.cat([source00] * 3, 1), from00, padding_mode, 3 * channels)
    p11, rest = made.split((channels, 2 * channels), 1)
    source11 = inner_act(p11) if inner_act else p11
    rest = rest + same_conv(torch.cat([source11] * 2, 1), from11, padding_mode, 2 * channels)
    return interleave(p00, p11, *rest.chunk(2, 1))


def last_phases(p00: Tensor, p11: Tensor, weight_h: Tensor, weight_v: Tensor) -> tuple[Tensor, Tensor]:
    """Make p01 and p10 of a layer with ``kernel_size=3`` whose ``groups`` are its channels.

    With ``(l, r)`` and ``(u, d)`` the horizontal and vertical taps of a channel, zeros beyond the border::

        p01[i, j] = l p00[i, j] + r p00[i, j + 1] + u p11[i - 1, j] + d p11[i, j]
        p10[i, j] = u p00[i, j] + d p00[i + 1, j] + l p11[i, j - 1] + r p11[i, j]

    They are added up tap by tap.

    Args:
        p00: The first map, ``(N, C, H, W)``.
        p11: The second one.
        weight_h: ``l`` and ``r``, shape ``(C, 1, 1, 2)``.
        weight_v: ``u`` and ``d``, shape ``(C, 1, 2, 1)``.

    Returns:
        p01 and p10 in the shape of p00.
    """
    p01, p10 = _LastPhases.apply(p00, p11, weight_h, weight_v)
    return p01, p10


_ALL = slice(None)
_BUT_FIRST = slice(1, None)
_BUT_LAST = slice(-1)


class _LastPhases(torch.autograd.Function):
    @staticmethod
    def forward(p00: Tensor, p11: Tensor, weight_h: Tensor, weight_v: Tensor) -> tuple[Tensor, Tensor]:
        left, right, up, down = _taps(weight_h, weight_v)
        p01, p10 = p00 * left, p00 * up
        _add(p01, right, p00, columns=-1)
        _add(p01, down, p11)
        _add(p01, up, p11, rows=1)
        _add(p10, down, p00, rows=-1)
        _add(p10, right, p11)
        _add(p10, left, p11, columns=1)
        return p01, p10

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad01: Tensor, grad10: Tensor) -> tuple[Tensor | None, ...]:
        p00, p11, weight_h, weight_v = ctx.saved_tensors
        left, right, up, down = _taps(weight_h, weight_v)
        # They are read eight times, and come as sub-grids of a map.
        g01, g10 = grad01.contiguous(), grad10.contiguous()
        grads: list[Tensor | None] = [None] * 4
        if any(ctx.needs_input_grad[:2]):
            to00, to11 = g01 * left, g01 * down
            _add(to00, right, g01, columns=1)
            _add(to00, up, g10)
            _add(to00, down, g10, rows=1)
            _add(to11, up, g01, rows=-1)
            _add(to11, right, g10)
            _add(to11, left, g10, columns=-1)
            grads[:2] = to00, to11
        if any(ctx.needs_input_grad[2:]):
            sums = (
                _dot(g01, p00) + _dot(g10, p11, columns=1),
                _dot(g01, p00, columns=-1) + _dot(g10, p11),
                _dot(g01, p11, rows=1) + _dot(g10, p00),
                _dot(g01, p11) + _dot(g10, p00, rows=-1),
            )
            grads[2] = torch.stack(sums[:2], 1).view(weight_h.shape)
            grads[3] = torch.stack(sums[2:], 1).view(weight_v.shape)
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        maps, weights = ctx.saved_tensors[:2], ctx.saved_tensors[2:]
        moved = [
            torch.zeros_like(x) if t is None else t for x, t in zip(ctx.saved_tensors, tangents, strict=True)
        ]
        # Linear in the maps and in the weights.
        of_maps = _LastPhases.apply(*moved[:2], *weights)
        of_weights = _LastPhases.apply(*maps, *moved[2:])
        return of_maps[0] + of_weights[0], of_maps[1] + of_weights[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
        # Channels are independent of each other, and have weights of their own: one more dimension of maps
        # or of weights is more channels.
        size = info.batch_size
        batched = [
            x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(inputs, in_dims, strict=True)
        ]
        maps = [x.transpose(0, 1).flatten(1, 2) for x in batched[:2]]
        made = _LastPhases.apply(*maps, *(x.flatten(0, 1) for x in batched[2:]))
        return tuple(x.unflatten(1, (size, -1)) for x in made), (1, 1)


def _taps(weight_h: Tensor, weight_v: Tensor) -> list[Tensor]:
    """Return l, r, u and d, each ``(C, 1, 1)``."""
    return [tap.view(-1, 1, 1) for tap in (*weight_h.unbind(3), *weight_v.unbind(2))]


def _shifted(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return what of a map stays on it if it is moved: down by a row, to the right by a column."""
    windows = {0: _ALL, 1: _BUT_LAST, -1: _BUT_FIRST}
    return x[..., windows[rows], windows[columns]]


def _add(total: Tensor, tap: Tensor, x: Tensor, rows: int = 0, columns: int = 0) -> None:
    """Add a map, moved and times a tap, in place."""
    _shifted(total, -rows, -columns).addcmul_(_shifted(x, rows, columns), tap)


def _dot(grad: Tensor, x: Tensor, rows: int = 0, columns: int = 0) -> Tensor:
    """Sum up, channel by channel, the products of a map with another one, which is moved."""
    return (_shifted(grad, -rows, -columns) * _shifted(x, rows, columns)).sum((0, 2, 3))
