"""Weights of a window that come from comparing each fine pixel with the coarse pixels around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["window_products", "window_softmax"]


def window_products(queries: Tensor, keys: Tensor, size: int) -> Tensor:
    """Multiply each fine pixel with the coarse pixels of the window around its source.

    Args:
        queries: Fine map, ``(N, D, 2H, 2W)``.
        keys: Coarse map, ``(N, D, H, W)``.
        size: Size k of the window, odd.

    Returns:
        Scalar products ``(N, k * k, 4, H, W)``: taps row by row, then the phases (0, 0), (0, 1), (1, 0),
        (1, 1), as :func:`~pixeldcl_plugin.layers.carafe.reassemble` takes weights. Beyond the border they
        are zero.
    """
    h, w = keys.shape[2:]
    pad = size // 2
    padded = F.pad(keys, (pad, pad, pad, pad))
    phases = [queries[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    taps = [padded[:, :, dy : dy + h, dx : dx + w] for dy in range(size) for dx in range(size)]
    return torch.stack([torch.stack([(q * k).sum(1) for q in phases], 1) for k in taps], 1)


def window_softmax(logits: Tensor) -> Tensor:
    """Normalise logits ``(N, k * k, 4, H, W)`` over the taps of each pixel that lie within the map."""
    _, taps, _, h, w = logits.shape
    size = round(taps**0.5)
    pad = size // 2
    inside = F.pad(torch.ones(h, w, dtype=torch.bool, device=logits.device), (pad, pad, pad, pad))
    shifted = [inside[dy : dy + h, dx : dx + w] for dy in range(size) for dx in range(size)]
    return logits.masked_fill(~torch.stack(shifted).unsqueeze(1), -torch.inf).softmax(1)
