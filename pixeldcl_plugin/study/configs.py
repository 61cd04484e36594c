"""The configs of a study's runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from ..apis.retrofit_config import training_config
from ..engine import hardware, runtime
from .plan import Run, Study, Together


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
    return cfg if study.together is None else _together(cfg, study.together, run)


def _together(cfg: Config, together: Together, run: Run) -> Config:
    """Name what is frozen; of frozen logits, train the upsampler alone, as a retrofit does."""
    if together.frozen == "logits" and "upsample_cfg" in cfg.model:
        whole = cfg
        cfg = training_config(whole, whole.train_cfg.max_iters)
        cfg.update({key: whole[key] for key in ("val_dataloader", "val_cfg", "val_evaluator")})
        if run.lr is not None:
            cfg.optim_wrapper.optimizer.lr = run.lr
    if together.checkpoint is not None:
        cfg.load_from = together.checkpoint.format(seed=run.seed)
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
    if cfg.get("load_from"):
        parts["load_from"] = cfg.load_from
    text = json.dumps(_without(parts, "data_root"), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _without(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return {k: _without(v, key) for k, v in node.items() if k != key}
    if isinstance(node, list | tuple):
        return [_without(item, key) for item in node]
    return node
