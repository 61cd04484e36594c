"""COCO's masks on disk: a palette PNG an image, a split list, and a marker that says whose they are.

Below the folder lie ``{split}/*.png``, ``{split}.txt`` and the marker ``coco_detection.{split}.json``
with the digest of the annotation file. Several splits may share a folder.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...utils.files import write_text_whole, written_whole
from ...utils.label_maps import save_index_png
from .coco_annotations import PALETTE, ImageRecord, read_annotations
from .coco_masks import paint
from .marker import Marker

MARKER = "coco_detection.{split}.json"

# Raise it whenever the same annotations give other pixels.
_VERSION = 1
# Images a worker is handed at a time.
_CHUNK = 16

Progress = Callable[[str, int, int], None]


def convert(
    annotations: Path,
    images: Path,
    out: Path,
    split: str,
    workers: int = 1,
    on_progress: Progress = lambda stage, done, total: None,
) -> tuple[int, int]:
    """Write the masks of an annotation file, or complete those of an interrupted run; then verify them.

    Masks that are already there are kept if they can be read to the end and agree with the
    annotations; all others are painted. Nothing is written before the annotation file has been read
    and all its images have been found.

    Args:
        annotations: COCO's ``instances_*.json``.
        images: Folder of its images; only their sizes are read.
        out: Folder to write; new, empty, or with splits written by this function.
        split: Name of the split.
        workers: Number of processes, at least 1.
        on_progress: Called with ("paint" or "verify", images done, images in all).

    Returns:
        Number of masks in the split, and how many of them this run painted.

    Raises:
        ValueError: If an argument is out of range, the annotation file is bad, an image has another
            size than it says, or the masks on disk do not agree with it in the end.
        FileNotFoundError: If images are missing; all of them are named.
        FileExistsError: If the folder holds anything else; nothing in it is changed.
        NotADirectoryError: If `out` is a file.
        RuntimeError: If a worker was killed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise ValueError(f"split must be letters, digits, '_', '-' and '.', got {split!r}")
    digest, records = read_annotations(annotations)
    missing = [record.file_name for record in records if not (images / record.file_name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(records)} images are not in {images}: {', '.join(missing)}"
        )
    masks, listing = out / split, out / f"{split}.txt"
    marker = Marker(
        out / MARKER.format(split=split),
        f"the split {split} of another annotation file or version of this tool,",
        {"version": _VERSION, "annotations_sha256": digest},
    )
    marker.claim(siblings=MARKER.format(split="*"), names=(masks.name, listing.name))
    for folder in {(masks / record.name).parent for record in records}:
        folder.mkdir(parents=True, exist_ok=True)

    painted = 0
    total = len(records)
    with _mapper(min(workers, total)) as run:
        for done, written in enumerate(run(partial(_complete, images, masks), records), start=1):
            painted += written
            on_progress("paint", done, total)
        write_text_whole(listing, "".join(f"{record.name}\n" for record in records))
        for done, problem in enumerate(run(partial(_problem, masks), records), start=1):
            if problem:
                raise ValueError(f"verification failed: {problem}")
            on_progress("verify", done, total)
    found = sum(1 for _ in masks.rglob("*.png"))
    if found != total:
        raise ValueError(f"verification failed: {masks} holds {found} masks, {annotations} {total} images")
    marker.save(complete=True)
    return total, painted


def mask_file(masks: Path, record: ImageRecord) -> Path:
    """Give the file of an image's mask below the folder of the split."""
    return masks / f"{record.name}.png"


def _complete(images: Path, masks: Path, record: ImageRecord) -> bool:
    """Paint a mask unless a good one is there; give whether it was painted."""
    if not _problem(masks, record):
        return False
    with Image.open(images / record.file_name) as image:
        if image.size != (record.width, record.height):
            raise ValueError(
                f"{images / record.file_name} is {image.width}x{image.height} pixels,"
                f" the annotation file says {record.width}x{record.height}"
            )
    with written_whole(mask_file(masks, record)) as part:
        save_index_png(paint(record), PALETTE, part)
    return True


def _problem(masks: Path, record: ImageRecord) -> str | None:
    """Say what is wrong with a mask on disk: it must be whole, of the image's size and of its classes."""
    file = mask_file(masks, record)
    try:
        with Image.open(file) as mask:
            mode, labels = mask.mode, np.asarray(mask)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports broken PNGs with all three
        return f"{file} cannot be read: {error}"
    if mode != "P" or labels.shape != (record.height, record.width):
        return f"{file} is no palette PNG of {record.width}x{record.height} pixels"
    foreign = set(np.unique(labels).tolist()) - record.labels
    if foreign:
        return f"{file} has the labels {sorted(foreign)}, which are not annotated in its image"
    return None


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a lazy, ordered map over worker processes, or the built-in one for a single worker."""
    if workers == 1:
        yield map
        return
    # Forked from a clean server, not from here: this process may already run threads.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        yield partial(pool.map, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process was killed, perhaps for want of memory; what is written is kept:"
            " run the same command again, perhaps with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Let a worker end with the process that started it, also when that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
