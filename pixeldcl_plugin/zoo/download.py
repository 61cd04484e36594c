"""Files of released weights: found or downloaded, and verified before they are opened."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ..utils.compat import CheckpointError
from .index import Release, ZooRoot

__all__ = [
    "DownloadError",
    "HashMismatchError",
    "TruncatedDownloadError",
    "download",
    "fetch",
    "file_sha256",
    "verify",
]

_CHUNK = 1 << 18


class HashMismatchError(CheckpointError):
    """A file is not the one that was released."""


class DownloadError(CheckpointError):
    """A file cannot be downloaded."""


class TruncatedDownloadError(DownloadError):
    """A download ended before the file did; the next call continues it."""


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def verify(file: Path, sha256: str) -> None:
    """Check a file against the hash that was published.

    Raises:
        HashMismatchError: If it is another one.
    """
    found = file_sha256(file)
    if found != sha256:
        raise HashMismatchError(
            f"{str(file)!r} is not the released file and was not opened: its SHA-256 is {found}, "
            f"the index has {sha256}; delete it to get the released one"
        )


def fetch(release: Release, root: ZooRoot, *, progress: bool | None = None) -> Path:
    """Return the verified file of a release: shipped, else cached, else downloaded into torch.hub's cache.

    Args:
        release: What is wanted.
        root: Where shipped weights are.
        progress: Show a progress bar on stderr; None for where that is a terminal.

    Raises:
        CheckpointError: If there is neither a file nor a URL; in its subclasses, if the file is another one,
            or the download fails.
    """
    shipped = root.checkpoints / release.file_name
    if shipped.is_file():
        verify(shipped, release.sha256)
        return shipped
    if "://" not in release.weights:
        raise CheckpointError(f"{release.name}: its weights are missing: no file {str(shipped)!r}")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / release.file_name
    return download(release.weights, cached, sha256=release.sha256, size=release.size, progress=progress)


def download(
    url: str, target: Path, *, sha256: str, size: int, progress: bool | None = None, timeout: float = 30
) -> Path:
    """Download a file of known hash and size, unless it is there, and verify it in either case.

    Bytes go to ``<target>.partial``, which is renamed once it is verified: ``target`` is never half a file.
    A later call continues a partial file where the server can (HTTP Range), else starts again.
    Processes that want the same file wait for the first of them.

    Args:
        url: ``http``, ``https`` or ``file``.
        target: The file to write; its folder is made.
        sha256: 64 hex digits.
        size: Bytes.
        progress: Show a progress bar on stderr; None for where that is a terminal.
        timeout: Seconds that the server may be silent.

    Returns:
        ``target``.

    Raises:
        DownloadError: If the server cannot be reached or does not have the file.
        TruncatedDownloadError: If the connection ends too early.
        HashMismatchError: If the file is another one; a downloaded one is deleted.
    """
    if not url.startswith(("https://", "http://", "file://")):
        raise DownloadError(f"cannot download {url!r}: only http, https and file are supported")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.is_file():
            _receive(url, partial, size, progress, timeout)
            try:
                verify(partial, sha256)
            except HashMismatchError as error:
                partial.unlink()
                raise HashMismatchError(
                    f"{url!r} does not serve the released file; what came was deleted unopened: "
                    f"its SHA-256 is not {sha256}"
                ) from error
            partial.replace(target)
            return target
    verify(target, sha256)
    return target


def _receive(url: str, partial: Path, size: int, progress: bool | None, timeout: float) -> None:
    """Bring the partial file to its full size."""
    have = partial.stat().st_size if partial.is_file() else 0
    if have == size:  # Killed between the last byte and the renaming.
        return
    if have > size:
        have = 0
    headers = {"User-Agent": "pixeldcl_plugin"} | ({"Range": f"bytes={have}-"} if have else {})
    reason: Exception | None = None
    try:
        with urlopen(Request(url, headers=headers), timeout=timeout) as response:
            # A server that knows no ranges, or another one than was asked for, sends the file from its start.
            found = response.headers.get("Content-Range") or ""
            resumed = have > 0 and found.startswith(f"bytes {have}-")
            have = have if resumed else 0
            with partial.open("ab" if resumed else "wb") as file, _bar(progress) as bar:
                task = bar.add_task(partial.stem, total=size, completed=have)
                try:
                    # Never more than was promised: an endless answer must not fill the disk.
                    while have < size and (chunk := response.read(min(_CHUNK, size - have))):
                        file.write(chunk)
                        have += len(chunk)
                        bar.update(task, completed=have)
                except (HTTPException, OSError) as error:
                    reason = error
    except HTTPError as error:
        if error.code == 416:  # The server's file is shorter than what is here already: not ours.
            partial.unlink()
        raise DownloadError(f"cannot download {url!r}: {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"cannot download {url!r}: {error}") from error
    if have < size:
        raise TruncatedDownloadError(
            f"download of {url!r} ended after {have} of {size} bytes"
            f"{f' ({reason})' if reason else ''}; call again to continue it"
        ) from reason


def _bar(progress: bool | None) -> Progress:
    shown = sys.stderr.isatty() if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
