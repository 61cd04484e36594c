"""The commands as a user runs them, on a set and a model small enough for seconds."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.visualization import Visualizer
from mmseg.visualization import SegLocalVisualizer

from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils.checkpoints import load_checkpoint
from pixeldcl_plugin.visualization import reports

ROOT = Path(__file__).parents[2]
TRAIN, TEST = ROOT / "tools/train.py", ROOT / "tools/test.py"
Run = Callable[..., subprocess.CompletedProcess[str]]

# Kills the process, as `kill -9` does, right after an iteration that the environment names.
KILLER = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == int(os.environ.get("KILL_AFTER", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def config(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "killer.py").write_text(KILLER)
    (folder / "tiny.py").write_text(
        tiny_config_text
        + 'custom_imports = dict(imports=["pixeldcl_plugin", "killer"])\n'
        + 'custom_hooks = [dict(type="KillHook")]\n'
    )
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def train(run_tool: Run) -> Run:
    def run(config: Path, work_dir: Path, *args: object, **env: str) -> Any:
        args = (TRAIN, config, "--work-dir", work_dir, *args)
        return run_tool(*args, PYTHONPATH=str(config.parent), **env)

    return run


@pytest.fixture(scope="module")
def trained(config: Path, train: Run) -> Path:
    """The work dir of an uninterrupted run."""
    work_dir = config.parent / "whole"
    result = train(config, work_dir)
    assert result.returncode == 0, result.stderr
    (work_dir / "stdout.txt").write_text(result.stdout)
    (work_dir / "stderr.txt").write_text(result.stderr)
    return work_dir


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a tool within this process, for speed, and returns its exit code and output."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", OrderedDict(CheckpointLoader._schemes))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.setattr(console, "quiet_warnings", lambda: None)
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As in the other processes, whose results must be the same.

    def run(tool: Path, *args: object) -> subprocess.CompletedProcess[str]:
        # MMEngine keeps one logger and so on for each name; a new process has none of them.
        for manager in (DefaultScope, MessageHub, MMLogger, Visualizer, SegLocalVisualizer):
            monkeypatch.setattr(manager, "_instance_dict", OrderedDict())
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(tool))["main"]([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    yield run
    torch.set_num_threads(threads)


def same_losses(one: Path, other: Path) -> bool:
    losses = [
        {step: record["loss"] for step, record in reports.read_scalars(work_dir)[0].items()}
        for work_dir in (one, other)
    ]
    assert list(losses[0]) == list(range(1, 13))
    return losses[0] == pytest.approx(losses[1], abs=1e-6, rel=0)


def weights(work_dir: Path) -> torch.Tensor:
    state = load_checkpoint(work_dir / "iter_12.pth")["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values()])


def test_training_leaves_pictures_and_says_where(trained: Path) -> None:
    output = (trained / "stdout.txt").read_text()
    last = output.rstrip().splitlines()[-1]
    assert last.startswith("wrote ")
    assert "iter_12.pth" in last
    assert "best_mIoU_iter_" in last
    assert "curves.png and predictions.png" in last
    assert all(text in output for text in ("mIoU", "aAcc", "| Class |"))
    for picture in ("curves.png", "predictions.png"):
        assert cv2.imread(str(trained / picture)).std() > 10
    # Two checkpoints are kept, and a plain torch.load opens them.
    assert len(list(trained.glob("iter_*.pth"))) == 2
    for file in trained.glob("*.pth"):
        assert "state_dict" in torch.load(file, weights_only=True)


def test_the_log_is_clean(trained: Path) -> None:
    output = (trained / "stdout.txt").read_text()
    assert (trained / "stderr.txt").read_text() == ""
    assert "WARNING" not in output
    assert "Could not import" not in output
    assert "System environment" not in output  # A page of it; it stands in the log file.
    log = next(trained.glob("*/*.log")).read_text()
    assert "System environment" in log
    assert "custom_hooks" in log


@pytest.fixture(scope="module")
def killed(config: Path, train: Run) -> Path:
    """The work dir of a run that SIGKILL ended after iteration 9 of 12."""
    work_dir = config.parent / "killed"
    result = train(config, work_dir, KILL_AFTER="9")
    assert result.returncode == -signal.SIGKILL
    assert sorted(file.name for file in work_dir.glob("iter_*.pth")) == ["iter_6.pth", "iter_8.pth"]
    return work_dir


def test_killed_run_resumes_exactly(config: Path, train: Run, trained: Path, killed: Path) -> None:
    work_dir = shutil.copytree(killed, killed.with_name("resumed"))
    result = train(config, work_dir, "--resume")
    assert result.returncode == 0, result.stderr
    assert "iter_8.pth" in result.stdout
    assert same_losses(work_dir, trained)
    assert torch.equal(weights(work_dir), weights(trained))


def test_truncated_checkpoint_gives_way_to_the_one_before(
    tiny_config: Path, main: Run, trained: Path, killed: Path
) -> None:
    """The one before was written during a validation, which drew random numbers."""
    work_dir = shutil.copytree(killed, killed.with_name("truncated"))
    newest = work_dir / "iter_8.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    (work_dir / "last_checkpoint").write_text("")
    result = main(TRAIN, tiny_config, "--work-dir", work_dir, "--resume")
    assert result.returncode == 0, result.stderr
    assert "warning: cannot read checkpoint" in result.stderr
    assert "iter_6.pth" in result.stdout
    assert same_losses(work_dir, trained)
    assert torch.equal(weights(work_dir), weights(trained))


def test_a_finished_run_killed_before_its_validation(
    tiny_config: Path, main: Run, trained: Path, tmp_path: Path
) -> None:
    checkpoint = shutil.copy(trained / "iter_12.pth", tmp_path)
    result = main(TRAIN, tiny_config, "--work-dir", tmp_path, "--resume", checkpoint)
    assert result.returncode == 0, result.stderr
    expected = reports.read_scalars(trained)[1][12]["mIoU"]
    assert "Validation at iteration 12: aAcc" in result.stdout
    assert f"mIoU {expected:.2f}" in result.stdout
    assert (tmp_path / "predictions.png").is_file()


def test_overwriting_is_refused_then_done_when_asked(
    tiny_config: Path, main: Run, trained: Path, tmp_path: Path
) -> None:
    work_dir = shutil.copytree(trained, tmp_path / "work")
    before = (work_dir / "iter_12.pth").read_bytes()
    args = (TRAIN, tiny_config, "--work-dir", work_dir, "--cfg-options", "train_cfg.max_iters=1")
    assert_user_error(main(*args), "--resume", "--work-dir", "--overwrite")
    assert (work_dir / "iter_12.pth").read_bytes() == before
    result = main(*args, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert [file.name for file in work_dir.glob("iter_*.pth")] == ["iter_1.pth"]
    assert list(reports.read_scalars(work_dir)[0]) == [1]


def assert_user_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [word for word in words if word not in line] == []


USER_ERRORS = [
    (TRAIN, ["no/such/config.py"], ["no/such/config.py"]),
    (TRAIN, ["CONFIG", "--cfg-options", "train_dataloader.dataset.data_root=no/data"],
     ["no/data", "data_root", str(ROOT)]),
    (TRAIN, ["CONFIG", "--cfg-options", "model.backbone.upsample_cfg.type=DeconvModuel"],
     ["DeconvModuel", "did you mean 'DeconvModule'"]),
    (TRAIN, ["CONFIG", "--cfg-options", "model.backbone.base_chanels=8"], ["base_chanels"]),
    (TRAIN, ["CONFIG", "--cfg-options", "model.backbone.upsample_cfg.type=PixelDCL"],
     ["kernel_size", "4"]),
    (TRAIN, ["CONFIG", "--cfg-options", "train_cfg=None"], ["no train_cfg"]),
    (TRAIN, ["CONFIG", "--resume", "no/such.pth"], ["no/such.pth"]),
    (TRAIN, ["CONFIG", "--resume", "EVIL"], ["evil.pth", "system"]),
    (TRAIN, ["CONFIG", "--cfg-options", "load_from=no/such.pth"], ["load_from", "no/such.pth"]),
    (TEST, ["CONFIG", "no/such/checkpoint.pth"], ["no/such/checkpoint.pth", str(ROOT)]),
    (TEST, ["CONFIG", "EVIL"], ["evil.pth", "system"]),
    (TEST, ["CONFIG", "NOTHING"], ["of another model", "backbone.encoder"]),
    (TEST, ["CONFIG", "NOTHING", "--tta", "--cfg-options", "tta_model=None"], ["tta_model"]),
    (TEST, ["CONFIG", "NOTHING", "--out", "FULL"], ["--out", "--overwrite"]),
    (TEST, ["CONFIG", "NOTHING", "--show-dir", "FULL"], ["--show-dir", "--overwrite"]),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "args", "words"), USER_ERRORS)
def test_user_errors_are_one_line(
    tool: Path, args: list[str], words: list[str], tiny_config: Path, main: Run, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    torch.save({"state_dict": {}, "meta": Evil(tmp_path / "executed")}, tmp_path / "full/evil.pth")
    torch.save({"state_dict": {"other": torch.ones(1)}}, tmp_path / "nothing.pth")
    names = {
        "CONFIG": tiny_config,
        "EVIL": tmp_path / "full/evil.pth",
        "NOTHING": tmp_path / "nothing.pth",
        "FULL": tmp_path / "full",
    }
    result = main(tool, *(names.get(arg, arg) for arg in args), "--work-dir", tmp_path / "work")
    assert_user_error(result, *words)
    assert not (tmp_path / "executed").exists()


def test_a_user_error_of_the_real_command(tiny_config: Path, run_tool: Run) -> None:
    root = "train_dataloader.dataset.data_root=no/.cache/photo_mosaic"
    result = run_tool(TRAIN, tiny_config, "--cfg-options", root)
    assert_user_error(result, "no/.cache/photo_mosaic", "tools/dataset_converters/photo_mosaic.py")
    assert len(result.stderr.splitlines()) == 1


def test_commands_are_needed_to_change_how_checkpoints_load() -> None:
    """Importing the package does not; nor do other tests leave the change behind."""
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    loader = CheckpointLoader._get_checkpoint_loader("a.pth")
    assert loader.__module__ == "mmengine.runner.checkpoint"


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_testing_writes_maps_and_pictures(config: Path, trained: Path, run_tool: Run, tmp_path: Path) -> None:
    out, show, work_dir = (tmp_path / name for name in ("out", "show", "work"))
    result = run_tool(
        TEST, config, trained / "iter_12.pth", "--out", out, "--show-dir", show,
        "--work-dir", work_dir, PYTHONPATH=str(config.parent),
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    maps = sorted(out.glob("*.png"))
    assert [file.stem for file in maps] == ["val_0", "val_1", "val_2"]
    labels = np.stack([cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in maps])
    assert labels.shape == (3, 32, 32)
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert len(list(show.rglob("*.png"))) == 3
    expected = reports.read_scalars(trained)[1][12]["mIoU"]
    assert f"mIoU: {expected:.4f}" in result.stdout
    (scores,) = work_dir.glob("*/*.json")
    assert result.stdout.splitlines()[-1].startswith("wrote ")
    assert all(path.name in result.stdout.splitlines()[-1] for path in (scores, out, show))


def test_testing_with_augmentation(tiny_config: Path, trained: Path, main: Run, tmp_path: Path) -> None:
    before = tiny_config.read_text()
    result = main(TEST, tiny_config, trained / "iter_12.pth", "--tta", "--work-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert tiny_config.read_text() == before  # The work dir's config stays that of the training.
    assert "mIoU: " in result.stdout
    # The mean over flipped images is another prediction.
    expected = reports.read_scalars(trained)[1][12]["mIoU"]
    assert f"mIoU: {expected:.4f}" not in result.stdout


def test_a_config_of_mmseg_trains_by_overrides_alone(tiny_data: Path, run_tool: Run, tmp_path: Path) -> None:
    """Mixed precision on CPU, SyncBN, RepeatDataset and data workers come along."""
    data = {
        "data_root": tiny_data,
        "type": "BaseSegDataset",
        "img_suffix": ".jpg",
        "seg_map_suffix": ".png",
        "data_prefix.img_path": "JPEGImages",
        "data_prefix.seg_map_path": "SegmentationClass",
        "metainfo.classes": "(a,b,c)",
    }
    options = [
        f"{prefix}.{key}={value}"
        for prefix in ("train_dataloader.dataset.dataset", "val_dataloader.dataset")
        for key, value in data.items()
    ]
    result = run_tool(
        TRAIN, "mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py", "--amp", "--seed", 3, "--deterministic",
        "--work-dir", tmp_path, "--cfg-options", *options,
        "train_dataloader.num_workers=1", "val_dataloader.num_workers=0",
        "val_dataloader.persistent_workers=False", "val_dataloader.dataset.pipeline.1.scale=(64,64)",
        "train_dataloader.dataset.dataset.pipeline.2.scale=(64,64)",
        "train_cfg.max_iters=2", "train_cfg.val_interval=2",
        "model.backbone.base_channels=4", "model.decode_head.in_channels=4",
        "model.decode_head.channels=4", "model.auxiliary_head.in_channels=8",
        "model.auxiliary_head.channels=4", "model.decode_head.num_classes=3",
        "model.auxiliary_head.num_classes=3", "model.backbone.upsample_cfg.type=DeconvModule",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    checkpoint = load_checkpoint(tmp_path / "iter_2.pth")
    assert checkpoint["meta"]["seed"] == 3
    assert "random_state" in checkpoint
    saved = Config.fromfile(tmp_path / "unet-s5-d16_fcn_4xb4-40k_drive-64x64.py")
    assert saved.optim_wrapper.type == "BFloat16OptimWrapper"
    assert saved.model.decode_head.norm_cfg.type == "BN"
    assert result.stdout.splitlines()[-1].startswith("wrote ")


@pytest.mark.slow
def test_two_processes_train_on_cpu(tiny_config: Path, run_tool: Run, tmp_path: Path) -> None:
    def run(*args: object) -> subprocess.CompletedProcess[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return run_tool(
            "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port,
            TRAIN, tiny_config, "--launcher", "pytorch", "--work-dir", tmp_path / "work", *args,
        )  # fmt: skip

    result = run("--cfg-options", "train_cfg.max_iters=6")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "gloo" in result.stdout
    assert result.stdout.count("\nwrote ") == 1
    result = run("--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "iter_6.pth" in result.stdout
    train, val = reports.read_scalars(tmp_path / "work")
    assert list(train) == list(range(1, 13))
    assert list(val) == [6, 12]
    assert train[12]["loss"] < train[1]["loss"]
    assert not (ROOT / ".dist_test").exists()
