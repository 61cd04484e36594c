"""Masks as people draw them, index maps and colors, to the labels that a loss takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import mmengine.fileio
import numpy as np
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS
from PIL import Image

from ..registry import register
from .class_list import IGNORED, ClassList

__all__ = ["LoadMask", "MaskError", "MaskKind", "MaskReader", "color_codes", "place"]

#: How masks are read: as values, as colors, or each as its file suggests.
MaskKind = Literal["indices", "colors"] | None

_LOSSY = ("JPEG", "JPEG2000", "MPO", "WEBP")
_SHOWN = 5
_UNKNOWN = 256  # no label


class MaskError(ValueError):
    """A mask that cannot be read as labels."""


class MaskReader:
    """Decodes masks to labels.

    A file with one channel, or with a palette, has the values of the classes as its pixels (those of a
    palette are its indices); one with three or four has their colors, of which an alpha channel is left out.
    Without colors of the classes, three equal channels are values too. Values and colors of no class are
    refused.

    Args:
        classes: The classes.
        kind: ``'indices'`` or ``'colors'`` reads every file so, a palette's colors included. None refuses
            files of one channel that can be read in two ways: a palette with the colors of the classes in
            another order, and 0 and 255 alone as the values of two classes.

    Raises:
        ValueError: If the kind is another one, or colors are to be read and the classes have none.
    """

    def __init__(self, classes: ClassList, kind: MaskKind = None) -> None:
        if kind not in (None, "indices", "colors"):
            raise ValueError(f"masks must be 'indices', 'colors' or None, got {kind!r}")
        if kind == "colors" and classes.colors is None:
            raise ValueError("masks=colors needs a color for every class")
        self.classes = classes
        self.kind = kind
        #: What the reading of a file depends on besides the file.
        self.rules = (classes, kind)
        self._values = _Table(classes.values, (*classes.ignored_values, IGNORED))
        self._colors = _Table(
            [color_codes(color) for color in classes.colors or ()],
            [color_codes(c) for c in classes.ignored_colors],
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskReader:
        return self  # Nothing in it changes, and test-time augmentation copies what a sample carries.

    def read(self, data: bytes) -> np.ndarray:
        """Decode the content of a file to labels ``(H, W)`` of dtype uint8, 255 for what is ignored.

        Raises:
            MaskError: Says what is wrong, with values and the first place of each.
        """
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except Exception as error:  # Pillow's plugins raise a dozen kinds.
            raise MaskError("cannot be decoded by pillow") from error
        if image.format in _LOSSY:
            raise MaskError(f"a {image.format} file, whose compression changes labels; a mask is a PNG file")
        pixels = np.array(image)
        if image.mode in ("LA", "La", "PA"):
            pixels = pixels[..., 0]
        if pixels.ndim == 3 and image.mode in ("RGB", "RGBA", "RGBX", "RGBa"):
            return self._read_colors(pixels[..., :3])
        if pixels.ndim != 2 or pixels.dtype.kind not in "bui":
            raise MaskError(
                f"of mode {image.mode}; expected one channel of whole numbers, a palette or RGB(A)"
            )
        if pixels.dtype == bool:  # black and white to viewers
            pixels = pixels.astype(np.uint8) * (255 if self.kind == "colors" else 1)
        painted = self.classes.colors is not None and image.mode in ("P", "PA")
        return self._read_values(pixels, color_codes(np.array(image.convert("RGB"))) if painted else None)

    def _read_colors(self, pixels: np.ndarray) -> np.ndarray:
        if self.kind != "indices" and self.classes.colors is not None:
            return self._colors.read(color_codes(pixels), _name_color)
        if (pixels == pixels[..., :1]).all():
            return self._read_values(pixels[..., 0])
        found = np.unique(color_codes(pixels))
        raise MaskError(
            f"{len(found)} colors, {_joined([_name_color(code) for code in found])}; "
            + ("masks=indices reads values" if self.kind else "classes.txt gives the classes no colors")
        )

    def _read_values(self, pixels: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
        """Read one channel; the palette is the color of each pixel, where its file has such."""
        if self.kind == "colors":
            if palette is None and pixels.max(initial=0) > 255:
                raise MaskError("16 bits a pixel; masks=colors reads 8 a channel")
            return self._colors.read(pixels * np.int64(0x10101) if palette is None else palette, _name_color)
        if self.kind is None:
            self._refuse_ambiguity(pixels, palette)
        return self._values.read(pixels, _name_value)

    def _refuse_ambiguity(self, pixels: np.ndarray, palette: np.ndarray | None) -> None:
        if palette is not None:
            by_color, by_value = self._colors.labels(palette), self._values.labels(pixels)
            wrong = np.argwhere((by_color != by_value) & (by_value != IGNORED))
            if (by_color != _UNKNOWN).all() and len(wrong):
                row, column = wrong[0]
                label = by_color[row, column]
                name = "ignore" if label == IGNORED else self.classes.names[label]
                raise MaskError(
                    f"its value {pixels[row, column]} (first at x {column}, y {row}) has the color of "
                    f"{name!r} in the file: masks=colors reads its colors, masks=indices its values"
                )
        two = self.classes.values == (0, 1) and not self.classes.ignored_values
        if two and (pixels == 255).any() and ((pixels == 0) | (pixels == 255)).all():
            first, second = self.classes.names
            raise MaskError(
                f"no values but 0 and 255: if 255 is {second!r}, write '{first}, 0' and '{second}, 255' into "
                "classes.txt; if it is to be ignored, add 'ignore, 255' there"
            )


class _Table:
    """Whole numbers to labels.

    Args:
        known: What stands for the labels 0, 1, ...
        ignored: What stands for none, unless it stands for a label.
    """

    def __init__(self, known: Sequence[int], ignored: Sequence[int]) -> None:
        pairs = {**dict.fromkeys(ignored, IGNORED), **{value: i for i, value in enumerate(known)}}
        self.known = sorted(pairs)
        self._keys = np.array(self.known, np.int64)
        self._labels = np.array([pairs[key] for key in self.known], np.int16)
        self._of_byte = self._search(np.arange(256)) if pairs else None

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """Look numbers up: int16, :data:`_UNKNOWN` for those that are not known."""
        if self._of_byte is not None and numbers.dtype == np.uint8:
            return self._of_byte[numbers]
        return self._search(numbers)

    def _search(self, numbers: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self._keys, numbers).clip(max=len(self._keys) - 1)
        return np.where(self._keys[at] == numbers, self._labels[at], np.int16(_UNKNOWN))

    def read(self, numbers: np.ndarray, name: Any) -> np.ndarray:
        """Look numbers up, all of which must be known.

        Raises:
            MaskError: Names those that are not.
        """
        labels = self.labels(numbers)
        wrong = labels == _UNKNOWN
        if wrong.any():
            found, counts = np.unique(numbers[wrong], return_counts=True)
            order = np.argsort(-counts, kind="stable")
            kinds = [
                f"{name(found[i])} ({counts[i]} px, {place(numbers == found[i])})" for i in order[:_SHOWN]
            ]
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise MaskError(
                f"{', '.join(kinds)}{more}; classes.txt has {_joined([name(key) for key in self.known])}"
            )
        return labels.astype(np.uint8)


def place(mask: np.ndarray) -> str:
    """Say where the first pixel of a mask ``(H, W)`` is, in reading order."""
    row, column = np.unravel_index(int(np.argmax(mask)), mask.shape)
    return f"first at x {column}, y {row}"


def color_codes(colors: Any) -> Any:
    """Return RGB colors (..., 3) as single numbers."""
    colors = np.asarray(colors, np.int64)
    return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]


def _name_color(code: int) -> str:
    return f"color {code >> 16}, {code >> 8 & 255}, {code & 255}"


def _name_value(value: int) -> str:
    return f"value {value}"


def _joined(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    first, *rest = [names[0], *(name.partition(" ")[2] for name in names[1:_SHOWN])]
    return "; ".join([first, *rest]) + more


@register(TRANSFORMS)
class LoadMask(LoadAnnotations):
    """Loads the masks of a :class:`~pixeldcl_plugin.datasets.folder.FolderSegDataset` as labels.

    In the place that ``LoadAnnotations`` has in pipelines, with the same result.

    Raises:
        ValueError: If a mask cannot be read; names the file and what is wrong.
    """

    def _load_seg_map(self, results: dict) -> None:
        file = results["seg_map_path"]
        try:
            labels = results["mask_reader"].read(mmengine.fileio.get(file, backend_args=self.backend_args))
        except MaskError as error:
            raise ValueError(f"{file}: {error}") from error
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")
