"""Train and score one run of a study."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from ..engine import console, preflight, runtime
from ..engine.hooks import ReplaceRunHook
from ..evaluation.checkerboard import nyquist_energy
from ..utils.checkpoints import enable_safe_loading
from ..utils.cli import UsageError, notify
from ..utils.compat import installed_versions
from ..utils.files import write_text_whole
from ..visualization.reports import read_scalars
from .configs import fingerprint, run_config
from .plan import Run, Study

#: Scored beside the metrics of the config, where it does not ask for them itself.
METRICS = (dict(type="BoundaryIoUMetric"), dict(type="IsolatedPixelsMetric"))
RESULT = "result.json"


def clock() -> float:
    """Return seconds of processor time, to which other processes add nothing; wall time where a GPU works."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # it works on while the program goes ahead
        return time.perf_counter()
    return time.process_time()


class _StepTimer(Hook):
    """Time of each training iteration, data loading included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        self._start = clock()

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs: Any) -> None:
        now = clock()
        self.seconds.append(now - self._start)
        self._start = now

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._start = clock()


def execute(study: Study, run: Run, work_dir: str | Path) -> dict[str, Any]:
    """Train a run to its end, resuming what is in the work dir, and score it.

    Args:
        study: The study.
        run: One of its runs.
        work_dir: Folder of the log and the checkpoints; the row is written there as ``result.json``.

    Returns:
        The row of the run: what it was, its scores on the validation data (percent; energies and spreads
        without unit), parameters, millions of multiply-adds an image, and milliseconds of processor time, on
        a GPU of wall time, a training iteration and a predicted image.
    """
    console.quiet_warnings()
    enable_safe_loading()
    cfg = run_config(study, run)
    identity = fingerprint(cfg)
    folder = Path(work_dir)
    cfg.work_dir = str(folder)
    timer = _StepTimer()
    with preflight.claimed_work_dir(cfg):
        earlier = _prepare(cfg)
        runtime.add_training_hooks(cfg)
        runner = runtime.build_runner(cfg)
        runner.register_hook(timer, priority="VERY_LOW")
        runner.register_hook(ReplaceRunHook(earlier))
        runner.train()
    scores = _score(runner, cfg)
    # A run that was killed between its last checkpoint and the validation after it has not logged that one.
    history = {**validation_history(folder), runner.max_iters: scores["mIoU"]}
    row = make_row(
        study,
        run,
        cfg,
        identity,
        {**scores, **measure_cost(runner.model, runner.val_dataloader)},
        timer.seconds,
        history,
    )
    write_text_whole(folder / RESULT, json.dumps(row, indent=1))
    return row


def make_row(
    study: Study,
    run: Run,
    cfg: Config,
    identity: str,
    scores: Mapping[str, float],
    seconds: Sequence[float],
    history: Mapping[int, float],
) -> dict[str, Any]:
    """Return the row of a finished run: what it was, what was measured, and the seconds of its iterations."""
    row = {
        "study": study.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "learning_rate": cfg.optim_wrapper.optimizer.lr,
        "stage": "select" if run.selecting else "main",
        **scores,
        "train_ms": 1e3 * float(np.median(seconds)) if seconds else float("nan"),
        "iterations": cfg.train_cfg.max_iters,
        "history": " ".join(f"{step}:{score:.2f}" for step, score in history.items()),
        "fingerprint": identity,
        "config": run.arm.config,
        "options": json.dumps(dict(run.arm.options), sort_keys=True),
        "data": cfg.train_dataloader.dataset.type,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": ", ".join(map(" ".join, installed_versions("timm").values())),
        "date": datetime.date.today().isoformat(),
    }
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


def _prepare(cfg: Config) -> list[Path]:
    """Resume what is in the work dir; start anew where none of its checkpoints is whole.

    Such a run has nothing to lose, and would keep its study from ever ending.

    Returns:
        The files that the new start replaces.
    """
    try:
        preflight.find_resume_point(Path(cfg.work_dir))
    except UsageError:
        notify(f"warning: no checkpoint in {cfg.work_dir} is whole: starting anew")
        preflight.prepare_work_dir(cfg, None, overwrite=True)
        return preflight.written_files(cfg)
    preflight.prepare_work_dir(cfg, "auto", overwrite=False)
    return []


def validation_history(work_dir: str | Path, metric: str = "mIoU") -> dict[int, float]:
    """Read the validations that were logged in a work dir, by every start of a run that was resumed.

    Args:
        work_dir: Folder with mmengine's ``<time>/vis_data/scalars.json``.
        metric: Name of the score.

    Returns:
        The score at each iteration that was validated, in order of the iterations.
    """
    _, validations = read_scalars(work_dir)
    return {step: record[metric] for step, record in sorted(validations.items()) if metric in record}


def build_evaluator(cfg: Config, meta: Mapping[str, Any]) -> Evaluator:
    """Build the evaluator of a config, with what is measured in every study."""
    metrics = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    asked = {metric["type"] for metric in metrics}
    evaluator = Evaluator([*metrics, *(dict(m) for m in METRICS if m["type"] not in asked)])
    evaluator.dataset_meta = meta
    return evaluator


@torch.no_grad()
def _score(runner: Runner, cfg: Config) -> dict[str, float]:
    loader = runner.val_dataloader
    evaluator = build_evaluator(cfg, loader.dataset.metainfo)
    runner.model.eval()
    seconds, energies = [], []
    for batch in loader:
        start = clock()
        outputs = runner.model.val_step(batch)
        seconds.append((clock() - start) / len(outputs))
        energies += [float(nyquist_energy(out.seg_logits.data[None].float())) for out in outputs]
        evaluator.process(data_samples=outputs, data_batch=batch)
    scores = {key: float(value) for key, value in evaluator.evaluate(len(loader.dataset)).items()}
    return {
        **scores,
        "logit_nyquist_energy": float(np.mean(energies)),
        "predict_ms": 1e3 * float(np.median(seconds)),
    }


def measure_cost(model: BaseModel, loader: DataLoader) -> dict[str, float]:
    """Count parameters, and the multiply-adds of the first validation image as it is padded."""
    batch = model.eval().data_preprocessor(next(iter(loader)), False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch["inputs"][:1])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mmacs": counter.get_total_flops() / 2e6,
    }
