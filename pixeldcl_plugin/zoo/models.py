"""The model zoo, with timm's manners: models by name, with released weights where there are any.

A model's name is the stem of its config. Several releases of one are told apart by their full names
``<config stem>_<date>-<hash>``; the stem alone means the newest.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from ..engine.builder import build_model, class_count
from ..engine.runtime import load_config
from ..engine.weights import load_state
from ..utils.checkpoints import read_state
from ..utils.cli import UsageError
from .download import fetch
from .index import Release, ZooRoot, load_releases

__all__ = [
    "ModelInfo",
    "NoWeightsError",
    "UnknownModelError",
    "create_model",
    "list_models",
    "load_weights",
    "model_info",
    "released_file",
]


class UnknownModelError(UsageError):
    """There is no model of that name."""


class NoWeightsError(UsageError):
    """No weights of a model are released."""


@dataclass(frozen=True)
class ModelInfo:
    """What the zoo knows of a name.

    Args:
        name: The model, which is the stem of its config.
        config: The file of its config.
        release: The release that the name means, or None.
        releases: Full names of all releases of the model, the newest first.
    """

    name: str
    config: Path
    release: Release | None
    releases: tuple[str, ...]


def _matches(name: str, patterns: str | Sequence[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def list_models(filter: str | Sequence[str] = "*", pretrained: bool = False) -> list[str]:
    """Return the names of models, sorted.

    Args:
        filter: Shell pattern, such as ``'*pixeldcl*'``, or several of which one must match.
        pretrained: Only those with released weights.
    """
    root = ZooRoot.current()
    released = {release.model for release in load_releases(root)} if pretrained else None
    return sorted(
        name
        for name in root.config_files()
        if _matches(name, filter) and (released is None or name in released)
    )


def model_info(name: str) -> ModelInfo:
    """Return what the zoo knows of a model.

    Args:
        name: A model, or the full name of a release.

    Raises:
        UnknownModelError: Names the models most like it.
    """
    root = ZooRoot.current()
    releases = load_releases(root)
    chosen = next((release for release in releases if release.name == name), None)
    model = chosen.model if chosen else name
    configs = root.config_files()
    if model not in configs:
        close = difflib.get_close_matches(name, [*configs, *(r.name for r in releases)], n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UnknownModelError(f"there is no model {name!r}{hint}")
    # The date stands in the name; of one day, the one that was published last.
    own = sorted(
        (release for release in reversed(releases) if release.model == model),
        key=lambda release: release.name.rpartition("_")[2].partition("-")[0],
        reverse=True,
    )
    newest = own[0] if own else None
    return ModelInfo(model, configs[model], chosen or newest, tuple(release.name for release in own))


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> BaseModel:
    """Build a model of the zoo, in evaluation mode.

    It has what ``mmseg.apis.inference_model`` asks for: its ``cfg`` and, while its classes are those of
    the config, their names and colours in ``dataset_meta``.

    Args:
        name: A model, or the full name of a release.
        pretrained: Load the released weights. Otherwise the model is initialised as its config says, but for
            weights that the config would read from files (an ImageNet encoder's).
        num_classes: Another number of classes than the config's. With released weights only the last layer is
            initialised anew; :func:`~pixeldcl_plugin.engine.weights.load_state` says which tensors that is.
        overrides: Settings of the model that override the config's, such as ``{'backbone.with_cp': True}``.
        progress: Show a progress bar for a download; None for where stderr is a terminal.

    Raises:
        UnknownModelError: If there is no such model.
        NoWeightsError: If ``pretrained`` and there are none.
        ValueError: If ``num_classes`` is not a positive integer or the model has no classes, or the overrides
            do not fit.
        CheckpointError: If the weights are missing, are not the released ones, or do not fit; each case
            has its subclass in ``zoo.download`` or ``engine.weights``.
    """
    info = model_info(name)
    cfg = load_config(str(info.config), {f"model.{key}": value for key, value in (overrides or {}).items()})
    if num_classes is not None:
        _set_classes(cfg, num_classes)
    state = read_state(released_file(info, progress=progress)) if pretrained else None
    return build_model(cfg, state, new_classes=num_classes is not None)


def released_file(info: ModelInfo, *, progress: bool | None = None) -> Path:
    """Return the verified file of a model's weights.

    Raises:
        NoWeightsError: If none are released.
        CheckpointError: As :func:`create_model`.
    """
    if info.release is None:
        raise NoWeightsError(f"no weights of {info.name!r} are released")
    return fetch(info.release, ZooRoot.current(), progress=progress)


def load_weights(model: nn.Module, source: str | Path) -> None:
    """Load weights into a model, all of them or none.

    Args:
        model: The model.
        source: A model of the zoo, the full name of a release, or a ``.safetensors`` or ``.pth`` file. A
            file is read without running code in it, but there is no hash to check.

    Raises:
        UnknownModelError: If there is neither such a file nor such a model.
        NoWeightsError: If no weights of the model are released.
        CheckpointError: As for :func:`create_model`.
    """
    if isinstance(source, Path) or source.endswith((".safetensors", ".pth")):
        file = Path(source)
    else:
        file = released_file(model_info(source))
    load_state(model, read_state(file))


def _set_classes(cfg: Config, num_classes: int) -> None:
    """Set the number of classes of every head of a config's model."""
    if type(num_classes) is not int or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    configured = class_count(cfg)
    if configured is None:
        raise ValueError(f"num_classes={num_classes!r}: the model has no classes")

    def replace(node: Any) -> None:
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, dict | list | tuple):
                replace(value)
        if isinstance(node, dict) and node.get("num_classes") == configured:
            node["num_classes"] = num_classes

    replace(cfg.model)
