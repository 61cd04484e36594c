"""From a config to a runner: reading it, the flags."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook

from pixeldcl_plugin.engine import runtime
from pixeldcl_plugin.utils.cli import UsageError


def test_load_config_applies_options(tiny_config: Path) -> None:
    cfg = runtime.load_config(
        str(tiny_config),
        {"model.backbone.upsample_cfg.type": "InterpConv", "randomness.seed": 3, "work_dir": "w"},
    )
    assert cfg.model.backbone.upsample_cfg.type == "InterpConv"
    assert cfg.randomness.seed == 3


def test_loading_in_the_process_itself_keeps_no_workers(tiny_config: Path) -> None:
    options = {"train_dataloader.persistent_workers": True, "val_dataloader.persistent_workers": True}
    workers = {"train_dataloader.num_workers": 0, "val_dataloader.num_workers": 2}
    cfg = runtime.load_config(str(tiny_config), options | workers)
    assert cfg.train_dataloader.persistent_workers is False
    assert cfg.val_dataloader.persistent_workers is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modle.backbone.depth": 1}, "no key 'modle'.*did you mean 'model'"),
        ({"zzzzzz": 1}, "no key 'zzzzzz'"),
        ({"model.backbone.type.name": 1}, "do not fit"),
        ({"train_dataloader.dataset.pipeline.99.type": "X"}, "do not fit"),
    ],
)
def test_load_config_refuses_options_that_do_not_fit(tiny_config: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        runtime.load_config(str(tiny_config), options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", "SyntaxError"),
        ("model = 1 / 0", "ZeroDivisionError"),
        ("_base_ = ['no_such_base.py']\nmodel = dict()", "no_such_base.py"),
        (
            "custom_imports = dict(imports=['no_such_module'])\nmodel = {}",
            "Error: No module named 'no_such_module'$",
        ),
        ("lr = 1", "defines no model"),
    ],
)
def test_load_config_reports_a_broken_config(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as report:
        runtime.load_config(str(path))
    assert str(path) in str(report.value)
    assert "\n" not in str(report.value)
    assert "sys.path" not in str(report.value)


def test_work_dir_comes_from_the_flag_then_the_config_then_the_name(tmp_path: Path) -> None:
    path = tmp_path / "study.py"
    path.touch()
    cfg = Config(dict(work_dir="from_config"))
    assert runtime.set_work_dir(cfg, str(path), "flag") == Path("flag")
    cfg.work_dir = "from_config"
    assert runtime.set_work_dir(cfg, str(path), None) == Path("from_config")
    cfg.work_dir = None
    assert runtime.set_work_dir(cfg, str(path), None) == Path("work_dirs/study")
    assert cfg.work_dir == str(Path("work_dirs/study"))


def test_set_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    cfg = Config(dict(randomness=dict(seed=1, diff_rank_seed=True)))
    runtime.set_randomness(cfg, None)
    assert cfg.randomness == dict(seed=1, diff_rank_seed=True)
    runtime.set_randomness(cfg, 7, deterministic=True)
    assert cfg.randomness == dict(seed=7, diff_rank_seed=True, deterministic=True)


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_training_only_warns_on_a_gpu(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime.QuietRunner, "from_cfg", lambda cfg: None)
    runtime.build_runner(Config(dict(randomness=dict(deterministic=deterministic))))
    try:
        assert torch.is_deterministic_algorithms_warn_only_enabled() is deterministic
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("channels_last", [True, False])
def test_config_chooses_the_memory_format(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = SimpleNamespace(model=torch.nn.Conv2d(8, 8, 3))
    monkeypatch.setattr(runtime.QuietRunner, "from_cfg", lambda cfg: runner)
    runtime.build_runner(Config(dict(channels_last=channels_last)))
    weight = runner.model.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    assert (
        runner.model(torch.rand(1, 8, 6, 5)).is_contiguous(memory_format=torch.channels_last) is channels_last
    )


@pytest.mark.parametrize("wrapper", [None, dict(type="MMDistributedDataParallel", bucket_cap_mb=4)])
def test_distributed_runs_convert_the_model_before_it_is_wrapped(
    wrapper: dict | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = SimpleNamespace(model=torch.nn.Conv2d(8, 8, 3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime.QuietRunner, "from_cfg", lambda cfg: runner)
    options = dict(launcher="pytorch", channels_last=True, find_unused_parameters=True)
    cfg = Config(dict(options, model_wrapper_cfg=wrapper))
    runtime.build_runner(cfg)
    expected = dict(wrapper or {}, type="GlobalBatchDDP", channels_last=True, find_unused_parameters=True)
    assert cfg.model_wrapper_cfg == expected
    assert not runner.model.weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_refuses_another_model_wrapper() -> None:
    cfg = Config(dict(launcher="pytorch", channels_last=True, model_wrapper_cfg=dict(type="MyDDP")))
    with pytest.raises(UsageError, match=r"channels_last.*'MyDDP'.*'GlobalBatchDDP'"):
        runtime.build_runner(cfg)


def test_training_hooks_are_added_once() -> None:
    cfg = Config(dict(custom_hooks=[dict(type="EMAHook")], custom_imports=dict(imports="my_code")))
    runtime.add_training_hooks(cfg)
    runtime.add_training_hooks(cfg)
    kinds = [hook["type"] for hook in cfg.custom_hooks]
    added = ["CheckedResumeHook", "RandomStateHook", "FiniteLossHook", "PlainCheckpointHook"]
    assert kinds == ["EMAHook", *added, "RepeatValidationHook"]
    assert cfg.default_hooks["checkpoint"]["type"] == "WholeCheckpointHook"
    assert cfg.custom_imports["imports"] == ["my_code", "pixeldcl_plugin"]


def test_the_saving_of_checkpoints_keeps_its_settings_and_a_hook_of_its_own() -> None:
    for saving in (dict(type="CheckpointHook", interval=7), dict(type=CheckpointHook, interval=7)):
        cfg = Config(dict(default_hooks=dict(checkpoint=saving)))
        runtime.add_training_hooks(cfg)
        assert cfg.default_hooks.checkpoint == dict(type="WholeCheckpointHook", interval=7)
    for saving in (dict(type="MyHook"), None):
        cfg = Config(dict(default_hooks=dict(checkpoint=saving)))
        runtime.add_training_hooks(cfg)
        assert cfg.default_hooks.checkpoint == saving
