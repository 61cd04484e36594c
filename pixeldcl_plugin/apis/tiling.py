"""Large pictures in blocks: where the blocks lie, and their logits at another size, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Block", "blocks", "interpolate"]

# Blocks begin on multiples of the coarsest stride in use, so that poolings see the same groups of
# pixels as in the whole picture.
_GRID = 32


@dataclass(frozen=True)
class Block:
    """A rectangle of a picture and the part of it whose logits are kept.

    Attributes:
        rows: Rows of the picture that pass the model.
        columns: Columns of the picture that pass the model.
        core_rows: Rows of the picture that are kept; within ``rows``.
        core_columns: Columns of the picture that are kept; within ``columns``.
        size: Height and width of the picture.
    """

    rows: slice
    columns: slice
    core_rows: slice
    core_columns: slice
    size: tuple[int, int]

    @property
    def height(self) -> int:
        """Rows that pass the model."""
        return self.rows.stop - self.rows.start

    @property
    def width(self) -> int:
        """Columns that pass the model."""
        return self.columns.stop - self.columns.start


def blocks(size: tuple[int, int], max_pixels: int) -> Iterator[Block]:
    """Cover a picture by blocks of at most ``max_pixels``, whose cores tile it.

    Args:
        size: Height and width of the picture.
        max_pixels: A picture up to this size is one block; at least 128x128. A larger one is cut into
            squares of about so many pixels, each with an eighth of its side as margin around the core.
    """
    height, width = size
    if height * width <= max_pixels:
        rows, columns = slice(0, height), slice(0, width)
        yield Block(rows, columns, rows, columns, size)
        return
    side = math.isqrt(max_pixels) // _GRID * _GRID
    margin = max(side // 8 // _GRID, 1) * _GRID
    for rows, core_rows in _intervals(height, side, margin):
        for columns, core_columns in _intervals(width, side, margin):
            yield Block(rows, columns, core_rows, core_columns, size)


def _intervals(length: int, side: int, margin: int) -> Iterator[tuple[slice, slice]]:
    """Yield intervals of at most ``side`` and their cores, which tile ``[0, length)``."""
    if length <= side:
        yield slice(0, length), slice(0, length)
        return
    step = side - 2 * margin
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield slice(max(start - margin, 0), min(stop + margin, length)), slice(start, stop)


def interpolate(
    logits: Tensor, block: Block, size: tuple[int, int], align_corners: bool, max_pixels: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Resize the core of a block to its share of the output, in bands of rows.

    Every value is what ``torch.nn.functional.interpolate(mode='bilinear')`` would give if the logits of
    the whole picture were resized at once.

    Args:
        logits: Those of the block, ``(N, classes, block.height, block.width)``.
        block: Where they lie in the picture.
        size: Height and width of the output of the whole picture.
        align_corners: As in ``interpolate``.
        max_pixels: The most output pixels in a band, if a row has not more.

    Yields:
        Rows and columns of the output, and its logits there.
    """
    if size == block.size:
        inner = logits[
            ...,
            block.core_rows.start - block.rows.start : block.core_rows.stop - block.rows.start,
            block.core_columns.start - block.columns.start : block.core_columns.stop - block.columns.start,
        ]
        yield block.core_rows, block.core_columns, inner
        return
    source_y, first_row, last_row = _sources(block.core_rows, block.size[0], size[0], align_corners)
    source_x, first_column, last_column = _sources(block.core_columns, block.size[1], size[1], align_corners)
    if first_row == last_row or first_column == last_column:  # a shrunk picture: the core has no pixel
        return
    band = max(max_pixels // (last_column - first_column), 1)
    for start in range(first_row, last_row, band):
        stop = min(start + band, last_row)
        part = source_y[start - first_row : stop - first_row] - block.rows.start
        resized = _lerp(logits, part, dim=2)
        resized = _lerp(resized, source_x - block.columns.start, dim=3)
        yield slice(start, stop), slice(first_column, last_column), resized


def _sources(core: slice, length: int, out_length: int, align_corners: bool) -> tuple[Tensor, int, int]:
    """Return where the output pixels of a core lie in the picture, and the first and last of them."""
    position = torch.arange(out_length, dtype=torch.float64)
    if align_corners:
        source = position * ((length - 1) / max(out_length - 1, 1))
    else:
        source = ((position + 0.5) * (length / out_length) - 0.5).clamp_(0, length - 1)
    nearest = (source + 0.5).floor()
    first = int((nearest < core.start).sum())
    last = int((nearest < core.stop).sum())
    return source[first:last], first, last


def _lerp(values: Tensor, source: Tensor, dim: int) -> Tensor:
    """Interpolate linearly along one dimension at positions within it."""
    low = source.floor().long().clamp_(0, values.shape[dim] - 1)
    high = (low + 1).clamp_(max=values.shape[dim] - 1)
    weight = (source - low).to(values)
    weight = weight.reshape([-1 if d == dim else 1 for d in range(values.dim())])
    low, high = low.to(values.device), high.to(values.device)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), weight)
