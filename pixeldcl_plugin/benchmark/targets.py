"""The ratios that are to be reached, and how near the measured ones are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from .report import Row

__all__ = ["TARGETS", "Outcome", "Target", "compare", "print_outcomes"]


@dataclass(frozen=True)
class Target:
    """A variant that is to take at most ``limit`` times what another takes, in one run.

    ``quantity`` is a column of the CSV: 'median_ms', or 'peak_mib' for memory.
    """

    variant: str
    reference: str
    case: str
    limit: float
    direction: str = "forward+backward"
    dtype: str = "float32"
    memory_format: str = "contiguous"
    mode: str = "eager"
    quantity: str = "median_ms"

    def matches(self, row: Row) -> bool:
        """Tell whether a row belongs to the target's case, whatever its variant."""
        keys = ("case", "direction", "dtype", "memory_format", "mode")
        return all(row[key] == getattr(self, key) for key in keys)

    def __str__(self) -> str:
        """Name the case: what is not the rule is said."""
        rule = ("float32", "contiguous", "eager", "median_ms")
        setting = (self.dtype, self.memory_format, self.mode, self.quantity)
        unusual = [word for word, usual in zip(setting, rule, strict=True) if word != usual]
        return " ".join([self.case, self.direction, *unusual])


@dataclass(frozen=True)
class Outcome:
    """A target and the ratio of its newest run; None where no file holds such a run."""

    target: Target
    ratio: float | None
    date: str = ""

    @property
    def reached(self) -> bool:
        """Whether it was measured and does not exceed the limit."""
        return self.ratio is not None and self.ratio <= self.target.limit


_LEVEL, _TOP = "4x256x128x64x64", "4x128x64x128x128"

#: What the configs train in, and the plain setting.
_SETTINGS = (("bfloat16", "channels_last"), ("float32", "contiguous"))

TARGETS = (
    *(
        Target("pixeldcl separable", "interp", "8x128x160", 1.0, direction, dtype, memory_format)
        for dtype, memory_format in _SETTINGS
        for direction in ("forward", "forward+backward")
    ),
    Target("pixeldcl", "deconv k4", _TOP, 1.0),
    Target("pixeldcl", "deconv k4", _LEVEL, 1.0),
    Target("pixeldcl", "deconv k4", _TOP, 1.1, quantity="peak_mib"),
    Target("pixeldcl", "deconv k4", "4x256x256x120x120", 1.15, direction="forward"),
    Target("pixeldcl", "deconv k4", _LEVEL, 1.0, direction="forward", mode="compiled"),
    Target("pixeldcl", "deconv k4", _LEVEL, 1.05, dtype="bfloat16"),
    Target("pixeldcl", "deconv k4", "64x2x256x256", 1.0, direction="forward"),
    Target("pixeldcl", "deconv k4", "64x2x256x256", 1.0),
    Target("pixeldcl depthwise", "deconv k4", "4x512x256x32x32", 0.6),
    Target("pixeldcl depthwise", "deconv k4", _LEVEL, 0.6),
    Target("pixeldcl depthwise", "deconv k4", _TOP, 0.6),
    Target("ipixeldcl", "deconv k4", "16x8x128x160", 1.35),
    Target("ipixeldcl", "deconv k4", "64x2x256x256", 1.35),
    Target("guided", "bilinear", "1x128x160", 1.1, direction="forward", memory_format="channels_last"),
    Target("guided", "bilinear", "16x128x128", 1.15, memory_format="channels_last"),
)


def compare(rows: Iterable[Row], targets: Iterable[Target] = TARGETS) -> Iterator[Outcome]:
    """Yield what the newest run that holds both variants of a target says of it."""
    found = list(rows)
    for target in targets:
        runs: dict[tuple[str, ...], dict[str, Row]] = {}
        for row in filter(target.matches, found):
            runs.setdefault((row["date"], row["command"], row["hardware"]), {})[row["variant"]] = row
        both = [run for _, run in sorted(runs.items()) if {target.variant, target.reference} <= run.keys()]
        if both:
            mine, theirs = both[-1][target.variant], both[-1][target.reference]
            ratio = float(mine[target.quantity]) / float(theirs[target.quantity])
            yield Outcome(target, ratio, mine["date"])
        else:
            yield Outcome(target, None)


def print_outcomes(outcomes: Iterable[Outcome], console: Console | None = None) -> None:
    """Print a line a target: what it compares, the limit, what was measured, and whether that will do."""
    table = Table(padding=0)
    for name in ("variant", "over", "case"):
        table.add_column(name, overflow="fold")
    for name in ("limit", "measured", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes:
        target, ratio = outcome.target, outcome.ratio
        verdict = "reached" if outcome.reached else "not measured" if ratio is None else "short"
        measured = "" if ratio is None else f"{ratio:.2f}"
        table.add_row(target.variant, target.reference, str(target), f"{target.limit:.2f}", measured, verdict)
    (console or Console()).print(table)
