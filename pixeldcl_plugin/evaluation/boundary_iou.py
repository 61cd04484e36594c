"""Boundary IoU of semantic segmentation.

Source: Cheng, Girshick, Dollár, Berg, Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation" (arXiv 2103.16562), Section 5, there for instances and panoptic segments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from mmengine.registry import METRICS
from prettytable import PrettyTable

from ..registry import register
from .samples import prediction_and_label

__all__ = ["BoundaryIoU", "BoundaryIoUMetric", "boundary_distance", "inner_boundary"]


def boundary_distance(height: int, width: int, dilation_ratio: float = 0.02) -> int:
    """Return the width of the boundary region in pixels: a share of the image's diagonal, at least 1."""
    return max(1, round(dilation_ratio * math.hypot(height, width)))


def inner_boundary(labels: np.ndarray, distance: int) -> np.ndarray:
    """Find the pixels of every segment that lie within a distance of its contour.

    For each class this is its mask without the mask eroded by a 3x3 square ``distance`` times: the pixels
    with another class, or the border of the image, at most ``distance`` steps away (diagonal ones count as
    one), as in the paper's code. Whether a contour runs through void is unknown: void counts as part of
    every segment when it is eroded, and as part of none afterwards. So an object inside a void
    band keeps the boundary that what lies beyond the band gives it.

    Args:
        labels: Classes, -1 for void; int16, shape ``(H, W)``.
        distance: In pixels, positive.

    Returns:
        Bool array ``(H, W)``.
    """
    # A class other than one's own within the window shows in the greatest or in the least label there:
    # two filters in place of one erosion for each class.
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    void = labels < 0
    greatest = cv2.dilate(labels, square)  # void, -1, is less than any class
    least = cv2.erode(np.where(void, np.int16(np.iinfo(np.int16).max), labels), square)
    boundary = (greatest != labels) | (least != labels)
    boundary[:distance] = boundary[-distance:] = True
    boundary[:, :distance] = boundary[:, -distance:] = True
    return boundary & ~void


@register(METRICS, "BoundaryIoUMetric", "BoundaryIoU")
class BoundaryIoUMetric(BaseMetric):
    """IoU of the inner boundary regions of prediction and label, by class and averaged.

    ``val_evaluator=[dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='BoundaryIoUMetric')]``

    Unlike the IoU it does not forgive a large object a ragged outline. As in IoUMetric, intersections and
    unions are summed over the whole set before they are divided, void pixels take no part, and
    classes that neither labels nor predictions contain are left out of the mean.

    Args:
        dilation_ratio: Width of the boundary region as a share of the image's diagonal; 0.02 in the paper
            (4 pixels at 160x120, 14 at 512x512).
        ignore_index: The label of void pixels.
        collect_device: ``'cpu'`` or ``'gpu'``: where the results of several processes are gathered.
        prefix: Put before the names of the metrics.

    Returns:
        ``mBIoU`` in percent; the log has a table of all classes.

    Raises:
        ValueError: If ``dilation_ratio`` is not within (0, 1), or see
            :func:`~pixeldcl_plugin.evaluation.samples.prediction_and_label`.
    """

    def __init__(
        self,
        dilation_ratio: float = 0.02,
        ignore_index: int = 255,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"dilation_ratio must be within (0, 1), got {dilation_ratio!r}")
        self.dilation_ratio = dilation_ratio
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch."""
        num_classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            prediction, label = prediction_and_label(sample, self.ignore_index, num_classes)
            height, width = label.shape
            distance = boundary_distance(height, width, self.dilation_ratio)
            self.results.append(_boundary_areas(prediction, label, distance, num_classes))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Divide the sums of all images."""
        intersect, union = np.sum(results, axis=0)
        with np.errstate(invalid="ignore"):
            values = 100 * intersect / union
        logger = MMLogger.get_current_instance()
        table = PrettyTable()
        table.add_column("Class", list(self.dataset_meta["classes"]))
        table.add_column("BIoU", values.round(2).tolist())
        print_log(f"boundary IoU, dilation ratio {self.dilation_ratio}:\n{table.get_string()}", logger)
        # All void: no class to average over, and no warning about it.
        mean = float(np.nanmean(values)) if union.any() else math.nan
        return {"mBIoU": round(mean, 2)}


def _boundary_areas(prediction: np.ndarray, label: np.ndarray, distance: int, num_classes: int) -> np.ndarray:
    """Return areas in pixels, int64 of shape (2, classes): intersections, then unions."""
    predicted, labelled = (inner_boundary(m, distance) for m in (prediction, label))
    both = predicted & labelled & (prediction == label)
    intersect, *areas = (
        np.bincount(values, minlength=num_classes)
        for values in (label[both], prediction[predicted], label[labelled])
    )
    return np.stack([intersect, sum(areas) - intersect])


#: The name that it had first.
BoundaryIoU = BoundaryIoUMetric
