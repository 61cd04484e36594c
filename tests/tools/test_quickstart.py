"""What `make train` runs, on fewer pictures and for fewer iterations."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_start_trains_evaluates_and_draws(tmp_path: Path) -> None:
    config = re.search(r"^CONFIG \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert config is not None
    data = tmp_path / "photo_mosaic"
    writer = [ROOT / "tools/dataset_converters/photo_mosaic.py", "--num-train", "16", "--num-val", "4"]
    options = [
        f"{part}_dataloader.{key}"
        for part in ("train", "val")
        for key in (f"dataset.data_root={data}", "num_workers=0", "persistent_workers=False")
    ]
    options += ["train_cfg.max_iters=4", "train_cfg.val_interval=4", "default_hooks.logger.interval=1"]
    trainer = [
        ROOT / "tools/train.py",
        ROOT / config[1],
        "--work-dir",
        tmp_path / "run",
        "--cfg-options",
        *options,
    ]
    for command in ([*writer, "--out", data], trainer):
        result = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
    assert re.search(r"mIoU \d+\.\d+.* mBIoU \d+\.\d+", result.stdout)
    for name in ("iter_4.pth", "curves.png", "predictions.png"):
        assert (tmp_path / "run" / name).is_file(), name
