"""From a config to a runner: reading it, applying the flags, building."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..utils.cli import UsageError
from ..utils.compat import resolve_config
from ..utils.config_errors import first_import_error
from .checkpoint_hooks import FiniteLossHook, RepeatValidationHook, WholeCheckpointHook
from .console import QuietRunner, QuietTestRunner
from .distributed import GlobalBatchDDP
from .folder_data import follow_folders, hand_down, leaf_datasets
from .hardware import wrapper_type
from .hooks import PlainCheckpointHook
from .random_state import RandomStateHook
from .resume_hook import CheckedResumeHook

__all__ = [
    "add_training_hooks",
    "build_runner",
    "close_process_group",
    "import_plugin",
    "leaf_datasets",
    "load_config",
    "set_randomness",
    "set_work_dir",
]

# Keys that Runner reads from the config besides its own parameters.
_RUNNER_KEYS = {
    "activation_checkpointing",
    "channels_last",
    "compile",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config and apply command-line overrides.

    Where the data are a folder's, its classes become those of the model, see
    :func:`~pixeldcl_plugin.engine.folder_data.follow_folders`.

    Args:
        path: A file, or ``'mmseg::<path>'`` for one that MMSegmentation ships.
        options: Dotted keys and their values, as ``--cfg-options`` gives them. A variable that the datasets
            of the config repeat, such as ``data_root``, is changed there too.

    Raises:
        UsageError: If there is no such config, it cannot be read, an override does not fit, or a folder of
            data has no classes.
    """
    try:
        file = resolve_config(path)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # A config is a program: reading it can raise anything.
        told = first_import_error(error)
        reason = " ".join(str(told).split())
        raise UsageError(f"cannot read config {path!r}: {type(told).__name__}: {reason}") from error
    if not isinstance(cfg.get("model"), Mapping):
        raise UsageError(f"config {path!r} defines no model: is it a base of others?")
    for key in options or {}:
        _check_option(cfg, key)
    hand_down(cfg, options or {})
    try:
        cfg.merge_from_dict(dict(options or {}))
    except (KeyError, TypeError, IndexError) as error:
        reason = str(error).strip("\"'").partition(" [")[0]  # MMEngine shows the whole list.
        raise UsageError(f"--cfg-options do not fit config {path!r}: {reason}") from error
    for loader in (cfg.get(f"{stage}_dataloader") for stage in ("train", "val", "test")):
        if isinstance(loader, dict) and loader.get("num_workers") == 0 and "persistent_workers" in loader:
            loader["persistent_workers"] = False  # there are none to keep, and torch refuses
    follow_folders(cfg)
    return cfg


def _check_option(cfg: Config, key: str) -> None:
    top = key.partition(".")[0]
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, *_RUNNER_KEYS} - {"self"}
    if top not in known:
        close = difflib.get_close_matches(top, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"--cfg-options: the config has no key {top!r} (from {key!r}){hint}")


def set_work_dir(cfg: Config, config_path: str, work_dir: str | None) -> Path:
    """Set and return the work dir: the given one, else the config's, else by the file's name."""
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / resolve_config(config_path).stem)
    return Path(cfg.work_dir)


def set_randomness(cfg: Config, seed: int | None, deterministic: bool = False) -> None:
    """Set the seed and, if asked for, deterministic algorithms."""
    randomness = dict(cfg.get("randomness") or {})
    if seed is not None:
        randomness["seed"] = seed
    if deterministic:
        randomness["deterministic"] = True
        # cuBLAS reads this when it starts; without it torch refuses to be deterministic on a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cfg.randomness = randomness


def add_training_hooks(cfg: Config) -> None:
    """Add the hooks for safe and exact resuming and plain checkpoints to any config that lacks them."""
    hooks = list(cfg.get("custom_hooks") or [])
    for kind in (
        CheckedResumeHook,
        RandomStateHook,
        FiniteLossHook,
        PlainCheckpointHook,
        RepeatValidationHook,
    ):
        if all(hook.get("type") != kind.__name__ for hook in hooks):
            hooks.append(dict(type=kind.__name__))
    cfg.custom_hooks = hooks
    defaults = dict(cfg.get("default_hooks") or {})
    saving = defaults.setdefault("checkpoint", dict(type="CheckpointHook"))
    standard = (CheckpointHook, "CheckpointHook", "mmengine.CheckpointHook")
    if isinstance(saving, Mapping) and saving.get("type") in standard:
        defaults["checkpoint"] = {**saving, "type": WholeCheckpointHook.__name__}
    cfg.default_hooks = defaults
    # The config is saved in the work dir: other commands must find the hooks from there too.
    import_plugin(cfg)


def import_plugin(cfg: Config) -> None:
    """Have whoever reads a config import this package, which registers its types."""
    imports = dict(cfg.get("custom_imports") or {})
    modules = imports.get("imports") or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if "pixeldcl_plugin" not in modules:
        imports["imports"] = [*modules, "pixeldcl_plugin"]
        imports.setdefault("allow_failed_imports", False)
        cfg.custom_imports = imports


def build_runner(cfg: Config, *, test: bool = False) -> Runner:
    """Build the runner, joining the process group first where MMEngine cannot.

    MMEngine selects a GPU before it joins; without one it takes a group that exists already. Several
    processes train as one would, see :class:`GlobalBatchDDP`, unless the config has a model wrapper of
    another type. With ``channels_last = True`` in the config the model computes in that memory format, in
    which mixed precision is faster.

    Args:
        cfg: The config.
        test: Whether it is for a test, which leaves the config in the work dir as a training wrote it.

    Raises:
        UsageError: If the config combines that format with another model wrapper.
    """
    distributed = cfg.get("launcher", "none") != "none"
    if distributed:
        _set_model_wrapper(cfg)
    if cfg.get("launcher") == "pytorch" and not torch.cuda.is_available():
        seconds = (cfg.get("env_cfg") or {}).get("dist_cfg", {}).get("timeout") or 1800
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=seconds))
    runner_class = QuietTestRunner if test else QuietRunner
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else runner_class.from_cfg(cfg)
    if cfg.get("channels_last") and not distributed:
        # Convolutions answer in the format of their weights, so the images need not be converted.
        runner.model.to(memory_format=torch.channels_last)
    if torch.cuda.is_available() and (cfg.get("randomness") or {}).get("deterministic"):
        # The loss of segmentation has no deterministic form on a GPU: warn of it, do not fail.
        torch.use_deterministic_algorithms(True, warn_only=True)
    return runner


def _set_model_wrapper(cfg: Config) -> None:
    wrapper = dict(cfg.get("model_wrapper_cfg") or {}, type=wrapper_type(cfg))
    if wrapper["type"] == GlobalBatchDDP.__name__:
        wrapper.setdefault("find_unused_parameters", cfg.get("find_unused_parameters", False))
        wrapper["channels_last"] = bool(cfg.get("channels_last"))
    elif cfg.get("channels_last"):
        raise UsageError(
            f"channels_last = True does not go with model_wrapper_cfg type {wrapper['type']!r}: "
            f"leave the type out, or set it to {GlobalBatchDDP.__name__!r}"
        )
    cfg.model_wrapper_cfg = wrapper


def close_process_group() -> None:
    """Leave the process group of a distributed run, which NCCL wants done before the exit."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # MMEngine collects the results of an evaluation here and leaves the folder behind.
        with contextlib.suppress(OSError):
            Path(".dist_test").rmdir()
