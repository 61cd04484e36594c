"""The figure of a checkerboard analysis: what the measures see, model by model, as in the paper's Fig. 4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from ..evaluation.checkerboard import power_spectrum, radial_frequencies
from ..utils.files import written_whole
from .checkerboard import Analysis

__all__ = ["print_table", "write_figure"]

#: Side of the part that is shown enlarged, in pixels of the image.
_ZOOM = 40
#: The least Nyquist energy that the figure tells from zero.
_FLOOR = 1e-3
_PI_TICKS = ([-0.5, 0, 0.5], [r"$-\pi$", "0", r"$\pi$"])


def write_figure(
    analyses: Sequence[Analysis],
    path: Path,
    image: np.ndarray | None = None,
    image_profile: Sequence[float] | None = None,
) -> None:
    """Draw one row a model: feature map, its spectrum, enlarged logits, kernels; below, the measures.

    Args:
        analyses: Of models on the same images, or of layers by themselves.
        path: The PNG file to write.
        image: The image on which the models are shown, RGB ``(H, W, 3)``.
        image_profile: Azimuthal profile of the images, to compare with.
    """
    models = image is not None
    rows = len(analyses)
    figure = Figure(
        figsize=(15, 3.4 * rows + 4), dpi=110, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    )
    grid = figure.add_gridspec(2, 1, height_ratios=[3.4 * rows, 4])
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    table = upper.subplots(rows, 4, squeeze=False)
    corner = _zoom_corner([a.labels for a in analyses if a.labels is not None])
    classes = _contested_class(analyses, corner)
    for index, ((feature, spectrum, output, kernels), analysis) in enumerate(
        zip(table, analyses, strict=True)
    ):
        _draw_feature(feature, analysis, corner)
        # In the colour of its line in the panels below.
        feature.set_ylabel(analysis.name, fontsize=12, fontweight="bold", color=f"C{index}")
        _draw_spectrum(spectrum, analysis.feature)
        if analysis.logits is not None and classes < len(analysis.logits):
            part = _part(analysis.logits[classes], corner)
            _draw_map(output, part, f"logits of class {classes}, the same part")
        elif analysis.constant is not None:
            index, values = _strongest(analysis.constant)
            _draw_map(output, values, f"response to a constant, channel {index}")
        _draw_kernels(kernels, analysis.kernels, "not linear" if analysis.upsamplers else "no upsampler")
    panels = lower.subplots(1, 4 if models else 3)
    if image is not None:
        panels[0].imshow(image)
        place = (corner[1] - 0.5, corner[0] - 0.5)
        panels[0].add_patch(Rectangle(place, _ZOOM, _ZOOM, fill=False, edgecolor="w", linewidth=2))
        panels[0].set(title="image, and the part enlarged", xticks=[], yticks=[])
    _draw_profiles(panels[-3], analyses, image_profile)
    _draw_spreads(panels[-2], analyses)
    _draw_energies(panels[-1], analyses)
    with written_whole(path) as part:
        figure.savefig(part)


def _zoom_corner(labels: Sequence[np.ndarray]) -> tuple[int, int]:
    """Find the top left corner of the part with the most boundaries in all predictions together."""
    if not labels:
        return 0, 0
    edges: np.ndarray = np.zeros(labels[0].shape, np.float32)
    for values in labels:
        edges[1:] += values[1:] != values[:-1]
        edges[:, 1:] += values[:, 1:] != values[:, :-1]
    window = min(_ZOOM, edges.shape[0]), min(_ZOOM, edges.shape[1])
    density = F.avg_pool2d(torch.from_numpy(edges)[None], window, stride=1)[0]
    row, column = divmod(int(density.argmax()), density.size(1))
    return row, column


def _contested_class(analyses: Sequence[Analysis], corner: tuple[int, int]) -> int:
    """Return the class that covers the share of the enlarged part nearest to one half, in all predictions."""
    parts = [_part(a.labels, corner).ravel() for a in analyses if a.labels is not None]
    if not parts:
        return 0
    counts = np.bincount(np.concatenate(parts))
    return int(np.abs(counts / counts.sum() - 0.5).argmin())


def _part(values: Any, corner: tuple[int, int], scale: float = 1.0) -> Any:
    """Cut the enlarged part out of a map whose size is ``scale`` times the image's."""
    row, column, size = (round(v * scale) for v in (*corner, _ZOOM))
    return values[..., row : row + size, column : column + size]


def _strongest(maps: Tensor) -> tuple[int, Tensor]:
    """Return the channel of the greatest variance, and its index."""
    index = int(maps.flatten(1).var(1).argmax())
    return index, maps[index]


def _draw_map(axes: Axes, values: Tensor, title: str) -> None:
    shown = axes.imshow(values.numpy(), cmap="viridis", interpolation="nearest")
    axes.set(title=title, xticks=[], yticks=[])
    axes.figure.colorbar(shown, ax=axes, shrink=0.8)


def _draw_feature(axes: Axes, analysis: Analysis, corner: tuple[int, int]) -> None:
    index, values = _strongest(analysis.feature)
    # Features may be smaller than the image; padding at their far ends does not move the part.
    reference = analysis.feature if analysis.labels is None else analysis.labels
    scale = 2.0 ** round(math.log2(values.shape[-1] / reference.shape[-1]))
    title = f"last upsampler's output, channel {index}" if analysis.upsamplers else f"logits of class {index}"
    _draw_map(axes, _part(values, corner, scale), title)


def _draw_spectrum(axes: Axes, feature: Tensor) -> None:
    power = power_spectrum(feature[None])[0].mean(0)
    decibels = 10 * torch.log10(power / power.mean() + 1e-12)
    shown = axes.imshow(
        torch.fft.fftshift(decibels).numpy(),
        cmap="magma",
        vmin=-50,
        vmax=30,
        extent=(-0.5, 0.5, 0.5, -0.5),
        aspect="equal",
    )
    axes.set(title="its spectrum, mean of the channels")
    axes.set_xticks(*_PI_TICKS)
    axes.set_yticks(*_PI_TICKS)
    axes.figure.colorbar(shown, ax=axes, shrink=0.8, label="dB over the mean")


def _draw_kernels(axes: Axes, kernels: Tensor | None, why: str) -> None:
    """Draw the kernels of all phases as blocks of one map, in the order of its pixels; or say why not."""
    axes.set(xticks=[], yticks=[])
    if kernels is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"{why}:\nno kernels", ha="center", va="center", transform=axes.transAxes)
        return
    axes.set_title("kernel of each phase")
    scale, size = kernels.size(0), kernels.size(-1)
    # One row and column of nothing between blocks.
    blocks = F.pad(kernels, (0, 1, 0, 1), value=math.nan)
    mosaic = blocks.permute(0, 2, 1, 3).reshape(scale * (size + 1), scale * (size + 1))[:-1, :-1]
    shown = axes.imshow(mosaic.numpy(), cmap="viridis", vmin=0, interpolation="nearest")
    axes.figure.colorbar(shown, ax=axes, shrink=0.8, label="magnitude (RMS of channels)")
    axes.spines[:].set_visible(False)
    if scale == 2:
        middles = [(size - 1) / 2 + phase * (size + 1) for phase in range(2)]
        axes.set_xticks(middles, ["even columns", "odd columns"])
        axes.set_yticks(middles, ["even rows", "odd rows"], rotation=90, va="center")
        axes.tick_params(length=0)


def _draw_profiles(axes: Axes, analyses: Sequence[Analysis], image_profile: Sequence[float] | None) -> None:
    for analysis in analyses:
        last = analysis.upsamplers[-1].azimuthal_profile if analysis.upsamplers else None
        profile = last or analysis.output["azimuthal_profile"]
        axes.semilogy(radial_frequencies(len(profile)).numpy() * 2, profile, label=analysis.name)
    if image_profile is not None:
        frequencies = radial_frequencies(len(image_profile)).numpy() * 2
        axes.semilogy(frequencies, image_profile, color="0.4", linestyle="--", label="the images")
    axes.set(
        title="last upsampler's output: power",
        xlabel=r"radial frequency / $\pi$",
        ylabel="over the mean power",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def _draw_by_upsampler(axes: Axes, analyses: Sequence[Analysis], values: Sequence[list[float]]) -> None:
    """Draw one line a model over its upsamplers; of layers by themselves one point each, by name."""
    count = max(map(len, values))
    if count <= 1:
        for index, line in enumerate(values):
            axes.plot([index] * len(line), line, marker="o", markersize=9)
        axes.set_xticks(range(len(values)), [a.name for a in analyses], rotation=15 if len(values) > 3 else 0)
        axes.set_xlim(-0.5, len(values) - 0.5)
    else:
        for line in values:
            axes.plot(range(1, len(line) + 1), line, marker="o")
        axes.set_xticks(range(1, count + 1))
        axes.set(xlabel="upsampler, in the order of running", xlim=(0.6, count + 0.4))
    axes.grid(alpha=0.3)


def _draw_spreads(axes: Axes, analyses: Sequence[Analysis]) -> None:
    spreads = [[u.phase_spread for u in analysis.upsamplers] for analysis in analyses]
    _draw_by_upsampler(axes, analyses, [[math.nan if v is None else v for v in line] for line in spreads])
    axes.set(title="phase spread on a constant", ylim=(-0.03, 1.03), ylabel="0: free of checkerboard")


def _draw_energies(axes: Axes, analyses: Sequence[Analysis]) -> None:
    energies = [[_energy(asdict(u)) for u in analysis.upsamplers] for analysis in analyses]
    lines = [[math.nan if v is None else max(v, _FLOOR) for v in line] for line in energies]
    _draw_by_upsampler(axes, analyses, lines)
    axes.set_yscale("log")
    axes.axhline(1, color="0.4", linestyle="--", linewidth=1)
    axes.set(title="Nyquist energy of the output", ylabel="over the spectrum around it")


def _energy(measures: Mapping[str, Any]) -> float | None:
    """Return the Nyquist energy of a map that is large enough to have one."""
    ratios = measures["nyquist_ratios"]
    return None if ratios is None else float(np.mean(ratios))


def print_table(analyses: Sequence[Analysis], console: Console | None = None) -> None:
    """Print the measures of every upsampler, and of the logits; 80 columns are enough."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for column in ("map", "channels"):
        table.add_column(column, no_wrap=True)
    for column in ("phase\nspread", "Nyquist\nenergy", "phase\nvariance", "isolated"):
        table.add_column(column, justify="right", no_wrap=True)
    for analysis in analyses:
        maps = [
            (f"{index}", f"{u.in_channels} > {u.out_channels}", asdict(u))
            for index, u in enumerate(analysis.upsamplers, 1)
        ]
        if analysis.logits is not None:
            maps.append(("logits", str(len(analysis.logits)), analysis.output))
        for index, (name, channels, values) in enumerate(maps):
            measures = (values.get("phase_spread"), _energy(values), values["phase_variance_share"])
            cells = ["" if value is None else f"{value:.3g}" for value in measures]
            isolated = values.get("isolated_pixel_rate")
            cells.append("" if isolated is None else f"{isolated:.3%}")
            first = "" if index else analysis.name
            table.add_row(first, name, channels, *cells, end_section=index == len(maps) - 1)
    (console or Console()).print(table)
