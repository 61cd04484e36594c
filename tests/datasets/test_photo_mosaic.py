"""The embedded photo mosaic set: synthesis, folder, command and dataset class."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pixeldcl_plugin.datasets.converters.mosaic_folder import MARKER, MosaicParameters, write_mosaic
from pixeldcl_plugin.datasets.converters.mosaic_photos import CLASSES, PALETTE, SPLITS, VOID
from pixeldcl_plugin.datasets.converters.mosaic_synthesis import compose, cut_sources, load_photos, quadrants

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/dataset_converters/photo_mosaic.py"
CONFIG = ROOT / "configs/_base_/datasets/photo_mosaic.py"
SMALL = MosaicParameters(num_train=10, num_val=8, size=96, seed=3)


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def _read(folder: Path, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    names = (folder / f"ImageSets/Segmentation/{split}.txt").read_text().split()
    images = [np.asarray(Image.open(folder / f"JPEGImages/{name}.jpg")) for name in names]
    labels = [np.asarray(Image.open(folder / f"SegmentationClass/{name}.png")) for name in names]
    return images, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "photo_mosaic"
    assert write_mosaic(out, SMALL)
    return out


def _command():
    spec = importlib.util.spec_from_file_location("photo_mosaic_command", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(args):
        try:
            module.main(args)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


class TestSynthesis:
    @pytest.mark.parametrize("shape", [(100, 100), (191, 384), (33, 47)])
    def test_quadrants_are_disjoint_and_apart(self, shape):
        owner = np.zeros(shape, dtype=int)
        for value, split in enumerate(SPLITS, start=1):
            for area in quadrants(shape, split):
                assert owner[area].size > 0
                assert not owner[area].any()
                owner[area] = value
        near_train = cv2.dilate((owner == 1).astype(np.uint8), np.ones((17, 17))) > 0
        assert not (near_train & (owner == 2)).any()

    @pytest.mark.parametrize("split", ["test", "Train", ""])
    def test_unknown_split(self, split):
        with pytest.raises(ValueError, match="split must be one of"):
            quadrants((100, 100), split)

    @pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
    @pytest.mark.parametrize(("painted", "read"), [*itertools.product(SPLITS, SPLITS)])
    def test_no_pixel_of_the_other_split_is_read(self, painted, read):
        """NaN survives shrinking, interpolation, relighting and blending: it marks influence."""
        photos = [pixels.copy() for pixels in load_photos()]
        for pixels in photos:
            for area in quadrants(pixels.shape[:2], painted):
                pixels[area] = np.nan
        sources = cut_sources(photos, read)
        for index in range(len(CLASSES)):
            image, _ = compose(sources, 64, np.random.default_rng(index), first=index)
            assert np.isnan(image).any() == (painted == read)

    def test_every_photo_gives_two_pictures_a_split(self):
        for split in SPLITS:
            sources = cut_sources(load_photos(), split)
            assert len(sources) == len(CLASSES) == len(PALETTE)
            for pictures in sources:
                assert len(pictures) == 2
                for picture in pictures:
                    assert picture.shape[2] == 3
                    assert min(picture.shape[:2]) >= 64
                    assert picture.std() > 0.02

    def test_image_and_label_describe_each_other(self):
        """With one flat colour a class, every pixel away from a border shows its label's class."""
        flat = [[np.full((80, 80, 3), shade, np.float32)] for shade in (0.1, 0.5, 0.9)]
        for index in range(4):
            image, label = compose(flat, 96, np.random.default_rng(index), first=index % 3)
            shade = image.mean(axis=2)
            inside = np.ones_like(label, dtype=bool)
            for dy, dx in itertools.product((-3, 0, 3), repeat=2):
                inside &= np.roll(label, (dy, dx), (0, 1)) == label
            inside[:3] = inside[-3:] = False
            inside[:, :3] = inside[:, -3:] = False
            for dark, light in itertools.combinations(range(3), 2):
                if (inside & (label == dark)).any() and (inside & (label == light)).any():
                    assert shade[inside & (label == dark)].max() < (shade[inside & (label == light)].min())

    def test_colour_alone_does_not_solve_it(self):
        """A lookup table from colour to class, fitted on train, stays far from a network (80)."""
        counts = np.zeros((16**3, len(CLASSES)))
        confusion = np.zeros((len(CLASSES), len(CLASSES)))
        for split in SPLITS:
            sources = cut_sources(load_photos(), split)
            for index in range(48 if split == "train" else 16):
                rng = np.random.default_rng((split == "val", index))
                image, label = compose(sources, 96, rng, first=index % len(CLASSES))
                colour = (image * 15.99).astype(int) @ (256, 16, 1)
                kept = label != VOID
                if split == "train":
                    np.add.at(counts, (colour[kept], label[kept]), 1)
                else:
                    np.add.at(confusion, (label[kept], counts.argmax(1)[colour[kept]]), 1)
        hits = np.diag(confusion)
        iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
        assert 1 / len(CLASSES) < iou.mean() < 0.7


class TestFolder:
    def test_layout(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            ["ImageSets", "JPEGImages", "SegmentationClass", MARKER]
        )
        for split in SPLITS:
            count = SMALL.count(split)
            listed = (folder / f"ImageSets/Segmentation/{split}.txt").read_text().splitlines()
            assert listed == [f"{split}_{index:05d}" for index in range(count)]
        assert len(list(folder.glob("JPEGImages/*"))) == 18
        assert len(list(folder.glob("SegmentationClass/*"))) == 18

    def test_images_and_labels(self, folder):
        for file in folder.glob("SegmentationClass/*.png"):
            with (
                Image.open(file) as label,
                Image.open(folder / "JPEGImages" / file.with_suffix(".jpg").name) as image,
            ):
                assert (label.mode, label.size) == ("P", (96, 96))
                assert (image.mode, image.size, image.format) == ("RGB", (96, 96), "JPEG")
                palette = np.array(label.getpalette()).reshape(-1, 3)
                assert tuple(palette[VOID]) == (224, 224, 192)
                np.testing.assert_array_equal(palette[: len(CLASSES)], PALETTE)
                assert set(np.unique(label)) <= {*range(len(CLASSES)), VOID}

    @pytest.mark.parametrize("split", SPLITS)
    def test_every_class_and_void_in_both_splits(self, folder, split):
        _, labels = _read(folder, split)
        share = np.bincount(np.concatenate(labels).ravel(), minlength=256) / (96 * 96 * len(labels))
        assert (share[: len(CLASSES)] > 0.02).all()
        assert 0.002 < share[VOID] < 0.06

    def test_splits_and_seeds_differ(self, folder, tmp_path):
        write_mosaic(tmp_path, MosaicParameters(1, 1, 96, seed=4))
        first = [_read(folder, split)[0][0] for split in SPLITS]
        other = [_read(tmp_path, split)[0][0] for split in SPLITS]
        for one, two in itertools.combinations([*first, *other], 2):
            assert np.abs(one.astype(int) - two).mean() > 5

    def test_same_bytes_again_and_alone(self, folder, tmp_path):
        """A second run gives the same bytes, and so does a set with fewer images before it."""
        assert write_mosaic(tmp_path / "again", SMALL)
        assert _digests(tmp_path / "again") == _digests(folder)
        write_mosaic(tmp_path / "fewer", MosaicParameters(2, 3, 96, seed=3))
        fewer = _digests(tmp_path / "fewer")
        for name in ("JPEGImages/val_00002.jpg", "SegmentationClass/train_00001.png"):
            assert fewer[name] == _digests(folder)[name]

    def test_complete_set_is_left_alone(self, folder):
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
        assert not write_mosaic(folder, SMALL)
        assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before

    def test_deleted_file_comes_back(self, folder, tmp_path):
        write_mosaic(tmp_path, SMALL)
        (tmp_path / "SegmentationClass/val_00001.png").unlink()
        assert write_mosaic(tmp_path, SMALL)
        assert _digests(tmp_path) == _digests(folder)

    @pytest.mark.parametrize("images", [0, 1, 11])
    def test_continues_after_interruption(self, folder, tmp_path, images):
        done = itertools.count()

        def stop() -> None:
            if next(done) == images:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_mosaic(tmp_path, SMALL, stop)
        assert not json.loads((tmp_path / MARKER).read_text())["complete"]
        kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.jpg")}
        assert len(kept) == images + 1
        assert write_mosaic(tmp_path, SMALL)
        assert _digests(tmp_path) == _digests(folder)
        assert {file: file.stat().st_mtime_ns for file in kept} == kept

    @pytest.mark.parametrize("move", range(4), ids=["marker", "image", "label", "next"])
    def test_a_kill_while_writing_leaves_no_half_file(self, folder, tmp_path, monkeypatch, move):
        """A file takes its final name when it is whole; until then a second run writes it anew."""
        rename = Path.replace
        moves = itertools.count()

        def killed(source, target):
            if next(moves) == move:
                source.write_bytes(b"half")
                raise KeyboardInterrupt
            return rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                write_mosaic(tmp_path, SMALL)
        assert write_mosaic(tmp_path, SMALL)
        assert _digests(tmp_path) == _digests(folder)

    def test_refuses_a_foreign_folder(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="not written by this tool"):
            write_mosaic(tmp_path, SMALL)
        assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("marker", ["", "{}", "[1", '{"seed": 3}', "7"])
    def test_refuses_a_marker_it_did_not_write(self, tmp_path, marker):
        (tmp_path / MARKER).write_text(marker)
        with pytest.raises(FileExistsError, match="was not written by this tool"):
            write_mosaic(tmp_path, SMALL)
        assert (tmp_path / MARKER).read_text() == marker

    @pytest.mark.parametrize("changed", [{"seed": 4}, {"size": 64}, {"num_train": 11}])
    def test_refuses_other_parameters(self, folder, changed):
        before = _digests(folder)
        ((name, value),) = changed.items()
        with pytest.raises(FileExistsError, match=rf"with {name}=\d+, not {value}; choose"):
            write_mosaic(folder, replace(SMALL, **changed))
        assert _digests(folder) == before

    def test_refuses_another_version(self, tmp_path):
        """A set of an older generator is not continued with other pixels."""
        write_mosaic(tmp_path, MosaicParameters(1, 1, 32))
        content = json.loads((tmp_path / MARKER).read_text())
        (tmp_path / MARKER).write_text(json.dumps({**content, "version": 0}))
        with pytest.raises(FileExistsError, match="version=0"):
            write_mosaic(tmp_path, MosaicParameters(1, 1, 32))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"num_train": 0},
            {"num_val": -1},
            {"size": 31},
            {"size": 96.0},
            {"size": 1025},
            {"seed": -1},
        ],
    )
    def test_wrong_parameters(self, wrong):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"{name} must be an integer in .* got {value}"):
            MosaicParameters(**wrong)


class TestCommand:
    ARGS = ("--num-train", "10", "--num-val", "8", "--size", "96", "--seed", "3")

    def test_writes_then_says_already_there(self, folder, tmp_path, capsys):
        main = _command()
        out = tmp_path / "new" / "set"
        assert main(["--out", str(out), *self.ARGS]) == 0
        assert f"images in {out}" in capsys.readouterr().out
        assert _digests(out) == _digests(folder)
        assert main(["--out", str(out), *self.ARGS]) == 0
        assert "found, written before" in capsys.readouterr().out

    def test_errors_are_one_line_and_exit_code_2(self, folder, tmp_path, capsys):
        main = _command()
        (tmp_path / "file").write_text("mine")
        for args, message in (
            (["--out", str(tmp_path)], "not written by this tool"),
            (["--out", str(tmp_path / "file")], "is a file"),
            (
                ["--out", str(folder), *self.ARGS, "--num-val", "80"],
                "holds a photo mosaic set with num_val=8, not 80",
            ),
            (
                ["--out", str(tmp_path / "new"), "--size", "0"],
                "size must be an integer in 32..1024, got 0",
            ),
        ):
            assert main(args) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: ")
            assert message in line
        assert sorted(file.name for file in tmp_path.iterdir()) == ["file"]

    def test_as_a_program(self, folder, tmp_path):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        call = [sys.executable, str(TOOL), "--out", str(tmp_path / "set"), *self.ARGS]
        done = subprocess.run(call, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert _digests(tmp_path / "set") == _digests(folder)
        (tmp_path / "set" / MARKER).unlink()
        done = subprocess.run(call, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


class TestDataset:
    def test_sample_passes_the_pipelines(self, folder):
        config = pytest.importorskip("mmengine.config").Config.fromfile(CONFIG)
        from mmseg.registry import DATASETS
        from mmseg.utils import register_all_modules

        import pixeldcl_plugin.datasets.photo_mosaic  # noqa: F401

        register_all_modules(init_default_scope=True)
        for loader, split in (
            (config.train_dataloader, "train"),
            (config.val_dataloader, "val"),
            (config.test_dataloader, "val"),
        ):
            loader.dataset.data_root = str(folder)
            dataset = DATASETS.build(loader.dataset)
            assert len(dataset) == SMALL.count(split)
            assert dataset.metainfo["classes"] == CLASSES
            assert dataset.metainfo["palette"] == [list(color) for color in PALETTE]
            images, labels = _read(folder, split)
            sample = dataset[1]
            assert sample["inputs"].shape == (3, 96, 96)
            label = sample["data_samples"].gt_sem_seg.data[0].numpy()
            image = sample["inputs"].numpy()[::-1].transpose(1, 2, 0)
            if sample["data_samples"].metainfo.get("flip"):
                label, image = label[:, ::-1], image[:, ::-1]
            np.testing.assert_array_equal(label, labels[1])
            # OpenCV and Pillow may decode a JPEG one grey level apart.
            assert np.abs(image.astype(int) - images[1]).max() <= 4

        loader.dataset.pipeline = config.tta_pipeline
        plain, flipped = DATASETS.build(loader.dataset)[1]["inputs"]
        assert (plain.flip(-1) == flipped).all()

    def test_missing_set_names_the_command(self, tmp_path):
        from pixeldcl_plugin.datasets.photo_mosaic import PhotoMosaicDataset

        with pytest.raises(FileNotFoundError, match=r"photo_mosaic\.py --out .*absent"):
            PhotoMosaicDataset(
                ann_file="ImageSets/Segmentation/train.txt", data_root=str(tmp_path / "absent")
            )
