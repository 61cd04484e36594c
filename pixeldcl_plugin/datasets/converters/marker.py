"""The marker of a generated folder: a JSON file that says what made it, and whether that is complete.

It is what allows a second run to recognise its own folder, to continue after an interruption, and to leave
every other folder alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.files import part_of, write_text_whole


@dataclass(frozen=True)
class Marker:
    """The marker of one generator with one set of parameters.

    Args:
        file: Where it is, in the folder.
        what: What the folder then holds, for messages.
        made_from: What determines every byte: the generator's version and parameters, as JSON has them.
    """

    file: Path
    what: str
    made_from: Mapping[str, Any]

    def claim(self, siblings: str = "", names: Collection[str] = ()) -> bool:
        """Mark a free folder, or check that it is marked; both before anything else is written to it.

        Args:
            siblings: Pattern of other markers, beside which the folder counts as free; by default it must be
                empty.
            names: What will be written, and must not be there beside those.

        Returns:
            Whether what was to be written is there already, complete.

        Raises:
            FileExistsError: If the folder holds anything else; nothing in it is changed.
            NotADirectoryError: If it is a file.
        """
        folder = self.file.parent
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file; --out takes a folder")
        folder.mkdir(parents=True, exist_ok=True)
        if not self.file.is_file():
            there = {file.name for file in folder.iterdir()} - {part_of(self.file).name}
            if there and not (siblings and any(folder.glob(siblings))):
                raise FileExistsError(
                    f"{folder} is not empty and was not written by this tool (no {self.file.name} in it); "
                    "choose a new or empty folder"
                )
            if taken := sorted(there.intersection(names)):
                raise FileExistsError(
                    f"{', '.join(taken)} in {folder} was not written by this tool; choose another folder"
                )
            self.save(complete=False)
            return False
        try:
            found = json.loads(self.file.read_text())
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.keys() != {*self.made_from, "complete"}:
            raise FileExistsError(f"{self.file} was not written by this tool; choose another folder")
        others = [
            f"{name}={found[name]!r}, not {wanted!r}"
            for name, wanted in self.made_from.items()
            if found[name] != wanted
        ]
        if others:
            raise FileExistsError(
                f"{folder} holds {self.what} with {'; '.join(others)}; choose another folder"
            )
        return found["complete"] is True

    def save(self, *, complete: bool) -> None:
        """Write the marker."""
        content = {**self.made_from, "complete": complete}
        write_text_whole(self.file, json.dumps(content, indent=2) + "\n")
