"""Every pair of image and label map is read once: those that were found good before are not read again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import LoadAnnotations

from ..datasets.masks import LoadMask
from ..datasets.pairs import Pair, PairReader, transforms
from ..utils.cli import UsageError
from ..utils.files import write_text_whole, written_whole
from .console import track

__all__ = ["SHOWN", "cache_dir", "check_pairs", "listed_pairs"]

#: Faults that a message lists at most.
SHOWN = 20

_CACHE = "good_pairs"
_CACHED = 4_000_000  # pairs at most
_DIGEST = 16  # bytes
_VERSION = 2  # of the checks


def listed_pairs(cfg: Config, dataset: Any) -> tuple[PairReader, list[Pair]] | None:
    """Return what a dataset lists and how to read it; None for those that check their files themselves."""
    if not isinstance(dataset, BaseDataset):
        return None
    steps = list(transforms(getattr(dataset, "pipeline", None)))
    image = next((step for step in steps if isinstance(step, LoadImageFromFile)), None)
    labels = next((step for step in steps if isinstance(step, LoadAnnotations)), None)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if image is None or not infos or "img_path" not in infos[0]:
        return None
    classes = dataset.metainfo.get("classes")
    head = cfg.model.get("decode_head")
    head = head[-1] if isinstance(head, list | tuple) else head or {}
    reader = PairReader(
        image,
        labels if "seg_map_path" in infos[0] else None,
        num_classes=None if classes is None else len(classes),
        ignore_index=head.get("ignore_index", getattr(dataset, "ignore_index", 255)),
        reduce_zero_label=infos[0].get("reduce_zero_label", False),
        label_map=infos[0].get("label_map"),
        masks=infos[0].get("mask_reader") if isinstance(labels, LoadMask) else None,
    )
    return reader, [_pair(info) for info in infos]


def _pair(info: Mapping[str, Any]) -> Pair:
    labels = info.get("seg_map_path")
    return Pair(Path(info["img_path"]), None if labels is None else Path(labels))


def check_pairs(
    readers: Mapping[str, Sequence[tuple[PairReader, list[Pair]]]], strays: Collection[Path] = ()
) -> None:
    """Read the pairs that were not found good before.

    Args:
        readers: The pairs of each split, and how they are read.
        strays: Masks that have no image.

    Raises:
        UsageError: Lists the pairs that cannot be used, and the strays.
    """
    good = _read_cache()
    seen: set[bytes] = set()
    todo: dict[Any, tuple[str, PairReader, Pair]] = {}
    count = 0
    for split, parts in readers.items():
        for reader, pairs in parts:
            count += len(pairs)
            for pair in pairs:
                digest = _digest(pair, reader)
                if digest in good:
                    seen.add(digest)
                else:
                    todo.setdefault(digest or pair, (split, reader, pair))
    faults = []
    for (key, (split, _, _)), fault in zip(todo.items(), _verdicts(list(todo.values())), strict=True):
        if fault is not None:
            faults.append(f"  {split}: {fault[0].as_posix()}: {fault[1]}")
        elif isinstance(key, bytes):
            seen.add(key)
    if seen - good:
        _write_cache(good, seen)
    summary = [f"{len(faults)} of the {count} pairs of the data cannot be used"] if faults else []
    if strays:
        summary.append(f"{len(strays)} {'masks have' if len(strays) > 1 else 'mask has'} no image")
    lines = [*sorted(faults), *(f"  {file.as_posix()}: belongs to no image" for file in sorted(strays))]
    if lines:
        more = [f"  ... and {len(lines) - SHOWN} more{_write_faults(lines)}"] if len(lines) > SHOWN else []
        raise UsageError("\n".join([f"{', '.join(summary)}:", *lines[:SHOWN], *more]))


def _write_faults(faults: Sequence[str]) -> str:
    """Write a long list to where it can be read in full; return the end of the line that stands for it."""
    file = cache_dir() / "faults.txt"
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        write_text_whole(file, "".join(f"{fault.strip()}\n" for fault in faults))
    except OSError:
        return ""
    return f"; all are in {file}"


def _verdicts(todo: Sequence[tuple[str, PairReader, Pair]]) -> Iterator[tuple[Path, str] | None]:
    # Decoding releases Python's lock, and threads start at once where processes import for seconds.
    pool = ThreadPoolExecutor(os.cpu_count())
    verdicts = pool.map(lambda item: item[1].fault(item[2]), todo)
    try:
        yield from track(verdicts, "checking the data", len(todo))
    finally:
        pool.shutdown(cancel_futures=True)  # An interrupt must not wait for the rest.


# --- cache ---------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Return the user's folder for what this package may compute again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixeldcl_plugin"


def _digest(pair: Pair, reader: PairReader) -> bytes | None:
    """Return what stands for a pair as it is now, read by these rules; None if a file is missing."""
    parts: list[object] = [_VERSION, reader.rules]
    for file in (pair.image, pair.labels):
        if file is not None:
            try:
                stat = file.stat()
            except OSError:
                return None
            parts += [str(file.absolute()), stat.st_size, stat.st_mtime_ns]
    return blake2b(repr(parts).encode(errors="surrogateescape"), digest_size=_DIGEST).digest()


def _read_cache() -> set[bytes]:
    """Return the digests of the pairs found good before; a damaged file holds none of these."""
    try:
        data = (cache_dir() / _CACHE).read_bytes()
    except OSError:
        return set()
    return {data[start : start + _DIGEST] for start in range(0, len(data), _DIGEST)}


def _write_cache(known: set[bytes], now: set[bytes]) -> None:
    """Add digests to the cache, dropping the older ones where it becomes too large."""
    digests = known | now if len(known | now) <= _CACHED else now
    with contextlib.suppress(OSError):  # Without a place for it there is no cache.
        cache_dir().mkdir(parents=True, exist_ok=True)
        with written_whole(cache_dir() / _CACHE) as part:
            part.write_bytes(b"".join(digests))
