"""Options of a test: augmented, written and drawn predictions, and no other model's weights."""

from __future__ import annotations

import os
import sys

from mmengine.config import Config

from ..utils.cli import UsageError
from .hooks import CompleteWeightsHook
from .runtime import leaf_datasets

__all__ = ["add_testing_hooks", "enable_drawing", "enable_tta", "save_predictions"]


def add_testing_hooks(cfg: Config) -> None:
    """Add the hook that refuses a checkpoint of another model."""
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type=CompleteWeightsHook.__name__)]


def enable_tta(cfg: Config) -> None:
    """Replace the model and the pipeline of a test by those for test-time augmentation.

    Raises:
        UsageError: If the config does not define them.
    """
    missing = [key for key in ("tta_model", "tta_pipeline") if cfg.get(key) is None]
    if missing:
        raise UsageError(f"--tta: the config defines no {' and no '.join(missing)}")
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset["pipeline"] = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def save_predictions(cfg: Config, folder: str) -> None:
    """Make a test write its predicted label maps as PNG files, and evaluate them as well.

    Raises:
        UsageError: If the config's evaluation has no metric that writes predictions.
    """
    evaluator = cfg.get("test_evaluator")
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    writers = [m for m in metrics if isinstance(m, dict) and m.get("type") == "IoUMetric"]
    if not writers:
        raise UsageError("--out: the config's test_evaluator has no IoUMetric to write predictions")
    writers[0]["output_dir"] = folder


def enable_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Make a test draw its predictions over the images, in a window or into a folder.

    Raises:
        UsageError: If the config has no hook that draws, or there is no display for a window.
    """
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None or cfg.get("visualizer") is None:
        raise UsageError("--show and --show-dir need a visualizer and default_hooks.visualization")
    if show and sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise UsageError("--show: there is no display; write the pictures with --show-dir instead")
    hook["draw"] = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir is not None:
        cfg.visualizer["save_dir"] = show_dir
