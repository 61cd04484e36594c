"""Files that appear only when they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["part_of", "write_text_whole", "written_whole"]


def part_of(file: Path) -> Path:
    """Return where a file is written before it takes its name.

    Hidden, so that no scan of a folder takes it for data, and of the same suffix, which many writers read.
    """
    return file.with_name(f".partial-{file.name}")


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Yield the path to write to; at the end of the block it takes the file's name.

    What stood there is replaced. An error in the block, or a kill, leaves the file as it was; after an error
    no part stays behind either.
    """
    part = part_of(file)
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_text_whole(file: Path, text: str) -> None:
    """Write a text in UTF-8, as :func:`written_whole` does."""
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8")
