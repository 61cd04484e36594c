"""IoU and Boundary IoU of a model on a config's data, class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from mmseg.models.segmentors import EncoderDecoder
from prettytable import PrettyTable

from ..engine.builder import scope_of
from ..engine.console import track
from ..evaluation.boundary_iou import BoundaryIoUMetric
from ..utils.cli import UsageError

__all__ = ["Scores", "comparison_table", "score"]


@dataclass(frozen=True)
class Scores:
    """What a model reaches on some data, in percent.

    Attributes:
        classes: Names.
        iou: IoU of each class, ``(classes,)``; NaN of one that neither labels nor predictions contain.
        boundary_iou: Boundary IoU likewise, see :class:`~pixeldcl_plugin.evaluation.BoundaryIoUMetric`.
    """

    classes: tuple[str, ...]
    iou: np.ndarray
    boundary_iou: np.ndarray

    def mean(self) -> dict[str, float]:
        """Return ``mIoU`` and ``mBIoU``, rounded as the metrics do."""
        pairs = (("mIoU", self.iou), ("mBIoU", self.boundary_iou))
        return {name: round(float(np.nanmean(values)), 2) for name, values in pairs}

    def by_class(self) -> dict[str, dict[str, float | None]]:
        """Return ``IoU`` and ``BIoU`` of every class by its name; None in place of NaN."""
        pairs = zip(self.iou, self.boundary_iou, strict=True)
        rounded = [[None if np.isnan(v) else round(float(v), 2) for v in pair] for pair in pairs]
        return {name: dict(IoU=a, BIoU=b) for name, (a, b) in zip(self.classes, rounded, strict=True)}


def score(model: EncoderDecoder, cfg: Config, split: str, description: str = "scoring") -> Scores:
    """Evaluate a model, with a bar on a terminal.

    Args:
        model: In evaluation mode, on the device to compute on.
        cfg: Its config.
        split: ``'val'`` or ``'test'``: the data of ``<split>_dataloader``, which must have labels.
        description: What stands beside the bar.

    Raises:
        UsageError: If an image has no label or one that is no class.
    """
    with DefaultScope.overwrite_default_scope(scope_of(cfg)):
        loader = Runner.build_dataloader(cfg[f"{split}_dataloader"], seed=0)
    meta = loader.dataset.metainfo
    metrics: list[Any] = [BoundaryIoUMetric(), IoUMetric()]
    for metric in metrics:
        metric.dataset_meta = meta
    for batch in track(loader, description, len(loader)):
        with torch.inference_mode():
            samples = [sample.to_dict() for sample in model.test_step(batch)]
        try:
            for metric in metrics:
                metric.process(batch, samples)
        except ValueError as error:
            raise UsageError(f"config: the {split} data cannot be scored: {error}") from error
    boundary = np.sum(metrics[0].results, axis=0)
    intersect, union = (sum(areas[:2][i] for areas in metrics[1].results).numpy() for i in (0, 1))
    with np.errstate(invalid="ignore"):
        return Scores(tuple(meta["classes"]), 100 * intersect / union, 100 * boundary[0] / boundary[1])


def comparison_table(before: Scores, after: Scores) -> str:
    """Return a table of two models' scores on the same data, class by class, the means last."""
    table = PrettyTable(["class", "IoU", "after", "±", "BIoU", "after ", "± "], align="r")
    table.align["class"] = "l"
    names = [*before.classes, "mean"]
    columns = [np.append(v, np.nanmean(v)) for s in (before, after) for v in (s.iou, s.boundary_iou)]
    for index, (name, *values) in enumerate(zip(names, *columns, strict=True)):
        iou, boundary, iou_after, boundary_after = values
        cells = [iou, iou_after, iou_after - iou, boundary, boundary_after, boundary_after - boundary]
        row = ["-" if np.isnan(v) else f"{v:{'+' if i % 3 == 2 else ''}.2f}" for i, v in enumerate(cells)]
        table.add_row([name, *row], divider=index == len(names) - 2)
    return table.get_string()
