"""Runs that are cut short, by a kill, a full disk or a loss that diverges, and go on."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
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

from pixeldcl_plugin.engine import hardware, preflight, random_state, runtime
from pixeldcl_plugin.engine.checkpoint_hooks import DivergedError, FiniteLossHook
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import CheckpointError, load_checkpoint, read_state
from pixeldcl_plugin.utils.files import part_of

ROOT = Path(__file__).parents[2]
LENGTH = 8  # iterations; a config's schedule is shrunk to it
CUTS = (3, 6, 8)  # saved last at 2, 6 and 8: between, at and after a change of the schedule


class CutData(torch.utils.data.Dataset):
    """Ten samples, augmented from the generators of Python, NumPy and torch, by more draws the later ones."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = [random.gauss(0, 1), np.random.normal(), torch.randn(index + 1).sum().item()]
        return {"inputs": torch.tensor([float(index), *noise])}


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


class CutScore(BaseMetric):
    """A score under the names that the configs save their best by; it draws random numbers too."""

    rising: int | None = None  # the last score, where each is to be better than the one before

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Keep what was predicted."""
        self.results += list(data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the mean, of a NumPy type as IoUMetric's scores are."""
        score = np.float32(np.mean(results) + random.random())
        if self.rising is not None:
            CutScore.rising = score = self.rising + 1
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
    state = random_state.get_random_state()
    yield
    random_state.set_random_state(state)


def shrunk(value: Any, factor: float) -> Any:
    """Shrink a schedule: its steps are the whole numbers above 1. A warm-up keeps two, so that it ends."""
    if isinstance(value, dict):
        return {key: shrunk(item, factor) for key, item in value.items()}
    if isinstance(value, list):
        return [shrunk(item, factor) for item in value]
    return max(round(value * factor), 2) if isinstance(value, int) and value > 1 else value


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
    hardware.adapt_to_hardware(fresh)
    runner = runtime.build_runner(fresh)
    for hook in more:
        runner.register_hook(hook)
    runner.train()
    return runner


class Cut(BaseException):
    """Ends a run as a kill does: nothing in it may react."""


class CutHook(Hook):
    """Ends a run at a moment of it."""

    priority = "LOWEST"

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


@pytest.fixture(scope="module")
def drive() -> dict[str, Any]:
    """A U-Net's schedule, optimizer and hooks, under validations that decide over the rate."""
    file = next(ROOT.glob("configs/photo_mosaic/*-pixeldcl_*.py"))
    cfg = tiny_run(Config.fromfile(file)).to_dict()
    plateau = dict(type="ReduceOnPlateauLR", monitor="mIoU", patience=0, factor=0.5)
    return {**cfg, "param_scheduler": [plateau]}


@pytest.fixture(scope="module")
def whole(drive: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a run that was not cut short."""
    work_dir = tmp_path_factory.mktemp("whole")
    start(drive, work_dir, None)
    return work_dir


def checkpoints(work_dir: Path) -> list[str]:
    return sorted(file.name for file in work_dir.iterdir() if file.suffix == ".pth")


def validated(work_dir: Path) -> list[int]:
    lines = [
        json.loads(line)
        for file in sorted(work_dir.glob("*/vis_data/scalars.json"))
        for line in file.read_text().splitlines()
    ]
    return [line["step"] for line in lines if "mIoU" in line]


@pytest.mark.parametrize("moment", ["before_val", "after_val_iter", "after_val_epoch"])
@pytest.mark.parametrize("iteration", [6, 8])
def test_a_validation_cut_short_is_made_up_for(
    moment: str, iteration: int, drive: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    hook = CutHook(moment, lambda runner: runner.iter == iteration)
    with pytest.raises(Cut):
        start(drive, tmp_path, None, hook)
    start(drive, tmp_path, "auto")
    assert torch.equal(weights(tmp_path), weights(whole))
    assert checkpoints(tmp_path) == checkpoints(whole)
    assert sorted({*validated(tmp_path)}) == validated(whole) == [3, 6, 8]
    before = validated(tmp_path)
    start(drive, tmp_path, "auto")  # which is done: nothing is left to validate
    assert validated(tmp_path) in (before, [*before, 8])


def test_a_kill_within_a_checkpoint_leaves_the_one_before(
    drive: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write = Path.write_bytes
    for name, then in (("iter_2.pth", "starting from scratch"), ("iter_6.pth", "")):

        def killed(file: Path, data: bytes, name: str = name) -> int:
            if file.name == part_of(Path(name)).name:
                raise Cut
            return write(file, data)

        work_dir = tmp_path / name
        monkeypatch.setattr(Path, "write_bytes", killed)
        with pytest.raises(Cut):
            start(drive, work_dir, None)
        monkeypatch.setattr(Path, "write_bytes", write)
        part_of(work_dir / name).write_bytes(b"PK half")
        capsys.readouterr()
        start(drive, work_dir, "auto")
        assert then in capsys.readouterr().err
        assert torch.equal(weights(work_dir), weights(whole))
        assert not list(work_dir.glob(".partial-*"))


def test_a_full_disk_leaves_the_checkpoints_before(
    drive: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_bytes

    def full(file: Path, data: bytes) -> int:
        if "iter_6" in file.name:
            write(file, data[:500])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"), cli.user_errors():
        start(drive, tmp_path, None)
    assert capsys.readouterr().err == f"error: {str(tmp_path / 'iter_6.pth')!r}: No space left on device\n"
    assert [name for name in checkpoints(tmp_path) if "best" not in name] == ["iter_3.pth", "iter_4.pth"]
    assert preflight.find_resume_point(tmp_path).iteration == 4


def test_what_a_checkpoint_replaces_goes_after_it_stands(
    drive: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes
    stood: dict[str, list[str]] = {}

    def watched(file: Path, data: bytes) -> int:
        stood[file.name.removeprefix(".partial-")] = checkpoints(file.parent)
        return write(file, data)

    monkeypatch.setattr(Path, "write_bytes", watched)
    monkeypatch.setattr(CutScore, "rising", 0)
    saving = {**drive["default_hooks"]["checkpoint"], "max_keep_ckpts": 1}
    start({**drive, "default_hooks": {**drive["default_hooks"], "checkpoint": saving}}, tmp_path, None)
    assert "best_mIoU_iter_3.pth" in stood["best_mIoU_iter_6.pth"]
    assert "best_mIoU_iter_6.pth" in stood["best_mIoU_iter_8.pth"]
    assert all(any("best" not in name for name in stood[f"iter_{n}.pth"]) for n in (4, 6, 8))
    assert checkpoints(tmp_path) == ["best_mIoU_iter_8.pth", "iter_8.pth"]


class Diverging(Hook):
    """Makes the loss NaN, or a weight infinite after a loss that is fine."""

    priority = "VERY_HIGH"

    def __init__(self, iteration: int, weight: bool) -> None:
        self._iteration, self._weight = iteration, weight

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Multiply the loss by NaN."""
        if runner.iter + 1 == self._iteration and not self._weight:
            runner.model.factor = float("nan")

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Overflow a weight."""
        if runner.iter + 1 == self._iteration and self._weight:
            runner.model.backbone[0].weight.data[0, 0] = float("inf")


@pytest.mark.parametrize(
    ("iteration", "weight", "message"),
    [
        (5, False, r"loss is nan at iteration 5; the last finite checkpoint is '.*iter_4\.pth'"),
        (1, False, r"loss is nan at iteration 1; no checkpoint was saved before"),
        (6, True, r"'backbone\.0\.weight' is NaN or infinite at iteration 6; the last .* '.*iter_4\.pth'"),
    ],
)
def test_a_training_that_diverges_stops_and_keeps_what_is_finite(
    iteration: int, weight: bool, message: str, drive: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=message) as refusal:
        start(drive, tmp_path, None, Diverging(iteration, weight))
    assert "\n" not in str(refusal.value)
    kept = [name for name in checkpoints(tmp_path) if "best" not in name]
    assert kept == (["iter_3.pth", "iter_4.pth"] if iteration > 4 else [])


def test_a_loss_scaler_may_skip_some_iterations() -> None:
    runner = SimpleNamespace(
        model=nn.Linear(2, 1),
        optim_wrapper=SimpleNamespace(loss_scaler=None),
        message_hub=SimpleNamespace(runtime_info={}),
        iter=6,
    )
    hook = FiniteLossHook(patience=2)
    bad = dict(loss=torch.tensor(float("inf")), acc=torch.tensor(float("nan")))
    for outputs in (bad, bad, dict(loss=torch.tensor(1.0)), bad, bad):
        hook.after_train_iter(runner, 0, outputs=outputs)
    with pytest.raises(DivergedError, match="loss is inf at iteration 7"):
        hook.after_train_iter(runner, 0, outputs=bad)
    nn.init.constant_(runner.model.weight, float("nan"))
    with pytest.raises(DivergedError, match="loss is inf"):
        FiniteLossHook(patience=2).after_train_iter(runner, 0, outputs=bad)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    state["mask"] = torch.tensor([0.0, -float("inf")])
    torch.save(state, tmp_path / "fine.pth")
    assert read_state(tmp_path / "fine.pth").keys() == state.keys()
    for value in (float("nan"), float("inf")):
        state["1.running_var"][1] = value
        torch.save({"state_dict": state}, tmp_path / "bad.pth")
        with pytest.raises(CheckpointError, match=r"bad\.pth': '1\.running_var' is NaN or infinite"):
            read_state(tmp_path / "bad.pth")


def test_one_training_at_a_time_in_a_work_dir(
    drive: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Config(dict(work_dir=str(tmp_path / "run")))

    def second() -> None:
        with cli.user_errors(), preflight.claimed_work_dir(cfg):
            raise AssertionError

    with preflight.claimed_work_dir(cfg):
        process = multiprocessing.get_context("fork").Process(target=second)
        process.start()
        process.join()
        assert process.exitcode == 2
        with pytest.raises(OSError, match="another process") as refusal, preflight.claimed_work_dir(cfg):
            pass
        assert refusal.value.filename == cfg.work_dir
    assert not (tmp_path / "run").exists()  # made for nothing
    with preflight.claimed_work_dir(cfg):
        (tmp_path / "run/iter_1.pth").touch()
    with preflight.claimed_work_dir(cfg):
        assert (tmp_path / "run/iter_1.pth").exists()


def run_rank(rank: int, folder: Path, cfg: dict[str, Any]) -> None:
    """Train without and with a cut as one of two processes."""
    for port, (name, resume, cut) in enumerate(
        [("whole", None, 0), ("cut", None, 5), ("cut", "auto", 0)], start=int((folder / "port").read_text())
    ):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        torch.rand(100 * port)  # another process
        with contextlib.suppress(Cut):
            start(cfg, folder / name, resume, cut_after(cut))
        runtime.close_process_group()


def test_every_process_of_a_distributed_run_goes_on_with_its_own_random_numbers(
    drive: dict[str, Any], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    fork = multiprocessing.get_context("fork")
    cfg = {**drive, "launcher": "pytorch"}
    processes = [fork.Process(target=run_rank, args=(rank, tmp_path, cfg)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    states = load_checkpoint(tmp_path / "whole/iter_8.pth")["random_states"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    assert torch.equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
