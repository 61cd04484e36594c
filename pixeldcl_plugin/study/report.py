"""The table and the picture of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..utils.files import write_text_whole, written_whole
from ..visualization.arm_colors import arm_color
from .plan import Study
from .results import Row
from .summary import Summary, difference, summarise

#: Columns of the table besides the metric: (key of the row, heading, format).
COLUMNS = (
    ("aAcc", "aAcc", ".2f"),
    ("mBIoU", "Boundary IoU", ".2f"),
    ("isolated_pred", "isolated pixels %", ".3f"),
    ("logit_nyquist_energy", "Nyquist energy", ".3g"),
    ("parameters", "parameters M", ".2f"),
    ("mmacs", "MMACs", ".0f"),
    ("train_ms", "train ms", ".0f"),
    ("predict_ms", "predict ms", ".1f"),
    ("learning_rate", "rate", ".1e"),
)

#: The metrics of the table of differences: (key of the row, name).
COMPARED = (("mIoU", "mIoU"), ("mBIoU", "Boundary IoU"))


def write_summary(study: Study, rows: Sequence[Row], metric: str = "mIoU") -> list[Path]:
    """Write the tables (Markdown) and the picture of a study beside its CSV; return their paths."""
    summaries = summarise(study, rows, metric)
    if not summaries:
        return []
    table, picture = study.out / f"{study.name}.md", study.out / f"{study.name}.png"
    text = markdown_table(study, summaries, metric)
    if study.also_compare_to:
        text += "\n" + difference_table(study, summaries)
    write_text_whole(table, text)
    _plot(study, summaries, metric, picture)
    written = [table, picture]
    if any(s.scores("mBIoU") and s.scores("predict_ms") for s in summaries.values()):
        written.append(study.out / f"{study.name}_cost.png")
        _plot_cost(summaries, written[-1])
    return written


def markdown_table(study: Study, summaries: Mapping[str, Summary], metric: str = "mIoU") -> str:
    """Return the table: mean, spread and paired difference of every arm, and the means of the rest.

    "last change" is the mean and the range over seeds of what the metric changed by between the last two
    validations. A run that was resumed at its end has no training time, and does not count to that mean.
    """
    members = sorted(summaries.values(), key=lambda s: -s.mean(metric))
    columns = [column for column in COLUMNS if any(s.scores(column[0]) for s in members)]
    head = ["", "seeds", f"{metric} (sd)", f"minus {study.reference} [95 %]", "last change"]
    lines = []
    for s in members:
        changes = list(s.last_changes().values())
        flat = f"{np.mean(changes):+.2f} [{min(changes):+.2f}, {max(changes):+.2f}]" if changes else ""
        cells = [s.arm, str(len(s.rows)), f"{s.mean(metric):.2f} ({s.deviation(metric):.2f})"]
        cells += [_against(s, study.reference, summaries, metric), flat]
        for key, _, style in columns:
            value = s.mean(key) / (1e6 if key == "parameters" else 1)
            cells.append("" if math.isnan(value) else format(value, style))
        lines.append(cells)
    return _markdown([*head, *(heading for _, heading, _ in columns)], lines)


def difference_table(study: Study, summaries: Mapping[str, Summary]) -> str:
    """Return the paired differences of every arm to each that the study's ``also_compare_to`` names."""
    metrics = [(key, name) for key, name in COMPARED if any(s.scores(key) for s in summaries.values())]
    head = ["", *(f"{name} minus {other} [95 %]" for other in study.also_compare_to for _, name in metrics)]
    members = sorted(summaries.values(), key=lambda s: -s.mean(metrics[0][0]))
    columns = [(other, key) for other in study.also_compare_to for key, _ in metrics]
    return _markdown(
        head, [[s.arm, *(_against(s, other, summaries, key) for other, key in columns)] for s in members]
    )


def _against(summary: Summary, other: str, summaries: Mapping[str, Summary], metric: str) -> str:
    if summary.arm == other:
        return "reference"
    return str(difference(summary, summaries.get(other, Summary(other, {})), metric))


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [" | ".join(("", *head, "")).strip(), "|" + " --- |" * len(head)]
    return "\n".join([*rows, *("| " + " | ".join(cells) + " |" for cells in lines)]) + "\n"


def _plot(study: Study, summaries: Mapping[str, Summary], metric: str, path: Path) -> None:
    ordered = sorted(summaries.values(), key=lambda s: s.mean(metric))
    reference = summaries.get(study.reference, Summary(study.reference, {}))
    figure = Figure(figsize=(10, 1.2 + 0.36 * len(ordered)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, s in enumerate(ordered):
        color = arm_color(s.arm)
        scores = list(s.scores(metric).values())
        left.scatter(scores, [place] * len(scores), s=18, color=color, alpha=0.7)
        left.plot([s.mean(metric)], [place], marker="|", markersize=14, color="black")
        paired = difference(s, reference, metric)
        if s.arm != study.reference and paired.pairs:
            half = (paired.interval[1] - paired.interval[0]) / 2 if paired.pairs > 1 else None
            filled = "none" if half is None else color
            right.errorbar(paired.mean, place, xerr=half, fmt="o", color=color, mfc=filled, capsize=3)
    left.set_ylim(-0.7, len(ordered) - 0.3)
    left.set_yticks(range(len(ordered)), [f"{s.arm} ({len(s.rows)})" for s in ordered], fontsize=8)
    left.set(xlabel=f"{metric}, one point a seed, mean as a bar")
    right.axvline(0.0, color="black", linewidth=0.8)
    right.set(xlabel=f"difference to {study.reference} by seed, 95 % interval\n(hollow: one seed)")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    with written_whole(path) as part:
        figure.savefig(part, dpi=120)


def _plot_cost(summaries: Mapping[str, Summary], path: Path) -> None:
    """Draw Boundary IoU over the time of a prediction: means over seeds, a bar of the standard deviation."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(summaries.values(), key=lambda s: s.mean("mBIoU"))
    # Names in a column beside the picture, in the order of the scores: arms lie too close for names at them.
    for height, s in zip(np.linspace(0.02, 0.98, len(ordered)), ordered, strict=True):
        color = arm_color(s.arm)
        place = s.mean("predict_ms"), s.mean("mBIoU")
        axes.errorbar(*place, yerr=np.nan_to_num(s.deviation("mBIoU")), fmt="o", color=color, capsize=2)
        line = dict(arrowstyle="-", color=color, alpha=0.5, linewidth=0.8, relpos=(0.0, 0.5))
        where = (1.03, height)
        axes.annotate(
            s.arm, place, where, textcoords="axes fraction", fontsize=8, va="center", arrowprops=line
        )
    axes.set(xlabel="prediction of an image, ms of processor time", ylabel="Boundary IoU")
    axes.grid(alpha=0.3)
    with written_whole(path) as part:
        figure.savefig(part, dpi=120)
