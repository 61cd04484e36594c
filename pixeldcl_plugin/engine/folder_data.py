"""What a folder of images and masks decides in a config: number, names and colours of the classes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.registry import DATASETS

from ..datasets.folder import FolderSegDataset, folder_classes
from ..datasets.folder_pairs import find_pairs
from ..utils.checkpoints import CheckpointError
from ..utils.cli import UsageError
from ..utils.config_errors import find_key

__all__ = [
    "describe_folders",
    "follow_folders",
    "hand_down",
    "leaf_datasets",
    "reads_folders",
    "set_classes",
    "with_classes",
]

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


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


def _folders(cfg: Config) -> Iterator[dict[str, Any]]:
    """Yield the configs of the datasets that take their classes out of a folder."""
    for name in _LOADERS:
        for leaf in leaf_datasets((cfg.get(name) or {}).get("dataset")):
            kind = leaf.get("type")
            kind = DATASETS.get(kind) if isinstance(kind, str) else kind
            if inspect.isclass(kind) and issubclass(kind, FolderSegDataset):
                yield leaf


def hand_down(cfg: Config, options: Mapping[str, Any]) -> None:
    """Set variables of a config in its datasets too, in place, which had copied them when it was read.

    What a config says of the classes in a folder goes where another folder takes its place.

    Args:
        cfg: The config, before the options are merged into it.
        options: Keys and their new values.
    """
    for name in _LOADERS:
        for leaf in leaf_datasets((cfg.get(name) or {}).get("dataset")):
            for key in options:
                if key in cfg and key in leaf and str(leaf[key]) == str(cfg[key]):
                    leaf[key] = str(options[key]) if key == "data_root" else options[key]
    if "data_root" in options:
        for leaf in _folders(cfg):
            leaf.pop("metainfo", None)


def reads_folders(cfg: Config) -> bool:
    """Tell whether any of a config's data are a folder's."""
    return any(True for _ in _folders(cfg))


def follow_folders(cfg: Config, *, require: bool = False) -> None:
    """Have a config whose data are a folder's follow from it, in place, unless it names the classes.

    Args:
        cfg: The config.
        require: Whether the folder must be there. Without it a config that names none is left as it is, for
            its model may come with the classes.

    Raises:
        UsageError: If the folder's classes cannot be read, or do not fit the config.
    """
    for leaf in _folders(cfg):
        if "metainfo" not in leaf and (require or leaf.get("data_root") is not None):
            set_classes(cfg, folder_classes(leaf.get("data_root")).metainfo)
            return  # That the other folders have the same classes they check themselves.


def set_classes(cfg: Config, metainfo: Mapping[str, Any]) -> None:
    """Give the heads of a config's model, and its data out of folders, these classes, in place.

    Args:
        cfg: The config.
        metainfo: Their names, ``classes``, and their colours, ``palette``.

    Raises:
        UsageError: If a loss weighs another number of classes.
    """
    count = len(metainfo["classes"])
    for head in ("decode_head", "auxiliary_head"):
        for path, weights in find_key(cfg.model.get(head), "class_weight", f"model.{head}"):
            # Heads that predict masks weigh 'no object' besides.
            if isinstance(weights, list | tuple) and len(weights) not in (count, count + 1):
                raise UsageError(
                    f"config: {path} weighs {len(weights)} classes; the data have {count}: "
                    f"{', '.join(metainfo['classes'])}"
                )
        _set_counts(cfg.model.get(head), count)
    for leaf in _folders(cfg):
        leaf["metainfo"] = {key: metainfo[key] for key in ("classes", "palette")}


def with_classes(cfg: Config, metainfo: Mapping[str, Any], checkpoint: str | Path) -> Config:
    """Return a config whose data are a folder's with the classes of a checkpoint, if it names none.

    Raises:
        CheckpointError: If it names others.
    """
    known = [leaf["metainfo"]["classes"] for leaf in _folders(cfg) if "metainfo" in leaf]
    if not known:
        cfg = copy.deepcopy(cfg)
        set_classes(cfg, metainfo)
    elif list(known[0]) != list(metainfo["classes"]):
        raise CheckpointError(
            f"checkpoint {str(checkpoint)!r} is of the classes {', '.join(metainfo['classes'])}; the data "
            f"have {', '.join(known[0])}"
        )
    return cfg


def _set_counts(node: Any, count: int) -> None:
    if isinstance(node, dict) and "num_classes" in node:
        node["num_classes"] = count
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        _set_counts(value, count)


def describe_folders(cfg: Config) -> list[str]:
    """Say of each folder of a config's data what was found in it."""
    facts = {}
    for leaf in _folders(cfg):
        root = Path(leaf["data_root"])
        settings = {key: leaf[key] for key in ("val_fraction", "split_seed") if key in leaf}
        found = find_pairs(root, **settings)
        sizes = ", ".join(f"{len(pairs)} {split}" for split, pairs in found.splits.items())
        classes = ", ".join(leaf["metainfo"]["classes"])
        facts[root] = f"Data of {root.as_posix()!r}: {sizes}, split {found.rule}; classes: {classes}"
    return list(facts.values())
