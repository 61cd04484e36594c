"""Released models through MMEngine's and MMSegmentation's own doors, with the released file alone."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.apis import MMSegInferencer, inference_model, init_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixeldcl_plugin import Segmenter, create_model, model_info
from pixeldcl_plugin.utils.checkpoints import CheckpointError, load_checkpoint
from pixeldcl_plugin.utils.compat import SHIPPED
from pixeldcl_plugin.zoo.index import ZooRoot, load_releases

ROOT = Path(__file__).parents[2]
RELEASED = [release.model for release in load_releases(ZooRoot.of_package()) if release.classes]
CAMVID, VOC = (next(name for name in RELEASED if data in name) for data in ("camvid", "voc12-subset"))
FIRST = {name: ("sky", "building") if "camvid" in name else ("background", "aeroplane") for name in RELEASED}


def config_of(name: str) -> str:
    return str(model_info(name).config)


def weights_of(name: str) -> str:
    release = model_info(name).release
    assert release is not None
    return str(ZooRoot.of_package().checkpoints / release.file_name)


def tensors_of(name: str) -> dict[str, torch.Tensor]:
    """What the released file holds, with the file that it completes, if it does."""
    file = Path(weights_of(name))
    with safe_open(file, "pt") as opened:
        base = opened.metadata().get("base")
    return {**(load_file(file.with_name(base)) if base else {}), **load_file(file)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the repository, whose .cache has the encoder's ImageNet weights, and without a scope."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A street of sorts, (96, 128, 3): sky above houses above a road."""
    rows = np.linspace(0, 1, 96)[:, None, None]
    picture = np.where(rows < 0.4, (230, 200, 170), np.where(rows < 0.7, (90, 110, 140), (95, 90, 90)))
    noise = np.random.default_rng(0).integers(-8, 8, (96, 128, 3))
    return (np.broadcast_to(picture, (96, 128, 3)) + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def labels(image: np.ndarray) -> dict[str, np.ndarray]:
    """What the released models make of it, by this package's own door."""
    found = {name: Segmenter(name, device="cpu")(image[..., ::-1]) for name in RELEASED}
    assert len(np.unique(found[CAMVID])) > 2
    return found


@pytest.mark.parametrize("name", RELEASED)
def test_init_model(name: str, image: np.ndarray, labels: dict[str, np.ndarray]) -> None:
    model = init_model(config_of(name), weights_of(name), device="cpu")
    assert tuple(model.dataset_meta["classes"][:2]) == FIRST[name]
    assert len(model.dataset_meta["palette"]) == len(model.dataset_meta["classes"])
    found = inference_model(model, image).pred_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(found, labels[name])
    # and such a model is one for this package's own door
    np.testing.assert_array_equal(Segmenter(model)(image[..., ::-1]), labels[name])


@pytest.mark.parametrize("name", RELEASED)
def test_inferencer(name: str, image: np.ndarray, labels: dict[str, np.ndarray]) -> None:
    inferencer = MMSegInferencer(config_of(name), weights_of(name), device="cpu", show_progress=False)
    result = inferencer(image, return_vis=True)
    np.testing.assert_array_equal(result["predictions"], labels[name])
    meta = inferencer.visualizer.dataset_meta
    assert tuple(meta["classes"][:2]) == FIRST[name]
    wanted = Segmenter(name, device="cpu").palette
    np.testing.assert_array_equal(np.array(meta["palette"]), wanted)


def test_inferencer_by_name(image: np.ndarray, labels: dict[str, np.ndarray]) -> None:
    name = model_info(CAMVID).release.name
    inferencer = MMSegInferencer(name, scope="pixeldcl_plugin", device="cpu", show_progress=False)
    np.testing.assert_array_equal(inferencer(image)["predictions"], labels[CAMVID])
    assert tuple(inferencer.model.dataset_meta["classes"][:2]) == FIRST[CAMVID]


@pytest.mark.parametrize("address", [CAMVID, f"{CAMVID}.safetensors"])
def test_load_from_by_name(address: str) -> None:
    checkpoint = CheckpointLoader.load_checkpoint(SHIPPED + address, "cpu", logger=None)
    state = create_model(CAMVID, pretrained=True).state_dict()
    assert checkpoint["state_dict"].keys() == state.keys()
    assert checkpoint["meta"]["dataset_meta"]["classes"][0] == "sky"


@pytest.mark.parametrize("name", RELEASED)
def test_hubs_and_load_from(name: str, tmp_path: Path) -> None:
    wanted = tensors_of(name)
    reference = f"pixeldcl_plugin::{Path(config_of(name)).parent.name}/{name}.py"
    cfg = get_config(reference)
    cfg.work_dir, cfg.load_from, cfg.model.backbone.init_cfg = str(tmp_path), weights_of(name), None
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    models = [
        create_model(name, pretrained=True),
        torch.hub.load(str(ROOT), "create_model", name, pretrained=True, source="local"),
        get_model(reference, pretrained=True),
        runner.model,
    ]
    for model in models:
        state = model.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key].to(tensor.dtype)) for key, tensor in state.items())
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_base(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "unethead_lite0-pixeldcl_1xb8-amp-1k_camvid-160x128"
    reference = f"pixeldcl_plugin::camvid/{name}.py"
    child = tmp_path / "child.py"
    child.write_text(f"_base_ = ['{reference}']\nmodel = dict(decode_head=dict(num_classes=5))\n")
    cfg = Config.fromfile(child)
    assert cfg.model.decode_head.upsample_cfg.type == "PixelDCL"
    cfg.work_dir, cfg.model.backbone.init_cfg = str(tmp_path / "work"), None
    assert MODELS.build(cfg.model).decode_head.num_classes == 5
    runner = Runner.from_cfg(cfg)
    assert runner.model.decode_head.num_classes == 5
    for hook in ("CheckpointHook", "SegVisualizationHook"):
        assert any(type(each).__name__ == hook for each in runner.hooks)
    assert not [record for record in caplog.records if "Failed to search registry" in record.message]


@pytest.mark.parametrize("name", RELEASED)
def test_mmsegs_own_test_command(
    name: str,
    tmp_path: Path,
    image: np.ndarray,
    labels: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Scored against what this package's own door predicts: all of it must be found again."""
    dataset = Config.fromfile(config_of(name)).test_dataloader.dataset
    for kind, content in (("img_path", image), ("seg_map_path", labels[name])):
        folder = tmp_path / dataset.data_root / dataset.data_prefix[kind]
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "0.png"), content)
    options = ["test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False",
               "test_dataloader.dataset.img_suffix=.png"]  # fmt: skip
    if "ann_file" in dataset:
        listed = tmp_path / dataset.data_root / dataset.ann_file
        listed.parent.mkdir(parents=True)
        listed.write_text("0\n")
    tool = Path(mmseg.__file__).parent / ".mim/tools/test.py"
    arguments = [config_of(name), weights_of(name), "--work-dir", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["test.py", *arguments, "--cfg-options", *options])
    runpy.run_path(str(tool), run_name="__main__")
    (scores,) = (tmp_path / "work").glob("*/*.json")
    assert json.loads(scores.read_text())["aAcc"] == 100


def test_a_copy_under_another_name_is_known_and_another_file_is_not(tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(weights_of(VOC), copy)
    found = CheckpointLoader.load_checkpoint(str(copy), logger=None)["meta"]
    assert found["dataset_meta"]["classes"][1] == "aeroplane"
    save_file({"weight": torch.ones(2)}, tmp_path / "own.safetensors")
    assert CheckpointLoader.load_checkpoint(str(tmp_path / "own.safetensors"), logger=None)["meta"] == {}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", '{"classes": 3, "palette": null}', '{"classes": ["a"], "palette": [[1, 2]]}',
        '{"classes": ["a"], "palette": [[1, 2, 300]]}', '{"classes": ["a"], "palette": [["x", 1, 2]]}',
        '{"classes": ["a", "b"], "palette": [[1, 2, 3], [1]]}',
    ],
)  # fmt: skip
def test_a_damaged_header_is_one_error(text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file({"weight": torch.ones(2)}, file, metadata={"dataset_meta": text})
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*own\.safetensors") as caught:
        load_checkpoint(file)
    assert "\n" not in str(caught.value)
