"""A model of a config: what it brings, and what it leaves alone."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.apis import inference_model
from torch import nn

from pixeldcl_plugin.engine.builder import build_model, load_model
from pixeldcl_plugin.engine.weights import WrongArchitectureError
from pixeldcl_plugin.utils.checkpoints import CheckpointError
from pixeldcl_plugin.utils.cli import UsageError


@pytest.fixture
def cfg(tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A config, in a process without a default scope."""
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    cfg = Config.fromfile(tiny_config)
    cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint="absent.pth")
    cfg.test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]
    return cfg


def test_neither_config_nor_scope_change(cfg: Config) -> None:
    before = cfg.pretty_text
    model = build_model(cfg)
    assert cfg.pretty_text == before
    assert DefaultScope.get_current_instance() is None
    assert not model.training
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert model.dataset_meta["classes"] == ("dark", "red", "blue")
    # mmseg's inference needs no scope either
    found = inference_model(model, np.zeros((32, 48, 3), np.uint8))
    assert found.pred_sem_seg.data.shape == (1, 32, 48)


def test_an_unknown_upsampler_is_named(cfg: Config) -> None:
    cfg.model.backbone.upsample_cfg.type = "DeconvModul"
    with pytest.raises(
        UsageError, match=r"^config: no model .* 'DeconvModul'; did you mean 'DeconvModule'\?$"
    ):
        build_model(cfg)
    cfg.model.backbone.upsample_cfg = dict(type="DeconvModule", kernal_size=4)
    with pytest.raises(
        UsageError, match=r"^config: DeconvModule .* 'kernal_size'; did you mean 'kernel_size'"
    ):
        build_model(cfg)


def test_the_state_is_all_there_is(cfg: Config, tmp_path: Path) -> None:
    state = {name: tensor + torch.ones_like(tensor) for name, tensor in build_model(cfg).state_dict().items()}
    model = build_model(cfg, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(WrongArchitectureError, match="the file lacks"):
        build_model(cfg, dict(list(state.items())[1:]))
    with pytest.raises(UsageError, match="must be of type Linear, got EncoderDecoder"):
        build_model(cfg, state, kind=nn.Linear)
    # A run that is given the model starts from these weights.
    cfg.work_dir, cfg.train_cfg.max_iters, cfg.val_cfg = str(tmp_path), 1, None
    cfg.val_dataloader = cfg.val_evaluator = None
    cfg.train_cfg.pop("val_interval")
    runner = Runner.from_cfg(cfg)
    runner.model = model
    runner._init_model_weights()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_tells_the_classes_where_the_config_does_not(cfg: Config, tmp_path: Path) -> None:
    state = build_model(cfg).state_dict()
    meta = dict(classes=["a", "b", "c"], palette=[[1, 2, 3]] * 3)
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=meta)), tmp_path / "own.pth")
    assert load_model(cfg, tmp_path / "own.pth").dataset_meta["classes"] == ("dark", "red", "blue")
    cfg.pop("test_dataloader")
    assert load_model(cfg, tmp_path / "own.pth").dataset_meta["classes"] == ("a", "b", "c")
    for silent in (None, dict(classes=None, palette=[]), dict(classes=["a"]), dict()):
        torch.save(dict(state_dict=state, meta=dict(dataset_meta=silent)), tmp_path / "own.pth")
        assert not hasattr(load_model(cfg, tmp_path / "own.pth"), "dataset_meta")
    for damaged in (3, dict(classes=3)):
        torch.save(dict(state_dict=state, meta=dict(dataset_meta=damaged)), tmp_path / "own.pth")
        with pytest.raises(CheckpointError, match=r"own\.pth': its dataset_meta has no list of classes"):
            load_model(cfg, tmp_path / "own.pth")


def test_pretraining_is_read_only_where_it_is_asked_for(cfg: Config) -> None:
    build_model(cfg)
    # A study that ran in this process before has made loading safe: then it is a CheckpointError.
    with pytest.raises((FileNotFoundError, CheckpointError), match=r"absent\.pth"):
        build_model(cfg, pretraining=True)
