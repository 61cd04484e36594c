"""Where a checkpoint comes from, as far as it says so itself."""

from __future__ import annotations

import ast
import datetime
import re
import shlex
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import Tensor

from ..utils.checkpoints import CheckpointError, state_of
from ..utils.cli import UsageError

__all__ = ["released_state", "save_date", "training_changes", "training_command"]

#: Settings that decide what comes out of a training.
_DECISIVE = ("model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg")


def released_state(loaded: Any, checkpoint: str, ema: bool | None) -> dict[str, Tensor]:
    """Return the weights to release out of a checkpoint.

    mmengine's EMAHook swaps the two sets as it saves: ``state_dict`` holds the averages, which a test
    evaluates, and ``ema_state_dict`` the last weights of the training.

    Args:
        loaded: What the file held.
        checkpoint: Its name, for messages.
        ema: Whether to take the averages; None where there is no choice.

    Raises:
        UsageError: If the choice is impossible, or needed and not made.
        CheckpointError: If there are no weights.
    """
    state = state_of(loaded, checkpoint)
    saved = loaded.get("ema_state_dict")
    if saved is None:
        if ema:
            raise UsageError(f"--ema: checkpoint {checkpoint!r} holds no averaged weights")
        return state
    last = state_of({"state_dict": saved}, checkpoint)
    if ema is None:
        raise UsageError(
            f"checkpoint {checkpoint!r} holds averaged and last weights: choose the averages, which a test "
            "evaluates, with --ema, or the last weights with --no-ema"
        )
    if ema:
        return state
    # The hook saves its wrapper whole, whose own counter of steps is no weight of the model.
    return {name: value for name, value in last.items() if f"module.{name}" in saved}


def training_changes(trained_with: str, cfg: Config) -> list[str]:
    """Return the decisive settings that differ between a training's config, as text, and a config.

    The text comes out of a checkpoint: it is compared, never run.

    Raises:
        CheckpointError: If it is not the text of a config.
    """
    old, new = _assignments(trained_with), _assignments(cfg.pretty_text)
    return [key for key in _DECISIVE if old.get(key) != new.get(key)]


def _assignments(text: str) -> dict[str, str]:
    # Training without a GPU replaces the one by the other, whose weights are the same.
    text = text.replace("'SyncBN'", "'BN'")
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what a parser gives up with
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"the checkpoint's config cannot be read: {reason}") from error
    return {
        node.targets[0].id: ast.dump(node.value)
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def training_command(meta: Mapping[str, Any], cfg: Config, config: str, given: str | None) -> str:
    """Return the given command, or the plain one where the checkpoint shows that it was enough.

    Args:
        meta: The checkpoint's ``meta``.
        cfg: The config to publish with.
        config: Its path, for the command.
        given: What the user says.

    Raises:
        UsageError: If it was another model, or nobody knows what was called.
        CheckpointError: If the config or the seed is none.
    """
    seed = meta.get("seed")
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise CheckpointError("the checkpoint's meta.seed is no seed: a whole number below 2**32")
    text = meta.get("cfg")
    if isinstance(text, str) and text:
        changes = training_changes(text, cfg)
        if "model" in changes:
            raise UsageError(f"the checkpoint was trained with another model than {config!r} describes")
        if changes and given is None:
            raise UsageError(
                f"the checkpoint was trained with other settings than {config!r} has ({', '.join(changes)}): "
                "give the command that trained it with --command"
            )
    elif given is None:
        raise UsageError("the checkpoint does not say how it was trained: give the command with --command")
    option = ["--seed", str(seed)] if seed is not None else []
    return given or shlex.join(["python", "tools/train.py", config, *option])


def save_date(meta: Mapping[str, Any]) -> str:
    """Return the day on which the checkpoint was saved, else today, as YYYYMMDD."""
    found = re.match(r"\d{8}(?=_)", str(meta.get("time", "")))
    return found[0] if found else datetime.date.today().strftime("%Y%m%d")
