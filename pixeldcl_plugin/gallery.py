"""Which images to compare models on, and where in them the models disagree."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from .cli import UsageError
from .segmenter import Segmenter

__all__ = [
    "Column",
    "Samples",
    "Window",
    "choose",
    "default_names",
    "disagreement",
    "disagreement_window",
]


@dataclass(frozen=True)
class Window:
    """A rectangle of an image: its top left corner, height and width."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """Return the part of a picture ``(H, W, ...)`` in the window."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Column:
    """One image of the gallery with its labels.

    Attributes:
        index: Place in the data set.
        name: What stands above it.
        image: RGB ``(H, W, 3)`` of dtype uint8.
        truth: Labels ``(H, W)`` with 255 for void; None where the data set has none.
        predictions: One label map ``(H, W)`` a model.
    """

    index: int
    name: str
    image: np.ndarray
    truth: np.ndarray | None
    predictions: tuple[np.ndarray, ...]


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


def disagreement(predictions: Sequence[np.ndarray], truth: np.ndarray | None = None) -> np.ndarray:
    """Count the pairs of models that disagree in each pixel; void pixels count nothing.

    Of a single model it is where that is wrong.

    Args:
        predictions: Label maps ``(H, W)``.
        truth: Labels ``(H, W)`` with 255 for void, or None.

    Returns:
        Integers ``(H, W)``.
    """
    counts = np.zeros(predictions[0].shape, np.int32)
    for one, other in combinations(predictions, 2):
        counts += one != other
    if len(predictions) == 1 and truth is not None:
        counts += predictions[0] != truth
    if truth is not None:
        counts[truth == 255] = 0
    return counts


def disagreement_window(counts: np.ndarray, share: float = 0.3) -> Window:
    """Find the window in which the models disagree the most.

    Args:
        counts: What :func:`disagreement` returns, ``(H, W)``.
        share: Height and width of the window as a share of the image's, of (0, 1].

    Returns:
        The window with the largest sum; the one nearest to the centre of several.

    Raises:
        ValueError: If the share is not within (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be within (0, 1], got {share}")
    height, width = (max(round(side * share), 1) for side in counts.shape)
    integral = cv2.integral(counts.astype(np.float64))
    sums = integral[height:, width:] - integral[:-height, width:]
    sums = sums - integral[height:, :-width] + integral[:-height, :-width]
    rows, columns = np.nonzero(sums == sums.max())
    middle = (np.array(sums.shape) - 1) / 2
    nearest = np.argmin((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2)
    return Window(int(rows[nearest]), int(columns[nearest]), height, width)


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
        indices: These images, in this order (negative ones count from the end); or None for those below.
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
            if not -total <= index < total:
                raise UsageError(f"--indices: {index} is beyond the {total} images of the data")
        return [[index % total] for index in indices]
    count = min(count, total)
    if seed is not None:
        return [[int(i)] for i in np.sort(np.random.default_rng(seed).choice(total, count, replace=False))]
    spread = np.unique(np.linspace(0, total - 1, min(max(pool, count), total)).round().astype(int))
    return [part.tolist() for part in np.array_split(spread, count)]


def default_names(configs: Sequence[str]) -> list[str]:
    """Name models by the parts of their configs' names in which they differ.

    ``unet-c16-deconv-k4_fcn.py`` and ``unet-c16-pixeldcl_fcn.py`` become ``deconv-k4`` and ``pixeldcl``; a
    name that has nothing which the others lack stays whole.
    """
    parts = [re.split(r"[-_]", Path(config).stem) for config in configs]
    common = set(parts[0]).intersection(*parts[1:])
    short = ["-".join(part for part in words if part not in common) for words in parts]
    return [name or Path(config).stem for name, config in zip(short, configs, strict=True)]
