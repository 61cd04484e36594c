"""A folder of images and masks: who belongs to whom, to which split, and what the dataset makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from pixeldcl_plugin.datasets.folder import FolderSegDataset, folder_classes
from pixeldcl_plugin.datasets.folder_pairs import find_pairs, mask_files
from pixeldcl_plugin.utils.cli import UsageError

LOAD = [dict(type="LoadImageFromFile"), dict(type="LoadMask"), dict(type="PackSegInputs")]


def write(root: Path, names: Iterable[str], ending: str = "", suffix: str = ".png") -> Path:
    """Write images of 8x6 pixels and masks with a red rectangle in black."""
    mask = np.zeros((6, 8, 3), np.uint8)
    mask[2:4, 3:6] = (200, 0, 0)
    for name in names:
        image, drawn = (root / f / name for f in ("images", "masks"))
        for file in (image, drawn):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(image.with_suffix(".jpg"))
        Image.fromarray(mask).save(drawn.with_name(f"{drawn.name}{ending}{suffix}"))
    (root / "classes.txt").write_text("ground, 0, 0, 0\nbox, 200, 0, 0\n")
    return root


def names_of(root: Path, split: str, **settings: float) -> list[str]:
    return [pair.image.stem for pair in find_pairs(root, **settings).splits[split]]


TEN = [f"shot {i}" for i in range(10)]


# --- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "suffix"), [("", ".png"), ("_mask", ".png"), ("", ".bmp"), ("_L", ".tif")]
)
def test_masks_are_found_by_name(tmp_path: Path, ending: str, suffix: str) -> None:
    write(tmp_path, TEN, ending, suffix)
    (tmp_path / "images/._shot 1.jpg").write_bytes(b"of a Mac")
    (tmp_path / "images/Thumbs.db").touch()
    found = find_pairs(tmp_path).splits
    for pair in found["train"] + found["val"]:
        assert pair.labels == tmp_path / "masks" / f"{pair.image.stem}{ending}{suffix}"
    assert len(mask_files(tmp_path)) == 10


def test_of_two_files_of_a_name_the_png_is_the_mask(tmp_path: Path) -> None:
    write(tmp_path, TEN)
    for name in TEN:
        (tmp_path / f"masks/{name}.jpg").write_bytes(b"a picture of it")
    assert {pair.labels.suffix for pair in find_pairs(tmp_path).splits["train"]} == {".png"}


def test_an_image_without_a_mask_is_left_to_the_check(tmp_path: Path) -> None:
    write(tmp_path, TEN, "_mask")
    (tmp_path / "masks/shot 3_mask.png").unlink()
    splits = find_pairs(tmp_path).splits
    missing = [p.labels for p in (*splits["train"], *splits["val"]) if not p.labels.is_file()]
    assert missing == [tmp_path / "masks/shot 3_mask.png"]


def test_a_mask_without_an_image_is_told(tmp_path: Path) -> None:
    write(tmp_path, TEN, "_mask")
    for name in TEN[:8]:
        (tmp_path / f"masks/{name}_color.png").write_bytes(b"a picture of the mask")
    for name in ("shot 10_mask", "other", "shot 1_copy"):
        shutil.copy(tmp_path / "masks/shot 0_mask.png", tmp_path / f"masks/{name}.png")
    strays = [tmp_path / f"masks/{name}.png" for name in ("other", "shot 10_mask", "shot 1_copy")]
    assert find_pairs(tmp_path).strays == strays
    (tmp_path / "train.txt").write_text("shot 1\nshot 2\n")  # A list says which images count.
    assert find_pairs(tmp_path).strays == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pairs.csv", "image,mask\nimages/shot 0.jpg,masks/shot 5.png\nimages/shot 1.jpg,masks/shot 6.png\n"),
        ("pairs.csv", '"images/shot 0.jpg"; "masks/shot 5.png"\nimages/shot 1.jpg; masks/shot 6.png'),
        ("pairs.txt", "images/shot 0.jpg\tmasks/shot 5.png\n\nimages/shot 1.jpg\tmasks/shot 6.png\n"),
    ],
)
def test_a_list_pairs_what_it_names(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, TEN)
    (tmp_path / name).write_text(text)
    found = find_pairs(tmp_path, val_fraction=0.5).splits
    pairs = {pair.image.name: pair.labels.name for split in ("train", "val") for pair in found[split]}
    assert pairs == {"shot 0.jpg": "shot 5.png", "shot 1.jpg": "shot 6.png"}
    assert len(mask_files(tmp_path)) == 2


def test_a_list_takes_paths_with_spaces_apart_only_at_its_separator(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a.jpg b.png\nc.jpg d.png\n")
    assert names_of(tmp_path, "train", val_fraction=0.5) in (["a"], ["c"])


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["it lists none"]),
        ("image,mask\n", ["it lists none"]),
        ("a.jpg\nb.jpg,b.png,night\nc.jpg,c.png\nc.jpg,d.png\n",
         ["line 1, 'a.jpg'", "line 2, 'b.jpg,b.png,night'", "line 4: 'c.jpg' a second time"]),
        ("a.jpg,a.png,train\nb.jpg,b.png\n", ["1 of 2 lines name a split; expected all or none"]),
    ],
)  # fmt: skip
def test_says_what_is_wrong_with_a_list(tmp_path: Path, text: str, faults: list[str]) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UsageError, match=r"pairs\.csv: expected an image and its mask") as error:
        find_pairs(tmp_path)
    assert str(error.value).splitlines()[1:] == [f"  {fault}" for fault in faults]


# --- splits --------------------------------------------------------------------------------------


def test_a_drawn_split_is_repeated_and_moves_little(tmp_path: Path) -> None:
    write(tmp_path, TEN)
    drawn = names_of(tmp_path, "val")
    assert len(drawn) == 2
    assert sorted([*drawn, *names_of(tmp_path, "train")]) == TEN
    assert names_of(tmp_path, "val") == names_of(tmp_path, "test") == drawn
    assert any(names_of(tmp_path, "val", split_seed=seed) != drawn for seed in (1, 2, 3))
    assert len(names_of(tmp_path, "val", val_fraction=0.01)) == 1
    assert len(names_of(tmp_path, "val", val_fraction=0.99)) == 9
    write(tmp_path, ["shot 10"])
    assert len({*names_of(tmp_path, "val")} - {*drawn}) <= 1
    assert find_pairs(tmp_path).rule == "drawn with split_seed=0"


def test_lists_split(tmp_path: Path) -> None:
    write(tmp_path, TEN)
    (tmp_path / "val.txt").write_text("shot 7.jpg\n\nimages/shot 8.jpg\nshot 9\n")
    assert names_of(tmp_path, "val") == names_of(tmp_path, "test") == ["shot 7", "shot 8", "shot 9"]
    assert names_of(tmp_path, "train") == TEN[:7]
    (tmp_path / "test.txt").write_text("shot 0")
    assert names_of(tmp_path, "train") == TEN[1:7]
    (tmp_path / "train.txt").write_text("./images/shot 1.jpg\nshot 1")
    assert names_of(tmp_path, "train") == ["shot 1"]
    assert find_pairs(tmp_path).rule == "as train.txt and val.txt and test.txt say"


def test_a_third_column_splits(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a.jpg,a.png,train\nb.jpg,b.png,val\nc.jpg,c.png,test\n")
    assert [names_of(tmp_path, split) for split in ("train", "val", "test")] == [["a"], ["b"], ["c"]]


def test_folders_split(tmp_path: Path) -> None:
    write(tmp_path, ["train/a", "train/far/b", "val/a"])
    assert [names_of(tmp_path, split) for split in ("train", "val", "test")] == [["a", "b"], ["a"], ["a"]]
    write(tmp_path, ["c"])  # Now they are folders of something else.
    assert find_pairs(tmp_path).rule == "drawn with split_seed=0"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.txt": "shot 1\nshot 11\nshot 12\n"},
         r"train\.txt: 2 of 3 names are no image's:\n  line 2: 'shot 11'\n  line 3: 'shot 12'$"),
        ({"train.txt": "shot 1\nshot 2", "val.txt": "shot 2"},
         r"1 images are in training and in validation or test, shot 2\.jpg$"),
        ({"val.txt": "\n"}, r"no image for val, split as val\.txt say: 10 images in all"),
        ({"train.txt": "\n".join(TEN)}, "no image for val, split as train.txt say"),
        ({"train.txt": b"\x89PNG\xff"}, r"train\.txt' is no text file in UTF-8"),
        ({"images/shot 1.png": b""}, r"images of one name, shot 1\.jpg"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_with_a_folder(
    tmp_path: Path, files: dict[str, str | bytes], message: str
) -> None:
    write(tmp_path, TEN)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        find_pairs(tmp_path)


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder 'images': expected images/ and masks/, or pairs\.csv"):
        find_pairs(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="no folder 'masks'"):
        find_pairs(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(UsageError, match=r"images' holds no picture \(\.jpg"):
        find_pairs(tmp_path)
    write(tmp_path, ["a"])
    with pytest.raises(UsageError, match="no image for val, split drawn with split_seed=0: 1 image"):
        find_pairs(tmp_path)
    for fraction in (0, 1, 2.5):
        with pytest.raises(UsageError, match=f"val_fraction must be above 0 and below 1, got {fraction}"):
            find_pairs(tmp_path, fraction)
    (tmp_path / "masks/a.png").rename(tmp_path / "masks/b.png")
    with pytest.raises(
        UsageError, match=r"no image has a mask of its name, 'a\.jpg' in images/ and 'b\.png'"
    ):
        find_pairs(tmp_path)


# --- classes -------------------------------------------------------------------------------------


def test_says_what_classes_could_be(tmp_path: Path) -> None:
    write(tmp_path, TEN)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(
        UsageError, match=r"has no classes\.txt, which names the classes, one a line: "
    ) as error:
        folder_classes(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "The masks (10 were read) fit these lines, in which the names are yours to give:",
        "  class 0, 0, 0, 0    # 87.50 % of the pixels",
        "  class 1, 200, 0, 0    # 12.50 % of the pixels",
    ]
    for name in TEN:
        Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(tmp_path / f"masks/{name}.png")
    (tmp_path / "masks/shot 3.png").write_bytes(b"broken")
    with pytest.raises(UsageError) as error:
        folder_classes(tmp_path)
    lines = [line.partition("    ")[0] for line in str(error.value).splitlines()[2:]]
    assert lines == ["  class 0, 0", "  class 1, 7", "  ignore, 255"]


def test_says_that_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data_root is not set: --cfg-options data_root=DIR"):
        folder_classes(None)
    with pytest.raises(UsageError, match=r"no/such' is no folder \(looked in"):
        folder_classes(tmp_path / "no/such")


# --- the dataset ---------------------------------------------------------------------------------


def test_the_dataset_has_the_labels_and_the_classes(tmp_path: Path) -> None:
    write(tmp_path, TEN)
    init_default_scope("mmseg")
    dataset = DATASETS.build(
        dict(type="FolderSegDataset", data_root=str(tmp_path), split="val", pipeline=LOAD)
    )
    assert dataset.metainfo["classes"] == ("ground", "box")
    assert dataset.metainfo["palette"] == [[0, 0, 0], [200, 0, 0]]
    assert dataset.metainfo["label_map"] is None
    assert len(dataset) == 2
    for item in dataset:
        labels = item["data_samples"].gt_sem_seg.data
        assert labels.shape == (1, 6, 8)
        assert labels.sum() == labels[0, 2:4, 3:6].sum() == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(split="Train"), "split must be 'train', 'val' or 'test', got 'Train'"),
        (dict(masks="rgb"), "masks must be 'indices', 'colors' or None, got 'rgb'"),
        (
            dict(metainfo=dict(classes=["box", "ground"])),
            "the config is for the classes box, ground; classes.txt",
        ),
        (
            dict(pipeline=[dict(type="LoadAnnotations")]),
            "LoadAnnotations, which knows nothing of classes.txt",
        ),
    ],
)
def test_the_dataset_refuses(tmp_path: Path, arguments: dict, message: str) -> None:
    write(tmp_path, TEN)
    init_default_scope("mmseg")
    with pytest.raises(UsageError, match=message):
        FolderSegDataset(data_root=tmp_path, **arguments)
