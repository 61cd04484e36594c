"""Pictures in and out: reading any common image as RGB, label maps as colours and as palette PNGs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "VOID_COLOR",
    "ImageSource",
    "colorize",
    "image_size",
    "overlay",
    "read_image",
    "save_index_png",
]

ImageSource: TypeAlias = str | PathLike[str] | Image.Image | np.ndarray

#: The colour of labels that name no class.
VOID_COLOR = (224, 224, 224)


def image_size(path: str | PathLike[str]) -> tuple[int, int]:
    """Read width and height from the header of an image file, without decoding the picture.

    Raises:
        ValueError: If the file cannot be read or is no image.
    """
    with _open(Path(path)) as image:
        return image.size


def read_image(source: ImageSource) -> np.ndarray:
    """Read an image as 8-bit RGB.

    Files and PIL images are turned upright by their EXIF orientation; grey and palette images become
    RGB, an alpha channel is dropped (its colours are kept, not blended with a background), and 16-bit
    grey keeps its high byte. That is also what OpenCV, with which MMSegmentation reads, makes of them.

    Args:
        source: A path, a PIL image, or an array ``(H, W, 3)`` of dtype uint8 in the order R, G, B.

    Returns:
        An array ``(H, W, 3)`` of dtype uint8.

    Raises:
        ValueError: If the file is missing, truncated or no image, an array has another shape or dtype,
            or the pixels are 32-bit numbers, whose range nobody knows.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or source.size == 0:
            raise ValueError(
                f"an image array must be (H, W, 3) RGB of uint8, got {source.shape} of {source.dtype}"
            )
        return source
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image")
    path = Path(source)
    with _open(path) as image:
        return _to_rgb(image, str(path))


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"no image file {str(path)!r}")
    try:
        with warnings.catch_warnings():
            # Large pictures are welcome here; those that PIL calls an attack it still refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(f"{str(path)!r} is not an image that can be read") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{name} has 32-bit pixels (mode {image.mode!r}), whose range is not known: convert it to 8 bits"
        )
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what PIL's decoders raise
        raise ValueError(f"cannot read {name}: {error}") from error


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


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Blend a painted label map over its image.

    Args:
        image: ``(H, W, 3)`` of dtype uint8.
        labels: Class indices ``(H, W)``.
        palette: RGB colours ``(classes, 3)`` of dtype uint8.
        opacity: Share of the label's colour, 0 to 1.
    """
    return cv2.addWeighted(image, 1 - opacity, colorize(labels, palette), opacity, 0)


def save_index_png(labels: np.ndarray, palette: Sequence[Sequence[int]] | np.ndarray, file: Path) -> None:
    """Write a label map as a PNG whose pixels are the class indices.

    With up to 256 classes it carries the palette, so that viewers show colours; with more it is 16-bit.

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
    void = np.array([VOID_COLOR] * (256 - len(palette)), np.uint8).reshape(-1, 3)
    image.putpalette(np.concatenate([np.asarray(palette, np.uint8), void]).tobytes())
    image.save(file, format="PNG")
