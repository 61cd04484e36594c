"""What is wrong with an image and its label map: read once, decoded as the pipeline will."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations
from PIL import ExifTags, Image

from .masks import MaskError, MaskReader, place

__all__ = ["Pair", "PairReader", "transforms"]

# The first bytes of a format -> what a whole file of it ends with. Decoders fill what a cut-off file lacks
# with grey and only print a warning.
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}


@dataclass(frozen=True)
class Pair:
    """An image and its label map, None for a pipeline that loads none."""

    image: Path
    labels: Path | None


def transforms(pipeline: Any) -> Iterator[Any]:
    """Yield the transforms of a pipeline, those inside of others too."""
    for step in getattr(pipeline, "transforms", None) or getattr(pipeline, "subroutines", None) or ():
        yield step
        yield from transforms(step)


class PairReader:
    """Reads pairs as a dataset's pipeline loads them, and says what keeps one from being used.

    Args:
        image: The pipeline's loader of images.
        labels: Its loader of label maps, or None if it has none.
        num_classes: Number of classes; None if the dataset does not say.
        ignore_index: The label that losses and metrics ignore.
        reduce_zero_label: As the dataset has it.
        label_map: Likewise.
        masks: What reads masks in place of the loader, for data whose masks are no label maps.

    Raises:
        AssertionError: If loader and dataset differ in ``reduce_zero_label``.
    """

    def __init__(
        self,
        image: LoadImageFromFile,
        labels: LoadAnnotations | None = None,
        *,
        num_classes: int | None = None,
        ignore_index: int = 255,
        reduce_zero_label: bool = False,
        label_map: dict[int, int] | None = None,
        masks: MaskReader | None = None,
    ) -> None:
        self._image = image
        self._labels = labels
        self._masks = masks
        self._admitted: np.ndarray | None = None
        if labels is not None and num_classes is not None and masks is None:
            results: dict[str, Any] = dict(
                reduce_zero_label=reduce_zero_label, label_map=label_map, seg_fields=[]
            )
            handed_on = _load_every_label(labels, results)
            self._admitted = (handed_on < num_classes) | (handed_on == ignore_index)
        decoders = [
            (loader.imdecode_backend, type(loader).__qualname__) for loader in (image, labels) if loader
        ]
        admitted = None if self._admitted is None else self._admitted.tobytes()
        #: What the verdict on a pair depends on besides its files.
        self.rules = (*decoders, image.color_type, admitted, None if masks is None else masks.rules)

    def fault(self, pair: Pair) -> tuple[Path, str] | None:
        """Return the file that keeps a pair from being used and why, or None if nothing does."""
        file = pair.image
        try:
            image = _decode(file, self._image.color_type, self._image.imdecode_backend)
            height, width = image.shape[:2]
            if min(height, width) < 2:
                return file, f"{width}x{height} pixels"
            if pair.labels is None or self._labels is None:
                return None
            file = pair.labels
            if self._masks is not None:
                labels = self._masks.read(_read(file))
            else:
                labels = _decode(file, "unchanged", self._labels.imdecode_backend).squeeze()
            fault = self._fault_of_labels(labels, (height, width))
            if labels.shape == (width, height) != (height, width) and _is_turned(pair.image):
                fault = f"{fault}, turned by its EXIF orientation"
        except OSError as error:
            fault = error.strerror or str(error)
            if isinstance(error, FileNotFoundError):
                fault = "missing" if file == pair.image else f"missing; its image is {pair.image.name}"
        except (_UnreadableError, MaskError) as error:
            fault = str(error)
        return (file, fault) if fault else None

    def _fault_of_labels(self, labels: np.ndarray, size: tuple[int, int]) -> str | None:
        if labels.ndim != 2:
            return f"{labels.shape[-1]} channels; a label map has one"
        if labels.shape != size:
            return f"{labels.shape[1]}x{labels.shape[0]} pixels, its image {size[1]}x{size[0]}"
        if self._admitted is None:
            return None
        if labels.dtype != np.uint8 and labels.dtype != np.bool_:
            wide = np.unique(labels[(labels < 0) | (labels > 255)])
            if wide.size:
                return f"{_names(wide)} ({place(np.isin(labels, wide))}); labels are 0 to 255"
        counts = cv2.calcHist([np.ascontiguousarray(labels, np.uint8)], [0], None, [256], [0, 256]).ravel()
        wrong = np.flatnonzero((counts > 0) & ~self._admitted)
        if not wrong.size:
            return None
        pixels = f"{int(counts[wrong].sum())} px, {place(np.isin(labels, wrong))}"
        return f"{_names(wrong)} ({pixels}); admitted are {_ranges(self._admitted)}"


class _UnreadableError(Exception):
    """A file that is no whole image."""


def _load_every_label(loader: LoadAnnotations, info: dict[str, Any]) -> np.ndarray:
    """Return what a loader makes of the labels 0 to 255."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "labels.png")
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(file)
        return loader.transform({**info, "seg_map_path": str(file), "seg_fields": []})["gt_seg_map"].ravel()


def _read(file: Path) -> bytes:
    data = file.read_bytes()
    if not data:
        raise _UnreadableError("an empty file")
    _require_end(data)
    return data


def _decode(file: Path, flag: str, backend: str) -> np.ndarray:
    data = _read(file)
    try:
        decoded = mmcv.imfrombytes(data, flag=flag, backend=backend)
    except Exception as error:  # Pillow's plugins and OpenCV raise a dozen kinds.
        raise _UnreadableError(f"cannot be decoded by {backend}") from error
    if decoded is None or not decoded.size:
        raise _UnreadableError(f"cannot be decoded by {backend}")
    return decoded


def _require_end(data: bytes) -> None:
    end = next((end for start, end in _ENDS.items() if data.startswith(start)), b"")
    if data.endswith(end):
        return
    try:  # Some cameras write bytes after the end: whether it was reached only decoding tells.
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:
        raise _UnreadableError("truncated") from error


def _is_turned(file: Path) -> bool:
    """Tell whether an image says of itself that it lies on its side, which loaders mend."""
    with Image.open(file) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) > 4


def _names(labels: np.ndarray) -> str:
    shown = ", ".join(str(label) for label in labels[:5])
    return f"label{'s' * (labels.size > 1)} {shown}{', ...' * (labels.size > 5)}"


def _ranges(admitted: np.ndarray) -> str:
    """Write a set of labels as ranges, such as ``0-10, 255``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], admitted.astype(np.int8), [0]))))
    return ", ".join(f"{a}-{b - 1}" if b - a > 1 else str(a) for a, b in edges.reshape(-1, 2))
