"""Guided pixel deconvolution and its peers, one output pixel at a time: slow, literal, differentiable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    near = {
        "p00": square[:-1],
        "p11": [("x", 0, 0), ("x", 0, 1), ("x", 1, 0), ("x", 1, 1)],
        "p01": [("x", -1, 0), ("x", -1, 1), ("x", 0, 0), ("x", 0, 1)],
        "p10": [("x", 0, -1), ("x", 0, 0), ("x", 1, -1), ("x", 1, 0)],
    }
    start = 0
    for phase, before in earlier.items():
        if order is None:
            neighbours = square
        elif order == "pixeldcl":
            neighbours = before or square
        elif order == "near":
            neighbours = near[phase] + before
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


def hidden_channels(x: Tensor, guide: Tensor, layer: nn.Module) -> Tensor:
    """relu(norm(conv1x1(x)) + norm(conv2x2_stride2(guide)))."""
    n, _, h, w = x.shape
    reduced = [
        sum(
            guide[:, :, 2 * i + a, 2 * j + b] @ layer.reduce_guide[:, :, a, b].T
            for a in (0, 1)
            for b in (0, 1)
        )
        for i in range(h)
        for j in range(w)
    ]
    of_guide = batch_norm(torch.stack(reduced, -1).view(n, -1, h, w), layer.guide_norm)
    return (batch_norm(conv(x, layer.reduce.weight), layer.reduce_norm) + of_guide).clamp(min=0)


def residual(hidden: Tensor, layer: nn.Module) -> Tensor:
    """Two convolutions, the second of which makes the four phases of every channel."""
    mixed = conv(hidden, layer.mix.weight, layer.mix.bias).clamp(min=0)
    return periodic_shuffle(conv(mixed, layer.correct.weight, layer.correct.bias))


def guided_pixel_dcl(x: Tensor, guides: Sequence[Tensor], layer: nn.Module) -> Tensor:
    """The formula of the layer's docstring, from its parameters; guides in the sizes of the steps."""
    for step, guide in zip(layer.steps, guides, strict=True):
        hidden = hidden_channels(x, guide, step.hidden)
        spread = hidden
        if step.spread is not None:
            kernels = zip(hidden.split(1, 1), step.spread.split(1), strict=True)
            spread = torch.cat([conv(channel, kernel) for channel, kernel in kernels], 1)
        logits = conv(spread, step.predict.weight, step.predict.bias)
        groups = zip(x.chunk(layer.groups, 1), logits.chunk(layer.groups, 1), strict=True)
        out = torch.cat([mean_of_neighbours(part, taps, layer.order) for part, taps in groups], 1)
        if step.residual is not None:
            out = out + residual(hidden, step.residual)
        x = out
    return x


def guided_residual(x: Tensor, guide: Tensor, layer: nn.Module) -> Tensor:
    """Bilinear interpolation, its weights by distance, and the residual."""
    n, c, h, w = x.shape
    pixels = []
    for i in range(2 * h):
        for j in range(2 * w):
            # The nearest pixel of the input has the weight 3/4, the next on the pixel's side 1/4.
            rows = ((i // 2, 0.75), (clamp(i // 2 + (1 if i % 2 else -1), h), 0.25))
            columns = ((j // 2, 0.75), (clamp(j // 2 + (1 if j % 2 else -1), w), 0.25))
            pixels.append(sum(a * b * x[:, :, y, z] for y, a in rows for z, b in columns))
    coarse = torch.stack(pixels, -1).view(n, c, 2 * h, 2 * w)
    return coarse + residual(hidden_channels(x, guide, layer.hidden), layer.residual)


def windowed(x: Tensor, size: int, logit_of: Callable[[int, int, int, int], Tensor]) -> Tensor:
    """Every fine pixel the softmax-weighted mean of the window's pixels that exist."""
    n, c, h, w = x.shape
    reach = size // 2
    pixels = []
    for i in range(2 * h):
        for j in range(2 * w):
            places = [
                (y, z)
                for y in range(i // 2 - reach, i // 2 + reach + 1)
                for z in range(j // 2 - reach, j // 2 + reach + 1)
                if 0 <= y < h and 0 <= z < w
            ]
            exponentials = [logit_of(i, j, y, z).exp() for y, z in places]
            total = sum(exponentials)
            pixels.append(
                sum(
                    (e / total)[:, None] * x[:, :, y, z]
                    for e, (y, z) in zip(exponentials, places, strict=True)
                )
            )
    return torch.stack(pixels, -1).view(n, c, 2 * h, 2 * w)


def layer_norm(pixel: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = pixel - pixel.mean(1, keepdim=True)
    normed = centred / ((centred**2).mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight
    return normed if norm.bias is None else normed + norm.bias


def sapa(x: Tensor, guide: Tensor, layer: nn.Module) -> Tensor:
    """SAPA-B: the similarity of fine pixel y and coarse pixel x is (Q norm(y)) . (K norm(x))."""

    def similarity(i: int, j: int, y: int, z: int) -> Tensor:
        query = layer_norm(guide[:, :, i, j], layer.guide_norm) @ layer.embed_guide.weight[:, :, 0, 0].T
        key = layer_norm(x[:, :, y, z], layer.norm) @ layer.embed.weight[:, :, 0, 0].T
        return (query * key).sum(1)

    return windowed(x, layer.up_kernel, similarity)


def fade(x: Tensor, guide: Tensor, layer: nn.Module) -> Tensor:
    """FADE: the semi-shift convolution, CARAFE's weighted mean (zeros outside), the gate."""
    n, c, h, w = x.shape
    compressed = conv(guide, layer.compress_guide.weight, layer.compress_guide.bias)
    of_guide = conv(compressed, layer.encode.weight, layer.encode.bias)
    of_x = conv(conv(x, layer.compress.weight), layer.encode.weight)
    gate = 1 / (1 + (-conv(x, layer.gate.weight, layer.gate.bias)).exp())
    aligned = guide if isinstance(layer.align, nn.Identity) else conv(guide, layer.align.weight)
    size = round(of_x.size(1) ** 0.5)
    reach = size // 2
    pixels = []
    for i in range(2 * h):
        for j in range(2 * w):
            exponentials = (of_guide[:, :, i, j] + of_x[:, :, i // 2, j // 2]).exp()
            kernel = exponentials / exponentials.sum(1, keepdim=True)
            total = x.new_zeros(n, c)
            for tap in range(size**2):
                y, z = i // 2 + tap // size - reach, j // 2 + tap % size - reach
                if 0 <= y < h and 0 <= z < w:
                    total = total + kernel[:, tap, None] * x[:, :, y, z]
            open_by = gate[:, :, i // 2, j // 2]
            pixels.append(open_by * aligned[:, :, i, j] + (1 - open_by) * total)
    return torch.stack(pixels, -1).view(n, c, 2 * h, 2 * w)


def joint_bilateral(x: Tensor, guide: Tensor, layer: nn.Module) -> Tensor:
    """A spatial kernel of width s times a range kernel of the guide, normalised by their sum."""

    def network(pixel: Tensor) -> Tensor:
        hidden = pixel @ layer.expand.weight[:, :, 0, 0].T + layer.expand.bias
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        return hidden @ layer.embed.weight[:, :, 0, 0].T + layer.embed.bias

    def logit(i: int, j: int, y: int, z: int) -> Tensor:
        coarse = sum(guide[:, :, 2 * y + a, 2 * z + b] for a in (0, 1) for b in (0, 1)) / 4
        affinity = (network(guide[:, :, i, j]) * network(coarse)).sum(1)
        # The centre of output pixel i is at (i + 1/2) / 2 - 1/2 in pixels of the input.
        squared = ((i + 0.5) / 2 - 0.5 - y) ** 2 + ((j + 0.5) / 2 - 0.5 - z) ** 2
        width = layer.log_width.exp()
        return -squared / (2 * width**2) + layer.log_temperature.exp() * affinity

    return windowed(x, layer.up_kernel, logit)
