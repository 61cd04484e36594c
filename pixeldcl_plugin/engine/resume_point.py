"""Points to resume from: what a checkpoint says of a training, checked before any of it is used."""

from __future__ import annotations

import contextlib
import random
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging.history_buffer import HistoryBuffer
from torch import Tensor

from ..utils.checkpoints import CheckpointError, load_checkpoint, state_of
from ..utils.safetensors_files import check_dataset_meta
from .random_state import get_random_state, numpy_state, python_state

__all__ = [
    "ResumePoint",
    "check_random_state",
    "check_training_state",
    "conform",
    "read_resume_point",
    "refusing",
    "written_names",
]

# More numbers than any run logs under one name; MMEngine's buffers end at a million.
_MAX_HISTORY = 10**7


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that training can continue from: its weights, and what it says of the classes, if that."""

    path: Path
    iteration: int
    epoch: int
    seed: int | None
    state: dict[str, Tensor] = field(repr=False, compare=False)
    dataset_meta: dict[str, Any] | None = field(default=None, repr=False, compare=False)


def read_resume_point(path: Path) -> ResumePoint:
    """Read a checkpoint and check all that can be checked of it without the run that it belongs to.

    Raises:
        CheckpointError: If it is none, holds weights only, or is damaged; names the first such entry.
    """
    checkpoint = load_checkpoint(path)
    check_training_state(checkpoint, path)
    meta = checkpoint["meta"]
    try:
        classes = check_dataset_meta(meta.get("dataset_meta"))
    except ValueError:  # There are data without classes, and this decides nothing of the training.
        classes = None
    state = state_of(checkpoint, path)
    return ResumePoint(path, meta["iter"], meta["epoch"], meta.get("seed"), state, classes)


def written_names(cfg: Config) -> re.Pattern[str]:
    """Return the names under which a config's run saves checkpoints, the best and published ones too."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    templates = {"iter_{}.pth", "epoch_{}.pth", hook.get("filename_tmpl") or "iter_{}.pth"}
    stems = "|".join(re.escape(Path(name).stem).replace(r"\{\}", r"\d+") for name in sorted(templates))
    return re.compile(rf"(best_.+_)?({stems})(-[0-9a-f]{{8}})?\.pth")


@contextlib.contextmanager
def refusing(file: str | Path) -> Iterator[None]:
    """Turn a ValueError about an entry of a checkpoint into the refusal of the file."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"cannot resume from {str(file)!r}: {error}") from error


# --- the form of a value -------------------------------------------------------------------------


def conform(value: Any, pattern: Any, where: str, *, complete: bool = False) -> Any:
    """Return a value out of a checkpoint in the form of what the run itself has in its place.

    Numbers stay numbers, lists keep their length, tensors their shape. Of a mapping only the keys of the
    pattern are taken; what the file lacks stays the run's own, and so does what is no data (a function).

    Args:
        value: What the file holds.
        pattern: What the run holds.
        where: The place, for messages.
        complete: Whether mappings must have all keys of the pattern.

    Raises:
        ValueError: Names the place, what belongs there and what was found.
    """
    if isinstance(pattern, Mapping):
        _require(isinstance(value, Mapping), where, "a mapping", value)
        missing = [key for key in pattern if key not in value]
        if missing and complete:
            raise ValueError(f"{where} lacks {missing[0]!r}")
        taken = {
            key: conform(value[key], own, f"{where}.{key}", complete=complete)
            for key, own in pattern.items()
            if key in value
        }
        return {**pattern, **taken}
    if isinstance(pattern, Tensor):
        if pattern.ndim == 0 and _is_number(value):
            return torch.tensor(value, dtype=pattern.dtype)
        kind = f"{'a' if pattern.is_floating_point() else 'an integer'} tensor {tuple(pattern.shape)}"
        alike = isinstance(value, Tensor) and value.layout == torch.strided and value.shape == pattern.shape
        alike = alike and value.is_floating_point() == pattern.is_floating_point()
        _require(alike, where, kind, value)
    elif isinstance(pattern, list | tuple):
        alike = isinstance(value, list | tuple) and len(value) == len(pattern)
        _require(alike, where, f"a list of {len(pattern)}", value)
        items = zip(value, pattern, strict=True)
        return type(pattern)(
            [conform(a, b, f"{where}.{i}", complete=complete) for i, (a, b) in enumerate(items)]
        )
    elif pattern is None or isinstance(pattern, bool):
        optional = value is None or isinstance(value, bool) or (pattern is None and _is_number(value))
        _require(optional, where, "a setting", value)
    elif isinstance(pattern, int | float):
        infinite = isinstance(value, float) and abs(value) == abs(pattern) == float("inf")
        _require(_is_number(value) or infinite, where, "a finite number", value)
    elif isinstance(pattern, str):
        _require(isinstance(value, str), where, "a name", value)
    else:
        return pattern
    return value


def _require(condition: bool, where: str, wanted: str, value: Any) -> None:
    if not condition:
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)
        raise ValueError(f"{where} must be {wanted}, got {' '.join(found.split())}")


def _is_number(value: Any) -> bool:
    # The comparison is false of NaN and the infinities as well.
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2**63) < value < 2**63


def _whole(value: Any, where: str, end: int) -> None:
    alike = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < end
    _require(alike, where, f"a whole number from 0 to {end - 1}", value)


# --- the parts of a checkpoint -------------------------------------------------------------------


def check_training_state(checkpoint: Any, file: str | Path) -> None:
    """Check what a checkpoint says of a training, except what only the run itself can judge.

    Raises:
        CheckpointError: Names the file and its first entry that is missing or cannot be right.
    """
    with refusing(file):
        for key in ("meta", "state_dict", "message_hub", "optimizer"):
            if not isinstance(checkpoint, Mapping) or key not in checkpoint:
                raise ValueError(f"it holds no {key!r}")
        meta = checkpoint["meta"]
        _require(isinstance(meta, Mapping), "meta", "a mapping", meta)
        for key in ("iter", "epoch"):
            _whole(meta.get(key), f"meta.{key}", 2**31)
        if meta.get("seed") is not None:
            _whole(meta["seed"], "meta.seed", 2**32)
        _check_message_hub(checkpoint["message_hub"])
        optimizer = checkpoint["optimizer"]
        _require(isinstance(optimizer, Mapping) and bool(optimizer), "optimizer", "a mapping", optimizer)
        if "random_state" in checkpoint:
            check_random_state(checkpoint["random_state"])
        ranks = checkpoint.get("random_states", [])
        _require(isinstance(ranks, list), "random_states", "a list of one state a process", ranks)
        for rank, state in enumerate(ranks):
            check_random_state(state, f"random_states.{rank}")
    state_of(checkpoint, file)
    if "ema_state_dict" in checkpoint:
        state_of({"state_dict": checkpoint["ema_state_dict"]}, file)


def _check_message_hub(hub: Any) -> None:
    _require(isinstance(hub, Mapping), "message_hub", "a mapping", hub)
    for key in ("log_scalars", "runtime_info", "resumed_keys"):
        part = hub.get(key)
        names = isinstance(part, Mapping) and all(isinstance(name, str) for name in part)
        _require(names, f"message_hub.{key}", "a mapping from names", part)
    for name, history in hub["log_scalars"].items():
        if not isinstance(history, HistoryBuffer):  # Those are checked as they are read.
            _check_history(history, f"message_hub.log_scalars.{name}")
    for name, value in hub["runtime_info"].items():
        where = f"message_hub.runtime_info.{name}"
        if name.startswith("best_score"):
            conform(value, 0.0, where)
        elif name.startswith("best_ckpt") or name == "last_ckpt":
            conform(value, "", where)
        elif name == "keep_ckpt_ids":
            _require(isinstance(value, list), where, "a list", value)
            for number in value:
                _whole(number, where, 2**31)


def _check_history(history: Any, where: str) -> None:
    _require(isinstance(history, Mapping), where, "a mapping", history)
    values, counts = history.get("values"), history.get("counts")
    length = values.shape[0] if isinstance(values, Tensor) and values.ndim == 1 else None
    _require(length is not None and length < _MAX_HISTORY, f"{where}.values", "a list of numbers", values)
    alike = isinstance(counts, Tensor) and counts.shape == (length,)
    _require(alike, f"{where}.counts", f"a list of {length} numbers", counts)
    _whole(history.get("max_length"), f"{where}.max_length", _MAX_HISTORY)


def check_random_state(state: Any, where: str = "random_state") -> None:
    """Check a state of the random generators before it is set: NumPy believes whatever it is given.

    Raises:
        ValueError: Names the entry.
    """
    own = get_random_state()
    own["python"]["gauss"] = None  # of both: a number or None
    cuda = own.pop("cuda", None)
    conform(state, own, where, complete=True)
    numpy = state["numpy"]
    _require(numpy["name"] == "MT19937", f"{where}.numpy.name", "'MT19937'", numpy["name"])
    _whole(numpy["position"], f"{where}.numpy.position", 625)
    _whole(numpy["has_gauss"], f"{where}.numpy.has_gauss", 2)
    for part, words in (("numpy.keys", numpy["keys"]), ("python.internal", state["python"]["internal"])):
        alike = not words.is_complex() and bool(((words >= 0) & (words < 2**32)).all())
        _require(alike, f"{where}.{part}", "integers of 32 bits", words)
    # The rest is what generators of their own refuse, which nobody draws from.
    for part, restore in (
        ("python", lambda: random.Random().setstate(python_state(state))),
        ("numpy", lambda: np.random.RandomState().set_state(numpy_state(state))),
        ("torch", lambda: torch.Generator().set_state(state["torch"].cpu())),
    ):
        try:
            restore()
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{where}.{part} is no state of a generator: {error}") from error
    if "cuda" in state and cuda is not None:
        conform(state["cuda"], cuda, f"{where}.cuda")
