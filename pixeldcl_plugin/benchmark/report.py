"""Show and keep what was measured: a table, and for each topic a CSV with its picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ..utils.cli import UsageError
from ..utils.files import written_whole
from ..visualization.arm_colors import arm_color
from .measure import Result

__all__ = ["Row", "print_table", "read_csv", "same_run", "write_csv", "write_plot"]

Row = Mapping[str, Any]

#: What the variants of one panel, which ratios compare, have in common.
_GROUP = ("case", "direction", "dtype", "memory_format", "mode")
#: A run: another one with the same values measures the same anew. A file holds several machines'.
_RUN = ("command", "hardware", "threads", "torch")


def print_table(results: Sequence[Result], console: Console | None = None) -> None:
    """Print one table a case, with ratios to its first variant; 80 columns are enough."""
    console = console or Console()
    for group, members in groupby(results, key=lambda result: [getattr(result, key) for key in _GROUP]):
        table = Table(title=", ".join(group), padding=0)
        table.add_column("variant", overflow="fold")
        for name in ("ms", "IQR", "ratio", "GFLOP/s", "params", "MMACs", "peak MiB"):
            table.add_column(name, justify="right", no_wrap=True)
        for r in members:
            table.add_row(
                r.variant,
                f"{r.median_ms:.2f}",
                f"{r.iqr_ms:.2f}",
                f"{r.ratio:.2f}",
                f"{r.gflops:.0f}",
                f"{r.parameters / 1e6:.2f}M",
                f"{r.mmacs:,.0f}",
                f"{r.peak_mib:.0f}",
            )
        console.print(table)


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that :func:`write_csv` wrote; none where there is no file.

    Raises:
        UsageError: If the file is not such a one.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    missing = {*_GROUP, *_RUN, "variant", "ratio", "median_ms", "iqr_ms"} - set(rows[0] if rows else ())
    if missing:
        raise UsageError(f"{path} holds no measurements of tools/benchmark.py: no column {min(missing)!r}")
    return rows


def same_run(row: Row, notes: Row) -> bool:
    """Tell whether a row was measured by the same command on the same machine."""
    return all(str(row[key]) == str(notes[key]) for key in _RUN)


def write_csv(results: Sequence[Result], notes: Row, path: Path) -> None:
    """Write one row a result, in place of earlier rows of the same run, behind those of others.

    The notes (command, date, versions) stand in every row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [row for row in read_csv(path) if not same_run(row, notes)]
    rows += [{**result.row(), **notes} for result in results]
    with written_whole(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_plot(path: Path) -> None:
    """Draw the ratios in a CSV to the first variant of each case and run, one panel each, beside the CSV."""
    panels = [
        list(members)
        for _, members in groupby(read_csv(path), key=lambda row: [row[key] for key in (*_GROUP, *_RUN)])
    ]
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(map(len, panels))
    figure = Figure(figsize=(4.2 * columns, lines * (0.95 + 0.24 * tallest)), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, rows in zip(axes, panels, strict=False):
        ratios = [float(row["ratio"]) for row in rows]
        spreads = [
            float(row["iqr_ms"]) / 2 * ratio / float(row["median_ms"])
            for row, ratio in zip(rows, ratios, strict=True)
        ]
        colors = [arm_color(row["variant"], other="#8c8c8c") for row in rows]
        bars = axis.barh([row["variant"] for row in rows], ratios, xerr=spreads, color=colors)
        axis.bar_label(bars, [f" {ratio:.2f}" for ratio in ratios], fontsize=7)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.tick_params(labelsize=7)
        case, *setting = (rows[0][key] for key in _GROUP)
        where = f"{rows[0]['hardware']}, threads: {rows[0]['threads']}, torch {rows[0]['torch']}"
        axis.set_title(f"{case}\n{', '.join(setting)}\n{where}", fontsize=7)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle("Median time over that of the variant drawn on top", fontsize=9)
    with written_whole(path.with_suffix(".png")) as part:
        figure.savefig(part, dpi=90)
