"""Which images to compare models on, and where in them the models disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from ..utils.cli import UsageError
from ..visualization.disagreement import Column, disagreement
from .segmenter import Segmenter

__all__ = ["Samples", "choose"]


class Samples(Sequence[tuple[str, np.ndarray, np.ndarray | None]]):
    """Names, RGB images and labels of a config's data as its test pipeline loads them, before any resizing.

    Args:
        cfg: The config.
        split: ``'val'`` or ``'test'``.

    Raises:
        UsageError: If the data set is a wrapper of others.
    """

    def __init__(self, cfg: Config, split: str) -> None:
        init_default_scope(cfg.get("default_scope", "mmseg"))
        dataset = cfg[f"{split}_dataloader"]["dataset"]
        if "pipeline" not in dataset:
            kind = dataset.get("type")
            raise UsageError(f"config: the {split} data are wrapped in {kind!r}, which has no pipeline")
        self._dataset: Any = DATASETS.build(dataset)
        self._load = Compose([step for step in dataset["pipeline"] if str(step["type"]).startswith("Load")])

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        loaded = self._load(self._dataset.get_data_info(index))
        image = np.ascontiguousarray(loaded["img"][..., ::-1]).astype(np.uint8)
        return Path(loaded["img_path"]).stem, image, loaded.get("gt_seg_map")


def choose(
    samples: Samples,
    segmenters: Sequence[Segmenter],
    *,
    indices: Sequence[int] | None = None,
    count: int = 4,
    seed: int | None = None,
    pool: int = 100,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Column]:
    """Choose images and predict them.

    Args:
        samples: The data.
        segmenters: The models.
        indices: These images, in this order, counted from 0; or None for those below.
        count: So many others.
        seed: Drawn at random with this seed; or None for those on which the models disagree the most, one
            of every ``count``-th part of the data: neighbours in a video look alike.
        pool: The disagreement is looked for in about so many images, taken evenly from the data.
        report: Called with how many images are done and their number.

    Raises:
        UsageError: If the data are empty or an index is beyond them.
    """
    total = len(samples)
    if total == 0:
        raise UsageError("the data hold no image")
    parts = _candidates(total, indices, count, seed, pool)
    chosen = []
    done = 0
    for part in parts:
        columns = []
        for index in part:
            name, image, truth = samples[index]
            predictions = tuple(segmenter(image) for segmenter in segmenters)
            columns.append(Column(index, name, image, truth, predictions))
            done += 1
            report(done, sum(map(len, parts)))
        chosen.append(max(columns, key=lambda c: (disagreement(c.predictions, c.truth) > 0).mean()))
    return chosen


def _candidates(
    total: int, indices: Sequence[int] | None, count: int, seed: int | None, pool: int
) -> list[list[int]]:
    """Return groups of images, of each of which one is shown."""
    if indices is not None:
        for index in indices:
            if not 0 <= index < total:
                raise UsageError(f"--indices: {index} is none of the data's images, 0 to {total - 1}")
        return [[index] for index in indices]
    count = min(count, total)
    if seed is not None:
        return [[int(i)] for i in np.sort(np.random.default_rng(seed).choice(total, count, replace=False))]
    spread = np.unique(np.linspace(0, total - 1, min(max(pool, count), total)).round().astype(int))
    return [part.tolist() for part in np.array_split(spread, count)]
