"""Runs that are cut short and go on: under the schedule, optimizer and hooks of every config here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn

from pixeldcl_plugin.engine import hooks, preflight, runtime
from pixeldcl_plugin.utils.compat import load_checkpoint

ROOT = Path(__file__).parents[2]
LENGTH = 8  # iterations; a config's schedule is shrunk to it
CUTS = (3, 6, 8)  # saved last at 2, 6 and 8: between, at and after a change of the schedule


class CutData(torch.utils.data.Dataset):
    """Ten samples, each augmented from the generators of Python, NumPy and torch."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = [random.gauss(0, 1), np.random.normal(), torch.randn(()).item()]
        return torch.tensor([float(index), *noise])


class CutModel(BaseModel):
    """Two layers named as in the models here, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.decode_head = nn.ModuleDict({"upsample": nn.Linear(4, 1)})
        self.factor = 1.0

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> Any:
        """Return a loss, or a number at random."""
        if mode == "predict":
            return [random.random() + np.random.rand() + torch.rand(()).item()]
        hidden = nn.functional.dropout(self.backbone(inputs), 0.5)
        return {"loss": (self.decode_head["upsample"](hidden) - 1).square().mean() * self.factor}

    def train_step(self, data: torch.Tensor, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """Update once."""
        with optim_wrapper.optim_context(self):
            losses = self(data, mode="loss")
        optim_wrapper.update_params(losses["loss"])
        return losses

    def val_step(self, data: torch.Tensor) -> list:
        """Predict at random."""
        return self(data, mode="predict")


class CutScore(BaseMetric):
    """A score under the names that the configs save their best by; it draws random numbers too."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Keep what was predicted."""
        self.results += list(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the mean, of a NumPy type as IoUMetric's scores are."""
        score = np.float32(np.mean(results) + random.random())
        return {"mIoU": score, "nelbo": score}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    for registry, kind in ((DATASETS, CutData), (MODELS, CutModel), (METRICS, CutScore)):
        registry.register_module(module=kind)
    yield
    for registry, kind in ((DATASETS, CutData), (MODELS, CutModel), (METRICS, CutScore)):
        del registry.module_dict[kind.__name__]


@pytest.fixture(autouse=True)
def _generators_restored() -> Iterator[None]:
    state = hooks.get_random_state()
    yield
    hooks.set_random_state(state)


def shrunk(value: Any, factor: float) -> Any:
    """Shrink a schedule: its steps are the whole numbers above 1."""
    if isinstance(value, dict):
        return {key: shrunk(item, factor) for key, item in value.items()}
    if isinstance(value, list):
        return [shrunk(item, factor) for item in value]
    return round(value * factor) if isinstance(value, int) and value > 1 else value


def loader(sampler: str) -> dict[str, Any]:
    return dict(
        batch_size=3, num_workers=0, dataset=dict(type="CutData"), collate_fn=dict(type="default_collate"),
        sampler=dict(type=sampler, shuffle=True),
    )  # fmt: skip


def tiny_run(cfg: Config) -> Config:
    """Take what drives a training out of a config, shrink it, and put the tiny model and data under it."""
    factor = LENGTH / cfg.train_cfg.max_iters
    hook = {**cfg.default_hooks.checkpoint, "interval": 2}
    return Config(
        dict(
            default_scope="mmseg",
            model=dict(type="CutModel"),
            train_dataloader=loader("InfiniteSampler"),
            val_dataloader=loader("DefaultSampler"),
            val_evaluator=dict(type="CutScore"),
            train_cfg={**cfg.train_cfg, "max_iters": LENGTH, "val_interval": 3},
            val_cfg=cfg.val_cfg,
            optim_wrapper=cfg.optim_wrapper,
            param_scheduler=shrunk(cfg.param_scheduler, factor),
            default_hooks={**cfg.default_hooks, "checkpoint": hook},
            custom_hooks=cfg.get("custom_hooks"),
            log_processor=cfg.get("log_processor"),
            randomness=dict(seed=5),
            log_level="ERROR",
        )
    )


def drives() -> list[tuple[str, dict[str, Any]]]:
    """Return what drives the training of the leaf configs, each once, and the first config that has it."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in sorted(ROOT.glob("configs/[!_]*/*.py")):
        cfg = tiny_run(Config.fromfile(file)).to_dict()
        found.setdefault(json.dumps(cfg, sort_keys=True, default=str), (file.stem, cfg))
    return list(found.values())


def start(cfg: dict[str, Any], work_dir: Path, resume: str | None, *more: Hook) -> Runner:
    """Start or resume a run as tools/train.py does."""
    fresh = Config({**cfg, "work_dir": str(work_dir)})
    # MMEngine shares its records between the runs of one name in a process.
    fresh.experiment_name = f"{work_dir.name}_{random.SystemRandom().random()}"
    preflight.prepare_work_dir(fresh, resume, overwrite=False)
    runtime.add_training_hooks(fresh)
    runtime.adapt_to_hardware(fresh)
    runner = runtime.build_runner(fresh)
    for hook in more:
        runner.register_hook(hook, "LOWEST")
    runner.train()
    return runner


class Cut(BaseException):
    """Ends a run as a kill does: nothing in it may react."""


class CutHook(Hook):
    """Ends a run at a moment of it."""

    def __init__(self, moment: str, condition: Callable[[Runner], bool]) -> None:
        def end(runner: Runner, *args: Any, **kwargs: Any) -> None:
            if condition(runner):
                raise Cut

        setattr(self, moment, end)


def cut_after(iteration: int) -> CutHook:
    return CutHook("after_train_iter", lambda runner: runner.iter + 1 == iteration)


def weights(work_dir: Path, name: str = f"iter_{LENGTH}.pth") -> torch.Tensor:
    state = load_checkpoint(work_dir / name)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values()])


def test_a_run_under_every_configs_schedule_optimizer_and_hooks_goes_on_exactly(tmp_path: Path) -> None:
    seen = drives()
    assert {"OneCycleLR", "CosineAnnealingLR", "PolyLR", "LinearLR"} <= {
        schedule["type"] for _, cfg in seen for schedule in cfg["param_scheduler"]
    }
    for name, cfg in seen:
        start(cfg, tmp_path / name / "whole", None)
        for cut in CUTS:
            work_dir = tmp_path / name / f"cut_{cut}"
            with pytest.raises(Cut):
                start(cfg, work_dir, None, cut_after(cut))
            random.seed(cut), np.random.seed(cut), torch.manual_seed(cut)  # another process
            start(cfg, work_dir, "auto")
            assert torch.equal(weights(work_dir), weights(tmp_path / name / "whole")), (name, cut)
