"""Checkpoints read without running anything that they hold, for this package and for MMEngine."""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from .finite import first_not_finite
from .safetensors_files import load_safetensors

__all__ = [
    "CheckpointError",
    "UnsafeCheckpointError",
    "enable_safe_loading",
    "load_checkpoint",
    "load_for_mmengine",
    "read_state",
    "state_of",
]


class CheckpointError(RuntimeError):
    """A checkpoint is missing, truncated, or would need unsafe unpickling."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint would run code when it is opened."""


class _SavedHistory(HistoryBuffer):
    """Stands in for HistoryBuffer while a checkpoint is read: numbers are all that it takes from a file.

    The real one takes its attributes from the file, and the statistics of its whole class.
    """

    def __setstate__(self, state: Any) -> None:
        values, counts = (state[key] for key in ("_log_history", "_count_history"))
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.shape != counts.shape:
            raise ValueError("a HistoryBuffer without numbers")
        self.__init__(values, counts, int(state["max_length"]))  # type: ignore[misc]
        self.__class__ = HistoryBuffer  # so that it is saved under its own name


def _history_statistic(owner: type, name: str) -> Callable[..., Any]:
    """Stand in for ``getattr`` while a checkpoint is read.

    MMEngine's own checkpoints pickle the methods of HistoryBuffer, which pickle writes as
    ``getattr(HistoryBuffer, 'min')``. Allowing the real ``getattr`` would allow it on everything.
    """
    if owner is _SavedHistory and name in ("min", "max", "mean", "current"):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f"GLOBAL getattr({owner!r}, {name!r}) was not an allowed global")


def _safe_globals() -> list[Any]:
    """Return what MMEngine's checkpoints hold besides tensors and plain data, and nothing else."""
    reconstruct, scalar = np.arange(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    allowed: list[Any] = [(_SavedHistory, f"{HistoryBuffer.__module__}.{HistoryBuffer.__qualname__}")]
    allowed += [np.ndarray, np.dtype]
    # NumPy 2 moved these two; files written by either version name them by their own path.
    for core in ("numpy.core", "numpy._core"):
        allowed += [(reconstruct, f"{core}.multiarray._reconstruct")]
        allowed += [(scalar, f"{core}.multiarray.scalar")]
    # Numeric types only: an array of objects could carry anything.
    allowed += [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
    return [*allowed, (_history_statistic, "builtins.getattr")]


def load_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> Any:
    """Read a checkpoint file without running any code that it may contain.

    Always ``torch.load(weights_only=True)`` with a short list of additional types; there is no
    fallback to unsafe unpickling. ``*.safetensors`` files are read too.

    Args:
        path: A ``.pth`` or ``.safetensors`` file.
        map_location: As in ``torch.load``.

    Returns:
        What was saved: a state dict, or a dict with a ``'state_dict'`` among others. Of a ``.safetensors``
        file the ``'state_dict'`` and a ``'meta'``: see :mod:`~pixeldcl_plugin.utils.safetensors_files`.

    Raises:
        CheckpointError: If the file is missing or unreadable, and as :class:`UnsafeCheckpointError` if it
            names a type that is not allowed; the message names the file and the type.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise CheckpointError(f"no checkpoint file {str(file)!r} (looked in {Path.cwd()})")
    try:
        if file.suffix == ".safetensors":
            return load_safetensors(file, map_location)
        with file.open("rb") as opened:
            start = opened.read(4)
        if not start.startswith((b"PK", b"\x80")):  # a zip archive, and a pickle as torch wrote it before
            raise ValueError(f"it is no file of torch.save: it begins with {start!r}")
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(file, str(error)) from error
    except Exception as error:  # torch and pickle do not say what they raise on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot read checkpoint {str(file)!r}: {reason}") from error


def _unpickling_error(file: Path, message: str) -> CheckpointError:
    found = re.search(r"GLOBAL (\S+)|module (\S+) is blocked|unrecognized function (.+)", message)
    if found is None:
        # The reason stands after torch's advice to load unsafely, which is not repeated here.
        reason = message.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
        return CheckpointError(
            f"cannot read checkpoint {str(file)!r}: {reason[0] if reason else 'not a checkpoint'}"
        )
    refused = next(group for group in found.groups() if group)
    return UnsafeCheckpointError(
        f"refused checkpoint {str(file)!r}: it contains {refused!r}, which is neither a tensor nor "
        "plain data and could run code when loaded"
    )


def read_state(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the state dict of a ``.safetensors`` or ``.pth`` file without running code in it.

    Raises:
        UnsafeCheckpointError: If the file would have to run code.
        CheckpointError: If it is missing, broken, or holds no state dict.
    """
    return state_of(load_checkpoint(file), file)


def state_of(loaded: Any, file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict of what a checkpoint file held.

    Raises:
        CheckpointError: If there is none (a mapping from names to dense tensors, at least one), or a weight
            is NaN or infinite; names it.
    """
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"checkpoint {os.fspath(file)!r} holds no state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"checkpoint {os.fspath(file)!r} holds no state dict: its entry {name!r} is of type "
                f"{type(value).__name__}"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"checkpoint {os.fspath(file)!r}: {name!r} is not a dense tensor")
    if (unusable := first_not_finite(state)) is not None:
        raise CheckpointError(
            f"checkpoint {os.fspath(file)!r}: {unusable!r} is NaN or infinite: its training diverged"
        )
    # Data parallel wrappers put a name of theirs before all others; MMEngine drops it too.
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_for_mmengine(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint as MMEngine takes it: with what it relies on, and without what it would run.

    It looks for names by regular expressions, and executes the text of a config on resuming.

    Raises:
        CheckpointError: As :func:`load_checkpoint`, and if the file holds no weights.
    """
    loaded = load_checkpoint(path, map_location)
    # Some of mmseg's backbones look for their weights under 'model' too.
    nested = isinstance(loaded, Mapping) and "state_dict" not in loaded and loaded.get("model")
    state_of(nested if isinstance(nested, Mapping) else loaded, path)
    meta = loaded.get("meta")
    if isinstance(meta, Mapping):
        meta = {key: value for key, value in meta.items() if key not in ("cfg", "config")}
        return {**loaded, "meta": meta}
    return dict(loaded)


def _load_from_local(filename: str, map_location: Any = None) -> Any:
    return load_for_mmengine(filename, map_location)


def _load_from_http(filename: str, map_location: Any = None) -> Any:
    name = Path(urlparse(filename).path).name
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    failure = None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0 and not target.is_file():
        # Model zoos end a file's name with the beginning of its SHA-256: a wrong file is refused.
        digest = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                filename,
                str(target),
                hash_prefix=digest and digest[1],
                progress=sys.stderr.isatty(),
            )
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            failure = f"cannot download {filename!r}: {error}"
    # A process that raised alone would leave the others waiting for it.
    failures = [reason for reason in all_gather_object(failure) if reason]
    if failures:
        raise CheckpointError(failures[0])
    return load_for_mmengine(target, map_location)


# MMEngine logs the part of a loader's name after 'load_from_'.
_load_from_local.__name__ = "load_from_local"
_load_from_http.__name__ = "load_from_http"


def enable_safe_loading() -> None:
    """Make every checkpoint that MMEngine reads go through :func:`load_for_mmengine`.

    Replaces MMEngine's loaders of local files and URLs, whose maintained version falls back to
    unsafe unpickling and whose original refuses its own checkpoints on torch >= 2.6, and forbids
    unsafe ``torch.load`` anywhere else. This changes the process for other code too; so it is for
    commands to call, and importing the package does not.
    """
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    CheckpointLoader.register_scheme(prefixes="", loader=_load_from_local, force=True)
    CheckpointLoader.register_scheme(prefixes=("http://", "https://"), loader=_load_from_http, force=True)
