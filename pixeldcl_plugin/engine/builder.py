"""A model out of a config, its weights from one place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from mmengine.config import Config
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmseg.registry import DATASETS
from torch import Tensor, nn

from ..utils.checkpoints import CheckpointError, load_checkpoint, state_of
from ..utils.cli import UsageError
from ..utils.config_errors import explain
from ..utils.safetensors_files import check_dataset_meta
from .console import quiet_logger
from .folder_data import reads_folders, with_classes
from .runtime import leaf_datasets
from .weights import load_state

__all__ = ["build_model", "class_count", "dataset_meta", "forget_pretraining", "load_model", "scope_of"]

Model = TypeVar("Model", bound=nn.Module)


def build_model(
    cfg: Config,
    state: Mapping[str, Tensor] | None = None,
    *,
    kind: type[Model] = BaseModel,
    pretraining: bool = False,
    new_classes: bool = False,
    inference: bool = False,
) -> Model:
    """Build the model of a config on the CPU, in evaluation mode.

    It has what ``mmseg.apis.inference_model`` asks for: a copy of the config as ``cfg`` and, where the
    config's data tell, the names and colours of its classes as ``dataset_meta``. Synchronised batch norms
    become plain ones. The config and the process's default scope stay as they are.

    Args:
        cfg: The config.
        state: All of its weights; None for a model that is initialised as the config says.
        kind: What the model must be.
        pretraining: Whether initialising may read weights that the config names, such as an ImageNet
            encoder's.
        new_classes: Whether the state may be for another number of classes, see
            :func:`~pixeldcl_plugin.engine.weights.load_state`; what it does not bring is initialised.
        inference: Whether the model is to predict only, see there too.

    Raises:
        UsageError: If the model is of another kind, or a type or an argument in it is unknown.
        CheckpointError: If the state is another model's.
    """
    cfg = copy.deepcopy(cfg)
    if not pretraining:
        forget_pretraining(cfg.model)
    with DefaultScope.overwrite_default_scope(scope_of(cfg)):
        try:
            model: Any = MODELS.build(cfg.model)
        except (KeyError, TypeError) as error:
            if (reason := explain(error)) is None:
                raise
            raise UsageError(f"config: {reason}") from error
        if not issubclass(type(model), kind):
            raise UsageError(f"config: the model must be of type {kind.__name__}, got {type(model).__name__}")
        if state is None or new_classes:
            with quiet_logger():  # MMEngine prints three lines for every parameter.
                model.init_weights()
    if state is not None:
        load_state(model, state, new_classes=new_classes, inference=inference)
        model.is_init = True  # A Runner that is given the model must not initialise it over these.
    model = revert_sync_batchnorm(model).eval()
    # mmseg's inference builds the pipeline when it is called, in whatever scope the process then has.
    for step in cfg.get("test_pipeline") or ():
        step.setdefault("_scope_", scope_of(cfg))
    model.cfg = cfg
    if meta := dataset_meta(cfg):
        model.dataset_meta = meta
    return cast(Model, model)


def load_model(cfg: Config, checkpoint: str | Path, kind: type[Model] = BaseModel) -> Model:
    """Build the model of a config to predict, its weights all from a checkpoint; see :func:`build_model`.

    Names and colours of the classes are the checkpoint's where the config's data do not tell them. Of a
    config whose data are a folder's, so is the number of classes.

    Raises:
        UsageError: If the model is of another kind.
        CheckpointError: If the file cannot be read safely, its weights are another model's, or its classes
            are not those of the folder.
    """
    loaded = load_checkpoint(checkpoint)
    if reads_folders(cfg) and (meta := _meta_of(loaded, checkpoint)):
        cfg = with_classes(cfg, meta, checkpoint)
    model: Any = build_model(cfg, state_of(loaded, checkpoint), kind=kind, inference=True)
    if not hasattr(model, "dataset_meta") and (meta := _meta_of(loaded, checkpoint, class_count(cfg))):
        model.dataset_meta = meta
    return cast(Model, model)


def _meta_of(loaded: Any, checkpoint: str | Path, count: int | None = None) -> dict[str, Any]:
    """Return the names and colours that a checkpoint has for so many classes; empty if it has none.

    Raises:
        CheckpointError: If it has something else in their place.
    """
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    found = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    if found is None or (isinstance(found, Mapping) and found.get("classes") is None):
        return {}
    try:
        checked = check_dataset_meta(found)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {str(checkpoint)!r}: {error}") from error
    classes = tuple(checked["classes"])
    return {**checked, "classes": classes} if count in (None, len(classes)) else {}


def forget_pretraining(node: Any) -> None:
    """Remove from a model's config, in place, the weights that its parts would be initialised with.

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


def scope_of(cfg: Config) -> str:
    """Return the scope in which a config's types are looked up."""
    return cfg.get("default_scope") or "mmseg"


def class_count(cfg: Config) -> int | None:
    """Return the number of classes of a config's model, or None if it has none."""
    head = cfg.model.get("decode_head")
    head = head[-1] if isinstance(head, list | tuple) else head  # Cascades predict with their last head.
    return head.get("num_classes") if isinstance(head, Mapping) else None


def dataset_meta(cfg: Config) -> dict[str, Any]:
    """Return names and colours of the classes of a config's test data: ``classes`` and ``palette``.

    Empty if the data do not tell, or are of another number of classes than the model.
    """
    dataset = next(leaf_datasets((cfg.get("test_dataloader") or {}).get("dataset")), {})
    kind = DATASETS.get(dataset["type"]) if isinstance(dataset.get("type"), str) else dataset.get("type")
    meta = {**getattr(kind, "METAINFO", {}), **(dataset.get("metainfo") or {})}
    return meta if "classes" in meta and len(meta["classes"]) == class_count(cfg) else {}
