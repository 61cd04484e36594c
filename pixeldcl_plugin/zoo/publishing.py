"""From a checkpoint to a release: a small safe file, proven equal, and its record in the index."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..engine.builder import build_model, class_count
from ..engine.runtime import load_config
from ..utils.checkpoints import CheckpointError, load_checkpoint, read_state
from ..utils.cli import UsageError
from ..utils.compat import DISTRIBUTIONS, SHIPPED, installed_versions
from ..utils.files import written_whole
from .index import Release, ZooRoot, append_release, load_releases
from .packing import half_kernels, pack
from .provenance import released_state, save_date, training_command

__all__ = [
    "MAX_SHIPPED",
    "Facts",
    "outputs",
    "parse_metrics",
    "publish",
]

#: Largest file that goes into the distribution of weights, in bytes.
MAX_SHIPPED = 20_000_000
#: What a test writes beside its metrics.
_NOT_METRICS = ("data_time", "epoch", "iter", "memory", "step", "time")


@dataclass(frozen=True)
class Facts:
    """What the checkpoint does not know about itself.

    Args:
        metrics: Name -> value.
        data: What it was trained on.
        licence: What the weights and the data may be used for.
        evaluated_on: What the metrics were measured on; None for the training data's name.
        task: None for ``'Semantic Segmentation'``, which only a segmentor does.
        command: The command that trained it; None where the config and the seed say it all.
        test_command: The command that measures the metrics, ``{file}`` standing for the released file;
            None for ``tools/test.py``.
        url: Where the file will be, without its name; None for a file that the distribution of
            weights takes up.
    """

    metrics: dict[str, float]
    data: str
    licence: str
    evaluated_on: str | None = None
    task: str | None = None
    command: str | None = None
    test_command: str | None = None
    url: str | None = None


def parse_metrics(items: Sequence[str]) -> dict[str, float]:
    """Read metrics from ``KEY=VALUE`` items and from JSON files, such as a test leaves in its work dir.

    Raises:
        UsageError: If an item is neither, a value is not a finite number, or two give one metric.
    """
    metrics: dict[str, float] = {}
    for item in items:
        found: Any
        if item.endswith(".json"):
            try:
                found = json.loads(Path(item).read_text())
            except (OSError, ValueError) as error:
                raise UsageError(f"--metrics: cannot read {item!r}: {error}") from error
            if not isinstance(found, dict):
                raise UsageError(f"--metrics: {item!r} must hold an object of numbers")
            found = {key: value for key, value in found.items() if key not in _NOT_METRICS}
        else:
            key, separator, value = item.partition("=")
            if not key or not separator:
                raise UsageError(f"--metrics: expected KEY=VALUE or a .json file, got {item!r}")
            try:
                found = {key: float(value)}
            except ValueError as error:
                raise UsageError(f"--metrics: {key} must be a number, got {value!r}") from error
        for key, value in found.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number:
                raise UsageError(f"--metrics: {key} must be a finite number, got {value!r}")
            if key in metrics:
                raise UsageError(f"--metrics: {key} is given twice")
            metrics[key] = round(float(value), 4)
    if not metrics:
        raise UsageError("--metrics: no metric given")
    return metrics


def outputs(model: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    """Return every tensor that a model answers with to one random image, always the same one.

    Args:
        model: An mmengine model, called with ``mode='tensor'``. Random numbers that it draws are the same.
        size: Height and width of the image.
    """
    normaliser = getattr(model, "data_preprocessor", None)
    mean = getattr(normaliser, "mean", None)
    channels = len(mean) if isinstance(mean, Tensor) else 3
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        answer = model(torch.rand(1, channels, *size), mode="tensor")
    return [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]


def publish(
    checkpoint: str,
    config: str,
    facts: Facts,
    *,
    ema: bool | None = None,
    half: bool = False,
    base: str | None = None,
    root: ZooRoot | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[Release, Path]:
    """Write the released file of a checkpoint and append its record to the index.

    The file is compared with the checkpoint by what the config's model answers with either; only then
    it gets its name. Nothing is overwritten, and nothing is left behind by a failure.

    Args:
        checkpoint: A ``.pth`` or ``.safetensors`` file.
        config: The config's file, in ``configs/<folder>/`` of the root or the package.
        facts: What goes into the record besides.
        ema: See :func:`released_state`.
        half: Release kernels in float16, see :func:`half_kernels`: a file of half the size, whose scores are
            to be measured on the file.
        base: A release that the file completes: only the tensors that differ from it are written, and the
            file opens where that one lies beside it.
        root: Where to publish; None for the checkout.
        size: Height and width of the image to compare with; None for the config's ``crop_size``, else 64, 64.

    Returns:
        The record and the file. A file with a URL lies beside the checkpoint, to be uploaded.

    Raises:
        UsageError: If something is missing, contradictory or there already.
        CheckpointError: If the checkpoint cannot be read or is not of the config's model.
    """
    root = root or ZooRoot.of_package()
    if root.folder.name == ".mim":
        raise UsageError("publishing needs a checkout of the repository, or --out FOLDER")
    cfg = load_config(config)
    relative = _relative_config(Path(config), root)
    loaded = load_checkpoint(checkpoint)
    state = released_state(loaded, checkpoint, ema)
    state = half_kernels(state) if half else state
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    command = training_command(meta, cfg, relative, facts.command)

    reference: BaseModel = build_model(cfg, state)
    task = facts.task or ("Semantic Segmentation" if isinstance(reference, BaseSegmentor) else None)
    if task is None:
        raise UsageError(f"--task: needed for a {type(reference).__name__}, such as 'Image Generation'")
    folder = Path(checkpoint).parent if facts.url else root.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    content = pack(state, cfg, relative, _base_file(base, facts, root))
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{Path(relative).stem}_{save_date(meta)}-{sha256[:8]}"
    file = folder / f"{name}.safetensors"
    if file.exists() or _is_published(root, name):
        raise UsageError(f"{name!r} is published already: nothing is overwritten")
    if not facts.url and len(content) > MAX_SHIPPED:
        raise UsageError(
            f"{len(content) / 1e6:.1f} MB are more than the {MAX_SHIPPED / 1e6:.0f} MB that are "
            "shipped: say with --url where the file will be"
        )
    weights = f"{facts.url.rstrip('/')}/{file.name}" if facts.url else f"{SHIPPED}{file.name}"
    tested = weights if facts.url else _relative(file, root)
    release = Release(
        name=name,
        config=relative,
        weights=weights,
        sha256=sha256,
        size=len(content),
        parameters=sum(parameter.numel() for parameter in reference.parameters()),
        classes=class_count(cfg),
        task=task,
        data=facts.data,
        evaluated_on=facts.evaluated_on or facts.data,
        metrics=facts.metrics,
        licence=facts.licence,
        command=command,
        test_command=(facts.test_command or "").replace("{file}", tested)
        or shlex.join(["python", "tools/test.py", relative, tested]),
        seed=meta.get("seed"),
        # Of OpenMMLab's modules several distributions exist.
        versions={
            module: " ".join(found) if module in DISTRIBUTIONS else found[1]
            for module, found in installed_versions().items()
        },
    )
    with written_whole(file) as draft:
        draft.write_bytes(content)
        _check_equal(reference, cfg, draft, size)
    try:
        append_release(root, release)
    except BaseException:
        file.unlink()
        raise
    return release, file


def _is_published(root: ZooRoot, name: str) -> bool:
    return root.index.exists() and any(release.name == name for release in load_releases(root))


def _relative_config(config: Path, root: ZooRoot) -> str:
    for folder in (root.folder, ZooRoot.of_package().folder):
        if config.resolve().is_relative_to(folder.resolve() / "configs"):
            relative = config.resolve().relative_to(folder.resolve())
            if len(relative.parts) > 2:
                return relative.as_posix()
    raise UsageError(f"config {str(config)!r} is not in configs/<folder>/ of {str(root.folder)!r}")


def _base_file(name: str | None, facts: Facts, root: ZooRoot) -> Path | None:
    """Return the file of the release that is completed, which is found only beside the new one."""
    if name is None:
        return None
    if facts.url:
        raise UsageError("--base: a file with an address of its own is whole")
    files = [root.checkpoints / r.file_name for r in load_releases(root) if name in (r.name, r.model)]
    if not files or not files[-1].is_file():
        raise UsageError(f"--base: {name!r} is no release with a file in {str(root.checkpoints)!r}")
    return files[-1]


def _relative(file: Path, root: ZooRoot) -> str:
    file, folder = file.resolve(), root.folder.resolve()
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name


def _check_equal(reference: nn.Module, cfg: Config, file: Path, size: tuple[int, int] | None) -> None:
    model: BaseModel = build_model(cfg, read_state(file))
    height, width = size or cfg.get("crop_size") or (64, 64)
    wanted, found = (outputs(each, (height, width)) for each in (reference, model))
    if not wanted:
        raise UsageError("the model answers with no tensor to mode='tensor': nothing can be compared")
    if not all(tensor.isfinite().all() for tensor in wanted):
        raise CheckpointError("the model's answers are not finite: the training has diverged")
    if len(wanted) != len(found) or not all(map(torch.equal, wanted, found)):
        raise CheckpointError("the written file does not answer as the checkpoint does: not published")
