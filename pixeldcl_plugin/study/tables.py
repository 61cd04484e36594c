"""The results of a study: one CSV row a run, and what the rows say about the arms."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from ..cli import UsageError
from .plan import Run, Study

Row = dict[str, Any]
_NUMBERS = ("seed", "learning_rate")


class ResultFile:
    """The CSV of a study. A run that has its row there is done, on whichever machine it ran."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[Row] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def find(self, run: Run, fingerprint: str) -> Row | None:
        """Return the row of a run, or None.

        Raises:
            UsageError: If the row was made by another configuration of the study.
        """
        stage = "select" if run.selecting else "main"
        for row in self.rows:
            same = row["arm"] == run.arm.name and row["stage"] == stage and int(row["seed"]) == run.seed
            if same and (run.lr is None or math.isclose(float(row["learning_rate"]), run.lr)):
                if row["fingerprint"] != fingerprint:
                    raise UsageError(
                        f"{self.path}: {run.key} was made by another configuration "
                        f"({row['fingerprint']}, now {fingerprint}): give the study another 'out', or "
                        "delete the rows that no longer count"
                    )
                return row
        return None

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row and write the file anew, whole or not at all."""
        self.rows.append({key: str(value) for key, value in row.items()})
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        partial.replace(self.path)


def selection_scores(rows: Sequence[Row], metric: str = "mIoU") -> dict[str, dict[float, float]]:
    """Return the score by learning rate, by arm, of the runs that choose one."""
    scores: dict[str, dict[float, float]] = {}
    for row in rows:
        if row["stage"] == "select":
            scores.setdefault(row["arm"], {})[float(row["learning_rate"])] = float(row[metric])
    return scores


def choose_learning_rates(study: Study, rows: Sequence[Row], metric: str = "mIoU") -> dict[str, float]:
    """Return for each selecting arm the rate with the best score; of equals, the smaller."""
    return {
        arm: max(scores, key=lambda lr, scores=scores: (scores[lr], -lr))  # type: ignore[misc]
        for arm, scores in selection_scores(rows, metric).items()
        if any(a.name == arm for a in study.arms)
    }


@dataclass(frozen=True)
class Summary:
    """An arm against the reference. Scores and differences are in the metric's unit."""

    arm: str
    scores: dict[int, float]
    mean: float
    deviation: float
    difference: float
    interval: tuple[float, float]
    pairs: int
    means: dict[str, float]

    #: By seed, what the score changed by between the last two validations: has it flattened?
    last_changes: dict[int, float]


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


def _column_means(rows: Sequence[Row]) -> dict[str, float]:
    """Average each column over the rows that have it: a run resumed at its end has no training time."""
    known = {key: [float(row[key]) for row in rows if row.get(key)] for key, *_ in COLUMNS}
    finite = {key: [value for value in values if math.isfinite(value)] for key, values in known.items()}
    return {key: float(np.mean(values)) for key, values in finite.items() if values}


def summarise(study: Study, rows: Sequence[Row], metric: str = "mIoU") -> list[Summary]:
    """Compare every arm with the reference over the seeds that both have.

    The interval is Student's, 95 %, of the mean of the paired differences; infinite with fewer than two
    pairs. It speaks of the seeds of this one task and schedule, of nothing else. Where rates are selected,
    only runs at the chosen rate count: others are left from before the grid was widened.
    """
    rates = {} if study.selection is None else choose_learning_rates(study, rows, metric)
    by_arm: dict[str, dict[int, Row]] = {arm.name: {} for arm in study.arms}
    for row in rows:
        if row["stage"] != "main" or row["arm"] not in by_arm:
            continue
        arm = study.arm(row["arm"])
        rate = rates.get(arm.learning_rate_of, float(row["learning_rate"]))
        if int(row["seed"]) in arm.seeds and math.isclose(float(row["learning_rate"]), rate):
            by_arm[arm.name][int(row["seed"])] = row
    reference = {seed: float(row[metric]) for seed, row in by_arm[study.reference].items()}
    summaries = []
    for name, members in by_arm.items():
        if not members:
            continue
        scores = {seed: float(row[metric]) for seed, row in sorted(members.items())}
        differences = [score - reference[seed] for seed, score in scores.items() if seed in reference]
        difference, interval = paired_interval(differences)
        values = list(scores.values())
        summaries.append(
            Summary(
                arm=name,
                scores=scores,
                mean=float(np.mean(values)),
                deviation=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                difference=difference,
                interval=interval,
                pairs=len(differences),
                means=_column_means(list(members.values())),
                last_changes={
                    seed: change
                    for seed, row in sorted(members.items())
                    if (change := last_change(row.get("history") or "")) is not None
                },
            )
        )
    return summaries


def last_change(history: str) -> float | None:
    """Return what the score changed by between the last two validations of ``"iteration:score ..."``.

    None where there are fewer than two.
    """
    scores = [float(entry.split(":")[1]) for entry in history.split()]
    return scores[-1] - scores[-2] if len(scores) > 1 else None


def paired_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Return the mean of paired differences and Student's confidence interval of it."""
    if not differences:
        return math.nan, (-math.inf, math.inf)
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, (-math.inf, math.inf)
    half = stats.t.ppf((1 + level) / 2, len(differences) - 1) * stats.sem(differences)
    return mean, (mean - half, mean + half)


def write_summary(study: Study, rows: Sequence[Row], metric: str = "mIoU") -> list[Path]:
    """Write the table (Markdown) and the picture of a study beside its CSV; return their paths."""
    summaries = summarise(study, rows, metric)
    if not summaries:
        return []
    table, picture = study.out / f"{study.name}.md", study.out / f"{study.name}.png"
    table.write_text(markdown_table(study, summaries, metric))
    _plot(study, summaries, metric, picture)
    return [table, picture]


def markdown_table(study: Study, summaries: Sequence[Summary], metric: str = "mIoU") -> str:
    """Return the table: mean, spread and paired difference of every arm, and the means of the rest.

    "last change" is the mean and the range over seeds of what the metric changed by between the last two
    validations.
    """
    columns = [column for column in COLUMNS if any(column[0] in s.means for s in summaries)]
    head = [
        "",
        "seeds",
        f"{metric} (sd)",
        f"minus {study.reference} [95 %]",
        "last change",
        *(c[1] for c in columns),
    ]
    lines = [" | ".join(("", *head, "")).strip(), "|" + " --- |" * len(head)]
    for s in sorted(summaries, key=lambda s: -s.mean):
        low, high = s.interval
        if s.arm == study.reference:
            against = "reference"
        elif s.pairs < 2:
            against = "too few pairs"
        else:
            against = f"{s.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
        changes = s.last_changes.values()
        flat = f"{np.mean(list(changes)):+.2f} [{min(changes):+.2f}, {max(changes):+.2f}]" if changes else ""
        cells = [s.arm, str(len(s.scores)), f"{s.mean:.2f} ({s.deviation:.2f})", against, flat]
        for key, _, style in columns:
            value = s.means.get(key, math.nan) / (1e6 if key == "parameters" else 1)
            cells.append("" if math.isnan(value) else format(value, style))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plot(study: Study, summaries: Sequence[Summary], metric: str, path: Path) -> None:
    ordered = sorted(summaries, key=lambda s: s.mean)
    figure = Figure(figsize=(10, 1.2 + 0.36 * len(ordered)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for place, s in enumerate(ordered):
        color = "#c44e52" if "pixeldcl" in s.arm else "#4c72b0"
        left.scatter(list(s.scores.values()), [place] * len(s.scores), s=18, color=color, alpha=0.7)
        left.plot([s.mean], [place], marker="|", markersize=14, color="black")
        if s.arm != study.reference and math.isfinite(s.interval[0]):
            right.errorbar(
                s.difference, place, xerr=(s.interval[1] - s.interval[0]) / 2, fmt="o", color=color, capsize=3
            )
    left.set_ylim(-0.7, len(ordered) - 0.3)
    left.set_yticks(range(len(ordered)), [f"{s.arm} ({len(s.scores)})" for s in ordered], fontsize=8)
    left.set(xlabel=f"{metric}, one point a seed, mean as a bar")
    right.axvline(0.0, color="black", linewidth=0.8)
    right.set(xlabel=f"difference to {study.reference}, paired by seed, 95 % interval")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
