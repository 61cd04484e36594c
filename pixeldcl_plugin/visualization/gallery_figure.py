"""Predictions of several models under the same images, as in Figs. 1, 7 and 8 of the paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle

from ..utils.label_maps import VOID_COLOR, colorize
from .disagreement import Column, Window, disagreement, disagreement_window

__all__ = ["add_legend", "draw", "draw_panel", "narrow_layout"]

_FRAME = "#ff00a8"  # in no palette of the data sets here


def draw(
    columns: Sequence[Column],
    names: Sequence[str],
    classes: Sequence[str],
    palette: np.ndarray,
    *,
    inset: float = 0.3,
    width: float = 2.6,
) -> Figure:
    """Draw image, ground truth and the predictions below each other, one image a column.

    Each panel carries the magnified window of the largest disagreement, in the corner away from it.

    Args:
        columns: The images; of any sizes.
        names: One a model.
        classes: Their names.
        palette: RGB colours ``(classes, 3)`` of dtype uint8.
        inset: Height and width of the window as a share of the image's; 0 for no insets.
        width: Of a column on average, in inches.

    Raises:
        ValueError: If there are no columns, or one has not as many predictions as there are names.
    """
    if not columns:
        raise ValueError("a gallery needs at least one image")
    for column in columns:
        if (found := len(column.predictions)) != len(names):
            raise ValueError(f"image {column.name} has {found} predictions for the names {list(names)}")
    with_truth = any(column.truth is not None for column in columns)
    titles = ["image", *(["ground truth"] if with_truth else []), *names]
    # All pictures are equally high: the columns are as wide as that makes them, and on average as told.
    shares = [column.image.shape[1] / column.image.shape[0] for column in columns]
    width *= len(columns)
    figure = Figure(
        figsize=(width + 0.4, width / sum(shares) * len(titles) + 0.9), dpi=150, layout=narrow_layout()
    )
    table = figure.subplots(len(titles), len(columns), squeeze=False, width_ratios=shares)
    for x, column in enumerate(columns):
        window = None
        if inset:
            window = disagreement_window(disagreement(column.predictions, column.truth), inset)
        maps = [*([column.truth] if with_truth else []), *column.predictions]
        panels = [column.image, *(None if m is None else colorize(m, palette) for m in maps)]
        for axes, panel in zip(table[:, x], panels, strict=True):
            draw_panel(axes, panel, window)
        table[0, x].set_title(f"{column.name}  [{column.index}]", fontsize=9)
    for axes, title in zip(table[:, 0], titles, strict=True):
        axes.set_ylabel(title, fontsize=11)
    shown = [m for column in columns for m in (column.truth, *column.predictions) if m is not None]
    add_legend(figure, shown, classes, palette, ncols=int(width / 1.1))
    return figure


def narrow_layout() -> ConstrainedLayoutEngine:
    """Return a layout that leaves little between pictures."""
    return ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)


def draw_panel(axes: Axes, panel: np.ndarray | None, window: Window | None = None) -> None:
    """Draw a picture ``(H, W, 3)`` pixel by pixel, with the part in the window enlarged; nothing for None."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if panel is None:
        return
    axes.imshow(panel, interpolation="nearest")
    if window is None:
        return
    height, width = panel.shape[:2]
    corner = (window.left - 0.5, window.top - 0.5)
    axes.add_patch(
        Rectangle(corner, window.width, window.height, fill=False, edgecolor=_FRAME, linewidth=1.2)
    )
    # In the opposite corner the magnified window does not cover the original, which is less than half.
    right = window.left + window.width / 2 < width / 2
    below = window.top + window.height / 2 < height / 2
    side = 0.42
    place = axes.inset_axes((1 - side if right else 0, 0 if below else 1 - side, side, side))
    place.imshow(window.cut(panel), interpolation="nearest", aspect="auto")
    place.set(xticks=[], yticks=[])
    for spine in place.spines.values():
        spine.set(edgecolor=_FRAME, linewidth=1.6)


def add_legend(
    figure: Figure, maps: Sequence[np.ndarray], classes: Sequence[str], palette: np.ndarray, ncols: int
) -> None:
    """Name below a figure the colours of the labels in maps ``(H, W)``; beyond the classes is void.

    Args:
        figure: With a constrained layout.
        maps: Those that are shown.
        classes: Names.
        palette: RGB colours ``(classes, 3)`` of dtype uint8.
        ncols: Names beside each other, at most.
    """
    colors = {
        classes[i] if i < len(classes) else "void": palette[i] if i < len(classes) else VOID_COLOR
        for i in sorted({int(value) for labels in maps for value in np.unique(labels)})
    }
    handles = [
        Patch(facecolor="#" + bytes(map(int, color)).hex(), edgecolor="0.5", label=name)
        for name, color in colors.items()
    ]
    ncols = max(min(len(handles), ncols), 1)
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, fontsize=9, frameon=False)
