"""Train and score one run of a study."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch.utils.flop_counter import FlopCounterMode

from ..engine import console, hardware, preflight, runtime
from ..engine.hooks import ReplaceRunHook
from ..evaluation.checkerboard import nyquist_energy
from ..utils.checkpoints import enable_safe_loading
from ..utils.cli import UsageError, notify
from ..utils.compat import installed_versions
from ..utils.files import write_text_whole
from ..visualization.reports import read_scalars
from .plan import Run, Study

#: Scored beside the metrics of the config, where it does not ask for them itself.
METRICS = (dict(type="BoundaryIoUMetric"), dict(type="IsolatedPixelsMetric"))
RESULT = "result.json"


def run_config(study: Study, run: Run) -> Config:
    """Return the config of a run: the arm's, with the seed, the rate and, when selecting, the split set.

    Batches are loaded in the process itself, which makes the run exactly resumable, and the last
    iterate is what is scored: choosing the best one on the validation set would flatter noisy arms.
    """
    options = dict(run.arm.options)
    if run.selecting and study.selection is not None:
        options.update(study.selection.options)
    if run.lr is not None:
        options["optim_wrapper.optimizer.lr"] = run.lr
    cfg = runtime.load_config(run.arm.config, options)
    runtime.set_randomness(cfg, run.seed)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.default_hooks["checkpoint"]["save_best"] = None
    if run.selecting and study.selection is not None:
        _hold_out(cfg, study.selection.held_out)
    hardware.adapt_to_hardware(cfg)
    return cfg


def _hold_out(cfg: Config, fraction: float) -> None:
    """Validate on a part of the training set, and train on the rest."""
    init_default_scope(cfg.get("default_scope", "mmseg"))
    pipeline = cfg.val_dataloader.dataset.pipeline
    count = len(DATASETS.build({**cfg.train_dataloader.dataset, "lazy_init": False}))
    held_out = held_out_indices(count, fraction)
    rest = sorted(set(range(count)) - set(held_out))
    cfg.val_dataloader.dataset = ConfigDict(
        {**cfg.train_dataloader.dataset, "pipeline": pipeline, "indices": held_out, "test_mode": True}
    )
    cfg.train_dataloader.dataset["indices"] = rest


def held_out_indices(count: int, fraction: float, blocks: int = 20) -> list[int]:
    """Choose a part of a list in blocks of neighbours, spread evenly.

    Neighbours in the list are often frames of one scene: one by one they would leak into the other part.

    Args:
        count: Length of the list, at least 2.
        fraction: Share to choose, between 0 and 1.
        blocks: Blocks that the list is cut into; fewer where it is short.

    Returns:
        Sorted indices; at least one is chosen and one left.
    """
    blocks = min(blocks, count)
    chosen = min(max(1, round(fraction * blocks)), blocks - 1)
    # The middles of as many equal parts: neither end of the list is preferred.
    taken = {int((k + 0.5) * blocks / chosen) for k in range(chosen)}
    return [i for i in range(count) if i * blocks // count in taken]


def fingerprint(cfg: Config) -> str:
    """Return eight hexadecimal digits of everything that a run's scores depend on.

    Folders of the data are left out: the same data may lie elsewhere.
    """
    keys = ("model", "train_dataloader", "val_dataloader", "optim_wrapper", "param_scheduler", "train_cfg")
    parts = {key: cfg.get(key) for key in (*keys, "channels_last", "randomness", "val_evaluator")}
    text = json.dumps(_without(parts, "data_root"), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _without(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return {k: _without(v, key) for k, v in node.items() if k != key}
    if isinstance(node, list | tuple):
        return [_without(item, key) for item in node]
    return node


def _now() -> float:
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
        self._start = _now()

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs: Any) -> None:
        now = _now()
        self.seconds.append(now - self._start)
        self._start = now

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._start = _now()


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
    row = {
        "study": study.name,
        "arm": run.arm.name,
        "seed": run.seed,
        "learning_rate": cfg.optim_wrapper.optimizer.lr,
        "stage": "select" if run.selecting else "main",
        **scores,
        "train_ms": 1e3 * float(np.median(timer.seconds)) if timer.seconds else float("nan"),
        **_cost(runner),
        "iterations": runner.max_iters,
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
    row = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
    write_text_whole(folder / RESULT, json.dumps(row, indent=1))
    return row


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


@torch.no_grad()
def _score(runner: Runner, cfg: Config) -> dict[str, float]:
    loader = runner.val_dataloader
    metrics = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    asked = {metric["type"] for metric in metrics}
    evaluator = Evaluator([*metrics, *(dict(m) for m in METRICS if m["type"] not in asked)])
    evaluator.dataset_meta = loader.dataset.metainfo
    runner.model.eval()
    seconds, energies = [], []
    for batch in loader:
        start = _now()
        outputs = runner.model.val_step(batch)
        seconds.append((_now() - start) / len(outputs))
        energies += [float(nyquist_energy(out.seg_logits.data[None].float())) for out in outputs]
        evaluator.process(data_samples=outputs, data_batch=batch)
    scores = {key: float(value) for key, value in evaluator.evaluate(len(loader.dataset)).items()}
    return {
        **scores,
        "logit_nyquist_energy": float(np.mean(energies)),
        "predict_ms": 1e3 * float(np.median(seconds)),
    }


def _cost(runner: Runner) -> dict[str, float]:
    """Count parameters, and the multiply-adds of the first validation image as it is padded."""
    model = runner.model.eval()
    batch = model.data_preprocessor(next(iter(runner.val_dataloader)), False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch["inputs"][:1])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mmacs": counter.get_total_flops() / 2e6,
    }
