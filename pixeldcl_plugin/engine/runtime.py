"""From a config to a runner: reading it, applying the flags, fitting it to the machine."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..utils.cli import UsageError
from ..utils.compat import resolve_config
from .checkpoint_hooks import FiniteLossHook, RepeatValidationHook, WholeCheckpointHook
from .console import QuietRunner
from .distributed import GlobalBatchDDP
from .hooks import CompleteWeightsHook, PlainCheckpointHook, RandomStateHook
from .optim import BFloat16OptimWrapper
from .resume_hook import CheckedResumeHook

__all__ = [
    "adapt_to_hardware",
    "add_testing_hooks",
    "add_training_hooks",
    "build_runner",
    "close_process_group",
    "enable_amp",
    "enable_drawing",
    "enable_tta",
    "leaf_datasets",
    "load_config",
    "save_predictions",
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

    Args:
        path: A file, or ``'mmseg::<path>'`` for one that MMSegmentation ships.
        options: Dotted keys and their values, as ``--cfg-options`` gives them.

    Raises:
        UsageError: If there is no such config, it cannot be read, or an override does not fit.
    """
    try:
        file = resolve_config(path)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # A config is a program: reading it can raise anything.
        told: BaseException = error
        # Where one of custom_imports fails MMEngine lists sys.path; what failed comes first in the chain.
        while isinstance(told, ImportError) and (before := told.__cause__ or told.__context__):
            told = before
        reason = " ".join(str(told).split())
        raise UsageError(f"cannot read config {path!r}: {type(told).__name__}: {reason}") from error
    if not isinstance(cfg.get("model"), Mapping):
        raise UsageError(f"config {path!r} defines no model: is it a base of others?")
    for key in options or {}:
        _check_option(cfg, key)
    try:
        cfg.merge_from_dict(dict(options or {}))
    except (KeyError, TypeError, IndexError) as error:
        reason = str(error).strip("\"'").partition(" [")[0]  # MMEngine shows the whole list.
        raise UsageError(f"--cfg-options do not fit config {path!r}: {reason}") from error
    for loader in (cfg.get(f"{stage}_dataloader") for stage in ("train", "val", "test")):
        if isinstance(loader, dict) and loader.get("num_workers") == 0 and "persistent_workers" in loader:
            loader["persistent_workers"] = False  # there are none to keep, and torch refuses
    return cfg


def _check_option(cfg: Config, key: str) -> None:
    top = key.partition(".")[0]
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, *_RUNNER_KEYS} - {"self"}
    if top not in known:
        close = difflib.get_close_matches(top, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"--cfg-options: the config has no key {top!r} (from {key!r}){hint}")


def leaf_datasets(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield each dataset config that reads files, out of RepeatDataset, ConcatDataset, etc."""
    if not isinstance(dataset, dict):
        return
    inner = dataset.get("datasets", dataset.get("dataset"))
    if inner is None:
        yield dataset
    elif isinstance(inner, list | tuple):
        for item in inner:
            yield from leaf_datasets(item)
    else:
        yield from leaf_datasets(inner)


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


def enable_amp(cfg: Config) -> None:
    """Switch training to mixed precision: float16 with loss scaling on a GPU, else bfloat16.

    A config that asks for bfloat16 keeps it on a GPU too.

    Raises:
        UsageError: If the config's optimizer wrapper is of a kind with no such counterpart.
    """
    wrapper = cfg.get("optim_wrapper")
    kind = _type_name(wrapper.get("type", "OptimWrapper")) if isinstance(wrapper, Mapping) else wrapper
    if kind not in ("OptimWrapper", "AmpOptimWrapper", BFloat16OptimWrapper.__name__):
        raise UsageError(f"--amp works with optim_wrapper type 'OptimWrapper', got {kind!r}")
    if kind == BFloat16OptimWrapper.__name__:
        return
    if torch.cuda.is_available():
        wrapper["type"] = "AmpOptimWrapper"
        wrapper.setdefault("loss_scale", "dynamic")
        return
    wrapper["type"] = BFloat16OptimWrapper.__name__
    for key in ("loss_scale", "dtype", "use_fsdp"):
        wrapper.pop(key, None)


def adapt_to_hardware(cfg: Config) -> list[str]:
    """Make a config written for GPUs run on a machine without one.

    Synchronised batch norm becomes batch norm in a single process, float16 becomes bfloat16, and
    processes talk through gloo. On a machine with a GPU nothing changes.

    Returns:
        What was changed, one sentence each, for the log.

    Raises:
        UsageError: If a distributed run is asked for in a way that cannot work here.
    """
    launcher = cfg.get("launcher", "none")
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise UsageError("--launcher pytorch needs torchrun: torchrun --nproc-per-node N tools/...")
    if torch.cuda.is_available():
        return []
    notes = []
    wrapper = cfg.get("optim_wrapper")
    if isinstance(wrapper, Mapping) and _type_name(wrapper.get("type")) == "AmpOptimWrapper":
        enable_amp(cfg)
        notes.append("No GPU: mixed precision uses bfloat16 in place of float16.")
    if launcher not in ("none", "pytorch"):
        raise UsageError(f"--launcher {launcher} needs GPUs; without, use torchrun and pytorch")
    if launcher == "pytorch":
        notes.append("No GPU: the processes communicate through gloo.")
    synchronised = launcher == "pytorch" and _wrapper_type(cfg) == GlobalBatchDDP.__name__
    if replaced := _replace_sync_bn(cfg.model, "SyncBN" if synchronised else "BN"):
        notes.append(f"No GPU: {replaced} SyncBN settings of the model became BN.")
    if cfg.get("sync_bn"):
        cfg.sync_bn = "torch" if synchronised else None
    return notes


def _type_name(kind: Any) -> Any:
    """Return the name of a type that a config gives as a class, a name, or a name with a scope before it."""
    name = kind.__name__ if isinstance(kind, type) else kind
    return name.rpartition(".")[2] if isinstance(name, str) else name


def _wrapper_type(cfg: Config) -> Any:
    """Return the type of the model wrapper of a distributed run: MMEngine's own gives way to ours."""
    kind = (cfg.get("model_wrapper_cfg") or {}).get("type", "MMDistributedDataParallel")
    ours = ("MMDistributedDataParallel", GlobalBatchDDP.__name__)
    return GlobalBatchDDP.__name__ if _type_name(kind) in ours else kind


def _replace_sync_bn(node: Any, kind: str) -> int:
    """Replace synchronised batch norms that need a GPU in a nested config, in place; return how often."""
    if isinstance(node, list | tuple):
        return sum(_replace_sync_bn(item, kind) for item in node)
    if not isinstance(node, dict):
        return 0
    count = sum(_replace_sync_bn(item, kind) for item in node.values())
    name = _type_name(node.get("type"))
    if name in ("SyncBN", "MMSyncBN") and name != kind:
        node["type"] = kind
        count += 1
    return count


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
    imports = dict(cfg.get("custom_imports") or {})
    modules = imports.get("imports") or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    if "pixeldcl_plugin" not in modules:
        imports["imports"] = [*modules, "pixeldcl_plugin"]
        imports.setdefault("allow_failed_imports", False)
        cfg.custom_imports = imports


def add_testing_hooks(cfg: Config) -> None:
    """Add the hook that refuses a checkpoint of another model."""
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), dict(type=CompleteWeightsHook.__name__)]


def build_runner(cfg: Config) -> Runner:
    """Build the runner, joining the process group first where MMEngine cannot.

    MMEngine selects a GPU before it joins; without one it takes a group that exists already. Several
    processes train as one would, see :class:`GlobalBatchDDP`, unless the config has a model wrapper of
    another type. With ``channels_last = True`` in the config the model computes in that memory format, in
    which mixed precision is faster.

    Raises:
        UsageError: If the config combines that format with another model wrapper.
    """
    distributed = cfg.get("launcher", "none") != "none"
    if distributed:
        _set_model_wrapper(cfg)
    if cfg.get("launcher") == "pytorch" and not torch.cuda.is_available():
        seconds = (cfg.get("env_cfg") or {}).get("dist_cfg", {}).get("timeout") or 1800
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=seconds))
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else QuietRunner.from_cfg(cfg)
    if cfg.get("channels_last") and not distributed:
        # Convolutions answer in the format of their weights, so the images need not be converted.
        runner.model.to(memory_format=torch.channels_last)
    if torch.cuda.is_available() and (cfg.get("randomness") or {}).get("deterministic"):
        # The loss of segmentation has no deterministic form on a GPU: warn of it, do not fail.
        torch.use_deterministic_algorithms(True, warn_only=True)
    return runner


def _set_model_wrapper(cfg: Config) -> None:
    wrapper = dict(cfg.get("model_wrapper_cfg") or {}, type=_wrapper_type(cfg))
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


# --- testing -------------------------------------------------------------------------------------


def enable_tta(cfg: Config) -> None:
    """Replace the model and the pipeline of a test by those for test-time augmentation.

    Raises:
        UsageError: If the config does not define them.
    """
    missing = [key for key in ("tta_model", "tta_pipeline") if cfg.get(key) is None]
    if missing:
        raise UsageError(f"--tta: the config defines no {' and no '.join(missing)}")
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset["pipeline"] = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def save_predictions(cfg: Config, folder: str) -> None:
    """Make a test write its predicted label maps as PNG files, and evaluate them as well.

    Raises:
        UsageError: If the config's evaluation has no metric that writes predictions.
    """
    evaluator = cfg.get("test_evaluator")
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    writers = [m for m in metrics if isinstance(m, dict) and m.get("type") == "IoUMetric"]
    if not writers:
        raise UsageError("--out: the config's test_evaluator has no IoUMetric to write predictions")
    writers[0]["output_dir"] = folder


def enable_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Make a test draw its predictions over the images, in a window or into a folder.

    Raises:
        UsageError: If the config has no hook that draws, or there is no display for a window.
    """
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None or cfg.get("visualizer") is None:
        raise UsageError("--show and --show-dir need a visualizer and default_hooks.visualization")
    if show and sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise UsageError("--show: there is no display; write the pictures with --show-dir instead")
    hook["draw"] = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir is not None:
        cfg.visualizer["save_dir"] = show_dir
