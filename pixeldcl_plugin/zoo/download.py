"""Files of released weights: found or downloaded, and verified before they are opened."""

from __future__ import annotations

import sys
from http.client import HTTPException
from pathlib import Path

import torch
from filelock import FileLock

from ..utils.checkpoints import CheckpointError
from ..utils.files import file_sha256, part_of, written_whole
from .index import WEIGHTS, Release, ZooRoot

__all__ = [
    "DownloadError",
    "HashMismatchError",
    "TruncatedDownloadError",
    "download",
    "fetch",
    "verify",
]


class HashMismatchError(CheckpointError):
    """A file is not the one that was released."""


class DownloadError(CheckpointError):
    """A file cannot be downloaded."""


class TruncatedDownloadError(DownloadError):
    """A download ended before the file did."""


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
    """Return the verified file of a release: installed, else cached, else downloaded into torch.hub's cache.

    Args:
        release: What is wanted.
        root: Where installed weights are.
        progress: Show a progress bar on stderr; None for where that is a terminal.

    Raises:
        CheckpointError: If there is neither a file nor a URL; in its subclasses, if the file is another one,
            or the download fails.
    """
    installed = root.checkpoints / release.file_name
    if installed.is_file():
        verify(installed, release.sha256)
        return installed
    if release.url is None:
        raise CheckpointError(_missing(release, root))
    cached = Path(torch.hub.get_dir()) / "checkpoints" / release.file_name
    return download(release.url, cached, sha256=release.sha256, size=release.size, progress=progress)


def _missing(release: Release, root: ZooRoot) -> str:
    """Say in one line what to do about weights that are not there."""
    file = str(root.checkpoints / release.file_name)
    if root.checkpoints.name != WEIGHTS:
        return f"{release.name}: its weights are missing: no file {file!r}"
    install = f"pip install ./weights in a clone of the repository ({WEIGHTS.replace('_', '-')})"
    if not root.checkpoints.is_dir():
        return f"{release.name}: released weights are not installed: {install}"
    return f"{release.name}: another version of the weights is installed, without {file!r}: {install}"


def download(url: str, target: Path, *, sha256: str, size: int, progress: bool | None = None) -> Path:
    """Download a file of known hash and size with torch.hub, unless it is there; verify it in either case.

    ``target`` is never half a file: it gets its name once it is verified. Processes that want the same file
    wait for the first of them. A server that falls silent is waited for, unless
    ``socket.setdefaulttimeout`` sets a limit.

    Args:
        url: ``http``, ``https`` or ``file``.
        target: The file to write; its folder is made.
        sha256: 64 hex digits.
        size: Bytes.
        progress: Show a progress bar on stderr; None for where that is a terminal.

    Returns:
        ``target``.

    Raises:
        DownloadError: If the server cannot be reached or does not have the file.
        TruncatedDownloadError: If the connection ends too early.
        HashMismatchError: If the file is another one; a downloaded one is deleted.
    """
    if not url.startswith(("https://", "http://", "file://")):
        raise DownloadError(f"cannot download {url!r}: only http, https and file are supported")
    progress = sys.stderr.isatty() if progress is None else progress
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if target.is_file():
            verify(target, sha256)
            return target
        with written_whole(target) as part:
            for left in target.parent.glob(f"{part_of(target).name}*"):
                left.unlink()  # by a killed process: nobody else is writing while the lock is held
            if progress:
                print(f"Downloading {target.name} from {url}", file=sys.stderr)
            try:
                torch.hub.download_url_to_file(url, str(part), progress=progress)
            except (OSError, HTTPException) as error:
                raise DownloadError(f"cannot download {url!r}: {error}") from error
            if (found := part.stat().st_size) < size:
                raise TruncatedDownloadError(
                    f"download of {url!r} ended after {found} of {size} bytes; call again for another try"
                )
            if file_sha256(part) != sha256:
                raise HashMismatchError(
                    f"{url!r} does not serve the released file; what came was deleted unopened: "
                    f"its SHA-256 is not {sha256}"
                )
    return target
