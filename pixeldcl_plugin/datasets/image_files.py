"""Images in a folder or a zip file: listed, read from any process, and checked before use."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_SHOWN = 10
_JPEG_END = b"\xff\xd9"


class ImageFiles:
    """The image files below a folder, or in a zip file.

    A zip file is opened once in each process: data workers that shared the parent's would move its file
    position under each other.

    Args:
        root: A folder or a ``.zip`` file.

    Raises:
        ValueError: If there is no such folder or file, or it is no zip file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._zip: zipfile.ZipFile | None = None
        self._pid = -1
        if self.root.is_dir():
            return
        if not self.root.is_file():
            raise ValueError(f"no folder or zip file {str(root)!r} (looked in {Path.cwd()})")
        if not zipfile.is_zipfile(self.root):
            raise ValueError(f"{str(root)!r} is neither a folder nor a zip file")

    def names(self) -> list[str]:
        """List the images, sorted, by their paths below the root."""
        if self.root.is_dir():
            found = (f.relative_to(self.root).as_posix() for f in self.root.rglob("*") if f.is_file())
        else:
            found = (entry.filename for entry in self._open().infolist() if not entry.is_dir())
        # macOS adds hidden files of the same suffix, which are no images.
        return sorted(n for n in found if n.lower().endswith(SUFFIXES) and not Path(n).name.startswith("."))

    def read(self, name: str) -> bytes:
        """Give the bytes of an image file."""
        if self.root.is_dir():
            return (self.root / name).read_bytes()
        return self._open().read(name)

    def load(self, name: str) -> Image.Image:
        """Decode an image to RGB."""
        with Image.open(io.BytesIO(self.read(name))) as image:
            return image.convert("RGB")

    def check(self, names: Sequence[str], min_size: int) -> None:
        """Check that images can be read and are large enough.

        Args:
            names: What to check.
            min_size: The least height and width in pixels.

        Raises:
            ValueError: Names the images that fail and why, ten of them at most, and how many there are.
        """
        faults = [f"{name} ({fault})" for name in names if (fault := self._fault(name, min_size))]
        if faults:
            more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise ValueError(
                f"{len(faults)} of {len(names)} images in {str(self.root)!r} cannot be used: "
                f"{', '.join(faults[:_SHOWN])}{more}"
            )

    def _fault(self, name: str, min_size: int) -> str | None:
        try:
            data = self.read(name)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                if image.format != "JPEG" or not data.endswith(_JPEG_END):
                    image.load()  # Of a JPEG with its end in place the header is enough, and fast.
        except Exception as error:  # Pillow's plugins and zipfile raise a dozen kinds.
            return "missing" if isinstance(error, KeyError | FileNotFoundError) else "unreadable"
        return f"{width}x{height}, less than {min_size}" if min(width, height) < min_size else None

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None or self._pid != os.getpid():
            self._zip, self._pid = zipfile.ZipFile(self.root), os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_pid": -1}
