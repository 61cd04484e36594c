"""Pictures of a VAE: labelled grids, and the hook that draws reconstructions in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..registry import register
from ..utils.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ReconstructionHook", "draw_grid", "plot_reconstructions", "to_uint8"]


def to_uint8(images: Tensor) -> np.ndarray:
    """Turn pictures ``(..., 3, H, W)`` in [0, 1] into ``(..., H, W, 3)`` of uint8."""
    return (images.detach().cpu().float().clamp(0, 1) * 255).round().byte().movedim(-3, -1).numpy()


def draw_grid(rows: Sequence[Tensor], labels: Sequence[str], title: str = "", zoom: int = 2) -> Figure:
    """Draw rows of pictures with a label before each, every pixel as ``zoom`` by ``zoom`` pixels.

    Interpolating them would blur the very pattern that the pictures are looked at for.

    Args:
        rows: ``(n, 3, H, W)`` in [0, 1], all of the same shape.
        labels: A text for each row; an empty one joins it to the row above.
        title: Above the grid.
        zoom: A positive integer.

    Raises:
        ValueError: If there are no rows, or their number or shapes do not fit.
    """
    if not rows or len(rows) != len(labels) or len({row.shape for row in rows}) != 1:
        raise ValueError(
            f"rows must be pictures of one shape with a label each, got {[tuple(r.shape) for r in rows]} "
            f"and {list(labels)}"
        )
    panels = to_uint8(torch.stack(list(rows)))
    count, columns, height, width, _ = panels.shape
    gap = 2
    framed = np.pad(panels, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    canvas = framed.swapaxes(1, 2).reshape(count * (height + gap), columns * (width + gap), 3)[:-gap, :-gap]
    canvas = canvas.repeat(zoom, 0).repeat(zoom, 1)

    from matplotlib.figure import Figure

    dpi = 100
    margin, head = 9 * max(map(len, labels)) + 16, 30 if title else 0
    full_height, full_width = canvas.shape[0] + head, canvas.shape[1] + margin
    figure = Figure(figsize=(full_width / dpi, full_height / dpi), dpi=dpi)
    figure.figimage(canvas, xo=margin, yo=0)
    for row, label in enumerate(labels):
        following = next((k for k in range(row + 1, count) if labels[k]), count)
        middle = (row + following) / 2 * (height + gap) * zoom
        if label:
            figure.text(
                (margin - 8) / full_width, 1 - (head + middle) / full_height, label, ha="right", va="center"
            )
    if title:
        figure.text(0.5, 1 - head / 2 / full_height, title, ha="center", va="center")
    return figure


def plot_reconstructions(model: BaseModel, dataset: Any, path: str | Path, count: int = 10) -> bool:
    """Draw pictures chosen evenly from a dataset, their reconstructions and as many samples.

    Args:
        model: A :class:`~pixeldcl_plugin.models.vae.VAE`; put into evaluation mode.
        dataset: Items as :class:`~pixeldcl_plugin.datasets.faces.FaceDataset` gives them.
        path: The PNG file to write.
        count: At most so many pictures.

    Returns:
        False, and no file, if the dataset is empty.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    if not len(indices):
        return False
    model.eval()
    items = [dataset[int(index)] for index in indices]
    images = torch.stack([item["inputs"] for item in items]).float() / 255
    with torch.no_grad():
        outputs = model.test_step(pseudo_collate(items))
    reconstructions = torch.stack([output.reconstruction.cpu() for output in outputs])
    samples = torch.stack([output.prior_sample.cpu() for output in outputs])
    with written_whole(Path(path)) as part:
        draw_grid([images, reconstructions, samples], ["image", "reconstruction", "sample"]).savefig(part)
    return True


@register(HOOKS)
class ReconstructionHook(Hook):
    """Draws picture and reconstruction side by side for ``tools/test.py --show`` and ``--show-dir``.

    Args:
        draw: Whether to draw at all; the tool sets it, as it does those below.
        show: In a window, instead of into the visualizer's folder.
        wait_time: Seconds that a window stays.
    """

    def __init__(self, draw: bool = False, show: bool = False, wait_time: float = 0.0) -> None:
        self.draw = draw
        self.show = show
        self.wait_time = wait_time

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Mapping[str, Any] | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw a batch."""
        if not self.draw or data_batch is None or outputs is None:
            return
        for image, sample in zip(data_batch["inputs"], outputs, strict=True):
            pair = np.concatenate([to_uint8(image.float() / 255), to_uint8(sample.reconstruction)], axis=1)
            name = Path(sample.img_path).stem
            if self.show:
                runner.visualizer.show(pair, win_name=name, wait_time=self.wait_time)
            else:
                runner.visualizer.add_image(name, pair, step=sample.sample_idx)
