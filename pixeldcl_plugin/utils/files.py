"""Files that appear only when they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["part_of", "write_text_whole", "writing_to", "written_whole"]


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
def written_whole(file: Path) -> Iterator[Path]:
    """Yield the path to write to; at the end of the block it takes the file's name.

    What stood there is replaced. An error in the block, or a kill, leaves the file as it was; after an error
    no part stays behind either. An error of the system names the file, also where it named none.
    """
    part = part_of(file)
    try:
        yield part
        part.replace(file)
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
