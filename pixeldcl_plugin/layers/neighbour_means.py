"""Upsampling x2 in which every output pixel is a weighted mean of neighbours, with weights of its own.

The arithmetic of :class:`~pixeldcl_plugin.layers.guided.GuidedPixelDCL`, without parameters, for the
neighbours of :mod:`pixeldcl_plugin.layers.neighbours`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .common import no_autocast
from .interleave import PHASE_OFFSETS, being_traced, interleave
from .neighbours import STAGES, Neighbour, phase_neighbours
from .same_conv import replicate_pad

__all__ = ["mean_of_neighbours"]

#: Pixels of small images that are worked on together, on a CPU: what belongs to them is to stay in the cache.
_CHUNK_PIXELS = 8192
#: Bytes of windows gathered at a time for the gradient of the weights.
_CHUNK_BYTES = 2**19
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

    In the order 'pixeldcl' the latter three have no ``x[3x3]``; without an order all four have nothing else.

    Args:
        x: Input, ``(N, C, H, W)``.
        logits: Logits of the weights of p00, p11, p01 and p10, one phase after the other, in the order of
            :func:`~pixeldcl_plugin.layers.neighbours.phase_neighbours`:
            ``(N, 9 + 13 + 13 + 13, H, W)`` for 'ipixeldcl', ``(N, 9 + 4 + 4 + 4, H, W)`` for 'pixeldcl',
            ``(N, 4 * 9, H, W)`` for None. Channels share them.
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
            return _mean_by_tap(*terms, order).to(x.dtype)
        out = _MeanOfNeighbours.apply(terms[0].permute(0, 2, 3, 1), terms[1], order)
        return out.permute(0, 3, 1, 2).to(x.dtype)


def _mean_by_tap(x: Tensor, logits: Tensor, order: str | None) -> Tensor:
    """Add up one product for each neighbour: a compiler fuses them, an exported graph holds nothing else."""
    h, w = x.shape[2:]
    neighbours = phase_neighbours(order)
    phases: list[Tensor] = []
    sources: list[Tensor] = []
    for neighbours_of, phase_logits in zip(neighbours, logits.split([*map(len, neighbours)], 1), strict=True):
        if len(sources) < 3:  # x, p00 and p11 are read again, p01 is not
            sources.append(replicate_pad(phases[-1] if phases else x, 1, 1))
        weights = phase_logits.softmax(1).unsqueeze(2).unbind(1)
        terms = [
            weight * sources[source][..., 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]
            for weight, (source, dy, dx) in zip(weights, neighbours_of, strict=True)
        ]
        phases.append(sum(terms[1:], terms[0]))
    return interleave(*phases)


class _MeanOfNeighbours(torch.autograd.Function):
    """The pixels as rows of a table, the means as bags of its rows: ``(N, H, W, C)`` -> ``(N, 2H, 2W, C)``.

    ``torch.embedding_bag`` reads each row where it lies and adds up in registers: nothing is gathered or
    padded, and each phase is written once. Added tap by tap the output would be read and written 9 or 13
    times; the windows that a matrix product takes are 9 times the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, order: str | None) -> Tensor:
        n, h, w, c = x.shape
        out = x.new_empty(n, 2 * h, 2 * w, c)
        for images, layout in _chunks(x, order):
            table = x.new_empty(layout.maps, layout.pixels, c)
            _write(x[images], table[0])
            made = 1
            for stage, stage_logits in zip(layout.stages, layout.split(logits[images]), strict=True):
                bags = _bags(stage_logits.softmax(2))
                for phase in stage.sums(table[:made].flatten(0, 1), bags).split(layout.pixels):
                    _write(phase, _phase(out[images], made - 1))
                    if made < layout.maps:
                        table[made] = phase
                    made += 1
        ctx.order = order
        ctx.save_for_backward(x, logits, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, logits, out = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_logits = x.new_empty(x.shape), logits.new_empty(logits.shape)
        for images, layout in _chunks(x, ctx.order):
            # The maps that are read; the gradients of the input and of all phases.
            table = x.new_empty(layout.maps, layout.pixels, x.size(3))
            grads = x.new_empty(1 + len(PHASE_OFFSETS), layout.pixels, x.size(3))
            _write(x[images], table[0])
            grads[0] = 0
            for number in range(len(PHASE_OFFSETS)):
                _write(_phase(grad[images], number), grads[1 + number])
                if 1 + number < layout.maps:
                    _write(_phase(out[images], number), table[1 + number])
            weights = [stage_logits.softmax(2) for stage_logits in layout.split(logits[images])]
            last = len(grads)
            # From the end: the last phases are read by none, their gradients are complete.
            for stage, stage_weights in reversed([*zip(layout.stages, weights, strict=True)]):
                first = last - stage.phases
                known = grads[:first].flatten(0, 1)
                known += stage.transposed_sums(grads[first:last].flatten(0, 1), _bags(stage_weights))
                last = first
            _write(grads[0], grad_x[images])
            products = layout.split(_products(table, grads[1:], layout))
            targets = layout.split(grad_logits[images])
            for product, weight, target in zip(products, weights, targets, strict=True):
                product *= weight
                torch.sub(product, weight * product.sum(2, keepdim=True), out=target)
        return grad_x, grad_logits, None


def _products(table: Tensor, grads: Tensor, layout: _Layout) -> Tensor:
    """Multiply every pixel of the phases with each of its neighbours: ``(images, T, pixels of one)``.

    One small matrix product for each pixel of the input: (4 phases, C) x (C, neighbours of any phase).
    """
    rows, windows = table.flatten(0, 1), layout.windows
    step = max(_CHUNK_BYTES // (windows.size(1) * rows.size(1) * rows.element_size()), 1)
    products = grads.new_empty(layout.pixels, len(grads), windows.size(1))
    for start in range(0, layout.pixels, step):
        chunk = slice(start, start + step)
        window = rows.index_select(0, windows[chunk].flatten()).view(-1, windows.size(1), rows.size(1))
        torch.bmm(grads[:, chunk].transpose(0, 1), window.transpose(1, 2), out=products[chunk])
    by_image = products.view(layout.images, layout.pixels // layout.images, -1).transpose(1, 2).contiguous()
    return by_image.index_select(1, layout.window_taps)


def _bags(weights: Tensor) -> Tensor:
    """Give each row that is made its weights: ``(images, phases, taps, h * w)`` -> rows x taps, flat."""
    return weights.permute(1, 0, 3, 2).flatten()


def _chunks(x: Tensor, order: str | None) -> Iterator[tuple[slice, _Layout]]:
    """Yield slices of images that are worked on together, with their layout."""
    n, h, w, _ = x.shape
    step = max(_CHUNK_PIXELS // (h * w), 1)
    for start in range(0, n, step):
        images = min(step, n - start)
        layout = _kept_layout if images * h * w <= _KEPT_PIXELS else _Layout
        yield slice(start, start + images), layout(images, h, w, order)


def _write(pixels: Tensor, target: Tensor) -> None:
    """Copy pixels in one shape, rows or a map, to another."""
    if target.is_contiguous():
        target.view(pixels.shape).copy_(pixels)
    else:
        target.copy_(pixels.view(target.shape))


def _phase(out: Tensor, number: int) -> Tensor:
    """View a phase of the output, ``(n, H, W, C)``."""
    row, column = PHASE_OFFSETS[number]
    return out[:, row::2, column::2]


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
        #: The distinct neighbours of each pixel of the input, (pixels, d); and for each weight its place
        #: among the products of four phases with d neighbours.
        self.windows = torch.stack(list(rows.values()), 1)
        places = [
            number * len(distinct) + distinct.index(neighbour)
            for number, phase in enumerate(phases)
            for neighbour in phase
        ]
        self.window_taps = torch.tensor(places)

    def _rows(self, neighbour: Neighbour, h: int, w: int) -> Tensor:
        source, dy, dx = neighbour
        row = (torch.arange(h, dtype=torch.int32) + dy).clamp(0, h - 1)
        column = (torch.arange(w, dtype=torch.int32) + dx).clamp(0, w - 1)
        image = torch.arange(source * self.images, (source + 1) * self.images, dtype=torch.int32)
        return ((image[:, None, None] * h + row[:, None]) * w + column).flatten()

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
        self._index = index.flatten()
        self.taps = index.size(1)
        self._known = known  # rows of the table so far
        self._offsets = torch.arange(0, index.numel(), self.taps, dtype=index.dtype)

    def sums(self, table: Tensor, bags: Tensor) -> Tensor:
        """Sum rows of the table, weighted by ``bags``, which holds as many weights as the index."""
        return _embedding_bag(table, self._index, self._offsets, bags)

    def transposed_sums(self, grads: Tensor, bags: Tensor) -> Tensor:
        """Sum, for each row of the table, the gradients of the rows that read it, weighted as these did."""
        reads, readers, offsets = self._readers
        return _embedding_bag(grads, readers, offsets, bags.index_select(0, reads))

    @cached_property
    def _readers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sort the places of the index by the row read: the places, the rows made there, each row's start."""
        reads = self._index.argsort(stable=True)
        counts = torch.bincount(self._index, minlength=self._known)
        offsets = counts.cumsum(0) - counts
        dtype = self._index.dtype
        return reads.to(dtype), (reads // self.taps).to(dtype), offsets.to(dtype)


def _embedding_bag(table: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    # What F.embedding_bag(mode='sum') calls, without its making of offsets.
    return torch.embedding_bag(table, index, offsets, False, 0, False, weights, False, None)[0]


_kept_layout = lru_cache(maxsize=16)(_Layout)
