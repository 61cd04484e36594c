"""What is checked before any work, and where training starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS

from pixeldcl_plugin.engine import preflight
from pixeldcl_plugin.utils.checkpoints import CheckpointError
from pixeldcl_plugin.utils.cli import UsageError

ROOT = Path(__file__).parents[2]


def test_check_weights_finds_missing_pretrained_weights() -> None:
    model = dict(backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="no.pth")))
    with pytest.raises(UsageError, match=r"init_cfg\.checkpoint not found: no file 'no\.pth'"):
        preflight.check_weights(Config(dict(model=model)))
    preflight.check_weights(Config(dict(model={}, load_from="https://host/no.pth")))


def test_check_weights_says_what_makes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg = Config.fromfile(ROOT / "configs/_base_/models/unethead_timm.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"lite0\.pth' .*; make it with: python tools/convert_timm_weights"):
        preflight.check_weights(cfg)
    (tmp_path / ".cache").mkdir()
    torch.save({"weight": torch.ones(1)}, tmp_path / ".cache/tf_efficientnet_lite0.pth")
    preflight.check_weights(cfg)
    (tmp_path / ".cache/tf_efficientnet_lite0.pth").write_text("a text")
    with pytest.raises(CheckpointError, match=r"lite0\.pth': it is no file of torch\.save"):
        preflight.check_weights(cfg)


@MODELS.register_module()
class OneWeight(BaseModel):
    """The model of these checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self) -> None:
        """Not needed."""


def save_checkpoint(path: Path, iteration: int, **more: object) -> Path:
    checkpoint = dict(
        meta=dict(iter=iteration, epoch=0, seed=11),
        state_dict={"weight": torch.ones(1)},
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        optimizer=dict(state={}, param_groups=[]),
    )
    torch.save({**checkpoint, **more}, path)
    return path


def work_dir_config(work_dir: Path, **more: object) -> Config:
    return Config(dict(work_dir=str(work_dir), model=dict(type="OneWeight"), **more))


def test_resume_takes_the_newest_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for iteration in (900, 1000, 1100, 1200):
        save_checkpoint(tmp_path / f"iter_{iteration}.pth", iteration)
    save_checkpoint(tmp_path / "best_mIoU_iter_1150.pth", 1150)
    (tmp_path / "iter_1200.pth").write_bytes((tmp_path / "iter_1200.pth").read_bytes()[:300])
    torch.save({"state_dict": {}}, tmp_path / "iter_1100.pth")
    (tmp_path / "last_checkpoint").touch()
    point = preflight.find_resume_point(tmp_path)
    assert point is not None
    assert (point.path, point.iteration, point.seed) == (tmp_path / "iter_1000.pth", 1000, 11)
    warnings = capsys.readouterr().err.splitlines()
    assert ["iter_1200.pth" in warnings[0], "iter_1100.pth" in warnings[1]] == [True, True]


def test_resume_follows_last_checkpoint_to_other_names(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = save_checkpoint(tmp_path / "elsewhere/step-7.pth", 7)
    (tmp_path / "last_checkpoint").write_text(str(target))
    point = preflight.find_resume_point(tmp_path)
    assert point is not None
    assert point.path == target


@pytest.mark.parametrize("content", [b"x" * 5000, b"\xff\xfe", b"a\0b", b"\n\n", b"/dev/zero", b".", b"~"])
def test_a_damaged_last_checkpoint_points_nowhere(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_bytes(content)
    assert preflight.find_resume_point(tmp_path) is None
    save_checkpoint(tmp_path / "iter_5.pth", 5)
    point = preflight.find_resume_point(tmp_path)
    assert point is not None
    assert point.iteration == 5


def test_resume_without_a_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight.find_resume_point(tmp_path) is None
    cfg = work_dir_config(tmp_path, load_from="weights.pth")
    assert preflight.prepare_work_dir(cfg, "auto", overwrite=False) is None
    assert (cfg.resume, cfg.load_from) == (False, "weights.pth")
    assert "starting from scratch" in capsys.readouterr().err
    (tmp_path / "iter_5.pth").write_bytes(b"PK")
    with pytest.raises(UsageError, match="none of the 1 checkpoints"):
        preflight.find_resume_point(tmp_path)


@pytest.mark.parametrize("seed", [None, 3])
def test_resuming_sets_the_config(tmp_path: Path, seed: int | None) -> None:
    path = save_checkpoint(tmp_path / "iter_5.pth", 5)
    cfg = work_dir_config(tmp_path, randomness=dict(seed=seed))
    point = preflight.prepare_work_dir(cfg, "auto", overwrite=False)
    assert point is not None
    assert point.iteration == 5
    assert (cfg.resume, cfg.load_from, cfg.randomness["seed"]) == (True, str(path), 11)


def test_earlier_checkpoints_are_not_overwritten_unasked(tmp_path: Path) -> None:
    work_dir, other = tmp_path / "run", tmp_path / "other.pth"
    work_dir.mkdir()
    save_checkpoint(work_dir / "iter_5.pth", 5)
    save_checkpoint(other, 2)
    (work_dir / "notes.txt").touch()
    for resume in (None, str(other)):
        with pytest.raises(UsageError, match=r"iter_5\.pth.*--resume.*--work-dir.*--overwrite"):
            preflight.prepare_work_dir(work_dir_config(work_dir), resume, overwrite=False)
    with pytest.raises(UsageError, match="give one of them"):
        preflight.prepare_work_dir(work_dir_config(work_dir), "auto", overwrite=True)
    cfg = work_dir_config(work_dir)
    assert preflight.prepare_work_dir(cfg, None, overwrite=True) is None
    assert cfg.resume is False
    assert preflight.written_files(cfg) == [work_dir / "iter_5.pth"]  # They stay until the new run trains.
    assert sorted(file.name for file in work_dir.iterdir()) == ["iter_5.pth", "notes.txt"]


def test_resume_path_must_be_a_training_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "weights.pth")
    cfg = work_dir_config(tmp_path / "run")
    with pytest.raises(CheckpointError, match="it holds no 'meta'"):
        preflight.prepare_work_dir(cfg, str(tmp_path / "weights.pth"), overwrite=False)
    with pytest.raises(UsageError, match=r"no checkpoint 'no\.pth'"):
        preflight.prepare_work_dir(cfg, "no.pth", overwrite=False)


def test_output_folder_must_be_empty(tmp_path: Path) -> None:
    preflight.check_output_dir("--out", None, overwrite=False)
    preflight.check_output_dir("--out", str(tmp_path / "new"), overwrite=False)
    preflight.check_output_dir("--out", str(tmp_path), overwrite=False)
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match=r"--out .* not an empty folder"):
        preflight.check_output_dir("--out", str(tmp_path), overwrite=False)
    preflight.check_output_dir("--out", str(tmp_path), overwrite=True)
