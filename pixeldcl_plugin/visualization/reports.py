"""What a training run leaves to look at: its curves and its predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..models.vae import VAE
from ..utils.cli import report_written
from ..utils.files import written_whole
from ..utils.label_maps import colorize
from .gallery_figure import add_legend, draw_panel, narrow_layout
from .vae_pictures import plot_reconstructions

__all__ = ["finish_training", "plot_curves", "plot_predictions", "read_scalars"]

# Logged beside the metrics of a validation.
_NOT_METRICS = {"step", "iter", "epoch", "time", "data_time", "memory"}

Records = dict[int, dict[str, float]]


def read_scalars(work_dir: str | Path) -> tuple[Records, Records]:
    """Read the logged values of all runs in a work dir as those of one run.

    A run replaces what earlier ones logged from its own first step on: a resumed run repeats the
    steps after the checkpoint that it started from, and one started anew repeats all.

    Args:
        work_dir: The folder that holds one ``<timestamp>/vis_data/scalars.json`` a run.

    Returns:
        Two dicts from step to logged values, of training (those with a loss) and of validation.
    """
    train: Records = {}
    val: Records = {}
    for file in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        records = [record for line in file.read_text().splitlines() if (record := _parse(line))]
        first = min((record["step"] for record in records), default=math.inf)
        for kept in (train, val):
            for step in [step for step in kept if step >= first]:
                del kept[step]
        for record in records:
            (train if "loss" in record else val)[int(record["step"])] = record
    return train, val


def _parse(line: str) -> dict[str, float] | None:
    """Return one logged record; None for a line that a killed run left unfinished."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _metrics(record: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key not in _NOT_METRICS}


def plot_curves(work_dir: str | Path, path: str | Path) -> bool:
    """Draw the training loss and the validation metrics over the iterations.

    Args:
        work_dir: As in :func:`read_scalars`.
        path: The PNG file to write.

    Returns:
        False, and no file, if nothing was logged.
    """
    train, val = read_scalars(work_dir)
    if not train and not val:
        return False
    steps = sorted(val)
    keys = list(dict.fromkeys(key for step in steps for key in _metrics(val[step])))
    # Others, such as the classes' accuracy, stand in the log; three lines stay readable. Those in percent
    # share a scale, which decibels and bits do not.
    percent: list[str] = [key for key in ("mIoU", "aAcc") if key in keys]
    panels = [percent] if percent else [[key] for key in keys[:3]] or [[]]
    figure = Figure(figsize=(5 * (1 + len(panels)), 4), layout="constrained")
    left, *rights = figure.subplots(1, 1 + len(panels)).flat
    steps = sorted(train)
    left.plot(steps, [train[step]["loss"] for step in steps], marker=".", color="tab:blue")
    left.set(xlabel="iteration", ylabel="training loss")
    if all(record["loss"] >= 0 for record in train.values()):
        left.set_ylim(bottom=0)
    for axes, panel in zip(rights, panels, strict=True):
        for key in panel:
            points = [(step, val[step][key]) for step in sorted(val) if key in val[step]]
            axes.plot(*zip(*points, strict=True), marker=".", label=f"{key} (last {points[-1][1]:.2f})")
        axes.set(xlabel="iteration", ylabel="validation")
        if panel:
            axes.legend()
    for axes in (left, *rights):
        axes.grid(alpha=0.3)
    with written_whole(Path(path)) as part:
        figure.savefig(part, dpi=120)
    return True


def plot_predictions(model: BaseModel, dataset: Any, path: str | Path, count: int = 6) -> bool:
    """Draw image, label and prediction side by side for images chosen evenly from a dataset.

    Args:
        model: A segmentor with ``test_step``; put into evaluation mode.
        dataset: A dataset with a test pipeline and ``classes`` and ``palette`` in its metainfo.
            Labels may be missing; then only image and prediction are drawn.
        path: The PNG file to write.
        count: At most so many images.

    Returns:
        False, and no file, if the model does not segment or the dataset is empty.
    """
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    model.eval()
    rows = []
    for index in indices:
        with torch.no_grad():
            outputs = model.test_step(pseudo_collate([dataset[int(index)]]))
        sample = outputs[0] if isinstance(outputs, list | tuple) and outputs else None
        if not isinstance(sample, BaseDataElement) or "pred_sem_seg" not in sample:
            return False
        maps = [sample.get(key) for key in ("gt_sem_seg", "pred_sem_seg")]
        labels = [None if m is None else m.data.squeeze(0).cpu().numpy() for m in maps]
        rows.append((mmcv.imread(sample.img_path, channel_order="rgb"), *labels))
    if not rows:
        return False
    meta = dataset.metainfo
    with written_whole(Path(path)) as part:
        _draw_rows(rows, list(meta["classes"]), np.array(meta["palette"], np.uint8)).savefig(part)
    return True


def _draw_rows(rows: list[tuple], classes: list[str], palette: np.ndarray) -> Figure:
    with_label = any(label is not None for _, label, _ in rows)
    titles = ["image", "label", "prediction"] if with_label else ["image", "prediction"]
    # All pictures are equally wide: the rows are as high as that makes them.
    shares = [image.shape[0] / image.shape[1] for image, *_ in rows]
    figure = Figure(figsize=(3 * len(titles), 3 * sum(shares) + 1), dpi=100, layout=narrow_layout())
    table = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=shares)
    shown = []
    for axes_row, (image, *maps) in zip(table, rows, strict=True):
        maps = maps if with_label else maps[1:]
        shown += [values for values in maps if values is not None]
        panels = [image, *(None if values is None else colorize(values, palette) for values in maps)]
        for axes, panel in zip(axes_row, panels, strict=True):
            draw_panel(axes, panel)
    for axes, title in zip(table[0], titles, strict=True):
        axes.set_title(title)
    add_legend(figure, shown, classes, palette, ncols=6)
    return figure


def finish_training(runner: Runner) -> None:
    """Draw the pictures of a finished training and say where everything is, as its last line.

    Pictures that cannot be drawn, as for a model that does not segment, are left out: the
    training is done and saved.

    Args:
        runner: A runner whose training is over. Other processes than the main one do nothing.
    """
    if not is_main_process():
        return
    work_dir = Path(runner.work_dir)
    pictures = []
    try:
        if plot_curves(work_dir, work_dir / "curves.png"):
            pictures.append(work_dir / "curves.png")
        if runner.val_loop is not None:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            dataset = runner.val_dataloader.dataset
            plot = plot_reconstructions if isinstance(model, VAE) else plot_predictions
            if plot(model, dataset, work_dir / "predictions.png"):
                pictures.append(work_dir / "predictions.png")
    except Exception as error:  # Hours of training do not fail for a picture.
        runner.logger.warning(f"No further pictures: {type(error).__name__}: {error}")
    info = runner.message_hub.runtime_info
    scores = {
        key.removeprefix("val/"): buffer.current()
        for key, buffer in runner.message_hub.log_scalars.items()
        if key.startswith("val/") and key.removeprefix("val/") not in _NOT_METRICS
    }
    if scores:
        text = ", ".join(f"{key} {value:.{2 if abs(value) >= 10 else 4}f}" for key, value in scores.items())
        print(f"Validation at iteration {runner.iter}: {text}")
    checkpoints = [info[key] for key in ("last_ckpt", "best_ckpt") if info.get(key)]
    report_written(*checkpoints, *pictures)
