"""Synthesis of labelled mosaics from the photographs inside the scikit-image wheel.

One photograph is one class. Each photograph is cut into quadrants; the training images see one
diagonal pair, the validation images the other. An image is painted back to front: warped Voronoi
cells, then curved, jagged and thin shapes, each filled with its own view (position, rotation,
zoom, tone, tint) of one photograph. Imports nothing of mmseg.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import skimage.data
from scipy.interpolate import make_interp_spline
from skimage.color import gray2rgb, rgb2gray
from skimage.transform import rescale
from skimage.util import img_as_float32

from .mosaic_photos import PHOTOS, SPLITS, VOID, Rectangle

FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]  # 0 or 1

# Pixels dropped on each side of a cut: JPEG blocks (8x8) and the optics correlate neighbours.
GUARD = 8

# Neighbourhood by which masks grow and shrink: one pixel all around.
_RING = np.ones((3, 3), dtype=np.uint8)

# Share of the regions whose outline is void, two pixels wide, as annotators of VOC leave it.
VOID_SHARE = 0.3


def quadrants(shape: tuple[int, int], split: str) -> tuple[Rectangle, Rectangle]:
    """Give the two diagonal quadrants of an H x W photograph that a split may read.

    Diagonals, because light and subject change from side to side: the colour histograms of the
    two diagonals overlap by 0.63 (coffee) to 0.98, those of left and right by as little as 0.20.

    Args:
        shape: Height and width in pixels.
        split: "train" (top left, bottom right) or "val" (top right, bottom left).

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    height, width = shape
    top, bottom = slice(0, height // 2 - GUARD), slice(height // 2 + GUARD, height)
    left, right = slice(0, width // 2 - GUARD), slice(width // 2 + GUARD, width)
    if split == "train":
        return (top, left), (bottom, right)
    return (top, right), (bottom, left)


@functools.cache
def load_photos() -> tuple[FloatImage, ...]:
    """Read the photographs, one a class, as (H, W, 3) float32 in [0, 1], cut to their windows."""
    photos = []
    for photo in PHOTOS:
        pixels = img_as_float32(getattr(skimage.data, photo.loader)())
        pixels = pixels if pixels.ndim == 3 else gray2rgb(pixels)
        photos.append(pixels[photo.window])
    return tuple(photos)


def cut_sources(photos: Sequence[FloatImage], split: str) -> list[list[FloatImage]]:
    """Cut the quadrants of one split out of every photograph and shrink them.

    The cut comes first: nothing after it can reach a pixel of the other split.

    Args:
        photos: One (H, W, 3) photograph a class, as `load_photos` gives them.
        split: "train" or "val".

    Returns:
        For each class its two (h, w, 3) quadrants.
    """
    return [
        [
            rescale(pixels[area], photo.zoom, anti_aliasing=True, channel_axis=2)
            for area in quadrants(pixels.shape[:2], split)
        ]
        for photo, pixels in zip(PHOTOS, photos, strict=True)
    ]


def _curved(size: int, rng: np.random.Generator) -> Mask:
    """Smooth blob: a circle whose radius carries a few low harmonics."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = np.ones_like(angle)
    for harmonic in (2, 3, 4):
        radius += rng.uniform(0, 0.5 / harmonic) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    return _polar_polygon(size, angle, radius * size * rng.uniform(0.13, 0.24), rng)


def _jagged(size: int, rng: np.random.Generator) -> Mask:
    """Splinter: a polygon whose corners alternate between far and near."""
    corners = 2 * int(rng.integers(5, 10))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    angle += rng.uniform(-0.8, 0.8, corners) * np.pi / corners
    radius = np.where(np.arange(corners) % 2, rng.uniform(0.4, 0.7, corners), rng.uniform(0.7, 1.3, corners))
    return _polar_polygon(size, angle, radius * size * rng.uniform(0.17, 0.3), rng)


def _polar_polygon(size: int, angle: np.ndarray, radius: np.ndarray, rng: np.random.Generator) -> Mask:
    centre = rng.uniform(0.15, 0.85, 2) * size
    turn = angle + rng.uniform(0, 2 * np.pi)
    corners = centre + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    mask = np.zeros((size, size), dtype=np.uint8)
    cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1)
    return mask


def _thin(size: int, rng: np.random.Generator) -> Mask:
    """Stroke across the image: a spline, 4 to 8 pixels wide (at size 160)."""
    along = np.linspace(-0.1, 1.1, 5)
    across = np.clip(rng.uniform(0.2, 0.8) + np.cumsum(rng.uniform(-0.35, 0.35, 5)), -0.1, 1.1)
    knots = (np.stack([along, across], axis=1) - 0.5) @ _rotation(rng.uniform(0, 2 * np.pi)) + 0.5
    line = make_interp_spline(along, knots * size)(np.linspace(along[0], along[-1], 64))
    width = max(1, round(rng.uniform(4, 8) * size / 160))
    mask = np.zeros((size, size), dtype=np.uint8)
    cv2.polylines(mask, [np.rint(line).astype(np.int32)], isClosed=False, color=1, thickness=width)
    return mask


def _rotation(angle: float) -> npt.NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


SHAPES: tuple[Callable[[int, np.random.Generator], Mask], ...] = (_curved, _jagged, _thin)


def _cells(size: int, count: int, rng: np.random.Generator) -> list[Mask]:
    """Partition of the image: Voronoi cells of random seeds, their borders bent by smooth noise."""
    seeds = rng.uniform(0, size, (count, 2))
    grid = np.indices((size, size), dtype=float)
    for axis in range(2):
        noise = cv2.GaussianBlur(rng.standard_normal((size, size)), (0, 0), size / 16)
        grid[axis] += noise / noise.std() * size / 20
    distance = np.square(grid[None] - seeds[:, :, None, None]).sum(axis=1)
    nearest = distance.argmin(axis=0)
    return [(nearest == cell).astype(np.uint8) for cell in range(count)]


def _view(sources: Sequence[FloatImage], shape: tuple[int, int], rng: np.random.Generator) -> FloatImage:
    """Look at a random place of one source under a random rotation, zoom, tone and tint.

    What lies outside the source is its mirror image.

    Returns:
        (h, w, 3) float32, not clipped.
    """
    source = sources[int(rng.integers(len(sources)))]
    matrix = _rotation(rng.uniform(-0.5, 0.5)) * math.exp(rng.uniform(-0.2, 0.2))
    matrix[:, 0] *= rng.choice((-1, 1))
    # OpenCV counts x before y.
    extent, whole = np.array(shape[::-1]), np.array(source.shape[1::-1])
    offset = rng.uniform(0.2, 0.8, 2) * whole - matrix @ (extent / 2)
    view = cv2.warpAffine(
        source,
        np.column_stack([matrix, offset]),
        extent.tolist(),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return _relight(np.asarray(view, dtype=np.float32), rng)


def _relight(view: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Change saturation, tint, gamma, contrast and brightness."""
    grey = rgb2gray(view)[..., None]
    view = grey + rng.uniform(0.7, 1.1) * (view - grey)
    tint = rng.uniform(0.94, 1.06, 3).astype(np.float32)
    view = np.clip(view * tint, 0, 1) ** math.exp(rng.uniform(-0.2, 0.2))
    mean = view.mean()
    return (view - mean) * rng.uniform(0.85, 1.15) + mean + rng.uniform(-0.08, 0.08)


def compose(
    sources: Sequence[Sequence[FloatImage]], size: int, rng: np.random.Generator, first: int
) -> tuple[FloatImage, npt.NDArray[np.uint8]]:
    """Paint one mosaic.

    Args:
        sources: For each class the pictures that it may be cut from.
        size: Height and width in pixels.
        rng: Source of every random choice.
        first: Class of the rearmost cell; cycling it over a set balances the classes.

    Returns:
        Image (size, size, 3), float32 in [0, 1]; label (size, size), uint8, class or `VOID`.
    """
    masks = _cells(size, int(rng.integers(2, 5)), rng)
    # The rearmost cell lies under everything, so that no pixel is left unpainted.
    masks[0] = np.ones_like(masks[0])
    extra = rng.integers(len(SHAPES), size=rng.integers(0, 3))
    for kind in rng.permutation([*range(len(SHAPES)), *extra]):
        masks.append(SHAPES[kind](size, rng))

    image = np.zeros((size, size, 3), dtype=np.float32)
    label = np.full((size, size), VOID, dtype=np.uint8)
    for layer, whole in enumerate(masks):
        if not whole.any():
            continue
        area = _surroundings(whole, margin=4)
        mask = whole[area]
        # The class with least area beneath and around: two views of one class side by side would
        # show a border that the label does not have.
        around = label[area][cv2.dilate(mask, _RING, iterations=2) > 0]
        area_of = np.bincount(around, minlength=VOID + 1)[: len(sources)]
        order = rng.permutation(len(sources))
        chosen = int(order[area_of[order].argmin()]) if layer else first
        view = _view(sources[chosen], mask.shape, rng)
        _paint(image[area], label[area], mask, view, chosen, void=rng.random() < VOID_SHARE)
    return np.clip(image, 0, 1), label


def _surroundings(mask: Mask, margin: int) -> Rectangle:
    """Bounding box of a mask that is not empty, with a margin, within the image."""
    left, top, width, height = cv2.boundingRect(mask)
    return (
        slice(max(top - margin, 0), top + height + margin),
        slice(max(left - margin, 0), left + width + margin),
    )


def _paint(
    image: FloatImage,
    label: npt.NDArray[np.uint8],
    mask: Mask,
    view: FloatImage,
    chosen: int,
    *,
    void: bool,
) -> None:
    """Put the view of a class over image and label, in place."""
    # Edges half a pixel soft, as a lens leaves them: no cut-out look, no aliased steps to learn.
    opacity = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.6)[..., None]
    image += opacity * (view - image)
    label[mask > 0] = chosen
    if void:
        label[cv2.dilate(mask, _RING) != cv2.erode(mask, _RING)] = VOID
