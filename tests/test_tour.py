"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pixeldcl_plugin", "configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    notebook = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    for cell in notebook.cells:  # less of everything: that it runs is what counts here
        cell.source = re.sub(r"^(ITERATIONS|RETROFIT) = \d+", r"\1 = 3", cell.source, flags=re.MULTILINE)
        cell.source = cell.source.replace(
            '"--out", ".cache', '"--num-train", 16, "--num-val", 4, "--out", ".cache'
        )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    client = nbclient.NotebookClient(
        notebook, timeout=400, resources={"metadata": {"path": str(tmp_path / "docs")}}
    )
    client.execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
    assert list((tmp_path / "work_dirs/tour/guided").glob("*-guided.pth"))
