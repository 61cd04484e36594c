"""Upsampling x2 in which every output pixel is a weighted mean of neighbours, with weights of its own.

The arithmetic of :class:`~pixeldcl_plugin.layers.guided.GuidedPixelDCL`, without parameters, for the
neighbours of :mod:`pixeldcl_plugin.layers.neighbours`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .common import no_autocast
from .interleave import PHASE_OFFSETS, being_traced
from .neighbours import STAGES, Neighbour, phase_neighbours
from .traced_means import mean_by_tap, mean_by_window

__all__ = ["mean_of_neighbours"]

#: Pixels of small images that are worked on together, on a CPU: what belongs to them is to stay in the cache.
_CHUNK_PIXELS = 4096
#: Layouts of maps of up to so many pixels are kept for the next call: 200 bytes a pixel, half a kilobyte in
#: training.
_KEPT_PIXELS = 2**14


def mean_of_neighbours(x: Tensor, logits: Tensor, order: str | None) -> Tensor:
    """Make every output pixel a weighted mean of its neighbours; beyond the border its pixels go on.

    With the order 'ipixeldcl', ``w`` the softmax of a phase's logits at (i, j), and ``x[3x3]`` the nine
    pixels around (i, j)::

        p00[i, j] = w . x[3x3]
        p11[i, j] = w . (x[3x3], p00[i, j], p00[i, j + 1], p00[i + 1, j], p00[i + 1, j + 1])
        p01[i, j] = w . (x[3x3], p00[i, j], p00[i, j + 1], p11[i - 1, j], p11[i, j])
        p10[i, j] = w . (x[3x3], p00[i, j], p00[i + 1, j], p11[i, j - 1], p11[i, j])

    In the order 'near' the first has ``x[3x3]`` but for ``x[i + 1, j + 1]``, the latter three the four pixels
    of ``x`` that they lie amid, ``x[i : i + 2, j : j + 2]``, ``x[i - 1 : i + 1, j : j + 2]`` and
    ``x[i : i + 2, j - 1 : j + 1]``. In the order 'pixeldcl' they have none of ``x``; without an order all
    four have nothing else.

    Args:
        x: Input, ``(N, C, H, W)``.
        logits: Logits of the weights of p00, p11, p01 and p10, one phase after the other, in the order of
            :func:`~pixeldcl_plugin.layers.neighbours.phase_neighbours`:
            ``(N, 4 * 8, H, W)`` for 'near', ``(N, 9 + 13 + 13 + 13, H, W)`` for 'ipixeldcl',
            ``(N, 9 + 4 + 4 + 4, H, W)`` for 'pixeldcl', ``(N, 4 * 9, H, W)`` for None. Channels share them.
        order: One of :data:`~pixeldcl_plugin.layers.neighbours.ORDERS`.

    Returns:
        Tensor of shape ``(N, C, 2H, 2W)`` in the dtype of ``x``, computed in float32 at least. Its memory
        format is channels_last on a CPU and that of ``x`` elsewhere.
    """
    # Rounded to half precision the weights would no longer add up to one.
    dtype = torch.promote_types(x.dtype, torch.float32)
    with no_autocast(x.device):
        terms = x.to(dtype), logits.to(dtype)
        if x.device.type != "cpu" or being_traced():
            traced = mean_by_window if torch.compiler.is_exporting() else mean_by_tap
            return traced(*terms, order).to(x.dtype)
        means = _MeanOfNeighbours.apply if torch.is_grad_enabled() else lambda *terms: _means(*terms)[0]
        out = means(terms[0].permute(0, 2, 3, 1), terms[1], order)
        return out.permute(0, 3, 1, 2).to(x.dtype)


class _MeanOfNeighbours(torch.autograd.Function):
    """The pixels as rows of a table, the means as bags of its rows: ``(N, H, W, C)`` -> ``(N, 2H, 2W, C)``.

    ``torch.embedding_bag`` reads each row where it lies and adds up in registers, and so does
    ``torch.sparse.sampled_addmm``, which multiplies the rows for the gradient of the weights: nothing is
    padded, nor gathered into windows, which would be 9 times the input. Added tap by tap the output would be
    read and written for each of 8 to 13 neighbours.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, order: str | None) -> Tensor:
        out, weights = _means(x, logits, order)
        ctx.order = order
        ctx.channels_last = logits.is_contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, out, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, out, *kept = ctx.saved_tensors
        n, h, w, c = x.shape
        grad = grad.contiguous()
        grad_x = x.new_empty(x.shape) if ctx.needs_input_grad[0] else None
        memory_format = torch.channels_last if ctx.channels_last else torch.contiguous_format
        taps = sum(map(len, phase_neighbours(ctx.order)))
        grad_logits = torch.empty(n, taps, h, w, dtype=x.dtype, memory_format=memory_format)
        tables = _tables(x, 2)
        for number, (images, layout) in enumerate(_chunks(x, ctx.order)):
            # The maps that are read; the gradients of the input and of all phases.
            table, grads = tables[:, : 5 * layout.pixels]
            table[: layout.pixels] = x[images].reshape(-1, c)
            layout.phases(out[images], table[layout.pixels : layout.maps * layout.pixels])
            grads[: layout.pixels] = 0
            layout.phases(grad[images], grads[layout.pixels :])
            stages = layout.stages
            weights = kept[number * len(stages) : (number + 1) * len(stages)]
            targets = layout.split(grad_logits[images])
            # From the end: the last phases are read by none, their gradients are complete.
            for stage, bags, target in reversed([*zip(stages, weights, targets, strict=True)]):
                of_weights = stage.products(grads[stage.made], table[: stage.known])
                of_logits = _of_logits(of_weights.view(-1, stage.taps), bags.view(-1, stage.taps))
                shape = stage.phases, layout.images, -1, stage.taps
                target.copy_(of_logits.view(shape).permute(1, 0, 3, 2))
                if grad_x is not None or stage.known > layout.pixels:
                    grads[: stage.known] += stage.transposed_sums(grads[stage.made], bags)
            if grad_x is not None:
                grad_x[images] = grads[: layout.pixels].view(-1, h, w, c)
        return grad_x, grad_logits, None


def _means(x: Tensor, logits: Tensor, order: str | None) -> tuple[Tensor, list[Tensor]]:
    """Return the means, and the weights of each stage of each chunk."""
    n, h, w, c = x.shape
    out = x.new_empty(n, 2 * h, 2 * w, c)
    weights = []
    tables = _tables(x, 1)
    for images, layout in _chunks(x, order):
        table = tables[0, : 5 * layout.pixels]
        table[: layout.pixels] = x[images].reshape(-1, c)
        for stage, bags in zip(layout.stages, layout.bags(logits[images]), strict=True):
            weights.append(bags)
            table[stage.made] = stage.sums(table[: stage.known], bags)
        torch.index_select(table, 0, layout.places, out=out[images].view(-1, c))
    return out, weights


def _of_logits(grads: Tensor, weights: Tensor) -> Tensor:
    """Go back through a softmax over the last dimension, ``(rows, taps)``.

    A matrix of ones sums, and writes the sum to every tap: less than half the time of a sum and a broadcast
    over so few.
    """
    ones = weights.new_ones(weights.size(1), weights.size(1))
    return torch.addmm(grads, grads * weights, ones, alpha=-1).mul_(weights)


def _images_at_once(h: int, w: int) -> int:
    return max(_CHUNK_PIXELS // (h * w), 1)


def _tables(x: Tensor, count: int) -> Tensor:
    """Return memory for tables of the input and four phases, large enough for every chunk."""
    n, h, w, c = x.shape
    return x.new_empty(count, 5 * min(_images_at_once(h, w), n) * h * w, c)


def _chunks(x: Tensor, order: str | None) -> Iterator[tuple[slice, _Layout]]:
    """Yield slices of images that are worked on together, with their layout."""
    n, h, w, _ = x.shape
    step = _images_at_once(h, w)
    for start in range(0, n, step):
        images = min(step, n - start)
        layout = _kept_layout if images * h * w <= _KEPT_PIXELS else _Layout
        yield slice(start, start + images), layout(images, h, w, order)


class _Layout:
    """The neighbours of all pixels of ``images`` maps of height h and width w, as rows of a table.

    The table holds the pixels of the input, then those of the phases that are read again, in their order.
    """

    def __init__(self, images: int, h: int, w: int, order: str | None) -> None:
        self.images = images
        self.pixels = images * h * w
        phases = phase_neighbours(order)
        distinct = sorted({neighbour for phase in phases for neighbour in phase})
        rows = {neighbour: self._rows(neighbour, h, w) for neighbour in distinct}
        self.maps = 1 + max(source for source, _, _ in distinct)
        self.stages = []
        made = 0
        for stage in STAGES[order]:
            index = torch.cat([torch.stack([rows[neighbour] for neighbour in phase], 1) for phase in stage])
            self.stages.append(_Stage(index, len(stage), (1 + made) * self.pixels))
            made += len(stage)
        # Stages of as many taps are worked on together: on small maps what counts is the number of calls.
        runs = [(taps, [*stages]) for taps, stages in groupby(self.stages, lambda stage: stage.taps)]
        self._runs = [(taps, [stage.rows * taps for stage in run]) for taps, run in runs]
        self._widths = [sum(sizes) // self.pixels for _, sizes in self._runs]
        # Row of the table for each pixel of the output; row of the output for each pixel of each phase.
        self.places = torch.empty(4 * self.pixels, dtype=torch.int32)
        self._apart = torch.arange(4 * self.pixels, dtype=torch.int32).view(images, 2 * h, 2 * w)
        self._apart = torch.cat([self._apart[:, a::2, b::2].flatten() for a, b in PHASE_OFFSETS])
        self.places[self._apart.long()] = torch.arange(self.pixels, 5 * self.pixels, dtype=torch.int32)

    def _rows(self, neighbour: Neighbour, h: int, w: int) -> Tensor:
        source, dy, dx = neighbour
        row = (torch.arange(h, dtype=torch.int32) + dy).clamp(0, h - 1)
        column = (torch.arange(w, dtype=torch.int32) + dx).clamp(0, w - 1)
        image = torch.arange(source * self.images, (source + 1) * self.images, dtype=torch.int32)
        return ((image[:, None, None] * h + row[:, None]) * w + column).flatten()

    def phases(self, maps: Tensor, target: Tensor) -> None:
        """Write phases of ``(images, 2H, 2W, C)``, in their order, into rows of a table."""
        torch.index_select(maps.view(-1, maps.size(3)), 0, self._apart[: len(target)], out=target)

    def bags(self, logits: Tensor) -> list[Tensor]:
        """Make the weights of each stage from ``(images, T, ...)``: rows that it makes x taps, flat."""
        logits = logits.reshape(self.images, logits.size(1), -1)
        bags: list[Tensor] = []
        for part, (taps, sizes) in zip(logits.split(self._widths, 1), self._runs, strict=True):
            weights = part.unflatten(1, (-1, taps)).softmax(2).permute(1, 0, 3, 2).flatten()
            bags.extend(weights.split(sizes))
        return bags

    def split(self, logits: Tensor) -> list[Tensor]:
        """Split ``(images, T, ...)`` by stage, into views ``(images, phases, taps, h * w)``."""
        logits = logits.reshape(self.images, logits.size(1), -1)
        by_stage = logits.split([stage.phases * stage.taps for stage in self.stages], 1)
        return [
            part.unflatten(1, (stage.phases, stage.taps))
            for part, stage in zip(by_stage, self.stages, strict=True)
        ]


class _Stage:
    """The rows that each row made in a stage is the sum of; and who reads a row, for its gradient."""

    def __init__(self, index: Tensor, phases: int, known: int) -> None:
        self.phases = phases
        self.rows, self.taps = index.shape
        self.known = known  #: rows of the table before the stage
        self.made = slice(known, known + self.rows)
        self._index = index.flatten()
        self._offsets = torch.arange(0, index.numel() + 1, self.taps, dtype=index.dtype)

    def sums(self, table: Tensor, bags: Tensor) -> Tensor:
        """Sum rows of the table, weighted by ``bags``, which holds as many weights as the index."""
        return _embedding_bag(table, self._index, self._offsets, bags)

    def transposed_sums(self, grads: Tensor, bags: Tensor) -> Tensor:
        """Sum, for each row of the table, the gradients of the rows that read it, weighted as these did."""
        reads, readers, offsets = self._readers
        return _embedding_bag(grads, readers, offsets, bags.index_select(0, reads))

    def products(self, grads: Tensor, table: Tensor) -> Tensor:
        """Multiply each row that was made with the rows that it read: rows x taps, flat."""
        _warn_of_csr()
        # torch refuses more products than pairs of rows, as there are on maps of less than taps pixels.
        table = F.pad(table, (0, 0, 0, max(self.taps - len(table), 0)))
        zeros = table.new_zeros(self._index.shape)
        shape = len(grads), len(table)
        pattern = torch.sparse_csr_tensor(self._offsets, self._index, zeros, shape, check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, grads, table.t(), beta=0.0).values()

    @cached_property
    def _readers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sort the places of the index by the row read: the places, the rows made there, each row's start."""
        reads = self._index.argsort(stable=True)
        counts = torch.bincount(self._index, minlength=self.known)
        dtype = self._index.dtype
        offsets = F.pad(counts.cumsum(0), (1, 0)).to(dtype)
        return reads.to(dtype), (reads // self.taps).to(dtype), offsets


def _embedding_bag(table: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    # What F.embedding_bag(mode='sum', include_last_offset=True) calls, without its checks.
    return torch.embedding_bag(table, index, offsets, False, 0, False, weights, True, None)[0]


@lru_cache(maxsize=1)
def _warn_of_csr() -> None:
    """Let torch warn that its sparse tensors are in beta, which it does once, where nobody hears it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), [])


_kept_layout = lru_cache(maxsize=16)(_Layout)
