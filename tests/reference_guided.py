"""Guided pixel deconvolution and its peers, one output pixel at a time: slow, literal, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reference_peers import conv, periodic_shuffle
from torch import Tensor, nn


def clamp(value: int, size: int) -> int:
    """Beyond the border its pixels go on."""
    return min(max(value, 0), size - 1)


def mean_of_neighbours(x: Tensor, logits: Tensor, order: str | None) -> Tensor:
    """The phases one after the other, every pixel a softmax-weighted mean of the neighbours named here."""
    n, c, h, w = x.shape
    maps: dict[str, list[list[Tensor]]] = {"x": [[x[:, :, i, j] for j in range(w)] for i in range(h)]}
    square = [("x", dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    earlier = {
        "p00": [],
        "p11": [("p00", 0, 0), ("p00", 0, 1), ("p00", 1, 0), ("p00", 1, 1)],  # p11 lies amid these
        "p01": [("p00", 0, 0), ("p00", 0, 1), ("p11", -1, 0), ("p11", 0, 0)],  # left, right, above, below
        "p10": [("p00", 0, 0), ("p00", 1, 0), ("p11", 0, -1), ("p11", 0, 0)],  # above, below, left, right
    }
    start = 0
    for phase, before in earlier.items():
        if order is None:
            neighbours = square
        elif order == "pixeldcl":
            neighbours = before or square
        else:
            neighbours = square + before
        stop = start + len(neighbours)
        maps[phase] = []
        for i in range(h):
            row = []
            for j in range(w):
                exponentials = logits[:, start:stop, i, j].exp()
                weights = exponentials / exponentials.sum(1, keepdim=True)
                pixel = x.new_zeros(n, c)
                for tap, (source, dy, dx) in enumerate(neighbours):
                    pixel = pixel + weights[:, tap, None] * maps[source][clamp(i + dy, h)][clamp(j + dx, w)]
                row.append(pixel)
            maps[phase].append(row)
        start = stop
    assert start == logits.size(1)
    out = [maps[f"p{i % 2}{j % 2}"][i // 2][j // 2] for i in range(2 * h) for j in range(2 * w)]
    return torch.stack(out, -1).view(n, c, 2 * h, 2 * w)


def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """By the statistics of the batch in training, by the running ones else."""
    if norm.training:
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
    else:
        mean, var = norm.running_mean, norm.running_var
    scale = norm.weight / (var + norm.eps).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def guided_pixel_dcl(x: Tensor, guides: Sequence[Tensor], layer: nn.Module) -> Tensor:
    """The formula of the layer's docstring, from its parameters; guides in the sizes of the steps."""
    for step, guide in zip(layer.steps, guides, strict=True):
        n, _, h, w = x.shape
        reduced = [
            sum(
                guide[:, :, 2 * i + a, 2 * j + b] @ step.reduce_guide[:, :, a, b].T
                for a in (0, 1)
                for b in (0, 1)
            )
            for i in range(h)
            for j in range(w)
        ]
        of_guide = batch_norm(torch.stack(reduced, -1).view(n, -1, h, w), step.guide_norm)
        hidden = (batch_norm(conv(x, step.reduce.weight), step.reduce_norm) + of_guide).clamp(min=0)
        width = hidden.size(1)
        spread = torch.cat([conv(hidden[:, k : k + 1], step.spread[k : k + 1]) for k in range(width)], 1)
        logits = conv(spread, step.predict.weight, step.predict.bias)
        groups = zip(x.chunk(layer.groups, 1), logits.chunk(layer.groups, 1), strict=True)
        out = torch.cat([mean_of_neighbours(part, taps, layer.order) for part, taps in groups], 1)
        if step.correct is not None:
            out = out + periodic_shuffle(conv(hidden, step.correct.weight, step.correct.bias))
        x = out
    return x
