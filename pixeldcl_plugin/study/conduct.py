"""Bring a study to its end: first the learning rates, then the runs that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..engine import data_check, preflight, settings
from ..utils.cli import UsageError, notify
from .configs import fingerprint, run_config
from .plan import Run, Study
from .pool import run_all
from .results import ResultFile, choose_learning_rates, selection_scores


@dataclass(frozen=True)
class Group:
    """Runs of one seed that are trained side by side, see :class:`~.plan.Together`."""

    runs: tuple[Run, ...]

    @property
    def key(self) -> str:
        """Name of the group, fit for a folder."""
        first = self.runs[0]
        return f"{'select_' if first.selecting else ''}together_seed{first.seed}"


def results_of(study: Study) -> ResultFile:
    """Return the study's result file, with what earlier calls have finished."""
    return ResultFile(study.out / f"{study.name}.csv")


def find_run(study: Study, key: str) -> Run:
    """Return the run of that key; the rates of the compared runs come from the results so far.

    Raises:
        UsageError: If the study has no such run (yet).
    """
    results = results_of(study)
    known = _selection_runs(study, results) + _compared_runs(study, results)
    for run in known:
        if run.key == key:
            return run
    raise UsageError(f"no run {key!r} in study {study.name}: it has {[run.key for run in known]}")


def find_group(study: Study, key: str, arms: Iterable[str] | None = None) -> Group:
    """Return what is left of the group of that key.

    Raises:
        UsageError: If nothing is, or the study has none of that name.
    """
    found = {group.key: group for group in _groups(runs_left(study, arms))}
    if key not in found:
        raise UsageError(f"no group {key!r} is left in study {study.name}: {sorted(found)}")
    return found[key]


def runs_left(study: Study, arms: Iterable[str] | None = None) -> list[Run]:
    """Return what can be run now: the selection, or when that is complete the compared runs.

    Args:
        study: The study.
        arms: Names of the arms to look at; all if None. Selections of other arms are not waited for.

    Raises:
        UsageError: If an arm is unknown, a config does not fit, or a result is of another configuration.
    """
    names = {arm.name for arm in study.arms}
    wanted = names if arms is None else set(arms)
    if wanted - names:
        raise UsageError(f"no arms {sorted(wanted - names)} in study {study.name}: it has {sorted(names)}")
    choosers = {study.arm(name).learning_rate_of for name in wanted}
    results = results_of(study)
    selection = [run for run in _selection_runs(study, results) if run.arm.name in choosers]
    return _left(study, results, selection) or _left(
        study, results, [run for run in _compared_runs(study, results) if run.arm.name in wanted]
    )


def check_runs(study: Study, runs: Iterable[Run]) -> dict[str, Config]:
    """Check what runs ask for before any of them is started; return their configs by key.

    Raises:
        UsageError: If a config, its data or its weights cannot be used.
    """
    runs = list(runs)
    configs = {run.key: run_config(study, run) for run in runs}
    for cfg in {
        run.arm.name: configs[run.key] for run in runs
    }.values():  # the runs of an arm differ in numbers
        settings.check_settings(cfg, "train", "val")
    for cfg in configs.values():
        data_check.check_data(cfg, "train", "val")
        preflight.check_weights(cfg)
    return configs


def conduct(
    study: Study,
    command: Callable[[Run | Group], list[str]],
    folder: Callable[[Run | Group], Path],
    *,
    processes: int,
    arms: Iterable[str] | None = None,
) -> bool:
    """Run everything that is left, and keep every finished run's row at once.

    Args:
        study: The study.
        command: Command line of the process of a run, or of a group of runs that share what is frozen.
        folder: Its work dir.
        processes: Runs at a time.
        arms: As in :func:`runs_left`.

    Returns:
        Whether every run succeeded.
    """
    while runs := runs_left(study, arms):
        configs = check_runs(study, runs)
        results = results_of(study)

        def iterations(job: Run | Group, configs: dict[str, Config] = configs) -> int:
            members = job.runs if isinstance(job, Group) else (job,)
            return max(configs[run.key].train_cfg.max_iters for run in members)

        def finished(job: Run | Group, found: Any, results: ResultFile = results) -> None:
            for row in found if isinstance(job, Group) else [found]:
                results.add(row)

        jobs: Sequence[Run | Group] = runs if study.together is None else _groups(runs)
        failed = run_all(jobs, iterations, command, folder, finished, processes=processes)
        if failed:
            notify(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(job.key for job in failed)}")
            return False
    return True


def _groups(runs: Iterable[Run]) -> list[Group]:
    """Put runs of one seed together; those that choose rates and those that are compared stay apart."""
    found: dict[tuple[bool, int], list[Run]] = {}
    for run in runs:
        found.setdefault((run.selecting, run.seed), []).append(run)
    return [Group(tuple(members)) for members in found.values()]


def _selection_runs(study: Study, results: ResultFile) -> list[Run]:
    """Return the runs that choose rates, as far as the results so far ask for them."""
    return study.selection_runs(selection_scores(results.rows))


def _compared_runs(study: Study, results: ResultFile) -> list[Run]:
    """Return the compared runs of the arms whose rate is known."""
    if study.selection is None:
        return study.runs()
    rates = choose_learning_rates(study, results.rows)
    return [run for run in study.runs(rates) if run.lr is not None]


def _left(study: Study, results: ResultFile, runs: list[Run]) -> list[Run]:
    return [run for run in runs if results.find(run, fingerprint(run_config(study, run))) is None]
