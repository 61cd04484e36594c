"""The means of :mod:`~pixeldcl_plugin.layers.neighbour_means` for what records operations or fuses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from .interleave import add_up, interleave
from .neighbours import Neighbour, phase_neighbours
from .same_conv import replicate_pad

__all__ = ["mean_by_tap", "mean_by_window"]

Mean = Callable[[Sequence[Tensor], Tensor, Sequence[Neighbour]], Tensor]


def mean_by_tap(x: Tensor, logits: Tensor, order: str | None) -> Tensor:
    """Add up one product for each neighbour: a compiler fuses them, a GPU need not gather anything."""
    return _phase_by_phase(x, logits, order, _by_tap)


def mean_by_window(x: Tensor, logits: Tensor, order: str | None) -> Tensor:
    """Gather what a phase reads of a map in one convolution whose kernels pick one pixel each.

    That is a fifth of the operations: those of an exported graph are traced, converted and written one by
    one, with sizes that are open.
    """
    return _phase_by_phase(x, logits, order, _by_window)


def _phase_by_phase(x: Tensor, logits: Tensor, order: str | None, mean: Mean) -> Tensor:
    neighbours = phase_neighbours(order)
    phases: list[Tensor] = []
    sources: list[Tensor] = []
    for neighbours_of, phase_logits in zip(neighbours, logits.split([*map(len, neighbours)], 1), strict=True):
        if len(sources) < 3:  # x, p00 and p11 are read again, p01 is not
            sources.append(replicate_pad(phases[-1] if phases else x, 1, 1))
        phases.append(mean(sources, phase_logits.softmax(1), neighbours_of))
    return interleave(*phases)


def _by_tap(sources: Sequence[Tensor], weights: Tensor, neighbours: Sequence[Neighbour]) -> Tensor:
    h, w = weights.shape[2:]
    return add_up(
        [
            weight * sources[source][..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
            for weight, (source, dy, dx) in zip(weights.unsqueeze(2).unbind(1), neighbours, strict=True)
        ]
    )


def _by_window(sources: Sequence[Tensor], weights: Tensor, neighbours: Sequence[Neighbour]) -> Tensor:
    by_source = [[*members] for _, members in groupby(neighbours, key=itemgetter(0))]
    terms = []
    for members, part in zip(by_source, weights.split([*map(len, by_source)], 1), strict=True):
        source = sources[members[0][0]]
        channels = source.size(1)
        # Counted row by row, the place in 3 x 3 that a kernel picks.
        places = [3 * (1 + dy) + 1 + dx for _, dy, dx in members]
        kernels = [[float(place == tap) for tap in range(9)] for place in places] * channels
        kernel = torch.tensor(kernels, dtype=source.dtype, device=source.device).view(-1, 1, 3, 3)
        window = F.conv2d(source, kernel, groups=channels)
        terms.append((window.unflatten(1, (channels, len(members))) * part.unsqueeze(1)).sum(2))
    return add_up(terms)
