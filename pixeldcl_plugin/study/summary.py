"""What the results of a study say: means over seeds, and differences between arms paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .plan import Study
from .results import Row, choose_learning_rates


@dataclass(frozen=True)
class Summary:
    """The compared runs of one arm: a row a seed."""

    arm: str
    rows: Mapping[int, Row]

    def scores(self, metric: str) -> dict[int, float]:
        """Return the score by seed; seeds whose row lacks it, or has no finite one, are left out."""
        found = {seed: float(row[metric]) for seed, row in self.rows.items() if row.get(metric, "") != ""}
        return {seed: score for seed, score in found.items() if math.isfinite(score)}

    def mean(self, metric: str) -> float:
        """Return the mean over seeds; NaN without any."""
        values = list(self.scores(metric).values())
        return float(np.mean(values)) if values else math.nan

    def deviation(self, metric: str) -> float:
        """Return the standard deviation over seeds; NaN with fewer than two."""
        values = list(self.scores(metric).values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def last_changes(self) -> dict[int, float]:
        """Return by seed what the score changed by between the last two validations: has it flattened?"""
        changes = {seed: last_change(row.get("history") or "") for seed, row in self.rows.items()}
        return {seed: change for seed, change in changes.items() if change is not None}


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, in the metric's unit, with Student's 95 % interval.

    It speaks of the seeds of one task and schedule, of nothing else.
    """

    mean: float
    interval: tuple[float, float]
    pairs: int

    def __str__(self) -> str:
        if self.pairs < 2:
            return "too few pairs"
        return f"{self.mean:+.2f} [{self.interval[0]:+.2f}, {self.interval[1]:+.2f}]"


def summarise(study: Study, rows: Sequence[Row], metric: str = "mIoU") -> dict[str, Summary]:
    """Sort the compared runs by arm and seed; arms without any are left out.

    Where rates are selected, only runs at the rate that ``metric`` chose count: others are left from
    before the grid was widened.
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
    return {name: Summary(name, dict(sorted(found.items()))) for name, found in by_arm.items() if found}


def difference(summary: Summary, to: Summary, metric: str = "mIoU") -> Difference:
    """Return what an arm scores above another over the seeds that both have."""
    own, other = summary.scores(metric), to.scores(metric)
    values = [own[seed] - other[seed] for seed in own if seed in other]
    mean, interval = paired_interval(values)
    return Difference(mean, interval, len(values))


def last_change(history: str) -> float | None:
    """Return what the score changed by between the last two validations of ``"iteration:score ..."``.

    None where there are fewer than two.
    """
    scores = [float(entry.split(":")[1]) for entry in history.split()]
    return scores[-1] - scores[-2] if len(scores) > 1 else None


def paired_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Return the mean of paired differences and Student's interval of it, infinite with fewer than two."""
    if not differences:
        return math.nan, (-math.inf, math.inf)
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, (-math.inf, math.inf)
    half = float(stats.t.ppf((1 + level) / 2, len(differences) - 1) * stats.sem(differences))
    return mean, (mean - half, mean + half)
