"""What the commands share on the command line: common flags, and user errors as one clear line."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from argparse import ArgumentError, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mmengine.config import DictAction

from .compat import CheckpointError

__all__ = ["UsageError", "add_common_arguments", "is_main_process", "notify", "user_errors"]


class UsageError(ValueError):
    """A mistake of the caller: commands print it as one line and exit with code 2."""


def is_main_process() -> bool:
    """Tells whether this process is the one that speaks, also before the process group exists."""
    names = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in names)


def notify(message: str) -> None:
    """Prints one line on stderr, in one process only."""
    if is_main_process():
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what the user can mend into one line on stderr and exit code 2.

    These are :class:`UsageError`, refused checkpoints, types or arguments in a config that a
    registry cannot build or that this package refuses, and failed downloads. Every other
    exception is a defect and keeps its traceback.
    """
    try:
        yield
    except (UsageError, CheckpointError) as error:
        message = str(error)
    except OSError as error:
        if not _is_failed_download(error):
            raise
        message = (
            f"cannot download the pretrained weights that the config asks for: {str(error).splitlines()[0]} "
            "(docs/configs.md says how to do without)"
        )
    except (KeyError, TypeError, ValueError) as error:
        if not _is_config_error(error):
            raise
        # MMEngine adds general advice and a link after the first sentence.
        message = f"config: {str(error.args[0]).partition('. Please')[0]}"
    except KeyboardInterrupt:
        notify("interrupted")
        sys.exit(130)
    else:
        return
    notify(f"error: {message}")
    sys.exit(2)


def _is_failed_download(error: OSError) -> bool:
    # The hub's errors derive from OSError in several ways; their module is what they have in common.
    return isinstance(error, URLError) or type(error).__module__.startswith("huggingface_hub")


def _is_config_error(error: BaseException) -> bool:
    """Tells whether building from a config failed for what the config asks for.

    A call with wrong arguments fails in the frame of the caller, which is the registry's; an
    error inside a constructor has a further frame. Constructors of this package raise ValueError
    for values that they do not accept.
    """
    files = [Path(f.filename).as_posix() for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, ValueError):
        built = any("mmengine/registry" in file for file in files)
        return built and Path(files[-1]).is_relative_to(Path(__file__).parents[1])
    return "mmengine/registry" in files[-1]


class _ConfigOptions(DictAction):
    """MMEngine's KEY=VALUE options, with its failures reported as argparse reports others."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, *args: Any) -> None:
        try:
            super().__call__(parser, namespace, *args)
        except (ValueError, AssertionError) as error:
            raise ArgumentError(self, f"expected KEY=VALUE: {error}") from error


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise ArgumentTypeError(f"expected an integer from 0 to 2**32 - 1, got {text!r}")
    return int(text)


def add_common_arguments(parser: ArgumentParser) -> None:
    """Adds the flags that training and testing share, named as in MMSegmentation."""
    parser.add_argument("--work-dir", help="folder for logs and results")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_ConfigOptions,
        metavar="KEY=VALUE",
        help="settings that override the config's, such as model.backbone.base_channels=32, "
        "key=\"[a,b]\" or key='[(a,b),(c,d)]' without spaces",
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
