"""A folder of images and masks that nobody prepared for MMSegmentation."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS
from PIL import Image

from ..registry import register
from ..utils.cli import UsageError
from .class_list import FORMAT, IGNORED, ClassList, read_class_list
from .folder_pairs import SPLITS, find_pairs, mask_files
from .masks import LoadMask, MaskKind, MaskReader, color_codes
from .pairs import transforms

__all__ = ["CLASSES_FILE", "FolderSegDataset", "folder_classes"]

CLASSES_FILE = "classes.txt"
_LOOKED_AT, _SHOWN = 200, 20  # masks and lines, for a proposal


@register(DATASETS)
class FolderSegDataset(BaseSegDataset):
    """Images and masks of a folder, with its classes out of ``classes.txt``.

    See :func:`~pixeldcl_plugin.datasets.class_list.read_class_list` for the classes,
    :func:`~pixeldcl_plugin.datasets.folder_pairs.find_pairs` for pairs and splits, and
    :class:`~pixeldcl_plugin.datasets.masks.MaskReader` for what a mask may be. A pipeline loads the masks by
    ``LoadMask``.

    Args:
        data_root: The folder.
        split: ``'train'``, ``'val'`` or ``'test'``.
        masks: How masks are read, see :class:`~pixeldcl_plugin.datasets.masks.MaskReader`.
        val_fraction: How much is drawn for validation where the folder has no splits.
        split_seed: Of that drawing.
        metainfo: Classes that the folder is expected to have, as a config of an earlier run names them.
        **kwargs: Further arguments of ``mmseg.datasets.BaseSegDataset``, such as ``pipeline``.

    Raises:
        UsageError: If the folder, its classes or an argument cannot be used.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str] | None = None,
        split: Literal["train", "val", "test"] = "train",
        *,
        masks: MaskKind = None,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        metainfo: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise UsageError(f"split must be 'train', 'val' or 'test', got {split!r}")
        self.split, self.val_fraction, self.split_seed = split, val_fraction, split_seed
        #: How the split was found, in words.
        self.split_rule = ""
        #: Masks of the folder that have no image.
        self.strays: Sequence[Path] = ()
        classes = folder_classes(data_root)
        known = (metainfo or {}).get("classes")
        if known is not None and tuple(known) != classes.names:
            raise UsageError(
                f"the config is for the classes {', '.join(known)}; {CLASSES_FILE} in {str(data_root)!r} has "
                f"{', '.join(classes.names)}"
            )
        try:
            self.mask_reader = MaskReader(classes, masks)
        except ValueError as error:
            raise UsageError(f"{str(data_root)!r}: {error}") from error
        places: dict[str, Any] = dict(data_root=str(data_root), data_prefix={})
        super().__init__(metainfo=classes.metainfo, ignore_index=IGNORED, **places, **kwargs)
        for step in transforms(self.pipeline):
            if isinstance(step, LoadAnnotations) and not isinstance(step, LoadMask):
                raise UsageError(
                    f"the pipeline of {type(self).__name__} has {type(step).__name__}, which knows nothing "
                    f"of {CLASSES_FILE}: expected LoadMask in its place"
                )

    def load_data_list(self) -> list[dict[str, Any]]:
        """List the pairs of the split."""
        found = find_pairs(Path(str(self.data_root)), self.val_fraction, self.split_seed)
        self.split_rule, self.strays = found.rule, found.strays
        common = dict(label_map=None, reduce_zero_label=False)
        return [
            dict(img_path=str(pair.image), seg_map_path=str(pair.labels), seg_fields=[], **common)
            for pair in found.splits[self.split]
        ]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return what a pipeline begins with, the reader of masks among it."""
        return {**super().get_data_info(idx), "mask_reader": self.mask_reader}


def folder_classes(root: str | os.PathLike[str] | None) -> ClassList:
    """Read the classes of a folder.

    Raises:
        UsageError: If there is no folder, or its list of classes is missing or cannot be used. Of a missing
            one it says what to write, out of what the masks hold.
    """
    if root is None:
        raise UsageError(
            "data_root is not set: --cfg-options data_root=DIR names the folder with images/, masks/ and "
            f"{CLASSES_FILE} (docs/own_data.md)"
        )
    folder = Path(root)
    if not folder.is_dir():
        raise UsageError(f"data_root {folder.as_posix()!r} is no folder (looked in {Path.cwd()})")
    if (folder / CLASSES_FILE).is_file():
        return read_class_list(folder / CLASSES_FILE)
    if not (masks := mask_files(folder)):
        find_pairs(folder)  # It says what else the folder lacks.
    raise UsageError(
        f"{folder.as_posix()!r} has no {CLASSES_FILE}, which names the classes, one a line: {FORMAT}"
        + _proposal(masks[:_LOOKED_AT])
    )


def _proposal(masks: list[Path]) -> str:
    """Return a list of classes that would fit masks, as the end of a message."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = sum(pool.map(_contents, masks), Counter[tuple[int, ...]]())
    if not counts:
        return ""
    lines: list[str] = []
    pixels = sum(counts.values())
    for content, count in sorted(counts.items()):
        name = "ignore" if content == (IGNORED,) and len(counts) > 2 else f"class {len(lines)}"
        lines.append(f"  {name}, {', '.join(map(str, content))}")
        if len(lines) <= _SHOWN:
            lines[-1] += f"    # {100 * count / pixels:.2f} % of the pixels"
    more = [f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    first = f"The masks ({len(masks)} were read) fit these lines, in which the names are yours to give:"
    return "\n".join(["", first, *lines[:_SHOWN], *more])


def _contents(mask: Path) -> Counter[tuple[int, ...]]:
    """Count the values or colors of a mask; empty if it cannot be read."""
    try:
        with Image.open(mask) as image:
            painted = image.mode in ("RGB", "RGBA")
            pixels = np.array(image.convert("RGB") if painted else image)
    except Exception:  # That it cannot be read is told where masks are checked.
        return Counter()
    found, counts = np.unique(color_codes(pixels) if painted else pixels, return_counts=True)
    contents = [(n >> 16, n >> 8 & 255, n & 255) if painted else (n,) for n in found.tolist()]
    return Counter(dict(zip(contents, counts.tolist(), strict=True)))
