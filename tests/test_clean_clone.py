"""The README's commands on released models, in a clone: what the repository tracks and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

# Runs in the clone, one process for all commands. Other tests serve the demo's page.
RUN = """
import json, runpy, shlex, sys
import pixeldcl_plugin
from pixeldcl_plugin.apis import demo

served = []
class Page:
    def launch(self, **options): raise SystemExit(0)

demo.build_page = lambda segmenters, names, *limits: served.append(names) or Page()

released = pixeldcl_plugin.list_models("*camvid*", pretrained=True)
assert len(released) >= 2, released
faces = pixeldcl_plugin.list_models("vae_*", pretrained=True)
for command in json.loads(sys.argv[1]):
    names = iter(faces if "sample.py" in command else released)
    words = [next(names) if word == "NAME" else word for word in shlex.split(command)]
    print(shlex.join(words), flush=True)
    try:
        runpy.run_path(words[1])["main"](words[2:])
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
labels = pixeldcl_plugin.Segmenter(released[0])("pictures/0.jpg")
assert labels.shape == (96, 128), labels.shape
((one, other),) = served
assert one != other, served
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git tracks, as it stands in the working tree, with two pictures of CamVid's layout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    folder = tmp_path_factory.mktemp("clone")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    assert not (folder / ".cache").exists()
    noise = np.random.default_rng(0)
    for place in ("pictures", *(f"data/camvid/{split}" for split in ("val", "test"))):
        (folder / place).mkdir(parents=True)
        for index in range(2):
            picture = cv2.resize(noise.integers(0, 256, (12, 16, 3), dtype=np.uint8), (128, 96))
            cv2.imwrite(str(folder / place / f"{index}.jpg"), picture)
            if place.startswith("data"):
                annotations = folder / f"{place}annot"
                annotations.mkdir(exist_ok=True)
                cv2.imwrite(str(annotations / f"{index}.png"), np.full((96, 128), index, np.uint8))
    return folder


def readme_commands() -> list[str]:
    """The README's commands with a NAME, and those that it has no room for."""
    text = (ROOT / "README.md").read_text()
    commands = [
        line.partition("#")[0] for line in text.splitlines() if re.match(r"python tools/.* NAME\b", line)
    ]
    commands += ["python tools/test.py NAME --cfg-options test_dataloader.num_workers=0",
                 "python tools/sample.py NAME NAME --pictures samples --out DIR"]  # fmt: skip
    return [
        command.replace("PICTURES", "pictures").replace("DIR", f"out{place}")
        for place, command in enumerate(commands)
    ]


@pytest.mark.slow
def test_readme_commands_need_nothing_but_the_clone(clone: Path) -> None:
    commands = readme_commands()
    for tool in ("infer", "gallery", "analyze_checkerboard", "demo", "export", "test", "sample"):
        assert any(f"tools/{tool}.py" in command for command in commands), tool
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIXELDCL_")}
    env |= {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=clone, env=env, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert (clone / "gallery.png").is_file()
    assert (clone / "model.onnx").is_file()
    assert len(list((clone / "out0").glob("*_labels.png"))) == 2
