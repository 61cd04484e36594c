"""Every released file reaches the scores of its record, by the command of its record."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.config import Config

from pixeldcl_plugin.zoo.index import Release, ZooRoot, load_releases

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("record", load_releases(ZooRoot.of_package()), ids=lambda record: record.name)
def test_a_release_reaches_its_scores(
    record: Release, tmp_path: Path, run_tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    data = ROOT / Config.fromfile(ROOT / record.config).test_dataloader.dataset.data_root
    if not data.exists():
        pytest.skip(f"the data of {record.config} are not in {data}")
    python, *command = shlex.split(record.test_command)
    assert python == "python"
    # Minutes: the faces are scored with fifty importance samples each.
    done = run_tool(*command, "--work-dir", tmp_path, timeout=580)
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("*/*.json")
    scores = json.loads(log.read_text())
    assert record.metrics
    assert {name: scores[name] for name in record.metrics} == pytest.approx(dict(record.metrics), abs=0.01)
