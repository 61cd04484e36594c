"""What single values of a config must be: numbers, sizes and names, by their dotted paths."""

from __future__ import annotations

import logging
import math
import multiprocessing
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from mmengine.config import Config

from ..utils.cli import UsageError
from ..utils.config_errors import leaves

__all__ = ["RULES", "check_values"]


def _whole(least: int) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and value == int(value) and value >= least

    return holds


def _size(value: Any) -> bool:
    positive = _whole(1)
    return positive(value) or (
        isinstance(value, list | tuple) and len(value) == 2 and all(map(positive, value))
    )


def _amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _rate(value: Any) -> bool:
    return _amount(value) and value <= _LARGEST_RATE


#: Far above what any optimizer is used with: large-batch ones take up to 30.
_LARGEST_RATE = 1000

_AT_LEAST_1 = (_whole(1), "a whole number from 1")
_AT_LEAST_0 = (_whole(0), "a whole number from 0")
_SIZE = (_size, "a positive number of pixels, or two: (height, width)")
_AMOUNT = (_amount, "a finite number from 0")
_RATE = (_rate, f"a finite number from 0 to {_LARGEST_RATE}")

#: What the value at a dotted path must be; None always stands for a default.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "train_cfg.max_iters": _AT_LEAST_1,
    "train_cfg.max_epochs": _AT_LEAST_1,
    "train_cfg.val_interval": _AT_LEAST_1,
    "train_cfg.val_begin": _AT_LEAST_0,
    "*_dataloader.batch_size": _AT_LEAST_1,
    "*_dataloader.num_workers": _AT_LEAST_0,
    "*_dataloader.dataset*.crop_size": _SIZE,
    "model.test_cfg.crop_size": _SIZE,
    "model.test_cfg.stride": _SIZE,
    "model*data_preprocessor.size": _SIZE,
    "model*_head*.num_classes": _AT_LEAST_1,
    "model*.base_channels": _AT_LEAST_1,
    "model.test_cfg.mode": (lambda value: value in ("whole", "slide"), "'whole' or 'slide'"),
    "optim_wrapper*.lr": _RATE,
    "optim_wrapper*.weight_decay": _RATE,
    "optim_wrapper.accumulative_counts": _AT_LEAST_1,
    "optim_wrapper.clip_grad.max_norm": _AMOUNT,
    "param_scheduler*.begin": _AT_LEAST_0,
    "param_scheduler*.end": _AT_LEAST_1,
    "default_hooks.*.interval": (_whole(-1), "a whole number; -1 for never"),
    "default_hooks.checkpoint.max_keep_ckpts": (_whole(-1), "a whole number; -1 for all"),
    "randomness.seed": (lambda v: _whole(0)(v) and v < 2**32, "a whole number from 0 to 2**32 - 1"),
    "model*_head*.ignore_index": (_whole(-(2**31)), "a whole number"),
    "env_cfg.mp_cfg.mp_start_method": (
        lambda value: value in multiprocessing.get_all_start_methods(),
        " or ".join(map(repr, multiprocessing.get_all_start_methods())),
    ),
    "log_level": (
        lambda value: isinstance(value, int) or value in logging.getLevelNamesMapping(),
        "a level of Python's logging, such as 'INFO'",
    ),
    "work_dir": (lambda value: isinstance(value, str) and bool(value.strip()), "a folder"),
}


def check_values(cfg: Config) -> None:
    """Check every value of a config for which there is a rule.

    Raises:
        UsageError: Names the first that breaks its rule, and what is accepted.
    """
    for path, value in leaves(dict(cfg.items())):
        for pattern, (holds, accepted) in RULES.items():
            if value is not None and fnmatchcase(path, pattern) and not holds(value):
                raise UsageError(f"config: {path}={value!r}: expected {accepted}")
