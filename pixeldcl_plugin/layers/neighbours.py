"""The neighbours that an output pixel of :class:`~pixeldcl_plugin.layers.guided.GuidedPixelDCL` is a mean of.

Which pixels they are depends on the phase of the output and on the order in which the phases are made.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .interleave import PHASE_OFFSETS

__all__ = ["ORDERS", "STAGES", "Neighbour", "bilinear_weights", "phase_neighbours"]

#: A neighbour of pixel (i, j) of a phase: the map that it belongs to (0 is the input, then p00 and p11) and
#: its offset at the low resolution, (map, dy, dx).
Neighbour = tuple[int, int, int]

_X = tuple((0, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
# The pixels of the input that a phase lies amid, and bilinear interpolation reads.
_NEAR_P11 = tuple((0, dy, dx) for dy in (0, 1) for dx in (0, 1))
_NEAR_P01 = tuple((0, dy, dx) for dy in (-1, 0) for dx in (0, 1))
_NEAR_P10 = tuple((0, dy, dx) for dy in (0, 1) for dx in (-1, 0))
# p11[i, j] lies in the middle of four pixels of p00; p01 and p10 between two of p00 and two of p11.
_OF_P11 = ((1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
_OF_P01 = ((1, 0, 0), (1, 0, 1), (2, -1, 0), (2, 0, 0))
_OF_P10 = ((1, 0, 0), (1, 1, 0), (2, 0, -1), (2, 0, 0))

#: Stages: the phases of one stage are made together, from what the stages before it have made.
STAGES: dict[str | None, tuple[tuple[tuple[Neighbour, ...], ...], ...]] = {
    # Eight a phase: a CPU computes sixteen numbers at a time. The one left out of p00's is the farthest.
    "near": ((_X[:-1],), (_NEAR_P11 + _OF_P11,), (_NEAR_P01 + _OF_P01, _NEAR_P10 + _OF_P10)),
    "ipixeldcl": ((_X,), (_X + _OF_P11,), (_X + _OF_P01, _X + _OF_P10)),
    "pixeldcl": ((_X,), (_OF_P11,), (_OF_P01, _OF_P10)),
    None: ((_X, _X, _X, _X),),
}
#: Orders of the phases: that of iPixelDCL (from the input and the earlier phases), of the input the nearest
#: pixels or all 3x3; that of PixelDCL (the first from the input, the others from the earlier phases alone);
#: or none (each from the input alone).
ORDERS = tuple(STAGES)


def phase_neighbours(order: str | None) -> tuple[tuple[Neighbour, ...], ...]:
    """Return the neighbours of p00, p11, p01 and p10, each ``(map, dy, dx)``, map 0 being the input."""
    return tuple(itertools.chain.from_iterable(STAGES[order]))


def bilinear_weights(order: str | None) -> list[Tensor]:
    """Return the weights that make the means bilinear interpolation, one tensor a phase.

    In the order 'pixeldcl' there are none: p11 sees only pixels of p00, each of them a mean already. There
    it is p00 that is bilinear, and each later phase the mean of its neighbours.
    """
    weights = []
    for neighbours, (row, column) in zip(phase_neighbours(order), PHASE_OFFSETS, strict=True):
        # An output pixel lies a quarter of a pixel before or after the pixel (i, j) of the input.
        near = (2 * row - 1, 2 * column - 1)
        taps = [
            _share(dy, near[0]) * _share(dx, near[1]) if source == 0 else 0.0 for source, dy, dx in neighbours
        ]
        weights.append(torch.tensor(taps if any(taps) else [1 / len(taps)] * len(taps)))
    return weights


def _share(offset: int, near: int) -> float:
    return {0: 0.75, near: 0.25}.get(offset, 0.0)
