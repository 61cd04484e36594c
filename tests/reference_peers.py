"""The peers as their papers write them, one output pixel at a time: slow, literal, differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stride-1 convolution with zeros outside of the map, (N, Cin, H, W) -> (N, C, H, W)."""
    n, _, h, w = x.shape
    out_channels, _, k, _ = weight.shape
    rows = []
    for i in range(h):
        for j in range(w):
            pixel = x.new_zeros(n, out_channels)
            for u in range(k):
                for v in range(k):
                    y, z = i + u - k // 2, j + v - k // 2
                    if 0 <= y < h and 0 <= z < w:
                        pixel = pixel + x[:, :, y, z] @ weight[:, :, u, v].T
            rows.append(pixel if bias is None else pixel + bias)
    return torch.stack(rows, dim=-1).view(n, out_channels, h, w)


def periodic_shuffle(x: Tensor) -> Tensor:
    """Shi et al., Eq. 4: (N, 4C, H, W) -> (N, C, 2H, 2W), phase (a, b) of channel c from 4c + 2a + b."""
    n, c, h, w = x.shape
    out = x.new_zeros(n, c // 4, 2 * h, 2 * w)
    for channel in range(c // 4):
        for i in range(2 * h):
            for j in range(2 * w):
                out[:, channel, i, j] = x[:, 4 * channel + 2 * (i % 2) + j % 2, i // 2, j // 2]
    return out


def carafe(x: Tensor, parameters: dict[str, Tensor], k_up: int) -> Tensor:
    """CARAFE, Section 3: kernels from the content (normalised by a softmax), then weighted sums."""
    if "project.weight" in parameters:
        x = conv(x, parameters["project.weight"])
    compressed = conv(x, parameters["compress.weight"], parameters["compress.bias"])
    encoded = periodic_shuffle(conv(compressed, parameters["encode.weight"], parameters["encode.bias"]))
    n, c, h, w = x.shape
    reach = k_up // 2
    pixels = []
    for i in range(2 * h):
        for j in range(2 * w):
            exponentials = encoded[:, :, i, j].exp()
            kernel = exponentials / exponentials.sum(dim=1, keepdim=True)
            total = x.new_zeros(n, c)
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    y, z = i // 2 + dy, j // 2 + dx
                    if 0 <= y < h and 0 <= z < w:
                        tap = (dy + reach) * k_up + dx + reach
                        total = total + kernel[:, tap, None] * x[:, :, y, z]
            pixels.append(total)
    return torch.stack(pixels, dim=-1).view(n, c, 2 * h, 2 * w)


def dysample(x: Tensor, parameters: dict[str, Tensor], style: str, groups: int) -> Tensor:
    """DySample, Section 3: each output pixel is sampled at its own place plus a scaled linear offset."""
    if "project.weight" in parameters:
        x = conv(x, parameters["project.weight"])
    features = periodic_shuffle(x) if style == "pl" else x
    offsets = conv(features, parameters["offset.weight"], parameters["offset.bias"])
    if "scope.weight" in parameters:
        scope = 0.5 / (1 + (-conv(features, parameters["scope.weight"])).exp())
    else:
        scope = torch.full_like(offsets, 0.25)
    offsets = offsets * scope
    if style == "lp":
        offsets = periodic_shuffle(offsets)
    n, c, h, w = x.shape
    images = []
    for image in range(n):
        channels = []
        for channel in range(c):
            group = channel // (c // groups)
            for i in range(2 * h):
                for j in range(2 * w):
                    # The centre of output pixel i is at (i + 1/2) / 2 - 1/2 in pixels of the input.
                    column = (j + 0.5) / 2 - 0.5 + offsets[image, group, i, j]
                    row = (i + 0.5) / 2 - 0.5 + offsets[image, groups + group, i, j]
                    channels.append(bilinear(x[image, channel], row, column))
        images.append(torch.stack(channels).view(c, 2 * h, 2 * w))
    return torch.stack(images)


def bilinear(channel: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Sample (H, W) at one place; beyond the border its pixels go on."""
    h, w = channel.shape
    row, column = row.clamp(0, h - 1), column.clamp(0, w - 1)
    y, z = math.floor(row.detach()), math.floor(column.detach())
    below, right = min(y + 1, h - 1), min(z + 1, w - 1)
    top = channel[y, z] * (1 - (column - z)) + channel[y, right] * (column - z)
    bottom = channel[below, z] * (1 - (column - z)) + channel[below, right] * (column - z)
    return top * (1 - (row - y)) + bottom * (row - y)
