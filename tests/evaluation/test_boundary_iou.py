"""Boundary IoU and the rate of isolated pixels as metrics, against slow references and through a run."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import METRICS as ROOT_METRICS
from mmseg.registry import METRICS
from scipy import ndimage

from pixeldcl_plugin.datasets.converters.mosaic_folder import MosaicParameters, write_mosaic
from pixeldcl_plugin.evaluation import BoundaryIoU, IsolatedPixels
from pixeldcl_plugin.evaluation.boundary_iou import boundary_distance, inner_boundary

ROOT = Path(__file__).parents[2]
VOID = 255
Run = Callable[..., subprocess.CompletedProcess[str]]


def reference_boundary(labels: np.ndarray, c: int, distance: int) -> np.ndarray:
    """One erosion for each class, word by word: the mask without its erosion, void being unknown."""
    mask = labels == c
    square = np.ones((3, 3), bool)
    eroded = ndimage.binary_erosion(mask | (labels == -1), square, iterations=distance, border_value=0)
    return mask & ~eroded


def reference_score(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int, ratio: float) -> np.ndarray:
    """IoU in percent of each class, NaN where it is nowhere, from maps with 255 as void."""
    intersect, union = np.zeros(classes), np.zeros(classes)
    for prediction, label in pairs:
        distance = max(1, round(ratio * math.sqrt(label.shape[0] ** 2 + label.shape[1] ** 2)))
        void = label == VOID
        known = [np.where(void, -1, values.astype(int)) for values in (prediction, label)]
        for c in range(classes):
            predicted, labelled = (reference_boundary(values, c, distance) for values in known)
            intersect[c] += (predicted & labelled).sum()
            union[c] += (predicted | labelled).sum()
    return np.divide(100 * intersect, union, out=np.full(classes, np.nan), where=union > 0)


def blobs(seed: int, shape: tuple[int, int], classes: int, void: float = 0.0) -> np.ndarray:
    """A label map of smooth random segments, with void segments."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal((classes, *shape)), (0, 3, 3))
    labels = noise.argmax(0)
    if void:
        hidden = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
        labels[hidden > np.quantile(hidden, 1 - void)] = VOID
    return labels.astype(np.uint8)


def sample(prediction: np.ndarray, label: np.ndarray) -> dict:
    """A data sample as the evaluator hands it to a metric."""
    maps = {"pred_sem_seg": prediction.astype(np.int64), "gt_sem_seg": label}
    return {key: {"data": torch.from_numpy(values)[None]} for key, values in maps.items()}


def evaluate(metric: BoundaryIoU | IsolatedPixels, pairs: list[tuple], classes: int) -> dict[str, float]:
    metric.dataset_meta = {"classes": [f"c{i}" for i in range(classes)]}
    for pair in pairs:
        metric.process(None, [sample(*pair)])
    return metric.evaluate(len(pairs))


@pytest.mark.parametrize("shape", [(31, 44), (7, 5), (1, 9), (64, 64)])
@pytest.mark.parametrize("distance", [1, 2, 5])
@pytest.mark.parametrize("void", [0.0, 0.3])
def test_boundary_equals_literal_erosion(shape: tuple[int, int], distance: int, void: float) -> None:
    labels = blobs(distance, shape, 4, void).astype(np.int16)
    labels[labels == VOID] = -1
    expected = np.any([reference_boundary(labels, c, distance) for c in range(4)], axis=0)
    assert np.array_equal(inner_boundary(labels, distance), expected)


@pytest.mark.parametrize("ratio", [0.02, 0.1])
@pytest.mark.parametrize("void", [0.0, 0.25])
def test_score_equals_reference(ratio: float, void: float) -> None:
    pairs = []
    for seed, shape in enumerate([(48, 60), (33, 41), (60, 48)]):
        label = blobs(seed, shape, 5, void)
        prediction = np.where(
            blobs(seed + 10, shape, 2) == 0, blobs(seed, shape, 5), blobs(seed + 20, shape, 5)
        )
        pairs.append((prediction, label))
    expected = reference_score(pairs, 6, ratio)  # the sixth class is nowhere
    assert math.isnan(expected[5])
    assert 0 < np.nanmin(expected) < np.nanmax(expected) < 100
    score = evaluate(BoundaryIoU(dilation_ratio=ratio), pairs, 6)
    assert score == {"mBIoU": pytest.approx(np.nanmean(expected), abs=0.005001)}


def test_squares_by_hand() -> None:
    """A frame of 2 pixels inside a 10x10 square has 64 pixels; half of the square is missed."""
    label = np.zeros((100, 100), np.uint8)
    label[30:40, 30:40] = 1
    prediction = label.copy()
    prediction[30:40, 35:40] = 0  # left: 10x5, whose frame of 2 leaves 6x1 out
    assert boundary_distance(100, 100, 0.015) == 2
    # Of the 64 pixels 32 lie in the left half: 4 rows of 5 and 6 rows of 2.
    table = reference_score([(prediction, label)], 2, 0.015)
    assert table[1] == pytest.approx(100 * 32 / (64 + 44 - 32))
    score = evaluate(BoundaryIoU(dilation_ratio=0.015), [(prediction, label)], 2)
    assert score["mBIoU"] == pytest.approx(table.mean(), abs=0.005001)


def test_perfect_and_disjoint_predictions() -> None:
    label = blobs(0, (40, 50), 3, void=0.2)
    other = np.where(label == VOID, 0, (label + 1) % 3).astype(np.uint8)
    right = np.where(label == VOID, 2, label)  # whatever it says where the label is void
    assert evaluate(BoundaryIoU(), [(right, label)], 3) == {"mBIoU": 100.0}
    assert evaluate(BoundaryIoU(), [(other, label)], 3) == {"mBIoU": 0.0}


def test_void_band_keeps_the_boundary_of_what_it_surrounds() -> None:
    """As in PASCAL VOC, whose objects all lie inside a band of void."""
    labels = np.zeros((60, 60), np.int16)
    labels[20:40, 20:40] = -1
    labels[22:38, 22:38] = 1
    boundary = inner_boundary(labels, 5)
    assert boundary[22:25, 22:38].all()  # the background is at most 5 rows away from rows 22 to 24
    assert not boundary[25:35, 25:35].any()
    assert not boundary[labels == -1].any()
    labels[labels == 0] = -1  # nothing but void around: no contour is known
    assert not inner_boundary(labels, 5).any()


def test_all_void_has_no_score(recwarn: pytest.WarningsRecorder) -> None:
    label = np.full((20, 20), VOID, np.uint8)
    assert math.isnan(evaluate(BoundaryIoU(), [(label * 0, label)], 2)["mBIoU"])
    assert all(math.isnan(v) for v in evaluate(IsolatedPixels(), [(label * 0, label)], 2).values())
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize(("size", "distance"), [((160, 120), 4), ((512, 512), 14), ((10, 10), 1)])
def test_distance(size: tuple[int, int], distance: int) -> None:
    assert boundary_distance(*size) == distance


def test_isolated_pixels_by_hand() -> None:
    label = np.zeros((10, 10), np.uint8)
    label[0, :] = VOID
    prediction = label * 0
    prediction[0, 3] = 1  # void: not counted
    prediction[5, 5] = prediction[9, 9] = 1
    label[3, 3:5] = 1  # two that touch are not isolated
    score = evaluate(IsolatedPixels(), [(prediction, label)], 2)
    assert score == {"isolated_pred": round(100 * 2 / 90, 4), "isolated_gt": 0.0}


@pytest.mark.parametrize("metric", [BoundaryIoU, IsolatedPixels])
def test_several_processes_agree_with_one(metric: type) -> None:
    """Results are sums of counts: gathered from processes, in any order, they give the same score."""
    pairs = [(blobs(i + 9, (30, 40), 3), blobs(i, (30, 40), 3, 0.1)) for i in range(4)]
    whole, first, second = metric(), metric(), metric()
    expected = evaluate(whole, pairs, 3)
    for part, rank in ((first, 0), (second, 1)):
        part.dataset_meta = {"classes": "abc"}
        for pair in pairs[rank::2]:
            part.process(None, [sample(*pair)])
    assert first.compute_metrics([*second.results, *first.results]) == expected


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((4, 4)), np.zeros((4, 5), np.uint8), r"\(4, 4\).*\(4, 5\)"),
        (np.full((4, 4), 3), np.zeros((4, 4), np.uint8), "prediction of .* holds 3"),
        (np.zeros((4, 4)), np.full((4, 4), 7, np.uint8), "label of .* holds 7: classes are 0 to 2"),
    ],
)
def test_wrong_maps_are_refused(prediction: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(BoundaryIoU(), [(prediction, label)], 3)


def test_missing_label_and_wrong_ratio_are_refused() -> None:
    metric = BoundaryIoU()
    metric.dataset_meta = {"classes": "ab"}
    with pytest.raises(ValueError, match="has no 'gt_sem_seg'"):
        metric.process(None, [{"pred_sem_seg": {"data": torch.zeros(1, 3, 3)}, "img_path": "a.png"}])
    for ratio in (0, -0.1, 1.5):
        with pytest.raises(ValueError, match=f"dilation_ratio .* got {ratio}"):
            BoundaryIoU(dilation_ratio=ratio)


def test_registered_where_configs_look() -> None:
    for name, cls in (("BoundaryIoU", BoundaryIoU), ("IsolatedPixels", IsolatedPixels)):
        assert ROOT_METRICS.get(name) is METRICS.get(name) is cls
    assert METRICS.build(dict(type="BoundaryIoU", dilation_ratio=0.01)).dilation_ratio == 0.01


def test_log_has_a_table_of_classes(caplog: pytest.LogCaptureFixture) -> None:
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        label = blobs(0, (20, 20), 2)
        evaluate(BoundaryIoU(), [(label, label)], 3)
    finally:
        logger.removeHandler(caplog.handler)
    lines = [line.replace(" ", "") for line in caplog.text.splitlines()]
    assert "|c0|100.0|" in lines
    assert "|c2|nan|" in lines


@pytest.mark.slow
def test_beside_iou_in_a_run_on_the_embedded_set(run_tool: Run, tmp_path: Path) -> None:
    """Three metrics from a config's validation, on a model of few channels after two iterations."""
    data = tmp_path / "photo_mosaic"
    write_mosaic(data, MosaicParameters(num_train=4, num_val=2, size=96, seed=3))
    base = ROOT / "configs/photo_mosaic/unet-s5-d16-c16-pixeldcl_fcn_1xb4-amp-800_photo-mosaic-160x160.py"
    config = tmp_path / "metrics.py"
    loader = f'dict(num_workers=0, persistent_workers=False, batch_size=2, dataset=dict(data_root="{data}"))'
    config.write_text(
        f'_base_ = ["{base}"]\n'
        "model = dict(backbone=dict(base_channels=4), decode_head=dict(in_channels=4, channels=4))\n"
        f"train_dataloader = val_dataloader = test_dataloader = {loader}\n"
        "train_cfg = dict(max_iters=2, val_interval=2)\n"
        "val_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']),\n"
        "    dict(type='BoundaryIoU'), dict(type='IsolatedPixels')]\n"
        "test_evaluator = val_evaluator\n"
    )
    result = run_tool(ROOT / "tools/train.py", config, "--work-dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    last = result.stdout.strip().splitlines()
    scores = next(line for line in last if line.startswith("Validation at iteration 2:"))
    for key in ("mIoU", "mBIoU", "isolated_pred", "isolated_gt"):
        assert f"{key} " in scores
    assert "boundary IoU, dilation ratio 0.02:" in (next((tmp_path / "run").glob("2*/*.log"))).read_text()
