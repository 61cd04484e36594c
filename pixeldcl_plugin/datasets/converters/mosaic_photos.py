"""The photographs of the photo mosaic: one class each, all inside the scikit-image wheel."""

from __future__ import annotations

from typing import NamedTuple

Rectangle = tuple[slice, slice]

VOID = 255
SPLITS = ("train", "val")


class Photo(NamedTuple):
    """One class: which photograph, which part of it, how much it is shrunk, and its colour.

    Attributes:
        name: Class name.
        loader: Function of `skimage.data`; its file must lie inside the wheel.
        window: Rows and columns in use, in pixels of the photograph.
        zoom: Shrink factor that brings the photograph's texture to the scale of the mosaic.
        color: RGB of the class in label pictures.
    """

    name: str
    loader: str
    window: Rectangle
    zoom: float
    color: tuple[int, int, int]


_ALL = slice(None)
PHOTOS = (
    Photo("brick", "brick", (_ALL, _ALL), 0.6, (196, 78, 82)),
    Photo("gravel", "gravel", (_ALL, _ALL), 0.6, (129, 114, 178)),
    Photo("page", "page", (_ALL, _ALL), 1.0, (85, 168, 104)),
    # Right of column 350 there is only the blurred room behind the cat.
    Photo("cat", "chelsea", (_ALL, slice(350)), 0.8, (240, 178, 70)),
    Photo("coffee", "coffee", (_ALL, _ALL), 0.5, (140, 86, 60)),
    Photo("galaxies", "hubble_deep_field", (_ALL, _ALL), 0.5, (40, 60, 120)),
    # The square inside the round field of view.
    Photo("retina", "retina", (slice(220, 1190), slice(220, 1190)), 0.3, (226, 140, 190)),
)
CLASSES = tuple(photo.name for photo in PHOTOS)
PALETTE = tuple(photo.color for photo in PHOTOS)
