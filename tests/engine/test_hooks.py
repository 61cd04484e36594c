"""Exact resuming and plain checkpoints, on a model that draws random numbers everywhere."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmengine.evaluator import Evaluator
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from pixeldcl_plugin.engine import hooks, random_state
from pixeldcl_plugin.utils.checkpoints import CheckpointError, load_checkpoint


class Noise(torch.utils.data.Dataset):
    """Ten samples, each augmented from the generators of Python, NumPy and torch."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = [random.gauss(0, 1), np.random.normal(), torch.randn(()).item()]
        return torch.tensor([float(index), *noise])


class Model(BaseModel):
    """A linear layer with dropout whose validation draws random numbers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> Any:
        """Returns a loss, or consumes randomness."""
        if mode == "loss":
            dropped = nn.functional.dropout(inputs, 0.5)
            return {"loss": self.layer(dropped).square().mean()}
        return [random.random() + np.random.rand() + torch.rand(()).item()]

    def train_step(self, data: torch.Tensor, optim_wrapper: Any) -> dict[str, torch.Tensor]:
        """One update."""
        with optim_wrapper.optim_context(self):
            losses = self(data, mode="loss")
        optim_wrapper.update_params(losses["loss"])
        return losses

    def val_step(self, data: torch.Tensor) -> list:
        """Predicts at random."""
        return self(data, mode="predict")


class Upstream(IterBasedTrainLoop):
    """Resumes as OpenMMLab's loop: with an eager iterator, by loading and dropping batches."""

    class Batches:
        """The loop's iterator, which has no way to skip."""

        def __init__(self, loader: Any) -> None:
            self.batches = itertools.chain.from_iterable(itertools.repeat(loader))

        def __next__(self) -> Any:
            return next(self.batches)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader_iterator = self.Batches(self.dataloader)

    def run(self) -> None:
        """Trains in the order of events of MMEngine 0.10.7."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        for _ in range(self._iter):
            next(self.dataloader_iterator)
        while self._iter < self._max_iters:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            if self._iter % self.val_interval == 0:
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")


class Rising(Evaluator):
    """Each validation is better than the last, so the best checkpoint is saved during it."""

    def __init__(self) -> None:
        super().__init__([])
        self.count = 0

    def evaluate(self, size: int) -> dict:
        """One score of a NumPy type, as IoUMetric's are."""
        self.count += 1
        return {"score": np.float32(self.count)}


names = (f"run{i}" for i in itertools.count())


def build(work_dir: Path, loop: str, length: int, **kwargs: Any) -> Runner:
    by_epoch = loop == "epoch"
    sampler = dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True)
    loader = dict(
        batch_size=5 if by_epoch else 3, num_workers=0, dataset=Noise(), sampler=sampler,
        collate_fn=default_collate,
    )  # fmt: skip
    train_cfg = {
        "iter": dict(type="IterBasedTrainLoop", max_iters=length, val_interval=2),
        "epoch": dict(by_epoch=True, max_epochs=length, val_interval=2),
        "upstream": dict(type=Upstream, max_iters=length, val_interval=2),
    }[loop]
    checkpoint = dict(type="CheckpointHook", by_epoch=by_epoch, interval=1, save_best="score", rule="greater")
    return Runner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader=dict(loader, sampler=dict(type="DefaultSampler")),
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=Rising(),
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.1)),
        param_scheduler=dict(type="ExponentialLR", gamma=0.9, by_epoch=by_epoch),
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type="RandomStateHook"), dict(type="PlainCheckpointHook")],
        randomness=dict(seed=5),
        experiment_name=next(names),  # MMEngine shares its records between runs of one name.
        log_level="ERROR",
        **kwargs,
    )


def weights(work_dir: Path, name: str) -> torch.Tensor:
    state = load_checkpoint(work_dir / name)["state_dict"]
    return torch.cat([value.flatten() for value in state.values()])


@pytest.mark.parametrize("loop", ["iter", "epoch", "upstream"])
@pytest.mark.parametrize("start", [3, 4])  # 4: saved once more during its validation.
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, loop: str, start: int) -> None:
    unit = "epoch" if loop == "epoch" else "iter"
    build(tmp_path / "whole", loop, 6).train()
    checkpoint = tmp_path / "whole" / f"{unit}_{start}.pth"
    torch.rand(7)  # Another process has its generators elsewhere.
    resumed = build(tmp_path / "resumed", loop, 6, load_from=str(checkpoint), resume=True)
    resumed.train()
    last = f"{unit}_6.pth"
    assert torch.equal(weights(tmp_path / "resumed", last), weights(tmp_path / "whole", last))
    first = weights(tmp_path / "whole", f"{unit}_{start}.pth")
    assert not torch.equal(first, weights(tmp_path / "whole", last))


def test_without_the_random_state_the_run_differs(tmp_path: Path) -> None:
    """The comparison above would notice if the hook did nothing."""
    build(tmp_path / "whole", "iter", 6).train()
    checkpoint = load_checkpoint(tmp_path / "whole/iter_3.pth")
    del checkpoint["random_state"]
    torch.save(checkpoint, tmp_path / "stripped.pth")
    torch.rand(7)
    path = str(tmp_path / "stripped.pth")
    build(tmp_path / "resumed", "iter", 6, load_from=path, resume=True).train()
    ends = [weights(tmp_path / run, "iter_6.pth") for run in ("whole", "resumed")]
    assert not torch.equal(*ends)


def test_loading_weights_does_not_touch_the_random_state(tmp_path: Path) -> None:
    build(tmp_path / "first", "iter", 2).train()
    checkpoint = load_checkpoint(tmp_path / "first/iter_2.pth")
    torch.save({"state_dict": checkpoint["state_dict"]}, tmp_path / "weights.pth")
    torch.save(checkpoint, tmp_path / "all.pth")
    for name in ("weights", "all"):
        build(tmp_path / name, "iter", 2, load_from=str(tmp_path / f"{name}.pth")).train()
    ends = [weights(tmp_path / name, "iter_2.pth") for name in ("weights", "all")]
    assert torch.equal(*ends)


def test_validation_leaves_the_random_state(tmp_path: Path) -> None:
    runner = build(tmp_path, "iter", 1)
    runner.train()
    before = draw()
    random_state.set_random_state(state := random_state.get_random_state())
    expected = draw()
    random_state.set_random_state(state)
    runner.val_loop.run()
    assert draw() == expected != before


def draw() -> list[float]:
    return [random.gauss(0, 1), random.random(), np.random.normal(), torch.randn(()).item()]


def test_random_state_survives_a_checkpoint(tmp_path: Path) -> None:
    draw()  # gauss() and normal() keep a second number for the next call.
    torch.save(random_state.get_random_state(), tmp_path / "state.pth")
    expected = draw()
    random_state.set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draw() == expected


def test_checkpoints_are_plain_and_keep_their_histories(tmp_path: Path) -> None:
    build(tmp_path / "a", "iter", 4).train()
    saved = torch.load(tmp_path / "a/iter_4.pth", weights_only=True)  # No list of allowed types.
    assert saved["meta"]["iter"] == 4
    assert type(saved["message_hub"]["runtime_info"]["best_score"]) is float
    losses = saved["message_hub"]["log_scalars"]["train/loss"]["values"]
    assert losses.shape == (4,)

    path = str(tmp_path / "a/iter_4.pth")
    runner = build(tmp_path / "b", "iter", 6, load_from=path, resume=True)
    runner.train()
    history = runner.message_hub.get_scalar("train/loss")
    assert isinstance(history, HistoryBuffer)
    assert history.data[0].shape == (6,)
    assert history.data[0][:4].tolist() == losses.tolist()


class Part(BaseModel):
    """A model with an auxiliary head."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
        self.auxiliary_head = nn.Linear(3, 1)

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> None:
        """Not needed."""


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_complete_weights_are_accepted(prefix: str, wrapped: bool) -> None:
    state = {key: value for key, value in Part().state_dict().items() if "auxiliary" not in key}
    del state["layer.1.num_batches_tracked"]
    state = {prefix + key: value for key, value in [*state.items(), ("auxiliary_head.more", torch.ones(1))]}
    runner = SimpleNamespace(model=Part())
    hook = hooks.CompleteWeightsHook()
    hook.after_load_checkpoint(runner, {"state_dict": state} if wrapped else state)
    assert not torch.equal(runner.model.layer[0].weight, state[f"{prefix}layer.0.weight"])


def test_incomplete_weights_are_refused() -> None:
    hook, runner = hooks.CompleteWeightsHook(), SimpleNamespace(model=Part())
    state = Part().state_dict()
    del state["layer.0.bias"]
    with pytest.raises(CheckpointError, match=r"lacks 'layer\.0\.bias' \(1 such"):
        hook.after_load_checkpoint(runner, {"state_dict": state})
    state = {**Part().state_dict(), "more": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"the model has no 'more'"):
        hook.after_load_checkpoint(runner, {"state_dict": state})
    with pytest.raises(CheckpointError, match=r"another model: .*layer\.0\.weight") as refusal:
        hook.after_load_checkpoint(runner, {"state_dict": Part(width=5).state_dict()})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        ({np.int64(1): (np.bool_(True), [np.float64(2)])}, {1: (True, [2.0])}),
        ([None, True, "text", b"bytes", 1.5], [None, True, "text", b"bytes", 1.5]),
        (Path("a/b"), "a/b"),
    ],
)
def test_plain(value: object, plain: object) -> None:
    result = hooks._plain(value)
    assert result == plain
    assert type(result) is type(plain)


@pytest.fixture(autouse=True)
def _generators_restored() -> Iterator[None]:
    state = random_state.get_random_state()
    yield
    random_state.set_random_state(state)
