"""What the commands share on the command line: common flags, and user errors as one clear line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import os
import shutil
import signal
import sys
import textwrap
import threading
from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError

from mmengine.config import DictAction

from .checkpoints import CheckpointError
from .config_errors import explain

__all__ = [
    "UsageError",
    "add_common_arguments",
    "add_overwrite_argument",
    "is_main_process",
    "notify",
    "report_written",
    "shown",
    "user_errors",
]


class UsageError(ValueError):
    """A mistake of the caller: commands print it as one line and exit with code 2."""


def is_main_process() -> bool:
    """Tell whether this process is the one that speaks, also before the process group exists."""
    names = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def notify(message: str) -> None:
    """Print one line on stderr, in one process only."""
    if is_main_process():
        print(message, file=sys.stderr, flush=True)


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path from where the user stands: relative if it lies below, else absolute."""
    here = Path.cwd()
    absolute = Path(os.path.normpath(here / path))
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def report_written(*files: str | os.PathLike[str]) -> None:
    """Print as the last line of a command what it wrote, and name a folder with several files once.

    A terminal that is too narrow gets several lines, which break between words.

    Args:
        files: What was written, those of one folder side by side.
    """
    places = []
    for folder, group in itertools.groupby(map(Path, map(shown, files)), key=lambda file: file.parent):
        *others, last = group
        if others:
            names = f"{', '.join(file.name for file in others)} and {last.name}"
            places.append(names if folder == Path() else f"{names} in {folder}")
        else:
            places.append(str(last))
    line = f"wrote {', '.join(places) or 'nothing'}"
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        line = textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False)
    print(line, flush=True)


# What a full, failing or read-only disk, permissions, limits, names that are too long or taken, and another
# process in the same folder refuse. A missing file is not among them: commands check for those that they are
# given.
_REFUSED = frozenset(
    [
        errno.EBUSY,
        *(errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS),
        *(errno.EACCES, errno.EPERM),
        *(errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR),
    ]
)


@contextlib.contextmanager
def user_errors(to_go_on: str = "run the same command again", *signals: str) -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit code 2, and an interrupt into 130.

    These are :class:`UsageError`, refused checkpoints, types or arguments in a config that a
    registry cannot build or that this package refuses, failed downloads, and what the disk refuses. Every
    other exception is a defect and keeps its traceback.

    Args:
        to_go_on: What to do after an interrupt, told in its line.
        signals: Further ones that interrupt, such as ``'SIGTERM'``, for commands that have something to end.
            The exit code is 128 and the signal's number.
    """
    received: list[int] = []
    try:
        with _interruptible(received, "SIGINT", *signals):
            yield
    except BaseException as error:
        # Some packages turn an interrupt into an error of their own.
        if received or isinstance(error, KeyboardInterrupt):
            notify(f"interrupted: {to_go_on}")
            sys.exit(128 + (received or [signal.SIGINT])[0])
        message = _user_message(error)
        if message is None:
            raise
        notify(f"error: {message}")
        sys.exit(2)


def _user_message(error: BaseException) -> str | None:
    """Return what to tell the user, or None for a defect."""
    if isinstance(error, UsageError | CheckpointError):
        return str(error)
    if isinstance(error, OSError):
        if _is_failed_download(error):
            return (
                "cannot download the pretrained weights that the config asks for: "
                f"{str(error).splitlines()[0]} (docs/configs.md says how to do without)"
            )
        if error.errno in _REFUSED:
            where = "" if error.filename is None else f"{os.fsdecode(error.filename)!r}: "
            return f"{where}{error.strerror}"
    reason = explain(error)
    return None if reason is None else f"config: {reason}"


@contextlib.contextmanager
def _interruptible(received: list[int], *names: str) -> Iterator[None]:
    """Have signals raise KeyboardInterrupt in the block, and note the numbers of those that came.

    Signals that the system does not know are left alone, and those that the caller ignores, as nohup does.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    previous[number] = signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in previous.items():
            # A command has one of its own, for its imports. After the work an interrupt ends it without a
            # word: a traceback out of Python's shutdown would tell nothing.
            foreign = handler not in (signal.SIG_DFL, signal.default_int_handler)
            signal.signal(number, signal.SIG_DFL if foreign else handler)


def _is_failed_download(error: OSError) -> bool:
    # The hub's errors derive from OSError in several ways; their module is what they have in common.
    return isinstance(error, URLError) or type(error).__module__.startswith("huggingface_hub")


class _ConfigOptions(DictAction):
    """MMEngine's KEY=VALUE options, with its failures reported as argparse reports others."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, *args: Any) -> None:
        for option in values:  # one by one, to name the one that is refused
            if "=" not in option.lstrip("="):
                raise ArgumentError(self, f"expected KEY=VALUE, got {option!r}")
            try:
                super().__call__(parser, namespace, [option], *args)
            except (AssertionError, RecursionError) as error:
                raise ArgumentError(self, f"the brackets in {option!r} do not match") from error


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise ArgumentTypeError(f"expected an integer from 0 to 2**32 - 1, got {text!r}")
    return int(text)


def add_overwrite_argument(parser: ArgumentParser, meaning: str) -> None:
    """Add --overwrite, which was called --force in some commands and still may be.

    Args:
        parser: Where to add it.
        meaning: What it does, for the help.
    """
    parser.add_argument("--overwrite", action="store_true", help=meaning)
    parser.add_argument("--force", dest="overwrite", action="store_true", help=argparse.SUPPRESS)


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the flags that training and testing share, named as in MMSegmentation."""
    parser.add_argument("--work-dir", help="folder for logs and results")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_ConfigOptions,
        metavar="KEY=VALUE",
        help="settings that override the config's, such as model.backbone.base_channels=32, "
        "key=\"[a,b]\" or key='[(a,b),(c,d)]' without spaces",
    )
    parser.add_argument(
        "--no-data-check",
        dest="data_check",
        action="store_false",
        help="do not read every image and label map before the start",
    )
    parser.add_argument("--seed", type=_seed, help="random seed (default: the config's)")
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed run are started; torchrun is 'pytorch'",
    )
    # torch.distributed.launch passes this flag besides setting LOCAL_RANK, which is what counts.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
