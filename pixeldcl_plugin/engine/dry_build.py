"""Building parts of a config once before the run, so that what fails does so before any file is touched."""

from __future__ import annotations

import contextlib
import copy
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from ..utils.checkpoints import CheckpointError
from ..utils.cli import UsageError
from ..utils.config_errors import explain, find_class, find_key, leaves, unknown_argument
from .builder import forget_pretraining
from .console import quiet_logger

__all__ = ["build_model_once", "build_optimization_once", "building", "given_below", "silently"]


@contextlib.contextmanager
def silently() -> Iterator[None]:
    """Hide warnings and notes in the block: the Runner does the same again, and says it then."""
    with warnings.catch_warnings(), quiet_logger():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def building(path: str, node: Any, options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn the failure of building a part of a config into one line that names the value.

    Args:
        path: Where the part stands in the config.
        node: The part.
        options: What ``--cfg-options`` set, named where the failure itself says nothing of a key.

    Raises:
        UsageError: For every error but failed reads and downloads.
    """
    try:
        with silently():
            yield
    except FileNotFoundError as error:
        if type(error) is not FileNotFoundError:  # A failed download of the hub's.
            raise
        raise UsageError(f"{path}: {error}") from error
    except (UsageError, CheckpointError, OSError):
        raise
    except Exception as error:
        raise UsageError(f"config: {_reason(error, path, node, options or {})}") from error


def given_below(path: str, options: Mapping[str, Any]) -> list[str]:
    """Return what ``--cfg-options`` set at or below a path, as text."""
    return [f"{key}={value!r}" for key, value in options.items() if f"{key}.".startswith(f"{path}.")]


def _reason(error: Exception, path: str, node: Any, options: Mapping[str, Any]) -> str:
    message = " ".join(str(error.args[0] if error.args else "").split())
    # Also where a constructor hands its own arguments on to a base.
    if argument := re.search(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'", message):
        call = find_class(error, argument[1])
        for where, value in find_key(node, argument[2], path):
            # The constructor may be that of a base: the user wrote the type beside the argument.
            kind = dict(leaves(node, path)).get(f"{where.rpartition('.')[0]}.type")
            reason = unknown_argument(call, argument[2], kind) if call is not None else message
            return f"{where}={value!r}: {reason}"
        return f"{path}: {unknown_argument(call, argument[2]) if call is not None else message}"
    explained = explain(error)
    if kind := re.search(r"is registered as '([^']+)'", explained or ""):
        where = next((p for p, v in leaves(node, path) if v == kind[1] and p.endswith("type")), path)
        return f"{where}={kind[1]!r}: {explained}"
    if explained is None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        explained = f"{type(error).__name__}: {message or frame.line} ({place})"
    given = given_below(path, options)
    return f"cannot build {path}{' with ' + ', '.join(given) if given else ''}: {explained}"


def build_model_once(cfg: Config, options: Mapping[str, Any]) -> nn.Module:
    """Build the model of a config, which needs no weight files.

    Args:
        cfg: The config.
        options: What ``--cfg-options`` set.

    Raises:
        UsageError: Names what cannot be built.
    """
    model_cfg = copy.deepcopy(cfg.model)
    forget_pretraining(model_cfg)
    with building("model", model_cfg, options):
        return MODELS.build(model_cfg)


class _Optimization(Runner):
    """The part of a Runner that builds optimizers and schedulers, without its folder, log and data."""

    def __init__(self, cfg: Config, model: nn.Module) -> None:
        self.model = model
        self.optim_wrapper: OptimWrapper = self.build_optim_wrapper(copy.deepcopy(cfg.optim_wrapper))
        self._train_loop: Any = None

    @property
    def train_dataloader(self) -> Any:
        """Return something as long as an epoch, for schedulers that convert epochs into iterations."""
        return range(1000)


def _check_custom_keys(cfg: Config, model: nn.Module, options: Mapping[str, Any]) -> None:
    # Those of ``--cfg-options`` alone: stock configs name parameters that some of their models lack.
    keys = (cfg.optim_wrapper.get("paramwise_cfg") or {}).get("custom_keys") or ()
    for key in keys:
        given = given_below(f"optim_wrapper.paramwise_cfg.custom_keys.{key}", options)
        if given and not any(key in name for name, _ in model.named_parameters()):
            raise UsageError(f"config: {given[0]}: no parameter of the model has {key!r} in its name")


def build_optimization_once(cfg: Config, model: nn.Module, options: Mapping[str, Any]) -> None:
    """Build the optimizer wrapper and the schedulers of a config for a model, and drop them.

    Args:
        cfg: The config.
        model: Its model.
        options: What ``--cfg-options`` set.

    Raises:
        UsageError: Names what cannot be built.
    """
    with building("optim_wrapper", cfg.optim_wrapper, options):
        runner = _Optimization(cfg, model)
    _check_custom_keys(cfg, model, options)
    schedulers = cfg.get("param_scheduler")
    if schedulers:
        schedulers = copy.deepcopy(schedulers)
        train = cfg.get("train_cfg") or {}
        for scheduler in schedulers if isinstance(schedulers, list | tuple) else [schedulers]:
            end = train.get("max_epochs") if scheduler.get("by_epoch", True) else train.get("max_iters")
            if end is not None:
                scheduler.setdefault("end", end)
        with building("param_scheduler", schedulers, options):
            runner.build_param_scheduler(schedulers)
