"""From a config to a runner: reading it, the flags, the hardware."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper

from pixeldcl_plugin.engine import hardware, runtime, testing
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


def test_bfloat16_wrapper_accumulates_and_clips_as_the_plain_one() -> None:
    """Each step the same as the plain wrapper's on gradients that bfloat16 computed."""
    torch.manual_seed(0)
    inputs = torch.randn(4, 2, 8)
    results = []
    for kind in ("OptimWrapper", "BFloat16OptimWrapper"):
        torch.manual_seed(1)
        model = torch.nn.Linear(8, 3)
        wrapper = build_optim_wrapper(
            model,
            dict(
                type=kind,
                optimizer=dict(type="SGD", lr=0.5),
                accumulative_counts=2,
                clip_grad=dict(max_norm=0.1),
            ),
        )
        assert isinstance(wrapper, OptimWrapper)
        wrapper.initialize_count_status(model, 0, 4)
        for batch in inputs:
            with wrapper.optim_context(model):
                output = model(batch)
            wrapper.update_params(output.float().square().mean())
        results.append((output.dtype, model.weight.detach()))
        assert model.weight.dtype == torch.float32
    (plain_dtype, plain), (amp_dtype, amp) = results
    assert (plain_dtype, amp_dtype) == (torch.float32, torch.bfloat16)
    assert not torch.equal(plain, amp)
    torch.testing.assert_close(plain, amp, atol=2e-3, rtol=0)


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


def test_tta_wraps_the_model(tiny_config: Path) -> None:
    cfg = runtime.load_config(str(tiny_config))
    model = cfg.model
    testing.enable_tta(cfg)
    assert (cfg.model.type, cfg.model.module) == ("SegTTAModel", model)
    assert cfg.test_dataloader.dataset.pipeline[1].type == "TestTimeAug"
    with pytest.raises(UsageError, match="defines no tta_pipeline"):
        testing.enable_tta(Config(dict(tta_model={}, test_dataloader={})))


def test_predictions_are_saved_by_the_metric_that_can() -> None:
    metrics = [dict(type="Other"), dict(type="IoUMetric")]
    cfg = Config(dict(test_evaluator=metrics))
    testing.save_predictions(cfg, "out")
    # IoUMetric takes any argument, also those that it has no use for.
    assert cfg.test_evaluator[1] == dict(type="IoUMetric", output_dir="out")
    with pytest.raises(UsageError, match="no IoUMetric"):
        testing.save_predictions(Config(dict(test_evaluator=dict(type="Other"))), "out")


def test_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(testing.sys, "platform", "linux")
    cfg = Config(dict(visualizer={}, default_hooks=dict(visualization=dict(type="X"))))
    with pytest.raises(UsageError, match="no display"):
        testing.enable_drawing(cfg, show=True, show_dir=None, wait_time=1)
    monkeypatch.setenv("DISPLAY", ":0")
    testing.enable_drawing(cfg, show=True, show_dir="folder", wait_time=1)
    assert cfg.default_hooks.visualization == dict(type="X", draw=True, show=True, wait_time=1)
    assert cfg.visualizer.save_dir == "folder"
    with pytest.raises(UsageError, match="visualizer"):
        testing.enable_drawing(Config({}), show=False, show_dir="folder", wait_time=1)
