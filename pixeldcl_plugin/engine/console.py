"""What a run shows on the terminal: its progress, and only such warnings as the user can act on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from mmengine.logging import MMLogger
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track as rich_track

from ..utils.checkpoints import CheckpointError
from ..utils.quiet import quiet_warnings

__all__ = ["QuietRunner", "QuietTestRunner", "quiet_logger", "quiet_warnings", "track"]

# Pages that stand in the log file for when something must be looked up, and deprecations between
# MMEngine's own parts.
_FILE_ONLY = (
    "System environment:",
    "Config:\n",
    "Hooks will be executed in the following order:",
    "Exp name:",
    "The prefix is not set in metric class",
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "init_weights of",
    "paramwise_options -- ",
)
# Said of every parameter of a frozen encoder.
_FROZEN = " is skipped since its requires_grad="


def _belongs_on_console(record: logging.LogRecord) -> bool:
    message = record.getMessage().lstrip("\n-")
    return not message.startswith(_FILE_ONLY) and _FROZEN not in message


def _fail(record: logging.LogRecord) -> None:
    """End the run where its log cannot be written, as on a full disk, in place of a traceback a line."""
    raise


class QuietRunner(Runner):
    """A runner whose environment, config and list of hooks go to the log file only."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build MMEngine's logger and say on the terminal where its file is."""
        logger = super().build_logger(*args, **kwargs)
        files = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
        for handler in logger.handlers:
            if files and handler not in files:
                handler.addFilter(_belongs_on_console)
        for handler in files:
            handler.handleError = _fail  # type: ignore[method-assign]
            logger.info(f"Full log, with environment and config: {handler.baseFilename}")
        return logger

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume as MMEngine does, and report a checkpoint that it cannot read as such.

        Raises:
            CheckpointError: Names the file and what a part of the run did not find in it.
        """
        try:
            super().resume(filename, *args, **kwargs)
        except CheckpointError:
            raise
        except Exception as error:  # Hooks and optimizers read what they wrote, each in its own way.
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"cannot resume from {filename!r}: {type(error).__name__}: {reason}"
            ) from error


class QuietTestRunner(QuietRunner):
    """A runner of tests, which leaves the config in the work dir alone: it is the training's."""

    def dump_config(self) -> None:
        """Write nothing. The config of a test stands in the folder of its log."""


@contextlib.contextmanager
def quiet_logger() -> Iterator[None]:
    """Keep MMEngine's logger to warnings; models and optimizers have lines for every parameter."""
    logger = MMLogger.get_current_instance()
    level, filters = logger.level, list(logger.filters)
    logger.setLevel("WARNING")
    logger.addFilter(_belongs_on_console)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.filters[:] = filters


Item = TypeVar("Item")


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield items, with a bar and the time that is left on stderr where that is a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    yield from rich_track(items, description, total, console=console, transient=True, disable=hidden)
