"""Pictures in and out: reading any common image as RGB, and blending label maps over it."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..utils.label_maps import colorize

__all__ = ["ImageSource", "image_size", "overlay", "read_image"]

ImageSource: TypeAlias = str | PathLike[str] | Image.Image | np.ndarray


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


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Blend a painted label map over its image.

    Args:
        image: ``(H, W, 3)`` of dtype uint8.
        labels: Class indices ``(H, W)``.
        palette: RGB colours ``(classes, 3)`` of dtype uint8.
        opacity: Share of the label's colour, 0 to 1.
    """
    return cv2.addWeighted(image, 1 - opacity, colorize(labels, palette), opacity, 0)
