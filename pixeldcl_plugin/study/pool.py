"""Keep several processes busy with the runs of a study, and show how far they are."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..visualization.reports import read_scalars
from .execute import RESULT

#: Seconds between two looks at the processes, and between two lines where there is no terminal.
POLL, LINE = 1.0, 60.0
#: Seconds that a process has to end when it is asked to.
PATIENCE = 10.0
#: Says in the environment of a run's process which process its study is.
_PARENT = "PIXELDCL_STUDY_PROCESS"


class Named(Protocol):
    """What can be run: a run, or a group of them."""

    @property
    def key(self) -> str:
        """Name, fit for a folder."""


Runnable = TypeVar("Runnable", bound=Named)


@dataclass
class _Job:
    run: Any
    folder: Path
    process: subprocess.Popen[bytes]
    gpu: str | None


def gpus() -> list[str]:
    """Return the GPUs that processes may be given, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if torch.cuda.device_count() == 0:
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def run_all(
    runs: Sequence[Runnable],
    iterations: Callable[[Runnable], int],
    command: Callable[[Runnable], list[str]],
    folder: Callable[[Runnable], Path],
    finished: Callable[[Runnable, Any], None],
    *,
    processes: int,
    console: Console | None = None,
) -> list[Runnable]:
    """Run every run in a process of one thread, so many at a time.

    Each process sees one GPU, if there are any: that on which the fewest others run. When the caller is
    interrupted the processes are stopped; what they saved is resumed next time.

    Args:
        runs: What to run, in this order.
        iterations: Iterations of a run, for the progress.
        command: Command line of a run, which leaves ``result.json`` in its folder.
        folder: Work dir of a run; its output goes to ``console.log`` there.
        finished: Called with the result of each run that succeeded, as soon as it has.
        processes: How many at a time.
        console: Where progress is shown; stderr by default.

    Returns:
        The runs that failed.
    """
    console = console or Console(stderr=True)
    waiting, failed = list(runs), []
    jobs: list[_Job] = []
    done = 0
    total = sum(iterations(run) for run in runs)
    last_line = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        # The speed of the last quarter of an hour: validation makes iterations uneven.
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, speed_estimate_period=900) as progress:
        task = progress.add_task("all runs", total=total)
        try:
            while waiting or jobs:
                while waiting and len(jobs) < processes:
                    run = waiting.pop(0)
                    busy = [job.gpu for job in jobs]
                    gpu = min(gpus(), key=busy.count, default=None)
                    jobs.append(_start(run, command(run), folder(run), gpu))
                time.sleep(POLL)
                for job in [job for job in jobs if job.process.poll() is not None]:
                    jobs.remove(job)
                    done += iterations(job.run)
                    result = job.folder / RESULT
                    if job.process.returncode == 0 and result.is_file():
                        finished(job.run, json.loads(result.read_text()))
                        console.print(f"finished {job.run.key}")
                    else:
                        failed.append(job.run)
                        log = job.folder / "console.log"
                        console.print(f"[red]failed[/] {job.run.key}: {_last_line(log)} (see {log})")
                steps = {job.run.key: _step(job.folder) for job in jobs}
                text = ", ".join(f"{key} {step}" for key, step in steps.items())
                progress.update(task, completed=done + sum(steps.values()), description=text or "all runs")
                if not console.is_terminal and time.monotonic() - last_line > LINE:
                    last_line = time.monotonic()
                    remaining = progress.tasks[0].time_remaining
                    eta = "" if remaining is None else f", {remaining / 60:.0f} min left"
                    console.print(f"{done + sum(steps.values())}/{total} iterations{eta}: {text}")
        finally:
            _stop([job.process for job in jobs])
    return failed


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def follow_study() -> None:
    """End this process with the study that started it, also when that one is killed outright.

    Without it the run would go on beside the one that the study starts anew.
    """
    study = int(os.environ.get(_PARENT, 0))
    if not study:
        return  # started by hand

    def watch() -> None:
        while os.getppid() == study:
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _start(run: Named, command: list[str], folder: Path, gpu: str | None) -> _Job:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", _PARENT: str(os.getpid())}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with (folder / "console.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
    return _Job(run, folder, process, gpu)


def _step(folder: Path) -> int:
    with contextlib.suppress(OSError):
        train, _ = read_scalars(folder)
        return max(train, default=0)
    return 0


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
