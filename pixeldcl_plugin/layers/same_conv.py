"""The convolution of every map of a pixel deconvolution, in two dimensions and three."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .interleave import memory_format

__all__ = ["conv", "replicate_pad", "same_conv"]


def conv(x: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Convolve a map ``(N, C, H, W)`` or a volume ``(N, C, D, H, W)`` and keep its format.

    Options are those of ``F.conv2d``.
    """
    if x.dim() == 4:
        return F.conv2d(x, weight, **options)
    # Some of the CPU's ways to convolve a volume do not keep its format.
    return F.conv3d(x, weight, **options).contiguous(memory_format=memory_format(x))


def same_conv(x: Tensor, weight: Tensor, padding_mode: str, groups: int = 1) -> Tensor:
    """Stride-1 convolution padded by half the kernel on each side (one more output for an even kernel).

    Raises:
        ValueError: If the padding mode is neither 'zeros' nor 'replicate'.
    """
    padding = tuple(size // 2 for size in weight.shape[2:])
    if padding_mode == "zeros":
        return conv(x, weight, padding=padding, groups=groups)
    if padding_mode != "replicate":
        raise ValueError(f"padding_mode must be 'zeros' or 'replicate', got {padding_mode!r}")
    return conv(replicate_pad(x, *padding), weight, groups=groups)


def replicate_pad(x: Tensor, *padding: int) -> Tensor:
    """Pad a map, also an empty batch, by its own border along each axis; keep its memory format."""
    both = [size for size in reversed(padding) for _ in range(2)]
    padded = F.pad(x, both, mode="replicate" if x.numel() else "constant")
    return padded.contiguous(memory_format=memory_format(x))
