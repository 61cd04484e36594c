"""COCO's instances as masks: reading, painting, the folder, the command, the data set class."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from pixeldcl_plugin.datasets.coco_detection import COCODetectionDataset
from pixeldcl_plugin.datasets.converters.coco_annotations import (
    CATEGORIES,
    CLASSES,
    LABELS,
    PALETTE,
    VOID,
    ImageRecord,
    Instance,
    read_annotations,
)

coco = pytest.importorskip("pycocotools.mask", reason="pycocotools (the extra 'coco') is not installed")

from pixeldcl_plugin.datasets.converters.coco_folder import MARKER, convert  # noqa: E402
from pixeldcl_plugin.datasets.converters.coco_masks import encode, paint  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/dataset_converters/coco_detection.py"
CONFIG = ROOT / "configs/_base_/datasets/coco_detection.py"
# pycocotools 2.0 under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")
SPLIT_MARKER = MARKER.format(split="train")
HEIGHT, WIDTH = 12, 20


def _box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def _area(x0, y0, x1, y1, height=HEIGHT, width=WIDTH):
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _runs(mask):
    """Runs of a mask, column by column, beginning with zeros."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


def _compressed(mask):
    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def _record(*instances, height=HEIGHT, width=WIDTH):
    listed = [Instance(number, label, form) for number, (label, form) in enumerate(instances, start=1)]
    return ImageRecord("a.jpg", height, width, listed)


def _annotation(number, image, category, segmentation, **others):
    return dict(id=number, image_id=image, category_id=category, segmentation=segmentation, **others)


def _content():
    """Three images: overlapping forms with a crowd, an image in a subfolder, one without instances."""
    return {
        "images": [
            dict(id=7, file_name="a.jpg", height=HEIGHT, width=WIDTH),
            dict(id=3, file_name="sub/b.jpg", height=10, width=14),
            dict(id=5, file_name="c.jpg", height=6, width=8),
        ],
        "categories": [dict(id=number, name=name) for number, name in CATEGORIES.items()],
        "annotations": [
            _annotation(1, 7, 90, [_box(4, 3, 7, 6)], iscrowd=0),
            _annotation(2, 7, 1, _runs(_area(2, 2, 12, 10)), iscrowd=0),
            _annotation(3, 7, 13, _compressed(_area(10, 0, 20, 4)), iscrowd=1),
            _annotation(4, 3, 18, [_box(0, 0, 3, 3), _box(8, 5, 14, 10)]),
        ],
    }


def _expected():
    first = np.zeros((HEIGHT, WIDTH), np.uint8)
    first[0:4, 10:20] = VOID
    first[2:10, 2:12] = 1
    first[3:6, 4:7] = 80
    second = np.zeros((10, 14), np.uint8)
    second[0:3, 0:3] = second[5:10, 8:14] = 17
    return {"a": first, "sub/b": second, "c": np.zeros((6, 8), np.uint8)}


def _write(folder, content):
    file = folder / "instances_train.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    if isinstance(content, dict):
        for image in _content()["images"]:
            path = folder / "images" / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (image["width"], image["height"])).save(path)
    return file


@pytest.fixture
def source(tmp_path):
    return _write(tmp_path, _content())


def _convert(source, out, **options):
    return convert(source, source.parent / "images", out, "train", **options)


def _digests(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def _command():
    spec = importlib.util.spec_from_file_location("coco_detection_command", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(args):
        try:
            module.main(args)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


class TestClasses:
    def test_labels_are_contiguous_in_the_order_of_the_ids(self):
        assert len(CLASSES) == len(set(CLASSES)) == 81
        assert list(CATEGORIES) == sorted(CATEGORIES)
        assert list(LABELS.values()) == list(range(1, 81))
        assert [CLASSES[LABELS[number]] for number in (1, 13, 90)] == ["person", "stop sign", "toothbrush"]

    def test_palette_is_that_of_voc_and_distinct(self):
        from mmseg.datasets import PascalVOCDataset

        assert [list(color) for color in PALETTE[:21]] == PascalVOCDataset.METAINFO["palette"]
        assert len(set(PALETTE)) == 81


class TestPaint:
    @pytest.mark.parametrize("form", [_runs, _compressed], ids=["runs", "compressed"])
    def test_run_length_codes_are_exact(self, form):
        rng = np.random.default_rng(0)
        for density in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random((31, 47)) < density
            painted = paint(_record((5, form(mask)), height=31, width=47))
            np.testing.assert_array_equal(painted, np.where(mask, 5, 0))

    def test_polygons_are_united_and_cut_at_the_border(self):
        painted = paint(_record((9, [_box(-4, 1, 3, 5), _box(2, 4, 30, 8)])))
        np.testing.assert_array_equal(painted == 9, _area(0, 1, 3, 5) | _area(2, 4, WIDTH, 8))

    @pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
    def test_small_over_large_over_crowd_in_any_order(self, order):
        small, large, crowd = _area(4, 3, 7, 6), _area(2, 2, 12, 10), _area(5, 5, 6, 6) | _area(9, 0, 20, 4)
        instances = [(3, _runs(small)), (8, _runs(large)), (VOID, _runs(crowd))]
        painted = paint(_record(*(instances[i] for i in order)))
        expected = np.select([small, large, crowd], [3, 8, VOID], 0)
        np.testing.assert_array_equal(painted, expected)

    def test_equal_areas_are_painted_in_the_order_of_the_file(self):
        left, right = _area(0, 0, 4, 4), _area(2, 0, 6, 4)
        painted = paint(_record((1, _runs(left)), (2, _runs(right))))
        np.testing.assert_array_equal(painted, np.select([right, left], [2, 1], 0))

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ([], "empty"),
            ([[1, 2, 3, 4]], "three or more pairs"),
            ([[1, 2, 3, 4, 5, 6, 7]], "three or more pairs"),
            ([[1, 2, 3, 4, 5, "6"]], "got '6'"),
            ([[1, 2, 3, 4, 5, float("nan")]], "got nan"),
            ([[1, 2, 3, 4, 5, 10**400]], "must be a number up to 100000"),
            ([3], "three or more pairs"),
            ("box", "list of polygons or an object"),
            ({"counts": [240]}, "list of polygons or an object"),
            ({"size": [WIDTH, HEIGHT], "counts": [240]}, r"size \[20, 12\], the image \[12, 20\]"),
            ({"size": [HEIGHT, WIDTH], "counts": [100, 50]}, "decodes to 150 pixels, .* = 240"),
            ({"size": [HEIGHT, WIDTH], "counts": [100, 150]}, "decodes to 250 pixels"),
            ({"size": [HEIGHT, WIDTH], "counts": [300, -60]}, "runs of 0 pixels or more"),
            ({"size": [HEIGHT, WIDTH], "counts": 240}, "runs of 0 pixels or more"),
            (
                {"size": [HEIGHT, WIDTH], "counts": _compressed(_area(1, 1, 5, 5))["counts"][:-2]},
                "decodes to",
            ),
            ({"size": [HEIGHT, WIDTH], "counts": "P"}, "ends within a number"),
            ({"size": [HEIGHT, WIDTH], "counts": "é"}, "holds the character 'é'"),
        ],
    )
    def test_malformed_segmentations_are_named(self, segmentation, message):
        with pytest.raises(ValueError, match=message):
            encode(segmentation, HEIGHT, WIDTH)
        with pytest.raises(ValueError, match=r"^annotation 1 of a\.jpg: "):
            paint(_record((1, segmentation)))


def _without(key):
    def change(content):
        del content[key]

    return change


def _setting(key, index, **values):
    def change(content):
        content[key][index].update(values)

    return change


class TestReading:
    def test_records_and_digest(self, source):
        digest, records = read_annotations(source)
        assert digest == hashlib.sha256(source.read_bytes()).hexdigest()
        assert [(record.name, len(record.instances)) for record in records] == [
            ("a", 3),
            ("sub/b", 1),
            ("c", 0),
        ]
        assert records[0].labels == {0, 1, 80, VOID}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (_without("images"), "lacks images"),
            (_without("categories"), "lacks categories"),
            (lambda content: content.update(annotations={}), "annotations must be a list, got dict"),
            (lambda content: content["images"].clear(), "no image is listed"),
            (lambda content: content["images"].append(3), "image number 3 must be an object"),
            (lambda content: content["images"][1].pop("width"), "image number 1 lacks width"),
            (
                lambda content: content["annotations"][2].pop("segmentation"),
                "annotation 3 lacks segmentation",
            ),
            (_setting("images", 1, id=7), "number 1 has the id 7"),
            (_setting("images", 1, height=0), r"sub/b\.jpg has height=0"),
            (_setting("images", 1, file_name="../b.jpg"), r"below the image folder, got '\.\./b\.jpg'"),
            (_setting("images", 1, file_name="/b.jpg"), "below the image folder"),
            (_setting("images", 1, file_name="./a.jpg"), "would share the mask"),
            (_setting("images", 1, file_name="a.png"), r"one suffix, got \.jpg, \.png"),
            (_setting("annotations", 0, category_id=12), "annotation 1 has the unknown category id 12"),
            (_setting("annotations", 0, image_id=99), "annotation 1 belongs to image 99"),
            (_setting("annotations", 0, iscrowd=2), "iscrowd=2"),
            (_setting("categories", 0, name="pedestrian"), "unknown category id 1 .'pedestrian'"),
            (_setting("categories", 0, id=91), "unknown category id 91"),
        ],
    )
    def test_a_bad_file_is_refused_before_anything_is_written(self, tmp_path, change, message):
        content = _content()
        change(content)
        source = _write(tmp_path, content)
        with pytest.raises(ValueError, match=message) as refusal:
            _convert(source, tmp_path / "out")
        assert str(source) in str(refusal.value)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("text", ["", "{", "[]", "7"])
    def test_not_an_annotation_file(self, tmp_path, text):
        source = _write(tmp_path, text)
        with pytest.raises(ValueError, match=r"is not JSON|must be an object"):
            _convert(source, tmp_path / "out")


class TestFolder:
    def test_masks_list_and_marker(self, source, tmp_path):
        out = tmp_path / "out"
        steps = []
        assert _convert(source, out, on_progress=lambda *step: steps.append(step)) == (3, 3)
        for name, expected in _expected().items():
            with Image.open(out / f"train/{name}.png") as mask:
                np.testing.assert_array_equal(np.asarray(mask), expected)
                assert mask.getpalette()[: 3 * 81] == [value for color in PALETTE for value in color]
        assert (out / "train.txt").read_text() == "a\nsub/b\nc\n"
        marker = json.loads((out / SPLIT_MARKER).read_text())
        assert marker["annotations_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert marker["complete"] is True
        assert steps == [(stage, done, 3) for stage in ("paint", "verify") for done in (1, 2, 3)]

    def test_a_second_run_keeps_whole_masks_and_paints_the_rest(self, source, tmp_path):
        out = tmp_path / "out"
        _convert(source, out)
        before = _digests(out)
        kept = (out / "train/c.png").stat().st_mtime_ns
        (out / "train/a.png").write_bytes((out / "train/a.png").read_bytes()[:-30])
        foreign = np.full((10, 14), 44, np.uint8)
        Image.fromarray(foreign, mode="P").save(out / "train/sub/b.png")
        assert _convert(source, out) == (3, 2)
        assert _digests(out) == before
        assert (out / "train/c.png").stat().st_mtime_ns == kept
        assert _convert(source, out) == (3, 0)

    @pytest.mark.parametrize("move", range(6), ids=["marker", "a", "b", "c", "list", "complete"])
    def test_a_kill_while_writing_leaves_no_half_file(self, source, tmp_path, monkeypatch, move):
        _convert(source, tmp_path / "whole")
        rename, moves, out = Path.replace, itertools.count(), tmp_path / "out"

        def killed(part, target):
            if next(moves) == move:
                part.write_bytes(b"half")
                raise KeyboardInterrupt
            return rename(part, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                _convert(source, out)
        assert _convert(source, out) == (3, 3 - min(max(move - 1, 0), 3))
        assert _digests(out) == _digests(tmp_path / "whole")

    def test_splits_share_a_folder(self, source, tmp_path):
        images, out = source.parent / "images", tmp_path / "out"
        convert(source, images, out, "train")
        before = _digests(out)
        assert convert(source, images, out, "val") == (3, 3)
        assert before.items() <= _digests(out).items()
        assert (out / "val.txt").is_file()

    @pytest.mark.parametrize("name", ["thesis.txt", "train/mine.png", "train.txt"])
    def test_refuses_a_foreign_folder(self, source, tmp_path, name):
        out = tmp_path / "out"
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        with pytest.raises(FileExistsError, match="not written by this tool"):
            _convert(source, out)
        assert list(_digests(out)) == [name]

    def test_refuses_a_foreign_split_beside_its_own(self, source, tmp_path):
        out = tmp_path / "out"
        _convert(source, out)
        (out / "val.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"val\.txt in .* not written by this tool"):
            convert(source, source.parent / "images", out, "val")

    @pytest.mark.parametrize("marker", ["", "{}", "[1", "7"])
    def test_refuses_a_marker_it_did_not_write(self, source, tmp_path, marker):
        out = tmp_path / "out"
        out.mkdir()
        (out / SPLIT_MARKER).write_text(marker)
        with pytest.raises(FileExistsError, match="was not written by this tool"):
            _convert(source, out)

    def test_refuses_the_split_of_another_annotation_file(self, source, tmp_path):
        out = tmp_path / "out"
        _convert(source, out)
        before = _digests(out)
        source.write_text(source.read_text() + "\n")
        with pytest.raises(FileExistsError, match="another annotation file"):
            _convert(source, out)
        assert _digests(out) == before

    def test_all_missing_images_are_named_before_any_work(self, source, tmp_path):
        for name in ("a.jpg", "sub/b.jpg"):
            (source.parent / "images" / name).unlink()
        with pytest.raises(FileNotFoundError, match=r"2 of 3 images .*: a\.jpg, sub/b\.jpg"):
            _convert(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_image_of_another_size_is_named(self, source, tmp_path):
        Image.new("RGB", (8, 7)).save(source.parent / "images/c.jpg")
        with pytest.raises(ValueError, match=r"c\.jpg is 8x7 pixels, the annotation file says 8x6"):
            _convert(source, tmp_path / "out")

    def test_verification_sees_a_mask_too_many(self, source, tmp_path):
        out = tmp_path / "out"
        _convert(source, out)
        (out / "train/d.png").write_bytes((out / "train/c.png").read_bytes())
        with pytest.raises(ValueError, match=r"verification failed: .* 4 masks, .* 3 images"):
            _convert(source, out)

    def test_verification_reads_the_masks_on_disk(self, source, tmp_path, monkeypatch):
        from pixeldcl_plugin.datasets.converters import coco_folder

        wrong = lambda record: np.full((record.height, record.width), 44, np.uint8)  # noqa: E731
        monkeypatch.setattr(coco_folder, "paint", wrong)
        with pytest.raises(ValueError, match=r"verification failed: .*a\.png has the labels \[44\]"):
            _convert(source, tmp_path / "out")

    @pytest.mark.parametrize("options", [dict(workers=0), dict(split="../x"), dict(split="")])
    def test_bad_arguments(self, source, tmp_path, options):
        arguments = dict(split="train", workers=1) | options
        with pytest.raises(ValueError, match="must be"):
            convert(source, source.parent / "images", tmp_path / "out", **arguments)


class TestCommand:
    def _arguments(self, source, out):
        return [str(source), "--images", str(source.parent / "images"), "--out", str(out), "--workers", "1"]

    def test_runs_and_names_the_split_by_the_file(self, source, tmp_path, capsys):
        out = tmp_path / "out"
        assert _command()(self._arguments(source, out)) == 0
        assert _command()(self._arguments(source, out)) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed == [
            f"wrote 3 of 3 masks to {out / 'train'}, 0 stood there; all verified",
            f"wrote 0 of 3 masks to {out / 'train'}, 3 stood there; all verified",
        ]

    def test_an_error_is_one_line_and_what_was_written_stays_valid(self, source, tmp_path, capsys):
        content = _content()
        content["annotations"][3]["segmentation"] = {"size": [10, 14], "counts": [141]}
        _write(tmp_path, content)
        out = tmp_path / "out"
        assert _command()(self._arguments(source, out)) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: annotation 4 of sub/b.jpg: ")
        np.testing.assert_array_equal(np.asarray(Image.open(out / "train/a.png")), _expected()["a"])

    def test_a_refusal_is_one_line(self, tmp_path, capsys):
        assert _command()(self._arguments(tmp_path / "none.json", tmp_path / "out")) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1
        assert "none.json" in error

    @pytest.mark.slow
    def test_killed_workers_end_and_a_second_run_completes(self, tmp_path):
        """Two processes, the parent killed outright: no worker survives, the result is the same."""
        size, number = 700, 160
        polygons = [[_box(i, i, size - i, size - i)] for i in range(1, 300, 30)]
        content = _content() | {
            "images": [dict(id=i, file_name=f"{i}.jpg", height=size, width=size) for i in range(number)],
            "annotations": [
                _annotation(1000 * i + j, i, 1 + j, polygon)
                for i in range(number)
                for j, polygon in enumerate(polygons)
            ],
        }
        source = tmp_path / "instances_train.json"
        source.write_text(json.dumps(content))
        (tmp_path / "images").mkdir()
        Image.new("L", (size, size)).save(tmp_path / "images/0.jpg")
        for i in range(1, number):
            os.link(tmp_path / "images/0.jpg", tmp_path / f"images/{i}.jpg")
        out = tmp_path / "out"
        command = [sys.executable, str(TOOL), *self._arguments(source, out)[:-1], "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as first:
            deadline = time.monotonic() + 120
            while not any((out / "train").glob("[!.]*.png")) and time.monotonic() < deadline:
                time.sleep(0.01)
            first.kill()
            # The pipe closes when its last holder ends: a surviving worker would keep it open.
            first.communicate(timeout=60)
        done = len(list((out / "train").glob("[!.]*.png")))
        assert 0 < done < number
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert second.returncode == 0, second.stderr
        painted = int(second.stdout.split()[1])  # "wrote N of ..."
        assert 0 < painted <= number - done
        assert not list(out.rglob(".partial-*"))
        mask = np.asarray(Image.open(out / "train/17.png"))
        assert set(np.unique(mask)) == set(range(11))


class TestDataset:
    def test_reads_what_the_converter_writes_through_the_base_config(self, source, tmp_path):
        out = tmp_path / "out"
        _convert(source, out)
        init_default_scope("mmseg")
        cfg = Config.fromfile(CONFIG).train_dataloader.dataset
        cfg.update(
            data_root=str(tmp_path),
            data_prefix=dict(img_path="images", seg_map_path="out/train"),
            ann_file="out/train.txt",
        )
        dataset = DATASETS.build(cfg)
        assert isinstance(dataset, COCODetectionDataset)
        assert len(dataset) == 3
        assert dataset.metainfo["classes"] == CLASSES
        assert not dataset.reduce_zero_label
        for index, name in enumerate(("a", "sub/b", "c")):
            label = dataset[index]["data_samples"].gt_sem_seg.data
            assert tuple(label.shape) == (1, 256, 256)
            assert dataset[index]["inputs"].shape == (3, 256, 256)
            assert set(label.unique().tolist()) == set(np.unique(_expected()[name]).tolist())

    def test_labels_keep_the_size_of_the_image_in_validation(self, source, tmp_path):
        _convert(source, tmp_path / "out")
        init_default_scope("mmseg")
        cfg = Config.fromfile(CONFIG).val_dataloader.dataset
        cfg.update(
            data_root=str(tmp_path),
            data_prefix=dict(img_path="images", seg_map_path="out/train"),
            ann_file="out/train.txt",
        )
        sample = DATASETS.build(cfg)[0]
        assert sample["inputs"].shape == (3, 256, 256)
        np.testing.assert_array_equal(sample["data_samples"].gt_sem_seg.data[0].numpy(), _expected()["a"])

    def test_a_missing_list_says_how_to_write_it(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"coco_detection\.py ANNOTATIONS\.json"):
            COCODetectionDataset(ann_file=str(tmp_path / "none/train.txt"), pipeline=[])


def test_real_annotations(tmp_path):
    """128 images of COCO: sizes and classes are those of the annotations, and every class is seen."""
    source = ROOT / "data/coco128/annotations/instances_coco128.json"
    if not source.is_file():
        pytest.skip(f"the COCO128 images and annotations are not in {source.parents[1]}")
    total, painted = convert(source, source.parents[1] / "images/train2017", tmp_path / "out", "coco128")
    assert total == painted == 128
    content = json.loads(source.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    names = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    shown: dict[int, set[int]] = {image: {0} for image in sizes}
    for annotation in content["annotations"]:
        shown[annotation["image_id"]].add(LABELS[annotation["category_id"]])
    pixels = np.zeros(81, np.int64)
    for image, size in sizes.items():
        mask = np.asarray(Image.open(tmp_path / f"out/coco128/{names[image]}.png"))
        assert mask.shape == size
        assert set(np.unique(mask).tolist()) <= shown[image]
        pixels += np.bincount(mask.ravel(), minlength=81)
    used = {LABELS[annotation["category_id"]] for annotation in content["annotations"]}
    assert set(np.flatnonzero(pixels).tolist()) == {0, *used}
