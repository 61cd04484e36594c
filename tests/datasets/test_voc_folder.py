"""A part of a set in PASCAL VOC's layout becomes a folder of images and color masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixeldcl_plugin.datasets.converters.voc_folder import write_folder
from pixeldcl_plugin.datasets.folder import folder_classes
from pixeldcl_plugin.datasets.folder_pairs import find_pairs
from pixeldcl_plugin.datasets.masks import MaskReader


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Six images: two cats (8), a dog (12), both, a tiny cat, and a person."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    contents = [{8: 50}, {8: 60}, {12: 50}, {8: 50, 12: 50}, {8: 3}, {15: 50}]
    for index, sizes in enumerate(contents):
        mask = np.zeros(100, np.uint8)
        for place, (label, size) in enumerate(sizes.items()):
            mask[50 * place : 50 * place + size] = label
        mask[99] = 255
        Image.fromarray(mask.reshape(10, 10)).save(root / f"SegmentationClassAug/{index}.png")
        Image.fromarray(mask.reshape(10, 10)).save(root / f"JPEGImages/{index}.jpg")
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join("012345"))
    return root


def test_writes_images_of_one_class_in_colors(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_folder(voc, out, ["cat", "dog"], 5) == {"cat": 2, "dog": 1}
    classes = folder_classes(out)
    assert classes.names == ("background", "cat", "dog")
    found = find_pairs(out).splits
    reader = MaskReader(classes)
    for pair in found["train"] + found["val"]:
        with Image.open(voc / f"SegmentationClassAug/{pair.image.stem}.png") as file:
            expected = np.select([np.array(file) == n for n in (8, 12, 255)], [1, 2, 255], 0)
        np.testing.assert_array_equal(reader.read(pair.labels.read_bytes()), expected)
    assert write_folder(voc, tmp_path / "one", ["cat"], 1) == {"cat": 1}


def test_refuses_what_there_is_not(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no class of PASCAL VOC: unicorn, background; there are aeroplane,"):
        write_folder(voc, tmp_path / "out", ["cat", "unicorn", "background"], 1)
    with pytest.raises(ValueError, match=r"voc' is not empty"):
        write_folder(voc, voc, ["cat"], 1)
    with pytest.raises(FileNotFoundError):
        write_folder(tmp_path, tmp_path / "out", ["cat"], 1)
