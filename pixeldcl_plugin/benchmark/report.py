"""Show and write what :mod:`pixeldcl_plugin.benchmark` measured: a table, a CSV, a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ..utils.files import written_whole
from .measure import Result

Group = tuple[str, str, str, str, str]


def _group(result: Result) -> Group:
    return (result.case, result.direction, result.dtype, result.memory_format, result.mode)


def print_table(results: Sequence[Result], console: Console | None = None) -> None:
    """Print one table a case, with ratios to its first variant."""
    console = console or Console()
    if console.width < 100:  # a log file: rather long lines than cut numbers
        console = Console(file=console.file, width=100)
    for group, members in groupby(results, key=_group):
        table = Table(title=", ".join(group))
        table.add_column("variant", no_wrap=True)
        columns = ("ms", "IQR", "ratio", "GFLOP/s", "params", "MMACs", "peak MiB")
        for name in columns:
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


def write_csv(results: Sequence[Result], notes: Mapping[str, Any], path: Path) -> None:
    """Write one row a result; the notes (command, date, versions) stand in every row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**result.row(), **notes} for result in results]
    with written_whole(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_plot(results: Sequence[Result], notes: Mapping[str, Any], path: Path) -> None:
    """Draw the ratios to the first variant, one panel a case."""
    panels = [(group, list(members)) for group, members in groupby(results, key=_group)]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    tallest = max(len(members) for _, members in panels)
    figure = Figure(figsize=(4.2 * columns, rows * (0.8 + 0.24 * tallest)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (group, members) in zip(axes, panels, strict=False):
        names = [r.variant for r in members]
        colors = ["#c44e52" if "pixeldcl" in name else "#8c8c8c" for name in names]
        bars = axis.barh(
            names, [r.ratio for r in members], xerr=[r.iqr_ms / 2 * r.ratio / r.median_ms for r in members]
        )
        for bar, color, r in zip(bars, colors, members, strict=True):
            bar.set_color(color)
            axis.text(bar.get_width(), bar.get_y() + 0.4, f" {r.ratio:.2f}", va="center", fontsize=7)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.tick_params(labelsize=7)
        axis.set_title(f"{group[0]}\n{', '.join(group[1:])}", fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(
        f"Median time over that of {panels[0][1][0].variant} "
        f"({notes['hardware']}, {notes['threads']} threads, torch {notes['torch']})",
        fontsize=9,
    )
    with written_whole(path) as part:
        figure.savefig(part, dpi=110)
