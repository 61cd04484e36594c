"""The state of the random generators in a checkpoint, and the hook that makes a resumed run exact with it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed

from ..registry import register

__all__ = [
    "RandomState",
    "RandomStateHook",
    "get_random_state",
    "numpy_state",
    "python_state",
    "set_random_state",
]


RandomState = dict[str, Any]


def get_random_state() -> RandomState:
    """Return the state of the random generators of Python, NumPy and torch (CPU, current GPU).

    Tensors, numbers and None only, so that it can stand in a checkpoint which
    ``torch.load(weights_only=True)`` reads.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: RandomState = {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def python_state(state: RandomState) -> tuple[Any, ...]:
    """Return the part for ``random.setstate``."""
    python = state["python"]
    return python["version"], tuple(python["internal"].tolist()), python["gauss"]


def numpy_state(state: RandomState) -> tuple[Any, ...]:
    """Return the part for ``numpy.random.set_state``, which takes a position out of range for granted."""
    numpy = state["numpy"]
    keys = numpy["keys"].cpu().numpy().astype(np.uint32)
    return numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]


def set_random_state(state: RandomState) -> None:
    """Restore what :func:`get_random_state` returned; tensors may be on any device."""
    random.setstate(python_state(state))
    np.random.set_state(numpy_state(state))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class _RestoreAfter:
    """Iterates over ``batches`` and restores a random state after the first ``skip`` of them."""

    def __init__(self, batches: Iterator[Any], skip: int, state: RandomState) -> None:
        self._batches = batches
        self._left = skip
        self._state = state

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                set_random_state(self._state)
        return batch


@register(HOOKS)
class RandomStateHook(Hook):
    """Makes a resumed run draw the same random numbers as one that was never interrupted.

    With 0 data workers a resumed run repeats the uninterrupted one exactly: dropout, augmentation
    and the order of the data. Workers keep generators of their own that no checkpoint sees; then
    only the order of the data is the same.

    - The state of the generators goes into each checkpoint and is restored before the first batch.
    - Validation leaves the state as it found it: whether and when it runs changes nothing.
    - The training loader gets a generator of its own, because an iterator over it draws a number
      when it is made, and a resumed run makes it at another point of the random sequence.

    Of a distributed run the state of every rank is kept. Where it resumes with another number of them, all
    take that of rank 0, or a seed of their own where ``randomness`` has ``diff_rank_seed=True``.
    """

    # Before validation ahead of every hook that draws; at the same point when resuming.
    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._loaded = False
        self._resumed: RandomState | None = None
        self._own = False  # whether what is resumed is the state of this very rank
        self._ranks: list[RandomState] = []
        self._before_val: RandomState | None = None

    def before_train(self, runner: Runner) -> None:
        """Give the training loader its own generator; restore the state for a validation made up for."""
        runner.train_dataloader.generator = torch.Generator().manual_seed(runner.seed)
        if self._resumed is not None and runner.iter > 0:
            set_random_state(self._state_of_rank(runner, self._resumed))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state that a checkpoint holds until training starts."""
        self._loaded = True
        states = checkpoint.get("random_states") or [checkpoint.get("random_state")]
        self._own = len(states) == get_world_size()
        self._resumed = states[get_rank() if self._own else 0]

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the state at the last hook before the first batch of a resumed run."""
        resuming = self._loaded and runner.iter > 0  # At 0 weights were loaded, nothing resumed.
        state, self._loaded, self._resumed = self._resumed, False, None
        if not resuming:
            return
        if state is None:
            runner.logger.warning(
                "The checkpoint holds no random state: the resumed run is valid, but not the one "
                "that would have followed without interruption."
            )
            return
        state = self._state_of_rank(runner, state)
        set_random_state(state)
        batches = getattr(runner.train_loop, "dataloader_iterator", None)
        if batches is not None and not hasattr(batches, "skip_iter"):
            # OpenMMLab's loop skips by loading and dropping the batches, which draws numbers.
            runner.train_loop.dataloader_iterator = _RestoreAfter(batches, runner.iter, state)

    def _state_of_rank(self, runner: Runner, state: RandomState) -> RandomState:
        if not self._own and get_rank() > 0 and runner.cfg.get("randomness", {}).get("diff_rank_seed"):
            set_random_seed(runner.seed + runner.iter, diff_rank_seed=True)
            return get_random_state()
        return state

    def before_val(self, runner: Runner) -> None:
        """Keep the state during validation."""
        self._before_val = get_random_state()

    def after_val(self, runner: Runner) -> None:
        """Restore the state from before validation."""
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None

    def before_save_on_all_ranks(self, runner: Runner) -> None:
        """Collect the states of all processes, see :class:`~.checkpoint_hooks.WholeCheckpointHook`."""
        if get_world_size() > 1:
            self._ranks = all_gather_object(self._before_val or get_random_state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state to a checkpoint; within validation, that from before it."""
        checkpoint["random_state"] = self._before_val or get_random_state()
        if self._ranks:
            checkpoint["random_states"] = self._ranks
