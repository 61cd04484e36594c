"""What a resumed run takes over from a checkpoint: the state of its own parts, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.optim import Optimizer

from ..registry import register
from .resume_point import check_training_state, conform, refusing, written_names

__all__ = ["CheckedResumeHook"]

# What the hooks of each run record anew.
_RECORDED_ANEW = {
    "cfg", "dataset_meta", "epoch", "experiment_name", "iter", "loop_stage", "max_epochs", "max_iters",
    "mmengine_version", "seed",
}  # fmt: skip


@register(HOOKS)
class CheckedResumeHook(Hook):
    """Refuses damaged checkpoints on resuming, and lets the others set state only.

    MMEngine executes the config that a checkpoint holds, overwrites any attribute of a scheduler that the
    file names, and later deletes the file or folder that it names as the best checkpoint.
    """

    # Before the hooks that believe what a checkpoint says.
    priority = "HIGHEST"

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check what is resumed and bring it into the form of what the run has in its place.

        Raises:
            CheckpointError: Names the file and the entry that cannot be right.
        """
        if not runner._resume:
            return
        file = str(runner.cfg.get("load_from") or runner.work_dir)
        check_training_state(checkpoint, file)
        meta, hub = checkpoint["meta"], checkpoint["message_hub"]
        checkpoint["meta"] = {key: value for key, value in meta.items() if key not in ("cfg", "config")}
        info = _own_files_only(hub["runtime_info"], _folders(runner), written_names(runner.cfg))
        known = {*info, *hub["log_scalars"]}
        kept = {key: bool(value) for key, value in hub["resumed_keys"].items() if key in known}
        checkpoint["message_hub"] = {**hub, "runtime_info": info, "resumed_keys": kept}
        with refusing(file):
            checkpoint["optimizer"] = _optimizer_state(checkpoint["optimizer"], runner.optim_wrapper)
            if "param_schedulers" in checkpoint and runner.param_schedulers is not None:
                checkpoint["param_schedulers"] = _scheduler_states(
                    checkpoint["param_schedulers"], runner.param_schedulers, meta["iter"]
                )


def _folders(runner: Runner) -> list[Path]:
    """Return where the run saves checkpoints."""
    work_dir = Path(runner.work_dir)
    others = [hook.out_dir for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.out_dir]
    return [work_dir, *(Path(folder) / work_dir.name for folder in others)]


def _own_files_only(info: Mapping[str, Any], folders: Sequence[Path], names: Any) -> dict[str, Any]:
    """Return the records of a run without those of each run anew and of files that this run did not write.

    A best checkpoint elsewhere is another run's: its score goes too, so that this run keeps its own best.
    """
    kept = {key: value for key, value in info.items() if key not in _RECORDED_ANEW}
    for key in [key for key in kept if key.startswith("best_ckpt") or key == "last_ckpt"]:
        name = Path(kept[key]).name
        own = [folder / name for folder in folders if names.fullmatch(name) and (folder / name).is_file()]
        if own:
            kept[key] = str(own[0])
            continue
        del kept[key]
        kept.pop(key.replace("best_ckpt", "best_score"), None)
    return kept


def _optimizer_state(value: Any, wrapper: Any, where: str = "optimizer") -> dict[str, Any]:
    own = wrapper.state_dict()
    if "param_groups" not in own:  # several optimizers by name
        return {
            name: _optimizer_state(_at(value, name, where), wrapper[name], f"{where}.{name}") for name in own
        }
    states, _ = (_at(value, key, where) for key in ("state", "param_groups"))
    conform(states, {}, f"{where}.state")
    result: dict[str, Any] = conform({**value, "state": {}}, {**own, "state": {}}, where)
    for index, (group, ours) in enumerate(zip(result["param_groups"], own["param_groups"], strict=True)):
        if group["params"] != ours["params"]:
            raise ValueError(f"{where}.param_groups.{index} is of other parameters than the model's")
    pattern = _state_after_a_step(wrapper.optimizer, result["param_groups"], where)
    indices = {index for group in own["param_groups"] for index in group["params"]}
    for index, state in states.items():
        if index not in indices:
            raise ValueError(f"{where}.state.{index} is of no parameter of the model")
        if pattern is None:
            result["state"][index] = state
        elif index in pattern:  # a parameter that is trained
            result["state"][index] = conform(state, pattern[index], f"{where}.state.{index}", complete=True)
    return result


def _state_after_a_step(
    optimizer: Optimizer, groups: list[dict[str, Any]], where: str
) -> dict[Any, Any] | None:
    """Return what an optimizer of these settings knows of each parameter once it has taken a step.

    An optimizer fills its state in the first step, and says nowhere else what belongs there.
    """
    try:
        probe = copy.deepcopy(optimizer)
    except Exception:  # Optimizers that own more than tensors, as sharding ones do: not to be copied.
        return None
    try:
        probe.load_state_dict({"state": {}, "param_groups": groups})
        for parameter in (p for group in probe.param_groups for p in group["params"] if p.requires_grad):
            parameter.grad = torch.zeros_like(parameter)
        probe.step()
    except Exception as error:  # It is the settings that are wrong, in one of many ways.
        raise ValueError(f"{where} cannot take a step with the settings in param_groups: {error}") from error
    state: dict[Any, Any] = probe.state_dict()["state"]
    return state


def _scheduler_states(value: Any, schedulers: Any, iteration: int, where: str = "param_schedulers") -> Any:
    if isinstance(schedulers, dict):  # of several optimizers, by name
        return {
            name: _scheduler_states(_at(value, name, where), items, iteration, f"{where}.{name}")
            for name, items in schedulers.items()
        }
    states = conform(value, [scheduler.state_dict() for scheduler in schedulers], where)
    for index, state in enumerate(states):
        for key in ("last_step", "_global_step"):
            if not -1 <= state.get(key, 0) <= iteration + 1:
                raise ValueError(f"{where}.{index}.{key} is {state[key]} after {iteration} iterations")
    return states


def _at(value: Any, key: str, where: str) -> Any:
    if not isinstance(value, Mapping) or key not in value:
        raise ValueError(f"{where} lacks {key!r}")
    return value[key]
