"""Hooks for checkpoints: saved as plain data, of this model and no other, those of an earlier run removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..registry import register
from .weights import check_state


@register(HOOKS)
class PlainCheckpointHook(Hook):
    """Saves checkpoints as tensors and plain data, which ``weights_only=True`` loads.

    MMEngine's own checkpoints hold HistoryBuffer objects, functions and NumPy scalars. This hook
    writes them as tensors and numbers and turns them back on loading. Commands without the hook
    read the weights just the same; resuming there only starts the smoothed averages anew.
    """

    # After the hooks that add to a checkpoint.
    priority = "LOWEST"

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace objects by plain data.

        What describes the run, ``meta`` and ``message_hub``, becomes text where it is nothing simpler. A
        function or an object in a state, such as the annealing of OneCycleLR, is left out: a resumed run
        keeps what it built in its place.
        """
        hub = checkpoint["message_hub"]
        scalars = {key: _pack(buffer) for key, buffer in hub["log_scalars"].items()}
        checkpoint["message_hub"] = {**_plain({**hub, "log_scalars": {}}), "log_scalars": scalars}
        checkpoint["meta"] = _plain(checkpoint["meta"])
        for key in {*checkpoint} - {"meta", "message_hub", "state_dict"}:
            state = _plain_state(checkpoint.pop(key))
            if state is not None:
                checkpoint[key] = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Turn the histories of logged values back into HistoryBuffer objects."""
        scalars = checkpoint.get("message_hub", {}).get("log_scalars", {})
        for key, packed in scalars.items():
            if isinstance(packed, dict):
                scalars[key] = _unpack(packed)


@register(HOOKS)
class CompleteWeightsHook(Hook):
    """Refuses a checkpoint of another model.

    MMEngine only warns, and a test would go on to measure random weights.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare what predicts with the model, see :func:`~pixeldcl_plugin.engine.weights.load_state`.

        Raises:
            CheckpointError: Names a parameter that is missing, superfluous or of another shape.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        state = checkpoint.get("state_dict", checkpoint)
        state = {key.removeprefix("module."): value for key, value in state.items()}
        check_state(model, state, inference=True)


class ReplaceRunHook(Hook):
    """Removes the checkpoints of an earlier run once this one has proven, by an iteration, that it trains.

    Args:
        files: What is to go.
    """

    # Before the run saves anything under the same names.
    priority = "LOW"

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(files)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Remove them, the first time."""
        if self._files and is_main_process():
            runner.logger.info(f"Removing {len(self._files)} files of the earlier run in {runner.work_dir}.")
            for file in self._files:
                file.unlink(missing_ok=True)
        self._files = []


def _pack(buffer: HistoryBuffer) -> dict[str, Any]:
    values, counts = buffer.data
    return {
        "values": torch.from_numpy(np.array(values)),
        "counts": torch.from_numpy(np.array(counts)),
        "max_length": int(buffer.max_length),
    }


def _unpack(packed: dict[str, Any]) -> HistoryBuffer:
    values, counts = (packed[key].cpu().numpy() for key in ("values", "counts"))
    return HistoryBuffer(values, counts, packed["max_length"])


_SIMPLE = (type(None), bool, int, float, str, bytes, torch.Tensor)


def _plain_state(value: Any) -> Any:
    """Copy nested data as :func:`_plain` does, without the entries of mappings that are not plain.

    Returns:
        The copy; None for what is not plain itself, such as a list with an object in it.
    """
    if isinstance(value, Mapping):
        if all(isinstance(item, torch.Tensor) for item in value.values()):
            return value  # a state dict, which carries the versions of its layers
        plain = {_plain(key): _plain_state(item) for key, item in value.items()}
        kept = [key for key, item in value.items() if item is None or plain[_plain(key)] is not None]
        return {_plain(key): plain[_plain(key)] for key in kept}
    if isinstance(value, list | tuple):
        items = [_plain_state(item) for item in value]
        lost = any(new is None and old is not None for new, old in zip(items, value, strict=True))
        return None if lost else tuple(items) if isinstance(value, tuple) else items
    return _plain(value) if isinstance(value, (*_SIMPLE, np.ndarray, np.generic)) else None


def _plain(value: Any) -> Any:
    """Copy nested data with only the types that ``weights_only=True`` loads."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, _SIMPLE):
        return value
    # Paths, enums and the like describe a run; their text is all that is needed of them.
    return str(value)
