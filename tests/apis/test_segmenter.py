"""Pictures to label maps: against MMSegmentation's own test, whole against in blocks, and odd pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope, init_default_scope
from mmseg.registry import DATASETS, MODELS
from PIL import Image
from torch.nn import functional as F

import pixeldcl_plugin
from pixeldcl_plugin import Segmenter
from pixeldcl_plugin.apis.tiling import Block, blocks, interpolate
from pixeldcl_plugin.engine.builder import load_model
from pixeldcl_plugin.utils.checkpoints import CheckpointError
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.utils.label_maps import VOID_COLOR, colorize, save_index_png
from pixeldcl_plugin.visualization.pictures import overlay, read_image

Make = Callable[..., Segmenter]


@pytest.fixture(scope="module")
def config(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    file = tmp_path_factory.mktemp("segmenter") / "tiny.py"
    file.write_text(tiny_config_text)
    return Config.fromfile(file)


@pytest.fixture(scope="module")
def checkpoint(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, batch statistics included, so that classes alternate."""
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(dict(state_dict=model.state_dict(), meta={}), file)
    return file


@pytest.fixture
def make(config: Config, checkpoint: Path) -> Make:
    def build(*, max_pixels: int = 2**21, **changes: object) -> Segmenter:
        cfg = config.copy()
        cfg.merge_from_dict(dict(changes))
        return Segmenter(cfg, checkpoint, "cpu", max_pixels=max_pixels)

    return build


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Blobs of random colours."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_labels_are_those_that_mmseg_tests(make: Make, config: Config, tiny_data: Path) -> None:
    segmenter = make()
    dataset = DATASETS.build(config.test_dataloader.dataset)
    for index in range(len(dataset)):
        with torch.no_grad():
            sample = segmenter.model.test_step(pseudo_collate([dataset[index]]))[0]
        expected = sample.pred_sem_seg.data[0].numpy()
        labels = segmenter(sample.img_path)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)
        assert len(np.unique(labels)) > 1
        logits = segmenter.predict([sample.img_path], maps="logits")[0].maps
        torch.testing.assert_close(torch.from_numpy(logits), sample.seg_logits.data)


def test_a_resizing_pipeline_is_followed_and_undone(make: Make, config: Config, tiny_data: Path) -> None:
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", scale=(80, 48), keep_ratio=True),
        dict(type="LoadAnnotations"),
        dict(type="PackSegInputs"),
    ]
    segmenter = make(**{"test_dataloader.dataset.pipeline": pipeline})
    dataset = DATASETS.build({**config.test_dataloader.dataset, "pipeline": pipeline})
    with torch.no_grad():
        sample = segmenter.model.test_step(pseudo_collate([dataset[0]]))[0]
    assert sample.img_shape == (48, 48)
    prediction = segmenter.predict([sample.img_path], maps="logits")[0]
    torch.testing.assert_close(
        torch.from_numpy(prediction.maps), sample.seg_logits.data, atol=1e-4, rtol=1e-4
    )
    assert (prediction.labels == sample.pred_sem_seg.data[0].numpy()).mean() > 0.999


def test_a_config_in_slide_mode_slides(make: Make, config: Config) -> None:
    slide = make(**{"model.test_cfg": dict(mode="slide", crop_size=(32, 32), stride=(16, 16))})
    whole = make()
    image = picture(48, 64)
    torch.testing.assert_close(
        torch.from_numpy(slide.predict([image[:32, :32]], maps="logits")[0].maps),
        torch.from_numpy(whole.predict([image[:32, :32]], maps="logits")[0].maps),
    )
    # Windows see padding where the whole image goes on.
    assert not np.allclose(slide.probabilities(image), whole.probabilities(image))


def test_blocks_give_what_the_whole_image_gives(make: Make) -> None:
    image = picture(333, 421)
    whole = make().predict([image], maps="probabilities")[0]
    parts = make(max_pixels=128**2).predict([image], maps="probabilities")[0]
    np.testing.assert_allclose(parts.maps, whole.maps, atol=1e-5)
    assert (parts.labels == whole.labels).mean() > 0.9999
    assert sorted(np.bincount(whole.labels.ravel(), minlength=3))[-2] > 1000  # two classes to tell apart


def test_the_blocks_of_a_large_image_are_reported(make: Make) -> None:
    seen: list[tuple[int, int]] = []
    images = [np.zeros(size, np.uint8) for size in ((128, 128, 3), (150, 300, 3))]
    make(max_pixels=128**2).predict(images, on_block=lambda done, total: seen.append((done, total)))
    assert len(seen) > 1
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]


def test_no_more_than_max_pixels_pass_the_model_at_once(make: Make) -> None:
    segmenter, seen = make(max_pixels=128**2), []
    segmenter.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    segmenter.predict([picture(50, 60), picture(300, 200), picture(50, 60, seed=1)])
    assert max(shape[2] * shape[3] for shape in seen) <= 128**2
    assert [shape[0] for shape in seen] == [2] + [1] * (len(seen) - 1)  # those of one size are one batch
    assert len(seen) == 1 + 5 * 4


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (31, 33), (64, 64)])
def test_any_size(make: Make, size: tuple[int, int]) -> None:
    segmenter = make()
    image = np.full((*size, 3), 120, np.uint8)
    assert segmenter(image).shape == size
    probabilities = segmenter.probabilities(image)
    assert probabilities.shape == (3, *size)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_a_batch_is_in_the_order_of_the_images(make: Make) -> None:
    segmenter = make()
    images = [picture(h, w, seed) for seed, (h, w) in enumerate([(32, 40), (40, 32), (32, 40), (8, 8)])]
    together = segmenter.predict(images, maps="bytes")
    for image, prediction in zip(images, together, strict=True):
        alone = segmenter.predict([image], maps="probabilities")[0]
        np.testing.assert_array_equal(prediction.labels, alone.labels)
        assert prediction.maps.dtype == np.uint8
        assert np.abs(prediction.maps / 255 - alone.maps).max() < 0.5 / 255 + 1e-4
    assert segmenter.predict([]) == []


def test_one_logit_for_two_classes(config: Config, tmp_path: Path) -> None:
    cfg = config.copy()
    cfg.merge_from_dict({"model.decode_head": dict(num_classes=2, out_channels=1, threshold=0.4)})
    init_default_scope("mmseg")
    torch.manual_seed(1)
    model = MODELS.build(cfg.model)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    torch.save(model.state_dict(), tmp_path / "binary.pth")
    prediction = Segmenter(cfg, tmp_path / "binary.pth", "cpu").predict(
        [picture(40, 40)], maps="probabilities"
    )[0]
    np.testing.assert_array_equal(prediction.labels, prediction.maps[1] > 0.4)
    assert set(np.unique(prediction.labels)) == {0, 1}


# --- classes and palette --------------------------------------------------------------------------


def test_classes_are_the_data_sets(make: Make) -> None:
    segmenter = make()
    assert segmenter.classes == ("dark", "red", "blue")
    assert segmenter.palette.tolist() == [[9, 9, 9], [200, 0, 0], [0, 0, 200]]


def test_classes_are_the_checkpoints_where_the_config_has_no_data(
    config: Config, checkpoint: Path, tmp_path: Path
) -> None:
    cfg = Config(dict(model=config.model))
    unnamed = Segmenter(cfg, checkpoint)
    assert unnamed.classes == ("class 0", "class 1", "class 2")
    assert unnamed.palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    saved = torch.load(checkpoint, weights_only=True)
    saved["meta"] = dict(
        dataset_meta=dict(classes=("a", "b", "c"), palette=[[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    )
    torch.save(saved, tmp_path / "named.pth")
    named = Segmenter(cfg, tmp_path / "named.pth")
    assert named.classes == ("a", "b", "c")
    assert named.palette.tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    colors: list[object] = [
        "text",
        5,
        [[1]],
        [[1, 1, 300]] * 3,
        [[1, 1, -1]] * 3,
        [[1, 1, "x"]] * 3,
        [1, 2, 3],
    ]
    damaged: list[object] = [dict(classes=("a", "b", "c"), palette=palette) for palette in colors]
    damaged += ["text", 5, [1], dict(classes="abc"), dict(classes=[1, 2, 3])]
    for meta in damaged:
        torch.save({**saved, "meta": dict(dataset_meta=meta)}, tmp_path / "damaged.pth")
        with pytest.raises(CheckpointError, match=r"damaged\.pth': its dataset_meta has no"):
            Segmenter(cfg, tmp_path / "damaged.pth")


# --- refusals -------------------------------------------------------------------------------------


def test_unusable_arguments_are_refused(make: Make, config: Config, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_pixels must be at least 16384, got 100"):
        make(max_pixels=100)
    with pytest.raises(ValueError, match="device 'abacus'"):
        Segmenter(config, checkpoint, "abacus")
    with pytest.raises(UsageError, match=r"test pipeline has RandomFlip"):
        make(**{"test_dataloader.dataset.pipeline": [dict(type="RandomFlip", prob=1.0)]})
    with pytest.raises(CheckpointError, match="no checkpoint file"):
        Segmenter(config, tmp_path / "absent.pth")
    with pytest.raises(UsageError, match=r"no config|not found|absent"):
        Segmenter(tmp_path / "absent.py", checkpoint)


def test_a_checkpoint_that_could_run_code_is_refused(config: Config, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save(dict(state_dict={}, extra=Payload()), tmp_path / "unsafe.pth")
    with pytest.raises(CheckpointError, match="refused checkpoint"):
        Segmenter(config, tmp_path / "unsafe.pth")
    assert not (tmp_path / "ran").exists()


# --- pictures -------------------------------------------------------------------------------------


def test_colours_are_read_in_rgb_order(make: Make, tmp_path: Path) -> None:
    image = picture(24, 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    segmenter = make()
    expected = segmenter(image)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(read_image(source), image)
        np.testing.assert_array_equal(segmenter(source), expected)
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png"), cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    )
    assert not np.array_equal(segmenter(np.ascontiguousarray(image[..., ::-1])), expected)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("P", "gif"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("I;16", "png"),
    ],
)
def test_every_mode_becomes_rgb_as_opencv_makes_it(mode: str, suffix: str, tmp_path: Path) -> None:
    rgb = picture(16, 20)
    if mode == "I;16":
        image = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(rgb).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(rgb[..., 1]))
    file = tmp_path / f"a.{suffix}"
    image.save(file)
    read = read_image(file)
    assert read.shape == (16, 20, 3)
    assert read.dtype == np.uint8
    expected = cv2.imread(str(file))[..., ::-1].astype(int)
    # The two turn CMYK into RGB by different roundings.
    assert np.abs(read - expected).max() <= (2 if mode == "CMYK" else 0)


def test_a_picture_taken_sideways_is_turned_upright(make: Make, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    image = picture(16, 40)
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(image, -1))
    assert make()(tmp_path / "a.png").shape == (40, 16)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.fromarray(picture(64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name, message in [
        ("absent.jpg", "no image file"),
        ("text.jpg", "not an image"),
        ("half.jpg", "cannot read"),
        ("float.tif", "32-bit pixels"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / name)
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="an image array must be"):
            read_image(array)


def test_labels_are_painted_and_saved(tmp_path: Path) -> None:
    palette = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)
    labels = np.array([[0, 1], [1, 255]], np.uint8)
    assert colorize(labels, palette).tolist() == [[[0, 0, 0], [200, 0, 0]], [[200, 0, 0], list(VOID_COLOR)]]
    blend = overlay(np.full((2, 2, 3), 100, np.uint8), labels, palette, 0.25)
    assert blend[0].tolist() == [[75, 75, 75], [125, 75, 75]]
    save_index_png(labels, palette, tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as saved:
        assert saved.mode == "P"
        assert saved.getpalette()[:6] == [0, 0, 0, 200, 0, 0]
        np.testing.assert_array_equal(np.array(saved), labels)
    many = np.array([[0, 299]], np.int32)
    save_index_png(many, np.zeros((300, 3), np.uint8), tmp_path / "many.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "many.png"), cv2.IMREAD_UNCHANGED), many)


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 128), (129, 128), (20, 5000), (1000, 333)])
def test_cores_tile_the_picture(size: tuple[int, int]) -> None:
    count = np.zeros(size, int)
    for block in blocks(size, 128**2):
        count[block.core_rows, block.core_columns] += 1
        assert block.height * block.width <= 128**2
        assert block.rows.start % 32 == block.columns.start % 32 == 0
        for outer, core, length in zip(
            (block.rows, block.columns), (block.core_rows, block.core_columns), size, strict=True
        ):
            assert core.start - outer.start >= 32 or outer.start == 0
            assert outer.stop - core.stop >= 32 or outer.stop == length
    assert (count == 1).all()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("out", [(300, 400), (431, 77), (60, 900), (7, 5)])
def test_resizing_by_blocks_is_resizing(out: tuple[int, int], align_corners: bool) -> None:
    logits = torch.randn(2, 3, 300, 400, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits, size=out, mode="bilinear", align_corners=align_corners)
    result = torch.full_like(expected, torch.nan)
    largest = 0
    for block in blocks((300, 400), 128**2):
        part = logits[..., block.rows, block.columns]
        for rows, columns, values in interpolate(part, block, out, align_corners, 2000):
            assert result[..., rows, columns].isnan().all()
            result[..., rows, columns] = values
            largest = max(largest, values[0, 0].numel())
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)
    assert largest <= (2000 if out != (300, 400) else 128**2)


def test_a_whole_picture_needs_no_resizing() -> None:
    logits = torch.randn(1, 2, 5, 6)
    (block,) = blocks((5, 6), 30)
    assert block == Block(slice(0, 5), slice(0, 6), slice(0, 5), slice(0, 6), (5, 6))
    ((_, _, same),) = interpolate(logits, block, (5, 6), False, 1)
    torch.testing.assert_close(same, logits)


def test_the_package_offers_it() -> None:
    assert pixeldcl_plugin.Segmenter is Segmenter


# --- what it takes --------------------------------------------------------------------------------


def test_a_model_and_its_config_with_checkpoint_are_one(make: Make, config: Config, checkpoint: Path) -> None:
    image = picture(40, 56)
    expected = make()(image)
    model = load_model(config, checkpoint)
    given = Segmenter(model)
    assert given.model is model
    assert given.classes == ("dark", "red", "blue")
    np.testing.assert_array_equal(given(image), expected)


def test_neither_config_nor_scope_change(
    config: Config, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    cfg = config.copy()
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="absent.pth")
    before = cfg.pretty_text
    segmenter = Segmenter(cfg, checkpoint, "cpu")
    segmenter(picture(32, 32))
    assert cfg.pretty_text == before
    assert DefaultScope.get_current_instance() is None


def test_what_is_no_model_is_one_line(config: Config, checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(config, checkpoint)
    bare = load_model(config, checkpoint)
    del bare.cfg
    file = tmp_path / "tiny.py"
    file.write_text(config.pretty_text)
    for arguments, message in (
        ((config,), "a config needs a checkpoint"),
        ((file,), "needs a checkpoint after it"),
        ((model, checkpoint), "a model brings its weights"),
        ((bare,), "expected an EncoderDecoder with its config as cfg"),
        ((torch.nn.Conv2d(3, 3, 1),), "expected an EncoderDecoder with its config as cfg, got Conv2d"),
        (("no-such-model",), "there is no model 'no-such-model'"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            Segmenter(*arguments)
        assert "\n" not in str(caught.value)
