"""The curves and predictions that a training leaves."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample

from pixeldcl_plugin.visualization import reports


def write_run(work_dir: Path, name: str, records: list[dict], tail: str = "") -> None:
    folder = work_dir / name / "vis_data"
    folder.mkdir(parents=True)
    text = "\n".join(json.dumps(record) for record in records)
    (folder / "scalars.json").write_text(f"{text}\n{tail}")


def test_scalars_of_resumed_runs_join(tmp_path: Path) -> None:
    """Killed after 30, resumed from 20; before both, a run that was started anew at 10."""
    old = [{"loss": 9.0, "step": step} for step in (10, 20, 30, 40)]
    first = [{"loss": 3.0, "step": 10}, {"loss": 2.0, "step": 20}, {"mIoU": 40.0, "step": 20}]
    resumed = [{"loss": 1.0, "step": 30}, {"loss": 0.5, "step": 40}, {"mIoU": 60.0, "step": 40}]
    write_run(tmp_path, "20260101_000000", old)
    write_run(tmp_path, "20260101_000100", [*first, {"loss": 7.0, "step": 30}], '{"loss": 6.0, "st')
    write_run(tmp_path, "20260101_000200", resumed)
    # Killed within its first line: it has replaced nothing.
    write_run(tmp_path, "20260101_000300", [], '{"loss": 0.1, "st')
    train, val = reports.read_scalars(tmp_path)
    assert {step: record["loss"] for step, record in train.items()} == {
        10: 3.0, 20: 2.0, 30: 1.0, 40: 0.5,
    }  # fmt: skip
    assert {step: record["mIoU"] for step, record in val.items()} == {20: 40.0, 40: 60.0}


@pytest.mark.parametrize(
    "records",
    [
        [{"loss": 1.0, "step": 1}],
        [{"mIoU": 40.0, "aAcc": 80.0, "time": 1.0, "step": 1}],
        [{"loss": -1.0, "step": 1}, {"psnr": 20.0, "ssim": 0.5, "step": 1}],
    ],
)
def test_curves_are_drawn_for_any_metrics(tmp_path: Path, records: list[dict]) -> None:
    write_run(tmp_path, "20260101_000000", records)
    assert reports.plot_curves(tmp_path, tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 10


def test_no_curves_of_nothing(tmp_path: Path) -> None:
    assert not reports.plot_curves(tmp_path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


class Perfect(torch.nn.Module):
    """Predicts the third class everywhere, or nothing that is a segmentation."""

    def __init__(self, segments: bool = True) -> None:
        super().__init__()
        self.segments = segments

    def test_step(self, data: dict) -> list[SegDataSample]:
        """One prediction."""
        sample = data["data_samples"][0]
        if self.segments:
            sample.pred_sem_seg = PixelData(data=torch.full((1, 32, 32), 2))
        return [sample]


def dataset(cfg: Config, labels: bool) -> BaseSegDataset:
    settings = dict(cfg.val_dataloader.dataset)
    if not labels:
        settings["pipeline"] = [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]
    with DefaultScope.overwrite_default_scope("mmseg"):
        return DATASETS.build(settings)


@pytest.mark.parametrize("labels", [True, False])
def test_predictions_are_drawn_beside_labels(tiny_config: Path, tmp_path: Path, labels: bool) -> None:
    data = dataset(Config.fromfile(tiny_config), labels)
    assert reports.plot_predictions(Perfect(), data, tmp_path / "p.png", count=2)
    picture = cv2.imread(str(tmp_path / "p.png"))
    blue = np.all(picture == (200, 0, 0), axis=2).mean()
    void = np.all(picture == 224, axis=2).mean()
    red = np.all(picture == (0, 0, 200), axis=2).mean()
    assert blue > 0.2  # All of the column of predictions.
    assert (void > 0.001, red > 0.01) == (labels, labels)
    rows, columns = picture.shape[:2]
    assert columns / rows == pytest.approx(9 / 7 if labels else 6 / 7, rel=0.02)


def test_images_of_any_shape_leave_no_gaps() -> None:
    shapes = ((40, 80), (80, 40), (60, 60))
    rows = [(np.zeros((*shape, 3), np.uint8), *[np.zeros(shape, np.uint8)] * 2) for shape in shapes]
    figure = reports._draw_rows(rows, ["a", "b"], np.zeros((2, 3), np.uint8))
    figure.draw_without_rendering()
    boxes = [axes.get_position() for axes in figure.axes]
    down = [above.y0 - below.y1 for above, below in zip(boxes, boxes[3:], strict=False)]
    right = [right.x0 - left.x1 for left, right in zip(boxes[::3], boxes[1::3], strict=True)]
    assert max(down) * figure.get_figheight() < 0.3
    assert max(right) * figure.get_figwidth() < 0.3


def test_no_predictions_of_a_model_that_does_not_segment(tiny_config: Path, tmp_path: Path) -> None:
    data = dataset(Config.fromfile(tiny_config), labels=True)
    assert not reports.plot_predictions(Perfect(segments=False), data, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
