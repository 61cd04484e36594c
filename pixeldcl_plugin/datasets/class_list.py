"""``classes.txt``: the names of the classes, and what stands for them in the masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.cli import UsageError
from ..utils.label_maps import voc_palette

__all__ = ["FORMAT", "IGNORED", "ClassList", "read_class_list"]

Color = tuple[int, int, int]

#: The label that losses and metrics ignore.
IGNORED = 255
#: What a line of the file may be.
FORMAT = "NAME, or NAME, R, G, B, or NAME, VALUE, or NAME, VALUE, R, G, B (#RRGGBB is a color too)"

_SPACED_COLOR = re.compile(r"(.+?)\s+(\d+\s+\d+\s+\d+|#[0-9a-fA-F]{6})")
_HEX_COLOR = re.compile(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_LARGEST_VALUE = 65535


@dataclass(frozen=True)
class ClassList:
    """The classes of a folder of masks, in the order of their labels.

    Args:
        names: One a class.
        values: What stands for each in an index mask.
        colors: Its color in the masks or in pictures, RGB of 0 to 255; None if none are given.
        ignored_values: Further values of an index mask that are no class; 255 is one unless it is a class.
        ignored_colors: Colors that are no class.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[Color, ...] | None = None
    ignored_values: tuple[int, ...] = ()
    ignored_colors: tuple[Color, ...] = ()

    @property
    def metainfo(self) -> dict[str, Any]:
        """Names and colors as a dataset's ``metainfo`` has them; PASCAL VOC's colors where none are given."""
        colors = voc_palette(len(self.names)).tolist() if self.colors is None else self.colors
        return dict(classes=self.names, palette=[list(color) for color in colors])


def read_class_list(file: Path) -> ClassList:
    """Read a list of classes.

    A line is one of :data:`FORMAT`; the value of a class without one is its place, from 0. The name
    ``ignore`` gives a value or a color that is no class. Blank lines, those that begin with ``#`` and what
    follows a ``#`` with a space on both sides count for nothing.

    Raises:
        UsageError: Lists every line that cannot be used, and why.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file.as_posix()!r} is no text file in UTF-8; a line is {FORMAT}") from error
    faults: list[str] = []
    classes: list[tuple[int, str, int | None, Color | None]] = []
    ignored: list[tuple[int | None, Color | None]] = []
    for number, line in enumerate((re.split(r"\s#\s", line)[0] for line in lines), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            name, value, color = _parse(line.strip())
        except ValueError as error:
            faults.append(f"line {number}, {line.strip()!r}: {error}")
            continue
        if name.lower() == "ignore":
            if value is None and color is None:
                faults.append(f"line {number}, {line.strip()!r}: needs the value or the color to ignore")
            ignored.append((value, color))
        else:
            classes.append((number, name, value, color))
    values = [value for _, _, value, _ in classes if value is not None]
    colors = [color for _, _, _, color in classes if color is not None]
    if not faults:
        faults += _contradictions(classes, ignored)
    if faults:
        raise UsageError("\n".join([f"{file.as_posix()}: a line is {FORMAT}", *(f"  {f}" for f in faults)]))
    return ClassList(
        tuple(name for _, name, _, _ in classes),
        tuple(values or range(len(classes))),
        tuple(colors) or None,
        tuple(value for value, _ in ignored if value is not None),
        tuple(color for _, color in ignored if color is not None),
    )


def _parse(line: str) -> tuple[str, int | None, Color | None]:
    """Take a line apart into name, value and color."""
    spaced = _SPACED_COLOR.fullmatch(line)
    if spaced and not re.search("[,;\t]", line):
        name, rest = spaced[1], spaced[2]
    else:
        name, _, rest = re.sub("[;\t]", ",", line).partition(",")
    name, fields = name.strip(), re.split(r"[\s,]+", rest.strip(" \t,;"))
    if not name:
        raise ValueError("no name")
    fields = [] if fields == [""] else fields
    if fields and (found := _HEX_COLOR.fullmatch(fields[-1])):
        fields[-1:] = [str(int(part, 16)) for part in found.groups()]
    if not all(field.isdecimal() for field in fields) or len(fields) not in (0, 1, 3, 4):
        raise ValueError(f"{rest.strip()!r} is no color and no value")
    numbers = [int(field) for field in fields]
    value = numbers.pop(0) if len(numbers) in (1, 4) else None
    if value is not None and value > _LARGEST_VALUE:
        raise ValueError(f"the value {value} is above {_LARGEST_VALUE}")
    if any(number > 255 for number in numbers):
        raise ValueError("a color has three numbers of 0 to 255")
    return name, value, (numbers[0], numbers[1], numbers[2]) if numbers else None


def _contradictions(
    classes: list[tuple[int, str, int | None, Color | None]],
    ignored: list[tuple[int | None, Color | None]],
) -> list[str]:
    """Return what keeps lines, each right by itself, from being a list of classes."""
    count = len(classes)
    names = [name for _, name, _, _ in classes]
    values = [value for _, _, value, _ in classes if value is not None]
    colors = [color for _, _, _, color in classes if color is not None]
    faults = []
    if count < 2:
        named = f"one class, {names[0]!r}" if names else "no class"
        faults.append(f"it has {named}; expected at least 2, the background is a class too")
    if count > IGNORED:
        faults.append(f"it has {count} classes; expected at most {IGNORED}")
    faults += [f"the name {name!r} stands {n} times" for name, n in _repeated(names)]
    for kind, given, void in (
        ("value", values, [value for value, _ in ignored if value is not None]),
        ("color", colors, [color for _, color in ignored if color is not None]),
    ):
        if given and len(given) < count:
            faults.append(f"{len(given)} of {count} classes have a {kind}; give one to all or to none")
        known = given or (range(count) if kind == "value" else ())
        faults += [f"the {kind} {found} is that of {n} classes" for found, n in _repeated(given)]
        faults += [f"the {kind} {found} is ignored and a class" for found in void if found in known]
    return faults


def _repeated(items: Iterable[Hashable]) -> list[tuple[Hashable, int]]:
    return [(item, count) for item, count in Counter(items).items() if count > 1]
