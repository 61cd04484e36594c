"""Phases to the map that has them as sub-grids: the last step of every pixel deconvolution.

Source: Gao, Yuan, Wang, Ji, "Pixel Deconvolutional Networks" (arXiv 1705.06820), Fig. 3; the order of the
eight phases of a volume is that of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "PHASE_OFFSETS",
    "PHASE_OFFSETS_3D",
    "Cut",
    "add_up",
    "being_traced",
    "empty_upsampled",
    "interleave",
    "interleave_sums",
    "memory_format",
]

#: Offsets (row, column) of the four phases, in the order in which they are made.
PHASE_OFFSETS = ((0, 0), (1, 1), (0, 1), (1, 0))
#: Offsets (depth, row, column) of the eight phases of a volume, in the order in which they are made.
PHASE_OFFSETS_3D: tuple[tuple[int, ...], ...] = (
    (0, 0, 0),
    (1, 1, 1),
    (1, 1, 0),
    (1, 0, 1),
    (0, 1, 1),
    (1, 0, 0),
    (0, 0, 1),
    (0, 1, 0),
)


def interleave(*phases: Tensor) -> Tensor:
    """Merge phases into the map that has them as sub-grids ("periodical shuffling", Fig. 3).

    Args:
        *phases: Four maps ``p00 p11 p01 p10`` of shape ``(N, C, H, W)``, or for a volume eight of shape
            ``(N, C, D, H, W)`` in the order of :data:`PHASE_OFFSETS_3D`.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` with ``out[..., a::2, b::2] == pab``, or ``(N, C, 2D, 2H, 2W)``,
        in the memory format of the first phase.

    Raises:
        ValueError: If the phases are not four or eight maps of one such shape.
    """
    shapes = [tuple(phase.shape) for phase in phases]
    # Compared, not hashed: sizes that an export leaves open have no hash.
    alike = all(shape == shapes[0] for shape in shapes)
    if not alike or (len(phases), len(shapes[0]) if shapes else 0) not in ((4, 4), (8, 5)):
        raise ValueError(
            "interleave takes four phases of one shape (N, C, H, W) or eight of one shape "
            f"(N, C, D, H, W), got {shapes}"
        )
    return interleave_sums(*((phase,) for phase in phases))


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of a map ``(N, C, H, W)`` or a volume ``(N, C, D, H, W)``."""
    if x.is_contiguous():
        return torch.contiguous_format
    channels_last = torch.channels_last_3d if x.dim() == 5 else torch.channels_last
    try:
        return channels_last if x.is_contiguous(memory_format=channels_last) else torch.contiguous_format
    except RuntimeError:  # within torch.vmap there is no telling, and no other format than one
        return torch.contiguous_format


def being_traced() -> bool:
    """Tell whether torch.compile, torch.export or TorchScript's tracer records the operations."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def empty_upsampled(x: Tensor) -> Tensor:
    """Return an unwritten map of twice the size in the dtype, device and memory format of ``x``."""
    shape = _twice(x)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


Windows = tuple[slice, ...]


class Cut(NamedTuple):
    """A map that is larger than a phase, and for each axis after the channels what of it belongs there."""

    whole: Tensor
    windows: Windows

    def view(self) -> Tensor:
        """Return the part that belongs to the phase."""
        index: tuple[Any, ...] = (..., *self.windows)
        return self.whole[index] if self.windows else self.whole


def interleave_sums(*phases: Sequence[Tensor | Cut]) -> Tensor:
    """Interleave four or eight phases in their order, each given as the addends of a sum.

    The first phase is one map, and whole.
    """
    if being_traced():  # a compiler fuses this by itself, and cannot see through out=
        views = ([term.view() if isinstance(term, Cut) else term for term in phase] for phase in phases)
        return _stack_phases(*map(add_up, views))
    cuts = [[term if isinstance(term, Cut) else Cut(term, ()) for term in phase] for phase in phases]
    windows = tuple(tuple(cut.windows for cut in phase) for phase in cuts)
    return _InterleaveSums.apply(windows, *(cut.whole for phase in cuts for cut in phase))


def _offsets(phases: int) -> tuple[tuple[int, ...], ...]:
    return PHASE_OFFSETS if phases == len(PHASE_OFFSETS) else PHASE_OFFSETS_3D


def _twice(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], *(2 * size for size in x.shape[2:]))


def _sub_grid(x: Tensor, offset: tuple[int, ...]) -> Tensor:
    """Return the view of a map that is one of its phases."""
    index: tuple[Any, ...] = (..., *(slice(start, None, 2) for start in offset))
    return x[index]


def _stack_phases(*phases: Tensor) -> Tensor:
    first = phases[0]
    at: dict[tuple[int, ...], Tensor] = dict(zip(_offsets(len(phases)), phases, strict=True))
    for dim in range(first.dim(), 2, -1):  # joins pairs along the last axis, then along the one before it
        at = {o[:-1]: torch.stack((x, at[(*o[:-1], 1)]), dim) for o, x in at.items() if not o[-1]}
    return at[()].reshape(_twice(first)).contiguous(memory_format=memory_format(first))


class _InterleaveSums(torch.autograd.Function):
    """Writes each phase once, straight into its place in the output.

    The same out of stack, add and reshape writes the whole map three times, and on a CPU it is the
    memory traffic of this step, not its arithmetic, that costs (docs/performance.md).
    """

    @staticmethod
    def forward(windows: tuple[tuple[Windows, ...], ...], *terms: Tensor) -> Tensor:
        out = empty_upsampled(terms[0])
        for offset, addends in zip(_offsets(len(windows)), _by_phase(windows, terms), strict=True):
            phase = _sub_grid(out, offset)
            if len(addends) == 1:
                phase.copy_(addends[0])
            else:
                torch.add(add_up(addends[:-1]), addends[-1], out=phase)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.windows = inputs[0]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        grads: list[Tensor | None] = [None]
        for offset, phase in zip(_offsets(len(ctx.windows)), ctx.windows, strict=True):
            # Padding keeps the memory format; the gradient of a plain slice is NCHW whatever its own is.
            grads += [_uncut(_sub_grid(grad, offset), windows) for windows in phase]
        return tuple(grads)

    @staticmethod
    def jvp(ctx, _, *tangents: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        # The step is linear: tangents take it as the values did.
        return _stack_phases(*map(add_up, _by_phase(ctx.windows, tangents)))

    @staticmethod
    def vmap(info, in_dims, windows, *terms: Tensor) -> tuple[Tensor, int]:  # type: ignore[no-untyped-def]
        # Maps are independent of each other: one more dimension of them is a larger batch.
        terms = tuple(
            term.expand(info.batch_size, *term.shape) if dim is None else term.movedim(dim, 0)
            for term, dim in zip(terms, in_dims[1:], strict=True)
        )
        out = _InterleaveSums.apply(windows, *(term.flatten(0, 1) for term in terms))
        return out.unflatten(0, terms[0].shape[:2]), 0


def _by_phase(windows: Sequence[Sequence[Windows]], terms: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the addends of each phase, cut to its size."""
    rest = iter(terms)
    return [[Cut(next(rest), of_term).view() for of_term in phase] for phase in windows]


def _uncut(x: Tensor, windows: Windows) -> Tensor:
    """Put zeros where a map was cut."""
    pads = [pad for window in reversed(windows) for pad in (window.start or 0, -(window.stop or 0))]
    return F.pad(x, pads) if any(pads) else x


def add_up(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of one or more tensors."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
