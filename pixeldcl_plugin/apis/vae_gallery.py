"""The pictures of Fig. 9: samples, reconstructions and interpolations of several VAEs, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor

from ..models.vae import VAE
from ..utils.cli import UsageError
from ..visualization.vae_pictures import draw_grid

__all__ = [
    "PICTURES",
    "check_sizes",
    "draw_interpolations",
    "draw_reconstructions",
    "draw_samples",
    "model_labels",
    "read_faces",
]

#: What can be drawn.
PICTURES = ("samples", "reconstructions", "interpolations")


def check_sizes(models: Mapping[str, VAE], cfg: Config) -> None:
    """Check that models make pictures of one size, that of a config's test data.

    Raises:
        UsageError: Names the sizes.
    """
    sizes = {label: model.image_size for label, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise UsageError(f"the models make pictures of different sizes: {sizes}")
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    if dataset.get("size", 64) not in sizes.values():
        raise UsageError(f"the test data have size {dataset.get('size', 64)}, the models {sizes}")


def model_labels(cfgs: Sequence[Config], given: Sequence[str] | None = None) -> list[str]:
    """Give a name for each config: those given, else the types of the upsamplers, numbered where equal.

    Raises:
        UsageError: If the names given are of another number than the configs, empty, or equal.
    """
    if given is not None:
        if len(given) != len(cfgs) or len(set(given)) != len(given) or not all(given):
            raise UsageError(f"--labels: expected {len(cfgs)} different names, got {list(given)}")
        return list(given)
    kinds = [str((cfg.model.get("upsample_cfg") or {}).get("type", "PixelDCL")) for cfg in cfgs]
    return [
        kind if kinds.count(kind) == 1 else f"{kind} {kinds[: place + 1].count(kind)}"
        for place, kind in enumerate(kinds)
    ]


def read_faces(cfg: Config, count: int) -> Tensor:
    """Take pictures evenly out of a config's test data: ``(count, 3, H, W)`` in [0, 1].

    Raises:
        UsageError: If there are fewer.
        ValueError: If the dataset cannot be read; the message names the file.
    """
    init_default_scope(cfg.get("default_scope", "mmseg"))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if len(dataset) < count:
        raise UsageError(f"the test data hold {len(dataset)} pictures, {count} are asked for")
    indices = [place * len(dataset) // count for place in range(count)]
    return torch.stack([dataset[index]["inputs"] for index in indices]).float() / 255


def draw_samples(models: Mapping[str, VAE], columns: int, rows: int = 2, seed: int = 0) -> Figure:
    """Draw rows of samples for each model, the same latents for all that have as many dimensions.

    Args:
        models: By label.
        columns: Pictures a row.
        rows: Rows a model; the paper's figure has two.
        seed: Of the latents.
    """
    grid, labels = [], []
    for label, model in models.items():
        samples = model.sample(rows * columns, torch.Generator().manual_seed(seed))
        grid += list(samples.unflatten(0, (rows, columns)))
        labels += [label] + [""] * (rows - 1)
    return draw_grid(grid, labels, f"Samples, the same latents for each model (seed {seed})")


def draw_reconstructions(models: Mapping[str, VAE], faces: Tensor) -> Figure:
    """Draw pictures ``(N, 3, H, W)`` above what each model makes of them."""
    rows = [faces, *(model.reconstruct(faces) for model in models.values())]
    return draw_grid(rows, ["test image", *models], "Reconstructions")


def draw_interpolations(models: Mapping[str, VAE], faces: Tensor, steps: int) -> Figure:
    """Draw for each pair of neighbours in ``faces`` and each model the line between their latents.

    Args:
        models: By label.
        faces: ``(2 n, 3, H, W)`` for n pairs.
        steps: Pictures a line; the ends are reconstructions.
    """
    lines = {label: model.interpolate(faces[::2], faces[1::2], steps) for label, model in models.items()}
    rows = [lines[label][pair] for pair in range(len(faces) // 2) for label in models]
    return draw_grid(rows, [*models] * (len(faces) // 2), "Interpolations in the latent space")
