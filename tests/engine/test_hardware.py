"""A config is fitted to the machine: mixed precision, GPUs or none, several processes."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper

from pixeldcl_plugin.engine import hardware
from pixeldcl_plugin.utils.cli import UsageError


@pytest.mark.parametrize(
    "kind", ["OptimWrapper", "AmpOptimWrapper", "mmengine.AmpOptimWrapper", AmpOptimWrapper, None]
)
def test_amp_keeps_the_other_settings(kind: str | type | None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=1), accumulative_counts=4, loss_scale=512.0)
    cfg = Config(dict(optim_wrapper=dict(wrapper, **({"type": kind} if kind else {}))))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    hardware.enable_amp(cfg)
    assert cfg.optim_wrapper == dict(wrapper, type="AmpOptimWrapper")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    hardware.enable_amp(cfg)
    del wrapper["loss_scale"]
    assert cfg.optim_wrapper == dict(wrapper, type="BFloat16OptimWrapper")


@pytest.mark.parametrize("gpu", [True, False])
def test_amp_keeps_bfloat16_that_a_config_asks_for(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = dict(type="BFloat16OptimWrapper", optimizer=dict(type="SGD", lr=1))
    cfg = Config(dict(optim_wrapper=dict(wrapper)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    hardware.enable_amp(cfg)
    assert cfg.optim_wrapper == wrapper


@pytest.mark.parametrize("wrapper", [dict(type="OptimWrapperDict"), None])
def test_amp_refuses_other_wrappers(wrapper: dict | None) -> None:
    with pytest.raises(UsageError, match="OptimWrapper"):
        hardware.enable_amp(Config(dict(optim_wrapper=wrapper)))


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)


def gpu_config() -> Config:
    sync = dict(type="SyncBN", requires_grad=True)
    heads = [dict(norm_cfg=dict(type="SyncBN")), dict(norm_cfg=dict(type="GN"))]
    return Config(
        dict(
            model=dict(backbone=dict(norm_cfg=sync), auxiliary_head=heads),
            optim_wrapper=dict(type="AmpOptimWrapper", loss_scale="dynamic"),
            find_unused_parameters=True,
        )
    )


def test_gpu_config_is_adapted_to_cpu(cpu_only: None) -> None:
    cfg = gpu_config()
    notes = hardware.adapt_to_hardware(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type="BN", requires_grad=True)
    assert [head.norm_cfg.type for head in cfg.model.auxiliary_head] == ["BN", "GN"]
    assert cfg.optim_wrapper == dict(type="BFloat16OptimWrapper")
    assert ["bfloat16" in notes[0], "SyncBN" in notes[1]] == [True, True]


@pytest.mark.parametrize(
    ("wrapper", "norm", "sync_bn"),
    [
        (None, "SyncBN", "torch"),
        (dict(find_unused_parameters=True), "SyncBN", "torch"),
        (dict(type="MMDistributedDataParallel"), "SyncBN", "torch"),
        (dict(type=MMDistributedDataParallel), "SyncBN", "torch"),
        (dict(type="MyDDP"), "BN", None),  # knows nothing of batch norm on a CPU
    ],
)
def test_processes_without_a_gpu(
    wrapper: dict | None, norm: str, sync_bn: str | None, cpu_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    cfg = gpu_config()
    cfg.update(launcher="pytorch", model_wrapper_cfg=wrapper, sync_bn="mmcv")
    cfg.model.auxiliary_head[0].norm_cfg.type = "MMSyncBN"  # a compiled operation of mmcv
    assert any("gloo" in note for note in hardware.adapt_to_hardware(cfg))
    assert cfg.model.backbone.norm_cfg == dict(type=norm, requires_grad=True)
    assert [head.norm_cfg.type for head in cfg.model.auxiliary_head] == [norm, "GN"]
    assert cfg.sync_bn == sync_bn


def test_config_is_left_alone_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = gpu_config()
    assert hardware.adapt_to_hardware(cfg) == []
    assert cfg.to_dict() == gpu_config().to_dict()


@pytest.mark.parametrize(("launcher", "message"), [("pytorch", "torchrun"), ("slurm", "GPUs")])
def test_launchers_that_cannot_work(cpu_only: None, launcher: str, message: str) -> None:
    cfg = gpu_config()
    cfg.launcher = launcher
    with pytest.raises(UsageError, match=message):
        hardware.adapt_to_hardware(cfg)
