"""Where models disagree about an image, and the window in which they do the most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

__all__ = ["Column", "Window", "disagreement", "disagreement_window"]


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
