"""Progress of a training on a terminal: one line with the running loss and the time that is left."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..utils.cli import is_main_process

__all__ = ["progress_shown"]

#: Lines of MMEngine that tell how far a run is, not the scores at the end of a validation.
_PROGRESS = re.compile(r"\s*(Iter|Epoch)\((train\)|val\).*\beta: )")


def _is_no_progress(record: logging.LogRecord) -> bool:
    return _PROGRESS.match(record.getMessage()) is None


class _ProgressHook(Hook):
    """Moves the bars of a training and of its validations."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._training: TaskID | None = None
        self._validating: TaskID | None = None

    def before_train(self, runner: Runner) -> None:
        self._training = self._progress.add_task(
            "training", total=runner.max_iters, completed=runner.iter, loss=""
        )

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self._training is not None:
            loss = runner.message_hub.get_scalar("train/loss").mean(10)  # of as many as the log's
            self._progress.update(self._training, completed=runner.iter + 1, loss=f"loss {loss:.4f}")

    def before_val(self, runner: Runner) -> None:
        total = len(runner.val_dataloader)
        self._validating = self._progress.add_task("validating", total=total, loss="")

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self._validating is not None:
            self._progress.advance(self._validating)

    def after_val(self, runner: Runner) -> None:
        if self._validating is not None:
            self._progress.remove_task(self._validating)
            self._validating = None


@contextlib.contextmanager
def progress_shown(runner: Runner) -> Iterator[None]:
    """Show how far a training in the block is, where stdout is a terminal.

    One line takes the place of MMEngine's lines, which then stand in the log file alone. Elsewhere, as in a
    file, those lines are printed as they always are.

    Args:
        runner: The runner, before its training.
    """
    console = Console()
    if not console.is_terminal or not is_main_process():
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    printing = [
        handler
        for handler in runner.logger.handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]
    # The speed of the last minutes, for validations make iterations uneven; the line goes when it is over.
    with Progress(
        *columns, console=console, transient=True, expand=True, speed_estimate_period=300
    ) as progress:
        streams = [(handler, handler.setStream(sys.stdout)) for handler in printing]  # above the line
        for handler in printing:
            handler.addFilter(_is_no_progress)
        runner.register_hook(_ProgressHook(progress), "VERY_LOW")
        try:
            yield
        finally:
            for handler, stream in streams:
                handler.removeFilter(_is_no_progress)
                if stream is not None:
                    handler.setStream(stream)
