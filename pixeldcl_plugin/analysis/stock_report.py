"""What :mod:`pixeldcl_plugin.analysis.stock_configs` found: a CSV of all configs, counts for people."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..utils.cli import UsageError
from ..utils.files import written_whole
from .stock_configs import STAGES, Outcome

__all__ = ["Row", "count_by_family", "print_tables", "read", "write"]


@dataclass(frozen=True)
class Row:
    """A line of the file: what came out, and the command, versions and date that it came out with."""

    outcome: Outcome
    facts: Mapping[str, str]


def read(file: Path) -> dict[str, Row]:
    """Read what :func:`write` wrote; by config.

    Raises:
        UsageError: If the file is not such a one.
    """
    names = [field.name for field in fields(Outcome)]
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            lines = list(csv.DictReader(opened))
        rows = [Row(Outcome(**{name: line.pop(name) for name in names}), line) for line in lines]
    except (csv.Error, KeyError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(file)!r} is no file of outcomes: {error}") from error
    return {row.outcome.config: row for row in rows}


def write(file: Path, rows: Mapping[str, Row]) -> None:
    """Write rows in the order of the configs' names."""
    lines = [{**asdict(row.outcome), **row.facts} for _, row in sorted(rows.items())]
    with written_whole(file) as part, part.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def count_by_family(outcomes: Sequence[Outcome]) -> dict[str, list[int]]:
    """Count the configs by their folder: all, and those that pass each stage from the building on."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.config)
    counts = {}
    for family, members in groupby(ordered, key=lambda outcome: outcome.config.partition("/")[0]):
        reached = [STAGES.index(outcome.passed) if outcome.passed else -1 for outcome in members]
        counts[family] = [
            len(reached),
            *(sum(last >= stage for last in reached) for stage in range(1, len(STAGES))),
        ]
    return counts


def print_tables(outcomes: Sequence[Outcome], console: Console | None = None) -> None:
    """Print the counts by family, and why configs do not pass; 80 columns are enough."""
    console = console or Console()
    families = Table(box=SIMPLE_HEAD)
    families.add_column("family")
    for name in ("configs", *STAGES[1:]):
        families.add_column(name, justify="right")
    counts = count_by_family(outcomes)
    for family, numbers in counts.items():
        families.add_row(family, *map(str, numbers))
    families.add_section()
    families.add_row("all", *(str(sum(column)) for column in zip(*counts.values(), strict=True)))
    console.print(families)
    causes = Counter(outcome.reason for outcome in outcomes if outcome.reason)
    if causes:
        reasons = Table("configs", "why they do not pass", box=SIMPLE_HEAD)
        for reason, count in causes.most_common():
            reasons.add_row(str(count), reason)
        console.print(reasons)
