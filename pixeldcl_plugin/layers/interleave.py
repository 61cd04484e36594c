"""Four phases to the map that has them as sub-grids: the last step of every pixel deconvolution.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820), Fig. 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "PHASE_OFFSETS",
    "add_up",
    "being_traced",
    "empty_upsampled",
    "interleave",
    "interleave_sums",
    "memory_format",
]

#: Offsets (row, column) of the four phases, in the order in which they are made.
PHASE_OFFSETS = ((0, 0), (1, 1), (0, 1), (1, 0))


def interleave(p00: Tensor, p11: Tensor, p01: Tensor, p10: Tensor) -> Tensor:
    """Merge four phases into the map that has them as sub-grids ("periodical shuffling", Fig. 3).

    Args:
        p00: Phase of the even rows and even columns, shape ``(N, C, H, W)``.
        p11: Phase of the odd rows and odd columns, same shape.
        p01: Phase of the even rows and odd columns, same shape.
        p10: Phase of the odd rows and even columns, same shape.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` with ``out[..., a::2, b::2] == pab``, in the memory format of
        ``p00``.

    Raises:
        ValueError: If the phases are not four maps of one shape.
    """
    if p00.dim() != 4 or not p00.shape == p11.shape == p01.shape == p10.shape:
        shapes = [tuple(p.shape) for p in (p00, p11, p01, p10)]
        raise ValueError(f"interleave takes four phases of one shape (N, C, H, W), got {shapes}")
    return interleave_sums((p00,), (p11,), (p01,), (p10,))


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of a map ``(N, C, H, W)``."""
    if x.is_contiguous():
        return torch.contiguous_format
    try:
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # within torch.vmap there is no telling, and no other format than one
        channels_last = False
    return torch.channels_last if channels_last else torch.contiguous_format


def being_traced() -> bool:
    """Tell whether torch.compile, torch.export or TorchScript's tracer records the operations."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def empty_upsampled(x: Tensor) -> Tensor:
    """Return an unwritten ``(N, C, 2H, 2W)`` in the dtype, device and memory format of ``(N, C, H, W)``."""
    n, c, h, w = x.shape
    shape = (n, c, 2 * h, 2 * w)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def interleave_sums(*phases: Sequence[Tensor]) -> Tensor:
    """Interleave four phases (p00, p11, p01, p10), each given as the addends of a sum."""
    if being_traced():  # a compiler fuses this by itself, and cannot see through out=
        return _stack_phases(*map(add_up, phases))
    counts = tuple(len(phase) for phase in phases)
    return _InterleaveSums.apply(counts, *(term for phase in phases for term in phase))


def _stack_phases(p00: Tensor, p11: Tensor, p01: Tensor, p10: Tensor) -> Tensor:
    n, c, h, w = p00.shape
    even, odd = torch.stack((p00, p01), dim=4), torch.stack((p10, p11), dim=4)
    out = torch.stack((even, odd), dim=3).reshape(n, c, 2 * h, 2 * w)
    return out.contiguous(memory_format=memory_format(p00))


class _InterleaveSums(torch.autograd.Function):
    """Writes each phase once, straight into its place in the output.

    The same out of stack, add and reshape writes the whole map three times, and on a CPU it is the
    memory traffic of this step, not its arithmetic, that costs (docs/performance.md).
    """

    @staticmethod
    def forward(counts: tuple[int, ...], *terms: Tensor) -> Tensor:
        out = empty_upsampled(terms[0])
        start = 0
        for (row, column), count in zip(PHASE_OFFSETS, counts, strict=True):
            phase, addends = out[..., row::2, column::2], terms[start : start + count]
            if count == 1:
                phase.copy_(addends[0])
            else:
                torch.add(add_up(addends[:-1]), addends[-1], out=phase)
            start += count
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.counts = inputs[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        grads: list[Tensor | None] = [None]
        for (row, column), count in zip(PHASE_OFFSETS, ctx.counts, strict=True):
            grads += [grad[..., row::2, column::2]] * count
        return tuple(grads)

    @staticmethod
    def jvp(ctx, _, *tangents: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        rest = iter(tangents)  # the step is linear: tangents take it as the values did
        return _stack_phases(*(add_up([next(rest) for _ in range(count)]) for count in ctx.counts))

    @staticmethod
    def vmap(info, in_dims, counts, *terms: Tensor) -> tuple[Tensor, int]:  # type: ignore[no-untyped-def]
        # Maps are independent of each other: one more dimension of them is a larger batch.
        terms = tuple(
            term.expand(info.batch_size, *term.shape) if dim is None else term.movedim(dim, 0)
            for term, dim in zip(terms, in_dims[1:], strict=True)
        )
        out = _InterleaveSums.apply(counts, *(term.flatten(0, 1) for term in terms))
        return out.unflatten(0, terms[0].shape[:2]), 0


def add_up(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of one or more tensors."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
