"""Hooks for runs that are cut short: whole checkpoints, finite ones, and validations that are made up for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..registry import register
from ..utils.cli import UsageError
from ..utils.files import part_of, written_whole
from ..utils.finite import first_not_finite

__all__ = ["DivergedError", "FiniteLossHook", "RepeatValidationHook", "WholeCheckpointHook"]


class DivergedError(UsageError):
    """The loss or the weights of a training are no numbers any more."""


def _diverged(runner: Runner, what: str, iteration: int) -> DivergedError:
    last = runner.message_hub.runtime_info.get("last_ckpt")
    saved = last is not None and Path(last).exists()
    return DivergedError(
        f"training diverged: {what} at iteration {iteration}; "
        + (f"the last finite checkpoint is {str(last)!r}" if saved else "no checkpoint was saved before")
        + " (a lower learning rate, a warmup or optim_wrapper.clip_grad may help)"
    )


def _in_any_process(condition: bool) -> bool:
    """Tell whether a condition holds in any process of a distributed run, so that all stop or none."""
    if not is_distributed():
        return condition
    flag = torch.tensor(float(condition))
    all_reduce(flag, "max")
    return bool(flag)


# --- saving --------------------------------------------------------------------------------------


class _WholeFiles(LocalBackend):
    """Local files that appear whole, and are removed only when what takes their place stands."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._outdated: list[str | Path] = []

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes that are on the disk before the file takes its name."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with written_whole(Path(filepath), sync=True) as part:
            part.write_bytes(obj)

    def remove(self, filepath: str | Path) -> None:
        """Note a file; :meth:`clear` removes it."""
        self._outdated.append(filepath)

    def clear(self, *kept: str | Path | None) -> None:
        """Remove the noted files but some."""
        for file in {Path(file) for file in self._outdated} - {Path(file) for file in kept if file}:
            file.unlink(missing_ok=True)
        self._outdated.clear()


# MMEngine makes a backend anew, from its name, for each file that it saves.
register_backend("pixeldcl_plugin.whole", _WholeFiles, force=True)


@register(HOOKS)
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, of which a kill, a crash or a full disk leaves the last whole checkpoint.

    - A checkpoint on a local disk appears whole or not at all.
    - What it replaces, the oldest or the best before, goes after it stands: for that time the disk holds one
      more.
    - Weights that are no numbers are not saved.
    - Hooks have a further method, ``before_save_on_all_ranks(runner)``, called in every process of a
      distributed run; MMEngine calls ``before_save_checkpoint`` in the main one only.
    """

    def before_train(self, runner: Runner) -> None:
        """Choose how to write, and remove what a killed run left half written.

        Raises:
            OSError: If the folder cannot be written.
        """
        super().before_train(runner)
        # A validation that is made up for saves this one again, as it would have then.
        self.last_ckpt = runner.message_hub.runtime_info.get("last_ckpt") if runner.iter > 0 else None
        if type(self.file_backend) is LocalBackend:  # type: ignore[has-type]
            self.backend_args = dict(backend="pixeldcl_plugin.whole")
            self.file_backend = _WholeFiles()
            if is_main_process():
                for part in Path(self.out_dir).glob(part_of(Path("*.pth")).name):
                    part.unlink()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        self._prepare(runner, meta["iter"])
        super()._save_checkpoint_with_step(runner, step, meta)
        self._clear()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if self.save_best:
            self._prepare(runner, runner.iter)
            super()._save_best_checkpoint(runner, metrics)
            self._clear()

    def _prepare(self, runner: Runner, iteration: int) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        name = first_not_finite(model.state_dict())
        if _in_any_process(name is not None):
            what = "a weight of another process" if name is None else repr(name)
            raise _diverged(runner, f"{what} is NaN or infinite", iteration)
        runner.call_hook("before_save_on_all_ranks")

    def _clear(self) -> None:
        if isinstance(self.file_backend, _WholeFiles):
            best = getattr(self, "best_ckpt_path_dict", {}).values()
            self.file_backend.clear(self.last_ckpt, getattr(self, "best_ckpt_path", None), *best)


# --- losses --------------------------------------------------------------------------------------


@register(HOOKS)
class FiniteLossHook(Hook):
    """Stops a training whose loss is NaN or infinite, before anything of it is saved.

    A loss scaler skips the step where gradients overflow float16. Under one, only a loss that stays so, or
    weights that are no numbers, stop the training.

    Args:
        patience: Iterations in a row that a loss scaler may skip.
    """

    priority = "ABOVE_NORMAL"  # before anything is saved

    def __init__(self, patience: int = 20) -> None:
        self._patience = patience
        self._skipped = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Check the loss, in all processes at once so that none waits for another.

        Raises:
            DivergedError: Names the iteration and the last checkpoint.
        """
        losses = {key: value for key, value in (outputs or {}).items() if "loss" in key}
        numbers = {
            key: value.item() if isinstance(value, torch.Tensor) else value
            for key, value in losses.items()
            if not isinstance(value, torch.Tensor) or value.numel() == 1
        }
        bad = {key: value for key, value in numbers.items() if not abs(value) < float("inf")}
        if not _in_any_process(bool(bad)):
            self._skipped = 0
            return
        self._skipped += 1
        scaled = hasattr(runner.optim_wrapper, "loss_scaler") and self._skipped <= self._patience
        if scaled and first_not_finite(dict(runner.model.named_parameters())) is None:
            return
        what = ", ".join(f"{key} is {value}" for key, value in bad.items())
        raise _diverged(runner, what or "the loss of another process is NaN or infinite", runner.iter + 1)


# --- validations ---------------------------------------------------------------------------------


@register(HOOKS)
class RepeatValidationHook(Hook):
    """Makes up, on resuming, for a validation that was due at the checkpoint and that it knows nothing of."""

    # In before_train after the hooks that it relies on.
    priority = "LOWEST"

    def before_val(self, runner: Runner) -> None:
        """Note the validation in what is saved during it and later."""
        if runner.iter > 0:
            runner.message_hub.update_info("validated", runner.iter)

    def before_train(self, runner: Runner) -> None:
        """Validate if that is due and was not done."""
        if (
            runner.iter > 0
            and runner.message_hub.runtime_info.get("validated") != runner.iter
            and _due(runner)
        ):
            runner.logger.info(f"Validation at iteration {runner.iter}, which the checkpoint precedes")
            runner.val_loop.run()


def _due(runner: Runner) -> bool:
    """Tell whether the training loop, as it decides itself, validates at this iteration or epoch."""
    loop = runner.train_loop
    if runner.val_loop is None or not hasattr(loop, "val_interval"):
        return False
    loop._decide_current_val_interval()
    if isinstance(loop, EpochBasedTrainLoop):
        at, end = loop.epoch, loop.max_epochs
    else:
        at, end = loop.iter, loop.max_iters
    return at >= loop.val_begin and (at % loop.val_interval == 0 or at == end)
