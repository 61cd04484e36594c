"""Label maps as colours and as palette PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["VOID_COLOR", "colorize", "save_index_png", "voc_palette"]

#: The colour in pictures of labels that name no class.
VOID_COLOR = (224, 224, 224)


def voc_palette(count: int) -> np.ndarray:
    """Return the first colours of PASCAL VOC's map, RGB ``(count, 3)`` of dtype uint8.

    Bit 3k + c of a label is bit 7 - k of channel c: the lowest bits of the label become the highest of the
    colour, so that neighbours differ clearly.
    """
    bits = np.arange(count)[:, None] >> np.arange(24) & 1
    return np.packbits(bits.reshape(count, 8, 3).swapaxes(1, 2), axis=2)[..., 0]


def colorize(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Paint a label map.

    Args:
        labels: Class indices ``(H, W)``; those beyond the palette become :data:`VOID_COLOR`.
        palette: RGB colours ``(classes, 3)`` of dtype uint8.

    Returns:
        An array ``(H, W, 3)`` of dtype uint8.
    """
    colors = np.concatenate([palette, np.array([VOID_COLOR], np.uint8)])
    return colors[np.minimum(labels, len(palette))]


def save_index_png(labels: np.ndarray, palette: Sequence[Sequence[int]] | np.ndarray, file: Path) -> None:
    """Write a label map as a PNG whose pixels are the class indices.

    With up to 256 classes it carries the palette, so that viewers show colours, and VOC's colours for labels
    beyond it, such as 255 for void; with more classes it is 16-bit.

    Args:
        labels: Class indices ``(H, W)``.
        palette: RGB colours ``(classes, 3)``.
        file: Where to write.
    """
    if len(palette) > 256:
        Image.fromarray(labels.astype(np.uint16)).save(file, format="PNG")
        return
    image = Image.fromarray(labels.astype(np.uint8))
    # All 256 entries: PIL would write fewer bits a pixel for a short palette, and cut the indices to them.
    colors = voc_palette(256)
    colors[: len(palette)] = palette
    image.putpalette(colors.tobytes())
    image.save(file, format="PNG")
