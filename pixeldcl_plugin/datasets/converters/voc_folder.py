"""A part of a data set in PASCAL VOC's layout as a folder of images and color masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmseg.datasets import PascalVOCDataset
from PIL import Image

from ...utils.label_maps import voc_palette

__all__ = ["write_folder"]

_VOID = (224, 224, 192)  # VOC's color of boundaries, which are no class
_LEAST = 0.05  # of an image's pixels


def write_folder(
    source: Path, out: Path, classes: Sequence[str], images: int, listing: str = "train_aug"
) -> dict[str, int]:
    """Write images that show one of some classes and nothing else, with color masks and ``classes.txt``.

    Args:
        source: The data set: ``JPEGImages``, ``SegmentationClassAug`` and ``ImageSets/Segmentation``.
        out: The folder to write; new or empty.
        classes: Names of VOC, without the background.
        images: How many of each class at most.
        listing: The list of images to choose from, in its order.

    Returns:
        The number of images of each class.

    Raises:
        ValueError: If a class is not one of VOC's, or there is something in the folder.
        OSError: If the data set is not there.
    """
    known = PascalVOCDataset.METAINFO["classes"]
    if unknown := [name for name in classes if name not in known[1:]]:
        raise ValueError(f"no class of PASCAL VOC: {', '.join(unknown)}; there are {', '.join(known[1:])}")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{str(out)!r} is not empty")
    labels = [known.index(name) for name in classes]
    colors = np.zeros((256, 3), np.uint8)
    colors[labels], colors[255] = voc_palette(21)[labels], _VOID
    names = (source / f"ImageSets/Segmentation/{listing}.txt").read_text().split()
    counts = dict.fromkeys(classes, 0)
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        with Image.open(source / f"SegmentationClassAug/{name}.png") as file:
            mask = np.array(file)
        found = [label for label in np.unique(mask) if label not in (0, 255)]
        if len(found) != 1 or found[0] not in labels or (mask == found[0]).mean() < _LEAST:
            continue
        if counts[known[found[0]]] == images:
            continue
        counts[known[found[0]]] += 1
        image = (source / f"JPEGImages/{name}.jpg").read_bytes()
        (out / f"images/{name}.jpg").write_bytes(image)
        Image.fromarray(colors[mask]).save(out / f"masks/{name}.png")
    listed = [("background", (0, 0, 0)), *((known[i], colors[i].tolist()) for i in labels), ("ignore", _VOID)]
    text = "".join(f"{name}, {', '.join(map(str, color))}\n" for name, color in listed)
    (out / "classes.txt").write_text(text, encoding="utf-8")
    return counts
