"""Checks of the data before any work: that it is there, fits the model, and that every pair can be read."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS

from ..datasets.pairs import Pair, PairReader
from ..utils.cli import UsageError, is_main_process
from ..utils.config_errors import find_key
from .dry_build import building
from .folder_data import follow_folders
from .pair_check import SHOWN, check_pairs, listed_pairs
from .preflight import hint_to_make, is_url
from .runtime import leaf_datasets

__all__ = ["check_data"]


def check_data(cfg: Config, split: str, *more: str, read: bool = False) -> None:
    """Check the data that the dataloaders of some splits need.

    The files that the config names must be there, and with ``read`` the datasets are built, their number of
    classes is compared with the model's, and every pair of image and label map is read. Pairs that were found
    good before, with the same files and settings, are not read again. Data behind a remote backend are left
    to it.

    Args:
        cfg: The config.
        split: ``'train'``, ``'val'`` or ``'test'``; the config must define it.
        more: Others, which are skipped where the config does not define them.
        read: Whether to read all pairs, which the main process does for all.

    Raises:
        UsageError: Names the path that is missing, where it was looked for and, for data that this repository
            makes, the command; or the pairs that cannot be used, each with its reason.
    """
    if cfg.get(f"{split}_dataloader") is None or cfg.get(f"{split}_cfg") is None:
        raise UsageError(f"the config defines no {split}_dataloader or no {split}_cfg")
    follow_folders(cfg, require=True)
    splits = {name: cfg[f"{name}_dataloader"] for name in (split, *more)
              if isinstance(cfg.get(f"{name}_dataloader"), Mapping)}  # fmt: skip
    for name, loader in splits.items():
        for dataset in leaf_datasets(loader.get("dataset")):
            _check_paths(dataset, name)
    if not read:
        return
    readers: dict[str, list[tuple[PairReader, list[Pair]]]] = {}
    strays: set[Path] = set()
    for name, loader in splits.items():
        if any(_is_remote(leaf) for leaf in leaf_datasets(loader.get("dataset"))):
            continue
        path = f"{name}_dataloader.dataset"
        scope = cfg.get("default_scope") or "mmengine"
        with DefaultScope.overwrite_default_scope(scope), building(path, loader["dataset"]):
            dataset = DATASETS.build(loader["dataset"])
            if hasattr(dataset, "full_init"):
                dataset.full_init()
        if not len(dataset):
            raise UsageError(f"{name} data: {type(dataset).__name__} finds no image")
        leaves = list(_leaves(dataset))
        for leaf in leaves:
            _check_classes(cfg, leaf, name)
            strays.update(getattr(leaf, "strays", ()))
        readers[name] = [found for leaf in leaves if (found := listed_pairs(cfg, leaf))]
    if is_main_process():
        check_pairs(readers, strays)


# --- paths ---------------------------------------------------------------------------------------


def _is_remote(dataset: Mapping[str, Any]) -> bool:
    prefixes = [p for p in (dataset.get("data_prefix") or {}).values() if isinstance(p, str)]
    backend = (dataset.get("backend_args") or {}).get("backend", "local")
    return backend != "local" or any(map(is_url, (dataset.get("data_root") or "", *prefixes)))


def _check_paths(dataset: Mapping[str, Any], split: str) -> None:
    root = dataset.get("data_root") or ""
    if _is_remote(dataset):
        return
    if root:
        _require(Path(root), "data_root", dataset, split)
    ann_file = dataset.get("ann_file") or ""
    if isinstance(ann_file, str) and ann_file:
        _require(Path(root, ann_file), "ann_file", dataset, split)
        if ann_file.endswith(".txt") or Path(root, ann_file).is_dir():
            _check_list(Path(root, ann_file), split)
    for key, prefix in (dataset.get("data_prefix") or {}).items():
        if isinstance(prefix, str) and prefix:
            folder = Path(root, prefix)
            _require(folder, f"data_prefix.{key}", dataset, split)
            if not ann_file and key == "img_path":
                _require_image(dataset, folder, split)


def _require(path: Path, key: str, dataset: Mapping[str, Any], split: str) -> None:
    if path.exists():
        return
    what = "leads nowhere: a symbolic link" if path.is_symlink() else "not found: no"
    raise UsageError(
        f"{split} data of {dataset.get('type')} {what} {path.as_posix()!r} "
        f"({key}; looked in {Path.cwd()}){hint_to_make(path)}"
    )


def _check_list(file: Path, split: str) -> None:
    """Check a list of images, one name a line."""
    name = f"{split} data: {file.as_posix()!r}"
    if file.is_dir():
        raise UsageError(f"{name} is a folder; expected a list of images, one name a line")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is no text file; expected a list of images, one name a line") from error
    lines = text.splitlines()
    if not text.strip():
        raise UsageError(f"{name} lists no image")
    if "\0" in text:
        raise UsageError(f"{name} is no text file; expected a list of images, one name a line")
    if blank := [str(number) for number, line in enumerate(lines, 1) if not line.strip()]:
        raise UsageError(f"{name}: blank lines, which name no image: {', '.join(blank[:SHOWN])}")


def _require_image(dataset: Mapping[str, Any], folder: Path, split: str) -> None:
    """Check a folder without a list for a first image, and for ways that lead round in it."""
    if link := next(_links_back(folder), None):
        raise UsageError(f"{split} data: the symbolic link {link.as_posix()!r} leads back to its folder")
    suffix = dataset.get("img_suffix") or _default(dataset.get("type"), "img_suffix")
    files = (name for _, _, names in os.walk(folder, followlinks=True) for name in names)
    if isinstance(suffix, str) and not any(name.endswith(suffix) for name in files):
        raise UsageError(f"{split} data: no image *{suffix} in {folder.as_posix()!r}")


def _default(kind: Any, parameter: str) -> Any:
    """Return the default of a dataset class's parameter, or None if there is none."""
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    for base in inspect.getmro(cls) if inspect.isclass(cls) else ():
        found = inspect.signature(base).parameters.get(parameter) if base is not object else None
        if found is not None and found.default is not inspect.Parameter.empty:
            return found.default
    return None


def _links_back(folder: Path) -> Iterator[Path]:
    """Yield the symbolic links below a folder that lead back to a folder which holds them."""
    for parent, folders, _ in os.walk(folder.absolute(), followlinks=True):
        for name in list(folders):
            link = Path(parent, name)
            if link.is_symlink() and link.resolve() in {above.resolve() for above in link.parents}:
                folders.remove(name)
                yield link


# --- classes -------------------------------------------------------------------------------------


def _leaves(dataset: Any) -> Iterator[Any]:
    """Yield the datasets that read files, out of those that wrap them."""
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if inner == [None]:
        yield dataset
        return
    for item in inner:
        yield from _leaves(item)


def _check_classes(cfg: Config, dataset: Any, split: str) -> None:
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if classes is None:
        return
    for name in ("decode_head", "auxiliary_head"):
        for path, count in find_key(cfg.model.get(name), "num_classes", f"model.{name}"):
            if count != len(classes):
                raise UsageError(
                    f"config: {path}={count}: the {split} data of {type(dataset).__name__} have "
                    f"{len(classes)} classes"
                )
