"""Files that appear only when they are complete, and folders that one process writes at a time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["claimed", "file_sha256", "part_of", "write_text_whole", "writing_to", "written_whole"]


_CHUNK = 1 << 18


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def writing_to(*paths: str | Path) -> Iterator[None]:
    """Name where a block writes in those of its errors that name no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = " or ".join(map(str, paths))
        raise


def part_of(file: Path) -> Path:
    """Return where a file is written before it takes its name.

    Hidden, so that no scan of a folder takes it for data, and of the same suffix, which many writers read.
    """
    return file.with_name(f".partial-{file.name}")


@contextlib.contextmanager
def written_whole(file: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield the path to write to; at the end of the block it takes the file's name.

    What stood there is replaced. An error in the block, or a kill, leaves the file as it was; after an error
    no part stays behind either. An error of the system names the file, also where it named none.

    Args:
        file: The file.
        sync: Wait until it is on the disk, so that it outlives a crash of the machine too.
    """
    part = part_of(file)
    try:
        yield part
        if sync:
            _sync(part)
        part.replace(file)
        if sync and os.name == "posix":  # other systems open no folders
            _sync(file.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):
            error.filename = str(file)
        raise
    finally:
        with contextlib.suppress(OSError):  # none is left, or there was an error already
            part.unlink()


def write_text_whole(file: Path, text: str) -> None:
    """Write a text in UTF-8, as :func:`written_whole` does."""
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a folder, which is made if need be, for this process in the block; a kill gives it free as well.

    A file ``.lock`` is in it meanwhile. A folder that was made, and is empty at the end, is removed.

    Raises:
        OSError: If another process has it, or it cannot be written.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        with writing_to(folder):
            lock.acquire(timeout=0)
    except Timeout as error:
        busy = "another process is writing there: wait for it, or choose another folder"
        raise OSError(errno.EBUSY, busy, str(folder)) from error
    try:
        yield
    finally:
        if os.name == "posix":  # elsewhere the lock removes its file itself
            # While it is held: who opened the file before gets a lock without a name, which filelock refuses.
            with contextlib.suppress(OSError):
                (folder / ".lock").unlink()
        lock.release()
        if made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()
