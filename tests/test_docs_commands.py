"""Every command of the README and the docs is run, small; what is not run is listed with its reason."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docs_code
import numpy as np
import pytest
from docs_code import PAGES, ROOT
from docs_commands import ELSEWHERE, RUN, SKIPPED
from PIL import Image

COMMANDS = {command: page for page in PAGES for command in docs_code.commands(page)}

# Runs commands, one after another, in processes of their own, which need not import anything anew.
RUNNER = """
import json, os, runpy, sys
import matplotlib.figure, mmseg.apis, pixeldcl_plugin
from pixeldcl_plugin import Segmenter
from pixeldcl_plugin.visualization import reports

for line in iter(sys.stdin.readline, ""):
    words = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate((os.devnull, "stdout.txt", "stderr.txt")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = words
        sys.path.insert(0, os.path.dirname(words[0]))
        runpy.run_path(words[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


# --- the list ------------------------------------------------------------------------------------


def test_every_command_is_listed_once_and_no_other() -> None:
    listed = [*RUN, *ELSEWHERE, *SKIPPED]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(COMMANDS)


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_the_tests_that_run_others_exist(place: str) -> None:
    file, _, name = place.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("command", [*ELSEWHERE, *SKIPPED])
def test_a_command_that_is_not_run_here_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders stand for files, which are not looked at while a command line is read."""
    line = re.sub(r"\s*\.\.\.", "", re.sub(r"\[((?:--|MODEL)[^\]]*)\]", r"\1", command))
    words = [word.partition("|")[0] for word in shlex.split(re.sub(r"\bN\b", "1", line))]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    tool = next((place for place, word in enumerate(words) if word.startswith("tools/")), None)
    if tool is not None:
        monkeypatch.setattr(sys, "path", [str((ROOT / words[tool]).parent), *sys.path])
        runpy.run_path(str(ROOT / words[tool]))["parse_args"](words[tool + 1 :])


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of the repository with small data in the place of real ones."""
    root = tmp_path_factory.mktemp("root")
    for name in ("configs", "docs", "studies", "tools"):
        (root / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)

    def write(image: str, labels: str = "", value: int = 0) -> None:
        """Write an image with a bright rectangle on it, and the rectangle as its label map."""
        pixels = rng.integers(0, 90, (96, 128, 3), dtype=np.uint8)
        pixels[20:70, 30:90, value % 3] += 150
        places = [(image, pixels)]
        if labels:
            label_map = np.zeros((96, 128), np.uint8)
            label_map[20:70, 30:90] = value
            places.append((labels, label_map))
        for place, array in places:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / place)

    for index in range(2):
        write(f"new_images/{index}.jpg")
        for split in ("train", "val", "test"):
            write(f"data/camvid/{split}/{index}.jpg", f"data/camvid/{split}annot/{index}.png", index + 1)
    voc = "data/voc2012_subset"
    for index, value in enumerate((8, 12, 13, 17) * 3):  # a cat, a dog, a horse, a sheep
        write(f"{voc}/JPEGImages/{index}.jpg", f"{voc}/SegmentationClassAug/{index}.png", value)
    lists = root / voc / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name in ("train", "aug", "train_aug"):
        (lists / f"{name}.txt").write_text("\n".join(map(str, range(12))))
    (lists / "val.txt").write_text("0\n1")
    (root / voc / "SegmentationClass").symlink_to("SegmentationClassAug")
    (root / "data/VOCdevkit").mkdir()
    (root / "data/VOCdevkit/VOC2012").symlink_to(root / voc)
    (root / "data/celeba64").mkdir()
    with zipfile.ZipFile(root / "data/celeba64/images.zip", "w") as images:
        for person in range(20):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "PNG")
            images.writestr(f"{person}_0.png", content.getvalue())
    return root


class Runner:
    """Runs the commands of the list in its order, each once and those before it first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, tuple[int, str, str]] = {}
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([sys.executable, "-c", RUNNER], cwd=folder, env=env, **pipes)

    def result(self, command: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a command."""
        for each in list(RUN)[len(self.results) : list(RUN).index(command) + 1]:
            words = shlex.split(re.sub(r"[\[\]]", "", RUN[each].line(each)))
            print(json.dumps(words[1:]), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            shown, told = ((self.folder / f"std{name}.txt").read_text() for name in ("out", "err"))
            self.results[each] = code, shown, told
        return self.results[command]


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[Runner]:
    if not hasattr(os, "fork"):
        pytest.skip("the system has no fork")
    runner = Runner(folder)
    yield runner
    runner.process.kill()
    runner.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_runs(command: str, runner: Runner) -> None:
    code, shown, told = runner.result(command)
    assert code == 0, f"{RUN[command].line(command)}\n{shown[-1500:]}{told[-1500:]}"
    assert "Traceback" not in told
    last = shown.splitlines()[-1]
    assert last.startswith("wrote ") or command.endswith("check"), last
