"""The data are checked before the start: paths, lists, classes, and every pair of image and labels."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from pixeldcl_plugin.datasets import pairs
from pixeldcl_plugin.engine import data_check, pair_check, runtime
from pixeldcl_plugin.utils.cli import UsageError

TRAIN_LIST = "ImageSets/Segmentation/train.txt"
IMAGE, LABELS = "JPEGImages/train_1.jpg", "SegmentationClass/train_1.png"


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny set to spoil."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture
def cfg(tiny_config: Path, data: Path) -> Config:
    roots = {f"{split}_dataloader.dataset.data_root": str(data) for split in ("train", "val")}
    return runtime.load_config(str(tiny_config), roots)


def test_accepts_what_is_there(cfg: Config) -> None:
    data_check.check_data(cfg, "train", "val", "test", "other", read=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_root": "no/such"}, r"train data .*no 'no/such' \(data_root; looked in"),
        ({"ann_file": "no.txt"}, r"no '.*/no\.txt' \(ann_file"),
        ({"data_prefix.seg_map_path": "Nope"}, r"no '.*/Nope' \(data_prefix\.seg_map_path"),
        ({"data_root": ".cache/photo_mosaic"}, "photo_mosaic.py --out .cache/photo_mosaic"),
        ({"data_root": "", "ann_file": ".cache/coco128/coco128.txt"}, "--out .cache/coco128"),
        ({"ann_file": "ImageSets/Segmentation"}, r"'.*Segmentation' is a folder; expected a list"),
        ({"img_suffix": ".bmp", "ann_file": ""}, r"train data: no image \*\.bmp in '.*JPEGImages'"),
        ({"img_suffix": ".bmp"}, r"(?s)6 of the 9 pairs .*train: .*/train_0\.bmp: missing"),
        ({"metainfo.classes": ["a", "b"], "metainfo.palette": [[0] * 3] * 2},
         r"num_classes=3: the train data of BaseSegDataset have 2"),
        ({"img_sufix": ".jpg"}, r"dataset\.img_sufix='\.jpg': BaseSegDataset .* did you mean 'img_suffix'"),
        ({"type": "BaseSegDatset"}, r"dataset\.type='BaseSegDatset': .* did you mean 'BaseSegDataset'"),
        ({"pipeline.4.type": "RandomFlop"}, r"pipeline\.4\.type='RandomFlop'.* did you mean 'RandomFlip'"),
        ({"pipeline.3.crop_sise": 3}, r"pipeline\.3\.crop_sise=3: RandomCrop .* did you mean 'crop_size'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_says_what_is_missing(
    cfg: Config, options: dict[str, Any], message: str, wrapped: bool,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    cfg.merge_from_dict({f"train_dataloader.dataset.{key}": value for key, value in options.items()})
    if wrapped:
        repeat = dict(type="RepeatDataset", times=3, dataset=cfg.train_dataloader.dataset)
        cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[repeat])
    data_check.check_data(cfg, "val", read=True)
    with pytest.raises(UsageError, match=message):
        data_check.check_data(cfg, "train", "val", read=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no image"),
        (b"\n\n", "lists no image"),
        (b"\x89PNG\xff\x00", "is no text file"),
        (b"a\0b\n", "is no text file"),
        (b"train_0\n\ntrain_1\n  \n", "blank lines, which name no image: 2, 4"),
    ],
)
def test_lists(cfg: Config, data: Path, content: bytes, message: str) -> None:
    (data / TRAIN_LIST).write_bytes(content)
    with pytest.raises(UsageError, match=f"train data: '.*train.txt'.*{message}"):
        data_check.check_data(cfg, "train")


def _loop(data: Path) -> None:
    (data / "JPEGImages/again").symlink_to(data / "JPEGImages")


def _mutual(data: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (data / "JPEGImages" / name).mkdir()
        (data / "JPEGImages" / name / "link").symlink_to(data / "JPEGImages" / other)


@pytest.mark.parametrize("link", [_loop, _mutual])
def test_folders_that_hold_themselves(cfg: Config, data: Path, link: Callable[[Path], None]) -> None:
    cfg.train_dataloader.dataset.ann_file = ""
    link(data)
    with pytest.raises(UsageError, match=r"train data: the symbolic link '.*' leads back"):
        data_check.check_data(cfg, "train")


def test_a_link_to_itself_is_no_folder(cfg: Config, data: Path) -> None:
    shutil.rmtree(data / "JPEGImages")
    (data / "JPEGImages").symlink_to(data / "JPEGImages")
    with pytest.raises(UsageError, match=r"leads nowhere: a symbolic link '.*JPEGImages'"):
        data_check.check_data(cfg, "train")


def _write(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda data: cv2.imwrite(str(data / name), array) and None


def _cut(name: str) -> Callable[[Path], None]:
    def spoil(data: Path) -> None:
        content = (data / name).read_bytes()
        (data / name).write_bytes(content[: len(content) * 2 // 3])

    return spoil


def _replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda data: (data / name).write_bytes(content) and None


def _link_to_itself(data: Path) -> None:
    (data / IMAGE).unlink()
    (data / IMAGE).symlink_to(data / IMAGE)


def _folder(data: Path) -> None:
    (data / LABELS).unlink()
    (data / LABELS).mkdir()


def _labels(value: int, dtype: type = np.uint8) -> np.ndarray:
    labels = np.zeros((32, 32), dtype)
    labels[:2, :3] = value
    return labels


FAULTS = [
    (_write(LABELS, np.zeros((30, 20), np.uint8)), LABELS, "20x30 pixels, its image 32x32"),
    (_write(LABELS, _labels(3)), LABELS, "label 3 (6 px, first at x 0, y 0); admitted are 0-2, 255"),
    (_write(LABELS, _labels(254)), LABELS, "label 254 (6 px, first at x 0, y 0); admitted are 0-2, 255"),
    (_write(LABELS, _labels(256, np.uint16)), LABELS, "label 256 (first at x 0, y 0); labels are 0 to 255"),
    (_write(LABELS, np.zeros((32, 32, 3), np.uint8)), LABELS, "3 channels; a label map has one"),
    (_write(LABELS, np.zeros((32, 32, 4), np.uint8)), LABELS, "4 channels; a label map has one"),
    (_write(IMAGE, np.zeros((1, 1, 3), np.uint8)), IMAGE, "1x1 pixels"),
    (_write(IMAGE, np.zeros((40, 1, 3), np.uint8)), IMAGE, "1x40 pixels"),
    (_cut(IMAGE), IMAGE, "truncated"),
    (_cut(LABELS), LABELS, "truncated"),
    (_replace(IMAGE, b""), IMAGE, "an empty file"),
    (_replace(LABELS, b""), LABELS, "an empty file"),
    (_replace(IMAGE, b"GIF? no."), IMAGE, "cannot be decoded by cv2"),
    (_replace(LABELS, b"no image"), LABELS, "cannot be decoded by pillow"),
    (lambda data: (data / IMAGE).unlink(), IMAGE, "missing"),
    (lambda data: (data / LABELS).unlink(), LABELS, f"missing; its image is {Path(IMAGE).name}"),
    (_link_to_itself, IMAGE, "Too many levels of symbolic links"),
    (_folder, LABELS, "Is a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "name", "reason"), FAULTS)
def test_pairs_that_cannot_be_used(
    cfg: Config, data: Path, spoil: Callable[[Path], None], name: str, reason: str
) -> None:
    data_check.check_data(cfg, "train", "val", read=True)  # What was good before is looked at again.
    spoil(data)
    with pytest.raises(UsageError) as error:
        data_check.check_data(cfg, "train", "val", read=True)
    assert str(error.value).splitlines() == [
        "1 of the 9 pairs of the data cannot be used:",
        f"  train: {(data / name).as_posix()}: {reason}",
    ]


def test_all_are_listed_sorted_and_a_long_list_is_cut(
    cfg: Config, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (4, 0, 2):
        (data / f"JPEGImages/train_{index}.jpg").unlink()
    _write("SegmentationClass/val_2.png", _labels(77))(data)
    with pytest.raises(UsageError) as error:
        data_check.check_data(cfg, "train", "val", read=True)
    first, *lines = str(error.value).splitlines()
    assert first.startswith("4 of the 9 pairs")
    assert [re.search(r"\w+_\d", line)[0] for line in lines] == ["train_0", "train_2", "train_4", "val_2"]
    monkeypatch.setattr(pair_check, "SHOWN", 2)
    with pytest.raises(
        UsageError, match=r"train_2\.jpg: missing\n  \.\.\. and 2 more; all are in .*faults\.txt$"
    ):
        data_check.check_data(cfg, "train", "val", read=True)


def test_bytes_after_the_end_of_an_image_do_no_harm(cfg: Config, data: Path) -> None:
    (data / IMAGE).write_bytes((data / IMAGE).read_bytes() + b"\0" * 100)
    data_check.check_data(cfg, "train", read=True)


@pytest.mark.parametrize(
    ("options", "value", "admitted"),
    [
        ({"reduce_zero_label": True}, 3, True),
        ({"reduce_zero_label": True}, 4, False),
        ({"type": "CamVidDataset", "metainfo": None}, 11, True),
        ({"type": "CamVidDataset", "metainfo": None}, 12, False),
        ({"type": "CamVidDataset", "metainfo": None}, 255, True),
    ],
)
def test_labels_are_taken_as_the_dataset_maps_them(
    cfg: Config, data: Path, options: dict[str, Any], value: int, admitted: bool
) -> None:
    cfg.train_dataloader.dataset.update(options)
    if "type" in options:
        cfg.model.decode_head.num_classes = 11
    _write(LABELS, _labels(value))(data)
    if admitted:
        data_check.check_data(cfg, "train", read=True)
        return
    with pytest.raises(UsageError, match=f"label {value} "):
        data_check.check_data(cfg, "train", read=True)


def test_reads_each_pair_once_and_not_again(cfg: Config, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    decode = pairs._decode

    def counted(file: Path, flag: str, backend: str) -> np.ndarray:
        read.append(file.name)
        return decode(file, flag, backend)

    monkeypatch.setattr(pairs, "_decode", counted)
    repeat = dict(type="RepeatDataset", times=3, dataset=cfg.train_dataloader.dataset)
    cfg.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[repeat, repeat])
    data_check.check_data(cfg, "train", "val", read=True)
    assert len(read) == len(set(read)) == 18
    data_check.check_data(cfg, "val", "train", read=True)
    assert len(read) == 18
    os.utime(data / LABELS, ns=(1, 1))
    data_check.check_data(cfg, "train", read=True)
    assert read[18:] == ["train_1.jpg", "train_1.png"]
    cfg.model.decode_head.ignore_index = 254
    with pytest.raises(UsageError, match=r"label 255 .* admitted are 0-2, 254"):
        data_check.check_data(cfg, "train", read=True)
    assert len(read) == 32
    cfg.model.decode_head.ignore_index = 255
    (pair_check.cache_dir() / "good_pairs").write_bytes(os.urandom(100))
    data_check.check_data(cfg, "train", read=True)
    assert len(read) == 44
    assert {file.name for file in pair_check.cache_dir().iterdir()} <= {"good_pairs", "faults.txt"}


def test_nothing_is_kept_where_there_is_no_place(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    data_check.check_data(cfg, "train", read=True)


def test_only_the_main_process_reads(cfg: Config, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / IMAGE).unlink()
    monkeypatch.setenv("RANK", "1")
    data_check.check_data(cfg, "train", read=True)


def test_remote_data_are_left_to_their_backend() -> None:
    remote = dict(data_root="s3://bucket", data_prefix=dict(img_path="a"))
    other = dict(data_root="no/such", backend_args=dict(backend="petrel"))
    for dataset in (remote, other):
        cfg = Config(dict(train_dataloader=dict(dataset=dataset), train_cfg={}, model={}))
        data_check.check_data(cfg, "train", read=True)
