"""The rate of isolated pixels, of predictions and of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..registry import register
from .checkerboard import isolated_pixels
from .samples import prediction_and_label

__all__ = ["IsolatedPixels", "IsolatedPixelsMetric"]


@register(METRICS, "IsolatedPixelsMetric", "IsolatedPixels")
class IsolatedPixelsMetric(BaseMetric):
    """The share of pixels whose label differs from those of all four neighbours.

    ``val_evaluator=[dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='IsolatedPixelsMetric')]``

    A prediction whose rate is far above that of the labels is speckled, as a checkerboard makes it
    (:func:`~pixeldcl_plugin.evaluation.checkerboard.isolated_pixels`). Where the label is void both maps
    are void.

    Args:
        ignore_index: The label of void pixels.
        collect_device: ``'cpu'`` or ``'gpu'``: where the results of several processes are gathered.
        prefix: Put before the names of the metrics.

    Returns:
        ``isolated_pred`` and ``isolated_gt``, in percent of the valid pixels of all images.

    Raises:
        ValueError: See :func:`~pixeldcl_plugin.evaluation.samples.prediction_and_label`.
    """

    def __init__(
        self, ignore_index: int = 255, collect_device: str = "cpu", prefix: str | None = None
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch."""
        for sample in data_samples:
            maps = prediction_and_label(sample, self.ignore_index, len(self.dataset_meta["classes"]))
            isolated = [int(isolated_pixels(torch.from_numpy(m), ignore_index=-1).sum()) for m in maps]
            self.results.append((*isolated, int((maps[1] >= 0).sum())))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Divide the sums of all images."""
        predicted, labelled, valid = np.sum(results, axis=0).tolist()
        rates = {"isolated_pred": predicted, "isolated_gt": labelled}
        return {name: round(100 * count / valid, 4) if valid else math.nan for name, count in rates.items()}


#: The name that it had first.
IsolatedPixels = IsolatedPixelsMetric
