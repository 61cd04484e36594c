"""Segmenting many files: which ones, where their results go, and carrying on past a broken one."""

from __future__ import annotations

import errno
import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.cli import UsageError
from ..utils.files import file_sha256, write_text_whole, written_whole
from ..utils.label_maps import save_index_png
from ..visualization.pictures import image_size, overlay, read_image
from .segmenter import Maps, Prediction, Segmenter

__all__ = ["RECORD", "SUFFIXES", "Job", "check_output", "find_images", "plan", "segment", "write_record"]

#: What is taken from a folder; a glob or a file may name any other format that PIL reads.
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

#: The file in the output folder that says which model the results are of.
RECORD = "infer.json"

# What keeps the disk from taking any file, unlike an error of one name.
_OF_ALL_FILES = (errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EROFS)

# Probabilities are held whole, unlike everything else.
_MOST_PROBABILITIES = 2**31


@dataclass(frozen=True)
class Job:
    """One image and the files that are made of it."""

    image: Path
    overlay: Path
    labels: Path
    probabilities: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All files of the job."""
        files = (self.overlay, self.labels, self.probabilities)
        return tuple(file for file in files if file is not None)

    @property
    def done(self) -> bool:
        """Whether all files are there; each appears only when it is whole."""
        return all(map(_exists, self.outputs))


def _exists(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long, which the writing will report
        return False


def find_images(source: str, out: Path) -> tuple[Path, list[Path]]:
    """Find the images that a command names.

    Args:
        source: A file, a folder (searched with its subfolders for :data:`SUFFIXES`), or a glob, in which
            ``**`` matches any depth.
        out: The output folder; what lies in it is left out.

    Returns:
        The folder to which the names of the results are relative, and the images, sorted.

    Raises:
        UsageError: If nothing is found, or the results would go among the images.
    """
    path = Path(source)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        if path.resolve() == out.resolve():
            raise UsageError(f"--out {str(out)!r} is the folder of the images: choose another one")
        root = path
        found = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
    else:
        # Path.glob takes no absolute pattern.
        found = [Path(match) for match in glob.glob(source, recursive=True)]  # noqa: PTH207
        root = Path(os.path.commonpath([str(file.parent) for file in found] or ["."]))
    inside = out.resolve()
    images = sorted(f for f in found if f.is_file() and not f.resolve().is_relative_to(inside))
    if not images:
        hint = f" besides those in --out {str(out)!r}" if found else f" (looked in {Path.cwd()})"
        raise UsageError(f"no image found for {source!r}{hint}")
    return root, images


def plan(root: Path, images: Sequence[Path], out: Path, probabilities: bool) -> list[Job]:
    """Name the results of every image, no two alike.

    ``root/a/b.jpg`` becomes ``out/a/b_overlay.png`` and so on. Images of one folder that differ only in
    their suffix keep it: ``b_jpg_overlay.png`` and ``b_png_overlay.png``.

    Raises:
        UsageError: If two images would have the same results all the same, or a result would replace
            one of the images.
    """
    stems = Counter(image.with_suffix("") for image in images)
    jobs = []
    for image in images:
        name = image.stem if stems[image.with_suffix("")] == 1 else f"{image.stem}_{image.suffix[1:]}"
        folder = out / image.relative_to(root).parent
        npz = folder / f"{name}_probabilities.npz" if probabilities else None
        jobs.append(Job(image, folder / f"{name}_overlay.png", folder / f"{name}_labels.png", npz))
    owners: dict[Path, Path] = {}
    taken = {image.resolve() for image in images}
    for job in jobs:
        for file in job.outputs:
            if file in owners or file.resolve() in taken:
                other = owners.get(file, file)
                raise UsageError(
                    f"{str(job.image)!r} and {str(other)!r} would both be {str(file)!r}: rename one"
                )
            owners[file] = job.image
    return jobs


def check_output(
    jobs: Sequence[Job], out: Path, checkpoint: Path, *, force: bool, resume: bool
) -> tuple[list[Job], str]:
    """Decide what is left to do, before any work.

    Args:
        jobs: All jobs.
        out: The output folder.
        checkpoint: The weights that are to be used.
        force: Whether results may be replaced.
        resume: Whether jobs with all their results are left out.

    Returns:
        The jobs to do, and the SHA-256 of the checkpoint.

    Raises:
        UsageError: If results are there and neither ``force`` nor ``resume`` is set, the folder holds
            results of other weights, or it cannot be made.
    """
    digest = file_sha256(checkpoint)
    existing = [file for job in jobs for file in job.outputs if _exists(file)]
    if existing and not (force or resume):
        raise UsageError(
            f"{len(existing)} results exist already, such as {str(existing[0])!r}: go on after them with "
            "--resume, replace them with --overwrite, or choose another --out"
        )
    record = out / RECORD
    if record.is_file() and not force:
        try:
            recorded = json.loads(record.read_text())["sha256"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(
                f"{str(record)!r} is not a record of this command: choose another --out"
            ) from error
        if recorded != digest:
            raise UsageError(
                f"--out {str(out)!r} holds results of another checkpoint (see {RECORD} there): choose "
                "another folder or replace them with --overwrite"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {str(out)!r} cannot be made: {error}") from error
    return [job for job in jobs if not (resume and job.done)], digest


def write_record(out: Path, config: str, checkpoint: str, digest: str, segmenter: Segmenter) -> None:
    """Write :data:`RECORD`: config, checkpoint and its SHA-256, classes and palette."""
    record = dict(
        config=config,
        checkpoint=checkpoint,
        sha256=digest,
        classes=list(segmenter.classes),
        palette=segmenter.palette.tolist(),
    )
    write_text_whole(out / RECORD, json.dumps(record, indent=1) + "\n")


def segment(
    segmenter: Segmenter,
    jobs: Sequence[Job],
    batch_size: int = 1,
    report: Callable[[Job, str | None], None] = lambda job, error: None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Do the jobs; a broken image does not stop the others, nor one whose results cannot be written.

    Args:
        segmenter: The model.
        jobs: What to do.
        batch_size: So many consecutive images are read together; those of one size are one batch.
        report: Called after every job, with the reason if it failed.
        on_block: As in :meth:`Segmenter.predict`.

    Returns:
        How many jobs failed.

    Raises:
        OSError: If the disk is full or cannot be written at all.
    """
    failed = 0
    for chunk in _chunks(jobs, batch_size):
        images: list[tuple[Job, np.ndarray]] = []
        for job in chunk:
            try:
                if job.probabilities is not None:
                    _check_probabilities(job.image, len(segmenter.classes))
                images.append((job, read_image(job.image)))
            except ValueError as error:
                failed += 1
                report(job, str(error))
        maps: Maps | None = "bytes" if any(job.probabilities for job in chunk) else None
        predictions = segmenter.predict([image for _, image in images], maps=maps, on_block=on_block)
        for (job, image), prediction in zip(images, predictions, strict=True):
            try:
                _write(job, image, prediction, segmenter)
            except OSError as error:
                if error.errno in _OF_ALL_FILES:
                    raise
                failed += 1
                report(job, f"{str(job.image)!r}: cannot write {error.filename!r}: {error.strerror}")
            else:
                report(job, None)
    return failed


def _chunks(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _check_probabilities(image: Path, classes: int) -> None:
    width, height = image_size(image)
    if width * height * classes > _MOST_PROBABILITIES:
        raise ValueError(
            f"{str(image)!r}: the probabilities of {classes} classes at {width}x{height} exceed 2 GiB; "
            "leave out --probabilities"
        )


def _write(job: Job, image: np.ndarray, prediction: Prediction, segmenter: Segmenter) -> None:
    job.overlay.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(job.overlay) as part:
        Image.fromarray(overlay(image, prediction.labels, segmenter.palette)).save(part)
    with written_whole(job.labels) as part:
        save_index_png(prediction.labels, segmenter.palette, part)
    if job.probabilities is not None and prediction.maps is not None:
        with written_whole(job.probabilities) as part:
            np.savez_compressed(part, probabilities=prediction.maps, classes=np.array(segmenter.classes))
