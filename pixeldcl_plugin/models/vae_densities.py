"""What a VAE computes of densities, apart from any network.

A picture of 8-bit values k becomes continuous as ``y = (k + u) / 256`` with u uniform in [0, 1). A density
of y bounds the probability of the picture: ``-log p(y) + D log 256``, D the number of values, is on average
over u at least ``-log P(k)`` (Theis, van den Oord, Bethge 2016, arXiv 1511.01844). In this form, nats of
the 8-bit picture, everything is reported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "LEVELS",
    "dequantise",
    "gaussian_log_density",
    "kl_to_standard_normal",
    "soft_bound",
    "to_image",
]

#: Values that an 8-bit pixel can have.
LEVELS = 256
_LOG_BOUND = 10.0


def soft_bound(x: Tensor) -> Tensor:
    """Hold a log-variance in (-10, 10), in float32, where its exponential and gradient are finite.

    Close to the identity around 0. A clamp would do so too, but gives no gradient to come back by.
    """
    return _LOG_BOUND * torch.tanh(x.float() / _LOG_BOUND)


def kl_to_standard_normal(mean: Tensor, log_var: Tensor) -> Tensor:
    """Give KL(N(mean, exp(log_var)) || N(0, I)) in nats: ``(N, L)`` twice -> ``(N,)``."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def gaussian_log_density(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Give log N(x; mean, exp(log_std)^2 I) in nats, summed over all but the first dimension: ``(N,)``."""
    density = -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).sum(1)


def dequantise(images: Tensor, uniform: Tensor) -> Tensor:
    """Turn pictures k / 255 and uniform numbers u in [0, 1) of the same shape into y = (k + u) / 256."""
    return (images * (LEVELS - 1) + uniform) / LEVELS


def to_image(y: Tensor) -> Tensor:
    """Turn y into pictures in [0, 1]: level k / 255 is the middle of the interval of y that stands for k."""
    return ((y * LEVELS - 0.5) / (LEVELS - 1)).clamp(0, 1)
