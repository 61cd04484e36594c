"""Checks before any work: data, weights and the work dir, each failure one clear line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from ..utils.checkpoints import CheckpointError, load_for_mmengine
from ..utils.cli import UsageError, is_main_process, notify
from ..utils.compat import PACKAGED
from ..utils.config_errors import find_key
from ..utils.files import claimed
from .builder import build_model
from .console import quiet_logger
from .folder_data import reads_folders, with_classes
from .resume_point import ResumePoint, read_resume_point, written_names
from .weights import check_state

__all__ = [
    "ResumePoint",
    "check_output_dir",
    "check_weights",
    "claimed_work_dir",
    "find_resume_point",
    "hint_to_make",
    "is_url",
    "prepare_work_dir",
    "written_files",
]

# What a command of this repository makes: a part of its path -> the command.
_MADE_BY = {
    ".cache/photo_mosaic": "python tools/dataset_converters/photo_mosaic.py --out .cache/photo_mosaic",
    ".cache/coco128": (
        "python tools/dataset_converters/coco_detection.py data/coco128/annotations/instances_coco128.json "
        "--images data/coco128/images/train2017 --out .cache/coco128"
    ),
    ".cache/tf_efficientnet_lite0.pth": "python tools/convert_timm_weights.py",
}
_NUMBERED = re.compile(r"(?:iter|epoch)_(\d+)\.pth")


def is_url(path: str) -> bool:
    """Tell whether a path is one of a remote backend."""
    return "://" in path


def hint_to_make(path: Path) -> str:
    """Say which command makes a missing file or folder, if one of this repository does."""
    posix = path.as_posix()
    command = next((made for part, made in _MADE_BY.items() if part in posix), None)
    return f"; make it with: {command}" if command else ""


# --- model ---------------------------------------------------------------------------------------


def check_weights(cfg: Config, checkpoint: str | None = None) -> None:
    """Check the local weight files that a model is built with.

    Args:
        cfg: The config.
        checkpoint: The file of all its weights: those that the config names are not read then.

    Raises:
        UsageError: Names the missing file, the key that asks for it and, for weights that this
            repository makes, the command.
        CheckpointError: If a file that the config names holds no weights.
    """
    wanted = [("checkpoint", checkpoint)]
    if checkpoint is None:
        wanted = [("load_from", cfg.get("load_from"))]
        wanted += [
            ("init_cfg.checkpoint", init.get("checkpoint"))
            for _, init in find_key(cfg.model, "init_cfg", "model")
            if isinstance(init, Mapping)
        ]
    for key, path in wanted:
        if isinstance(path, str) and not is_url(path) and not Path(path).expanduser().is_file():
            hint = hint_to_make(Path(path))
            raise UsageError(f"{key} not found: no file {path!r} (looked in {Path.cwd()}){hint}")
        if isinstance(path, str) and path.startswith(PACKAGED):
            with quiet_logger():
                CheckpointLoader.load_checkpoint(path)
        if isinstance(path, str) and not is_url(path) and key != "checkpoint":  # which its reader checks
            load_for_mmengine(path)


# --- work dir ------------------------------------------------------------------------------------


def _checkpoints(work_dir: Path) -> list[Path]:
    """Return the checkpoints to resume from in a work dir, the newest first."""
    numbered = [(found, file) for file in work_dir.glob("*.pth") if (found := _number(file)) >= 0]
    files = [file for _, file in sorted(numbered, reverse=True)]
    # The pointer matters where checkpoints have other names or another place.
    target = _pointed_at(work_dir / "last_checkpoint")
    if target is not None and target.name not in {f.name for f in files}:
        files.insert(0, target)
    return files


def _pointed_at(pointer: Path) -> Path | None:
    try:
        target = Path(pointer.read_text().strip())
        return target if target.is_file() else None
    except (OSError, ValueError):  # There is none, it is no text, or what it says cannot be a path.
        return None


def _number(file: Path) -> int:
    found = _NUMBERED.fullmatch(file.name)
    return int(found[1]) if found else -1


def find_resume_point(work_dir: Path) -> ResumePoint | None:
    """Find the newest checkpoint of a work dir that is whole.

    A run that was killed while saving leaves a truncated file; it is reported on stderr and the
    checkpoint before it is taken.

    Raises:
        UsageError: If there are checkpoints but none can be read.
    """
    files = _checkpoints(work_dir)
    for file in files:
        try:
            return read_resume_point(file)
        except CheckpointError as error:
            notify(f"warning: {error}; trying the checkpoint before it")
    if files:
        raise UsageError(
            f"--resume: none of the {len(files)} checkpoints in {work_dir} is whole (--overwrite starts anew)"
        )
    return None


@contextlib.contextmanager
def claimed_work_dir(cfg: Config) -> Iterator[None]:
    """Keep the work dir for this training in the block: two in one would write over each other's files.

    Raises:
        UsageError: If it is a file.
        OSError: If another training has it, or it cannot be written.
    """
    work_dir = Path(cfg.work_dir)
    if work_dir.exists() and not work_dir.is_dir():
        raise UsageError(f"work dir {str(work_dir)!r} is a file")
    with claimed(work_dir) if is_main_process() else contextlib.nullcontext():
        yield


def prepare_work_dir(cfg: Config, resume: str | None, overwrite: bool) -> ResumePoint | None:
    """Decide where training starts and make sure that it overwrites nothing unasked.

    Args:
        cfg: The config with its final ``work_dir``; ``resume``, ``load_from`` and the seed of the
            resumed run are set in it.
        resume: None, ``'auto'`` for the newest checkpoint in the work dir, or a path.
        overwrite: Whether an earlier run in the work dir may be replaced.

    Returns:
        What is resumed, or None when training starts from scratch.

    Raises:
        UsageError: If the request contradicts itself or what is there.
    """
    work_dir = Path(cfg.work_dir)
    if resume is None and cfg.get("resume"):
        resume = cfg.get("load_from") or "auto"
    if resume is not None and overwrite:
        raise UsageError("--resume continues a run and --overwrite deletes it: give one of them")
    point = None
    if resume == "auto":
        point = find_resume_point(work_dir)
        if point is None:
            notify(f"nothing to resume in {work_dir}: starting from scratch")
    elif resume is not None:
        if not Path(resume).is_file():
            raise UsageError(f"--resume: no checkpoint {resume!r} (looked in {Path.cwd()})")
        point = read_resume_point(Path(resume))

    continues = point is not None and point.path.parent.resolve() == work_dir.resolve()
    stale = written_files(cfg)
    if stale and not continues and not overwrite and resume != "auto":
        raise UsageError(
            f"work dir {str(work_dir)!r} holds checkpoints of an earlier run "
            f"({stale[0].name}, ...): continue it with --resume, choose another --work-dir, or "
            "replace them with --overwrite"
        )
    if point is not None:
        _check_point(point, cfg)

    cfg.resume = point is not None
    if point is not None:
        cfg.load_from = str(point.path)
        # MMEngine reads this seed too, but only after the data loaders were built with another.
        randomness = dict(cfg.get("randomness") or {})
        if point.seed is not None and randomness.get("seed") != point.seed:
            if randomness.get("seed") is not None:
                notify(f"resuming with the checkpoint's seed {point.seed}, not {randomness['seed']}")
            cfg.randomness = {**randomness, "seed": point.seed}
    return point


def _check_point(point: ResumePoint, cfg: Config) -> None:
    """Check that a resume point is one of the config's training."""
    try:
        if point.dataset_meta and reads_folders(cfg):
            with_classes(cfg, point.dataset_meta, point.path)
        check_state(build_model(cfg), point.state)
    except CheckpointError as error:
        raise CheckpointError(f"cannot resume from {str(point.path)!r}: {error}") from error
    for key, reached in (("max_iters", point.iteration), ("max_epochs", point.epoch)):
        end = (cfg.get("train_cfg") or {}).get(key)
        if isinstance(end, int) and reached > end:
            raise UsageError(
                f"--resume: {str(point.path)!r} is at {key[4:-1].replace('iter', 'iteration')} {reached}, "
                f"beyond train_cfg.{key} = {end}"
            )


def written_files(cfg: Config) -> list[Path]:
    """Return the checkpoints that runs of a config left in its work dir, by their names."""
    work_dir, names = Path(cfg.work_dir), written_names(cfg)
    files = [file for file in work_dir.glob("*.pth") if names.fullmatch(file.name) and file.is_file()]
    return sorted([*files, *work_dir.glob("last_checkpoint")])


def check_output_dir(flag: str, folder: str | None, overwrite: bool) -> None:
    """Check that a folder for results is empty or absent.

    Raises:
        UsageError: If something is in it and ``overwrite`` is False.
    """
    if folder is None or overwrite or not Path(folder).exists():
        return
    if not Path(folder).is_dir() or any(Path(folder).iterdir()):
        raise UsageError(f"{flag} {folder!r} is not an empty folder: choose another one or add --overwrite")
