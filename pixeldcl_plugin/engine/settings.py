"""Checks of a config's settings before any file is touched: numbers, types and arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    DefaultScope,
    Registry,
)
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from torch import nn
from torch.utils.data import DataLoader

from ..utils.cli import UsageError
from ..utils.config_errors import (
    accepted_arguments,
    did_you_mean,
    find_key,
    unknown_argument,
    unknown_type,
)
from .dry_build import build_model_once, build_optimization_once
from .dry_forward import run_model_once
from .value_rules import check_values

__all__ = ["check_settings"]


def _resolve(registry: Registry, kind: Any) -> Any:
    with registry.switch_scope_and_registry(None) as found:
        return found.get(kind) if isinstance(kind, str) else kind


def _check_call(node: Any, path: str, registry: Registry, *more: str) -> None:
    """Check a part of a config that only the Runner builds: its type, and the names of its arguments.

    Args:
        node: The part.
        path: Where it stands in the config.
        registry: What builds it.
        more: Arguments that the builder takes itself.
    """
    if isinstance(node, str | int | float):
        raise UsageError(f"config: {path}={node!r}: expected a dict with 'type'")
    if not isinstance(node, Mapping):
        return
    kind = node.get("type")
    if kind is None:
        raise UsageError(f"config: {path} has no 'type'")
    call = _resolve(registry, kind)
    if call is None:
        with registry.switch_scope_and_registry(None) as found:
            raise UsageError(f"config: {path}.type={kind!r}: {unknown_type(found, kind)}")
    _check_names(node, path, call, "type", "_scope_", *more)


def _check_names(node: Any, path: str, call: Any, *more: str) -> None:
    known, open_ended = accepted_arguments(call)
    known |= set(more)
    for name, value in node.items() if isinstance(node, Mapping) else ():
        # Of what takes anything, only a name that is nearly one of its own is a mistake.
        if name not in known and (not open_ended or did_you_mean(name, known)):
            raise UsageError(f"config: {path}.{name}={value!r}: {unknown_argument(call, name)}")


def _check_keys(node: Any, path: str, known: set[str]) -> None:
    """Check a part whose keys are read one by one, so that nothing would refuse a misspelt one."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if name not in known:
            hint = did_you_mean(name, known) or f"; it takes {', '.join(sorted(known))}"
            raise UsageError(f"config: {path}.{name}={value!r}: no such key{hint}")


_LOADER_KEYS = {"dataset", "num_batch_per_epoch", "disable_subprocess_warning"}
_ENVIRONMENT = {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"}
_PARAMWISE = {
    *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult"),
    *("dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate"),
}


def _check_run(cfg: Config) -> None:
    for name, hook in (cfg.get("default_hooks") or {}).items():
        _check_call(hook, f"default_hooks.{name}", HOOKS, "priority")
    for index, hook in enumerate(cfg.get("custom_hooks") or ()):
        _check_call(hook, f"custom_hooks.{index}", HOOKS, "priority")
    _check_call(cfg.get("visualizer"), "visualizer", VISUALIZERS, "name")
    for index, backend in enumerate((cfg.get("visualizer") or {}).get("vis_backends") or ()):
        _check_call(backend, f"visualizer.vis_backends.{index}", VISBACKENDS)
    if (processor := cfg.get("log_processor")) is not None:
        _check_call({"type": "LogProcessor", **processor}, "log_processor", LOG_PROCESSORS)
    _check_keys(cfg.get("env_cfg"), "env_cfg", _ENVIRONMENT)
    _check_names(cfg.get("randomness"), "randomness", Runner.set_randomness)


def _check_split(cfg: Config, split: str) -> None:
    loader, loop = cfg.get(f"{split}_dataloader"), cfg.get(f"{split}_cfg")
    if isinstance(loader, Mapping):
        _check_names(loader, f"{split}_dataloader", DataLoader, *_LOADER_KEYS)
        for part in ("sampler", "batch_sampler"):
            _check_call(loader.get(part), f"{split}_dataloader.{part}", DATA_SAMPLERS)
    if isinstance(loop, Mapping):
        train = "EpochBasedTrainLoop" if loop.get("by_epoch") else "IterBasedTrainLoop"
        default = train if split == "train" else f"{split.title()}Loop"
        _check_call({"type": default, **loop}, f"{split}_cfg", LOOPS, "by_epoch")


def _check_evaluator(cfg: Config, split: str) -> None:
    """Check the metrics down to their names, which MMSegmentation looks at after a validation only."""
    evaluator, path = cfg.get(f"{split}_evaluator"), f"{split}_evaluator"
    if isinstance(evaluator, Mapping) and "metrics" in evaluator:
        evaluator, path = evaluator["metrics"], f"{path}.metrics"
    several = isinstance(evaluator, list | tuple)
    scores: set[str] | None = set()
    for index, metric in enumerate(evaluator if several else [evaluator]):
        if not isinstance(metric, Mapping):
            continue
        where = f"{path}.{index}" if several else path
        _check_call(metric, where, METRICS)
        found = _scores(metric, where)
        scores = None if found is None or scores is None else scores | found
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    best = checkpoint.get("save_best")
    for name in [best] if isinstance(best, str) else best or ():
        if scores and name != "auto" and name not in scores:
            raise UsageError(
                f"config: default_hooks.checkpoint.save_best={name!r}: the evaluator gives "
                f"{', '.join(sorted(scores))}{did_you_mean(name, scores)}"
            )


def _scores(metric: Mapping[str, Any], path: str) -> set[str] | None:
    """Return the names of the scores that an IoUMetric gives; None for other metrics."""
    kind: Any = _resolve(METRICS, metric["type"])
    if not (inspect.isclass(kind) and issubclass(kind, IoUMetric)):
        return None
    wanted = metric.get("iou_metrics", ["mIoU"])
    areas = [torch.ones(2)] * 4
    try:
        scores = cast(type[IoUMetric], kind).total_area_to_metrics(*areas, wanted)
    except KeyError as error:
        raise UsageError(
            f"config: {path}.iou_metrics={wanted!r}: expected some of 'mIoU', 'mDice', 'mFscore'"
        ) from error
    prefix = f"{metric['prefix']}/" if metric.get("prefix") else ""
    return {prefix + (name if name == "aAcc" else f"m{name}") for name in scores}


def _check_value_types(node: Any, path: str, registry: Registry) -> None:
    """Check for text where a constructor wants a number or a truth value, which many would take for true."""
    if isinstance(node, list | tuple):
        for index, value in enumerate(node):
            _check_value_types(value, f"{path}.{index}", registry)
    if not isinstance(node, Mapping):
        return
    call = _resolve(registry, node["type"]) if "type" in node else None
    wanted = inspect.signature(call).parameters if inspect.isclass(call) else {}
    for name, value in node.items():
        if isinstance(value, str) and name in wanted:
            kind = getattr(wanted[name].annotation, "__name__", wanted[name].annotation)
            if isinstance(wanted[name].default, bool):
                kind = "bool"
            if kind in ("bool", "int", "float"):
                expected = {"bool": "True or False", "int": "a whole number", "float": "a number"}[kind]
                raise UsageError(f"config: {path}.{name}={value!r}: expected {expected}")
        _check_value_types(value, f"{path}.{name}", registry)


def _check_optimizer(cfg: Config) -> None:
    wrapper = cfg.get("optim_wrapper")
    if not isinstance(wrapper, Mapping):
        return
    if isinstance(wrapper.get("optimizer"), Mapping):
        _check_call({"type": "OptimWrapper", **wrapper}, "optim_wrapper", OPTIM_WRAPPERS,
                    "constructor", "paramwise_cfg")  # fmt: skip
        _check_call(wrapper["optimizer"], "optim_wrapper.optimizer", OPTIMIZERS)
    clip = wrapper.get("clip_grad")
    if isinstance(clip, Mapping):
        by_value = clip.get("type") == "value"
        call = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        _check_names(clip, "optim_wrapper.clip_grad", call, "type")
    if "constructor" not in wrapper:
        _check_keys(wrapper.get("paramwise_cfg"), "optim_wrapper.paramwise_cfg", _PARAMWISE)


def check_settings(cfg: Config, split: str, *more: str, options: Mapping[str, Any] | None = None) -> None:
    """Check the settings of a run, by building once what it will build and by comparing the rest.

    Args:
        cfg: The config, fitted to the machine.
        split: ``'train'``, ``'val'`` or ``'test'``.
        more: Others, which are skipped where the config does not define them.
        options: What ``--cfg-options`` set.

    Raises:
        UsageError: Names the first value that cannot be used, and what can be.
    """
    options = options or {}
    if not isinstance(cfg.model, Mapping):
        raise UsageError(f"config: model={cfg.model!r}: expected a dict with 'type'")
    check_values(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine"):
        _check_run(cfg)
        for name in (split, *more):
            _check_split(cfg, name)
            _check_evaluator(cfg, name)
            for path, steps in find_key(cfg.get(f"{name}_dataloader"), "pipeline", f"{name}_dataloader"):
                _check_value_types(steps, path, TRANSFORMS)
        _check_value_types(cfg.model, "model", MODELS)
        model = build_model_once(cfg, options)
        run_model_once(cfg, model, options, training=split == "train")
        if split == "train" and "runner_type" not in cfg:
            _check_optimizer(cfg)
            build_optimization_once(cfg, model, options)
