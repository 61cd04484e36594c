"""Ctrl-C while a command imports its packages, which takes seconds: one line, and exit code 130.

Every command imports this first. Until ``user_errors`` takes over nothing has been done, so that the process
can end on the spot. A KeyboardInterrupt would come up in the middle of other packages, some of which make
errors of their own of it.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    if all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")):
        os.write(2, b"interrupted before anything was done: run the same command again\n")
    os._exit(128 + number)


# A caller's wish to ignore interrupts, as shells have it for jobs in the background, is kept.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
