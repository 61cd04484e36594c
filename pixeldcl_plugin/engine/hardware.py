"""A config fitted to the machine: mixed precision, batch norms and processes, with a GPU and without."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config

from ..utils.cli import UsageError
from .distributed import GlobalBatchDDP
from .optim import BFloat16OptimWrapper

__all__ = ["adapt_to_hardware", "enable_amp", "replace_sync_bn", "wrapper_type"]


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
    synchronised = launcher == "pytorch" and wrapper_type(cfg) == GlobalBatchDDP.__name__
    if replaced := replace_sync_bn(cfg.model, "SyncBN" if synchronised else "BN"):
        notes.append(f"No GPU: {replaced} SyncBN settings of the model became BN.")
    if cfg.get("sync_bn"):
        cfg.sync_bn = "torch" if synchronised else None
    return notes


def _type_name(kind: Any) -> Any:
    """Return the name of a type that a config gives as a class, a name, or a name with a scope before it."""
    name = kind.__name__ if isinstance(kind, type) else kind
    return name.rpartition(".")[2] if isinstance(name, str) else name


def wrapper_type(cfg: Config) -> Any:
    """Return the type of the model wrapper of a distributed run: MMEngine's own gives way to ours."""
    kind = (cfg.get("model_wrapper_cfg") or {}).get("type", "MMDistributedDataParallel")
    ours = ("MMDistributedDataParallel", GlobalBatchDDP.__name__)
    return GlobalBatchDDP.__name__ if _type_name(kind) in ours else kind


def replace_sync_bn(node: Any, kind: str) -> int:
    """Replace synchronised batch norms that need a GPU in a nested config, in place; return how often."""
    if isinstance(node, list | tuple):
        return sum(replace_sync_bn(item, kind) for item in node)
    if not isinstance(node, dict):
        return 0
    count = sum(replace_sync_bn(item, kind) for item in node.values())
    name = _type_name(node.get("type"))
    if name in ("SyncBN", "MMSyncBN") and name != kind:
        node["type"] = kind
        count += 1
    return count
