"""The model index: what is released, as records in OpenMMLab's metafiles.

``model-index.yml`` imports one ``configs/<folder>/metafile.yaml`` a folder. What OpenMMLab's format has no
key for (the full hash, the seed, the commands) stands in the ``Metadata`` of a model, where its tools allow
any key.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import yaml

from ..utils.cli import UsageError
from ..utils.compat import SHIPPED
from ..utils.files import write_text_whole

__all__ = ["WEIGHTS", "ModelIndexError", "Release", "ZooRoot", "append_release", "load_releases"]

#: The package of the released weights, which a distribution of its own installs.
WEIGHTS = "pixeldcl_plugin_weights"

INDEX, METAFILE = "model-index.yml", "metafile.yaml"
#: Environment variable: a folder with an index of its own, in place of the package's.
ROOT_VARIABLE = "PIXELDCL_ZOO"
_HEADER = "# Written by tools/publish.py.\n"
#: What of a release stands in its ``Metadata``, under which key.
_METADATA = {
    "data": "Training Data",
    "parameters": "Parameters",
    "classes": "Classes",
    "sha256": "SHA256",
    "size": "Size",
    "licence": "Licence Note",
    "command": "Training Command",
    "test_command": "Test Command",
    "seed": "Seed",
    "versions": "Versions",
}
_PAPER = {"Title": "Pixel Deconvolutional Networks", "URL": "https://arxiv.org/abs/1705.06820"}


class ModelIndexError(UsageError):
    """The model index is missing, or a record in it is incomplete or contradicts another."""


@dataclass(frozen=True)
class ZooRoot:
    """Where an index and its weights are.

    Args:
        folder: Holds ``model-index.yml`` and ``configs/``.
        checkpoints: Holds the weights that have no URL. The package's are a distribution of their own: this
            folder may be missing.
    """

    folder: Path
    checkpoints: Path

    @property
    def index(self) -> Path:
        """The file of the index."""
        return self.folder / INDEX

    @classmethod
    def at(cls, folder: str | Path) -> ZooRoot:
        """Return the root in a folder of its own, with its weights in ``checkpoints/``."""
        return cls(Path(folder), Path(folder) / "checkpoints")

    @classmethod
    def of_package(cls) -> ZooRoot:
        """Return the root that came with the package: a checkout, or ``.mim`` of an installation.

        Its weights are the checkout's own where it has them, else those that are installed.
        """
        package = Path(__file__).resolve().parents[1]
        # An editable install links .mim into the checkout: resolving leads there, as it must for writing.
        shipped = package / ".mim" / INDEX
        index = shipped.resolve() if shipped.is_file() else package.parent / INDEX
        own = index.parent / "weights" / WEIGHTS
        spec = None if own.is_dir() else importlib.util.find_spec(WEIGHTS)
        places = list(spec.submodule_search_locations or ()) if spec else []
        return cls(index.parent, Path(places[0]) if places else own)

    @classmethod
    def current(cls) -> ZooRoot:
        """Return the root that the environment variable PIXELDCL_ZOO names, else the package's."""
        folder = os.environ.get(ROOT_VARIABLE)
        return cls.at(folder) if folder else cls.of_package()

    def config_files(self) -> dict[str, Path]:
        """Return the configs of models by their names, which are the stems of the files.

        A root of its own adds to the package's configs, and its own win.
        """
        files: dict[str, Path] = {}
        for root in (ZooRoot.of_package(), self):
            for file in sorted((root.folder / "configs").rglob("*.py")):
                if "_base_" not in file.relative_to(root.folder).parts:
                    files[file.stem] = file
        return files


@dataclass(frozen=True)
class Release:
    """One released set of weights.

    Args:
        name: ``<config stem>_<date>-<first 8 hex digits of sha256>``.
        config: The config, relative to the index.
        weights: ``pixeldcl://<name>.safetensors`` for a file of the distribution of weights, else its URL.
        sha256: Of the file, 64 hex digits.
        size: Of the file, in bytes.
        parameters: Number of parameters of the model.
        classes: Number of classes, or None for a model that has none.
        task: Such as ``'Semantic Segmentation'``.
        data: What it was trained on.
        evaluated_on: What the metrics were measured on.
        metrics: Name -> value, in the units of the metric (percent for those of mmseg).
        licence: What the weights and the data may be used for.
        command: The command that trained it.
        test_command: The command that measures the metrics.
        seed: Of the training; None if unknown.
        versions: Package -> version, as installed when it was published.
    """

    name: str
    config: str
    weights: str
    sha256: str
    size: int
    parameters: int
    classes: int | None
    task: str
    data: str
    evaluated_on: str
    metrics: dict[str, float]
    licence: str
    command: str
    test_command: str
    seed: int | None
    versions: dict[str, str]

    @property
    def model(self) -> str:
        """The name of the model, which is the stem of its config."""
        return PurePosixPath(self.config).stem

    @property
    def file_name(self) -> str:
        """The name of the file of the weights."""
        return PurePosixPath(urlparse(self.weights.removeprefix(SHIPPED)).path).name

    @property
    def url(self) -> str | None:
        """The URL of the weights; None if the distribution of weights has them."""
        return self.weights if "://" in self.weights.removeprefix(SHIPPED) else None

    def to_entry(self, collection: str) -> dict[str, Any]:
        """Return the record as an entry of ``Models`` in OpenMMLab's format."""
        return {
            "Name": self.name,
            "In Collection": collection,
            "Config": self.config,
            "Metadata": {key: getattr(self, field) for field, key in _METADATA.items()},
            "Results": [{"Task": self.task, "Dataset": self.evaluated_on, "Metrics": dict(self.metrics)}],
            "Weights": self.weights,
        }

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Release:
        """Read an entry of ``Models``.

        Raises:
            ModelIndexError: Names the entry and what is missing or wrong in it.
        """
        name = entry.get("Name") if isinstance(entry, Mapping) else None
        try:
            metadata, (result,) = entry["Metadata"], entry["Results"]
            release = cls(
                name=entry["Name"],
                config=entry["Config"],
                weights=entry["Weights"],
                task=result["Task"],
                evaluated_on=result["Dataset"],
                metrics=result["Metrics"],
                **{field: metadata[key] for field, key in _METADATA.items()},
            )
            release._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelIndexError(f"model index: entry {name!r}: {reason}") from error
        return release

    def _check(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"SHA256 must be 64 hex digits, got {self.sha256!r}")
        if not re.fullmatch(re.escape(self.model) + r"_\d{8}-" + self.sha256[:8], self.name):
            raise ValueError(f"the name must be {self.model}_<date>-{self.sha256[:8]}, got {self.name!r}")
        if PurePosixPath(self.file_name).stem != self.name:
            raise ValueError(f"Weights must be a file called {self.name!r}, got {self.weights!r}")
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"Size must be a positive number of bytes, got {self.size!r}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelIndexError(f"model index: no file {str(file)!r}") from error
    except yaml.YAMLError as error:
        raise ModelIndexError(f"model index: {str(file)!r} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ModelIndexError(f"model index: {str(file)!r} must hold a mapping, got {content!r}")
    return content


def _write_yaml(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    write_text_whole(file, _HEADER + text)


def load_releases(root: ZooRoot) -> list[Release]:
    """Read every record of an index, in the order in which they were published.

    Raises:
        ModelIndexError: If a file is missing or not in the format, or two records have one name.
    """
    releases: dict[str, Release] = {}
    for metafile in _read_yaml(root.index).get("Import") or ():
        for entry in _read_yaml(root.folder / metafile).get("Models") or ():
            release = Release.from_entry(entry)
            if release.name in releases:
                raise ModelIndexError(f"model index: two entries are called {release.name!r}")
            releases[release.name] = release
    return list(releases.values())


def append_release(root: ZooRoot, release: Release) -> Path:
    """Append a record to the metafile of its config's folder and import that from the index.

    Files that do not exist are made. Comments in them are not kept.

    Returns:
        The metafile.

    Raises:
        ModelIndexError: If the index holds a record of that name, or is broken.
    """
    index = root.index
    if not index.exists():
        _write_yaml(index, {"Import": []})
    if any(other.name == release.name for other in load_releases(root)):
        raise ModelIndexError(f"model index: {release.name!r} is published already")
    relative = (PurePosixPath(release.config).parent / METAFILE).as_posix()
    metafile = root.folder / relative
    collection = PurePosixPath(release.config).parent.name
    content: dict[str, Any] = {"Collections": [{"Name": collection, "Paper": _PAPER}], "Models": []}
    if metafile.exists():
        content |= _read_yaml(metafile)
    content["Models"] = [*(content["Models"] or ()), release.to_entry(collection)]
    _write_yaml(metafile, content)
    imports = _read_yaml(index)
    if relative not in (imports.get("Import") or ()):
        _write_yaml(index, imports | {"Import": sorted([*(imports.get("Import") or ()), relative])})
    return metafile
