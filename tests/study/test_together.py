"""Arms that are trained side by side, on what is frozen."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config

from pixeldcl_plugin.apis.scores import score
from pixeldcl_plugin.engine.builder import build_model, load_model
from pixeldcl_plugin.study import execute_together, find_group, load_study, runs_left
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.visualization.reports import read_scalars

ROOT = Path(__file__).parents[2]

#: The logits of the tiny U-Net are those of its bottom, at stride 4.
COARSE = """
model["decode_head"].update(in_index=0, in_channels=16, dropout_ratio=0.5)
optim_wrapper["type"] = "BFloat16OptimWrapper"
"""
GUIDED = """
model.update(
    type="GuidedEncoderDecoder",
    upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=4),
    guide_index=[1, "image"],
)
"""


@pytest.fixture
def raw(tiny_config_text: str, tmp_path: Path) -> dict[str, Any]:
    """A study of the upsamplers of a frozen model, whose checkpoint is ``seed0.pth``."""
    (tmp_path / "stock.py").write_text(tiny_config_text + COARSE)
    (tmp_path / "guided.py").write_text(tiny_config_text + COARSE + GUIDED)
    torch.manual_seed(3)
    model = build_model(Config.fromfile(tmp_path / "stock.py"))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "seed0.pth")
    return {
        "name": "tiny",
        "config": str(tmp_path / "guided.py"),
        "out": str(tmp_path / "out"),
        "seeds": [0],
        "reference": "bilinear",
        "options": {"train_cfg.max_iters": 3},
        "together": {"frozen": "logits", "checkpoint": str(tmp_path / "seed{seed}.pth")},
        "arms": {
            "bilinear": {"config": str(tmp_path / "stock.py")},
            "guided": {},
            "none": {"options": {"model.upsample_cfg.order": None}},
        },
    }


def _write(raw: dict[str, Any], folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def _state(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["state_dict"]


def test_an_arm_learns_in_company_what_it_does_alone(raw: dict[str, Any], tmp_path: Path) -> None:
    study = load_study(_write(raw, tmp_path))
    rows = execute_together(study, find_group(study, "together_seed0").runs, tmp_path / "all")
    assert [row["arm"] for row in rows] == ["bilinear", "guided", "none"]
    assert rows[0]["parameters"] < rows[1]["parameters"]
    progress, _ = read_scalars(tmp_path / "all")
    assert max(progress) == 3, "the study says how far its groups are by this"
    frozen, learned = _state(tmp_path / "seed0.pth"), _state(tmp_path / "all/guided_seed0.pth")
    for name, tensor in frozen.items():
        assert torch.equal(tensor, learned[name]), name

    alone = [run for run in runs_left(study) if run.arm.name == "guided"]
    (row,) = execute_together(study, alone, tmp_path / "alone")
    assert [row[key] for key in ("mIoU", "mBIoU")] == [rows[1][key] for key in ("mIoU", "mBIoU")]
    for name, tensor in _state(tmp_path / "alone/guided_seed0.pth").items():
        assert torch.equal(learned[name], tensor), name

    model = load_model(Config.fromfile(tmp_path / "stock.py"), tmp_path / "seed0.pth")
    found = score(model, Config.fromfile(tmp_path / "stock.py"), "val").mean()
    assert found == {key: rows[0][key] for key in ("mIoU", "mBIoU")}


def test_the_tool_runs_what_is_left(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    raw["together"] = {"frozen": "backbone"}
    study = load_study(_write(raw, tmp_path))
    with pytest.raises(UsageError, match="frozen 'backbone' asks for one that is"):
        execute_together(study, runs_left(study), tmp_path / "refused")
    assert not list((tmp_path / "refused").iterdir())
    raw["together"] = {"frozen": "logits", "checkpoint": str(tmp_path / "seed{seed}.pth")}
    main = runpy.run_path("tools/study.py")["main"]
    for arms in (["guided"], ["guided", "bilinear"]):
        command = [str(_write(raw, tmp_path)), "--work-dir", str(tmp_path / "work"), "--arms", *arms]
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
        rows = csv.DictReader((tmp_path / "out/tiny.csv").open())
        assert sorted(row["arm"] for row in rows) == sorted(arms)
    study = load_study(tmp_path / "study.yaml")
    assert [run.key for run in find_group(study, "together_seed0").runs] == ["none_seed0"]
    with pytest.raises(UsageError, match="no group 'x'"):
        find_group(study, "x")


@pytest.mark.parametrize(
    ("together", "message"),
    [({"frozen": "head"}, "got 'head'"), ({"frozen": "logits"}, "'checkpoint'"), ({}, "'frozen' is missing")],
)
def test_mistakes_in_what_is_frozen_are_named(
    raw: dict[str, Any], tmp_path: Path, together: dict[str, Any], message: str
) -> None:
    raw["together"] = together
    with pytest.raises(UsageError, match=message):
        load_study(_write(raw, tmp_path))
