"""Ctrl-C at any moment of a command: one line that says how to go on, exit code 130, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTING = "interrupted before anything was done: run the same command again\n"

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc of its processes")


def interrupt(
    command: list[object], ready: Callable[[int], bool], delay: float = 0.0
) -> tuple[int, str, str]:
    """Start a command at the root of the repository; interrupt it when it is ready and a delay is over."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that runs this in the background has interrupts ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not ready(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def imports_numpy(pid: int) -> bool:
    """Tell whether a process has begun to import packages that take seconds."""
    return "_multiarray_umath" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize(
    ("tool", "delay"),
    [("train.py", 0.0), ("train.py", 0.7), ("infer.py", 0.3), ("dataset_converters/photo_mosaic.py", 0.1)],
)
def test_during_the_imports(tool: str, delay: float) -> None:
    arguments = ["--help"] if delay else ["no/config.py", "no/weights.pth", "no/image.png", "--out", "no"]
    code, out, err = interrupt([ROOT / "tools" / tool, *arguments], imports_numpy, delay)
    assert (code, out, err) == (130, "", IMPORTING)


def test_during_the_training(tiny_config_text: str, tmp_path: Path) -> None:
    config = tmp_path / "long.py"
    config.write_text(tiny_config_text.replace("max_iters=12", "max_iters=100000"))
    command = [ROOT / "tools/train.py", config, "--work-dir", tmp_path / "work"]
    code, out, err = interrupt(command, lambda _: any(tmp_path.glob("work/iter_*.pth")), delay=0.1)
    assert code == 130, err
    assert err == "interrupted: the same command with --resume goes on from the last checkpoint\n"
    assert "Traceback" not in out


def test_during_a_conversion(tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = [ROOT / "tools/dataset_converters/photo_mosaic.py", "--out", out, "--num-train", 5000]
    code, shown, err = interrupt(command, lambda _: len(list(out.rglob("[!.]*.png"))) > 3)
    assert (code, shown) == (130, "")
    assert err.splitlines()[-1] == "interrupted: the same command goes on where it was"
    assert "Traceback" not in err
    assert not list(out.rglob(".partial-*"))
