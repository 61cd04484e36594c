"""What the flags of the test command make of a config."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from pixeldcl_plugin.engine import runtime, testing
from pixeldcl_plugin.utils.cli import UsageError


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
