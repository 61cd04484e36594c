"""What a study runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Selection:
    """How an arm's learning rate is chosen: the best of a grid on a held-out part of the training set.

    An arm whose best rate is an end of the grid goes on beyond that end, by the grid's last step, until the
    rate beyond is worse or ``widen`` rates were added there.
    """

    grid: tuple[float, ...]
    widen: int = 0
    held_out: float = 0.2
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def rates(self, scores: Mapping[float, float]) -> list[float]:
        """Return the rates to try: the grid, and what is beyond the end that the scores point to.

        Args:
            scores: The score by rate of what was tried already.
        """
        if not all(lr in scores for lr in self.grid):
            return list(self.grid)
        ordered = sorted(self.grid)
        tried = sorted(scores)
        best = max(tried, key=lambda lr: (scores[lr], -lr))
        if best == tried[-1] and sum(lr > ordered[-1] for lr in tried) < self.widen:
            beyond = best * (ordered[-1] / ordered[-2])
        elif best == tried[0] and sum(lr < ordered[0] for lr in tried) < self.widen:
            beyond = best * (ordered[0] / ordered[1])
        else:
            return list(self.grid)
        # Rounded, as the result file rounds: a rate is found again by its value.
        return [*self.grid, float(f"{beyond:.6g}")]


@dataclass(frozen=True)
class Arm:
    """One contestant: a config with its overrides, run with several seeds.

    ``learning_rate_of`` names the arm whose selected rate it shares; its own name where it selects itself.
    """

    name: str
    config: str
    options: Mapping[str, Any]
    seeds: tuple[int, ...]
    learning_rate_of: str


@dataclass(frozen=True)
class Run:
    """One training. ``lr`` is None where the config's own rate is used."""

    arm: Arm
    seed: int
    lr: float | None = None
    selecting: bool = False

    @property
    def key(self) -> str:
        """Name of the run, unique in its study and fit for a folder: ``deconv-k4_lr0.001_seed0``."""
        rate = "" if self.lr is None else f"_lr{self.lr:g}"
        return f"{'select_' if self.selecting else ''}{self.arm.name}{rate}_seed{self.seed}"


@dataclass(frozen=True)
class Together:
    """Arms that are trained side by side, on what is computed once for all of them.

    ``frozen`` is ``'backbone'``: its features; or ``'logits'``: those of a finished model, whose upsampler
    the arms train, as ``tools/retrofit.py`` does. ``checkpoint`` is that of the frozen weights, with
    ``{seed}`` in its name; None where the config names them.
    """

    frozen: str
    checkpoint: str | None = None


@dataclass(frozen=True)
class Study:
    """A set of arms compared on one task under one schedule.

    All are compared to ``reference``, and in a table of its own to each of ``also_compare_to``.
    """

    name: str
    arms: tuple[Arm, ...]
    reference: str
    selection: Selection | None
    out: Path
    also_compare_to: tuple[str, ...] = ()
    together: Together | None = None

    def arm(self, name: str) -> Arm:
        """Return the arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def selection_runs(self, scores: Mapping[str, Mapping[float, float]] | None = None) -> list[Run]:
        """Return the runs that choose learning rates; none without a selection.

        Args:
            scores: The score by rate, by arm, of the selection runs that are done; they may widen the grid.
        """
        if self.selection is None:
            return []
        known = scores or {}
        choosers = [arm for arm in self.arms if arm.learning_rate_of == arm.name]
        return [
            Run(arm, self.selection.seed, lr, selecting=True)
            for arm in choosers
            for lr in self.selection.rates(known.get(arm.name, {}))
        ]

    def runs(self, rates: Mapping[str, float] | None = None) -> list[Run]:
        """Return the compared runs, one seed of every arm after the other: a killed study is balanced.

        Args:
            rates: The chosen learning rate by arm; needed if there is a selection. A run has none
                where its arm's is not chosen yet.
        """
        if self.selection is not None and rates is None:
            raise ValueError("this study selects learning rates: runs() needs them")
        longest = max(len(arm.seeds) for arm in self.arms)
        return [
            Run(arm, arm.seeds[place], rates.get(arm.learning_rate_of) if rates else None)
            for place in range(longest)
            for arm in self.arms
            if place < len(arm.seeds)
        ]
