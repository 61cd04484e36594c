"""The results of a study: one CSV row a run, and the learning rates that they choose."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.cli import UsageError
from ..utils.files import written_whole
from .plan import Run, Study

Row = dict[str, Any]


#: What every row has, and how it is read.
_COLUMNS: dict[str, Callable[[str], Any]] = {
    "arm": str,
    "stage": str,
    "seed": int,
    "learning_rate": float,
    "mIoU": float,
    "fingerprint": str,
}


class ResultFile:
    """The CSV of a study. A run that has its row there is done, on whichever machine it ran.

    Raises:
        UsageError: If the file is there and is not such a CSV.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[Row] = _read(self.path) if self.path.exists() else []

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
        with written_whole(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def _read(path: Path) -> list[Row]:
    refusal = f"{str(path)!r} is no result file of a study"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{refusal}: {error}") from error
    for row in rows:
        for name, kind in _COLUMNS.items():
            try:
                kind(row[name])
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f"{refusal}: a row has {row.get(name)!r} for {name!r}") from error
    return rows


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
