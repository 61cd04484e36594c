"""The model of a config."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from .console import quiet_logger

__all__ = ["build_model", "forget_pretraining"]


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a config, initialised without reading any weights, in evaluation mode."""
    cfg = copy.deepcopy(cfg)
    forget_pretraining(cfg.model)
    scope = cfg.get("default_scope") or "mmseg"
    if DefaultScope.get_current_instance() is None:
        init_default_scope(scope)  # For what is built later, such as mmseg's inference pipeline.
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
        with quiet_logger():  # MMEngine prints three lines for every parameter.
            model.init_weights()
    model.cfg = cfg
    return model.eval()


def forget_pretraining(node: Any) -> None:
    """Removes from a model's config, in place, the weights that its parts would be initialised with.

    For a model that gets all its weights from a checkpoint: building it then needs neither the files nor a
    network.
    """
    if isinstance(node, dict):
        for key in ("init_cfg", "pretrained"):
            value = node.get(key)
            inits = value if isinstance(value, list | tuple) else [value]
            if key == "init_cfg" and any(
                isinstance(i, dict) and i.get("type") == "Pretrained" for i in inits
            ):
                node[key] = None
            elif key == "pretrained" and value:
                node[key] = False if isinstance(value, bool) else None
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict | list | tuple):
            forget_pretraining(value)
