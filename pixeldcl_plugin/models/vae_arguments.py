"""Checks of what a VAE is built with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..layers.arguments import is_int

__all__ = ["check_noise", "check_widths"]


def check_widths(image_size: int, encoder: Sequence[int], decoder: Sequence[int]) -> None:
    """Check the widths of encoder and decoder, and that the picture can be halved so often.

    Raises:
        ValueError: Names the value that does not fit.
    """
    for name, widths in (("encoder_channels", encoder), ("decoder_channels", decoder)):
        if not widths or not all(is_int(width) and width > 0 for width in widths):
            raise ValueError(f"{name} must be positive integers, got {widths!r}")
    if len(decoder) != len(encoder) + 1:
        raise ValueError(
            f"decoder_channels must be one more than encoder_channels, got {decoder!r} for {encoder!r}"
        )
    if image_size % 2 ** len(encoder):
        raise ValueError(
            f"image_size must be a multiple of {2 ** len(encoder)} for {len(encoder)} encoder_channels, "
            f"got {image_size}"
        )


def check_noise(std: object, beta: object, importance_samples: object, seed: object) -> None:
    """Check the settings of the likelihood.

    Raises:
        ValueError: Names the value that does not fit.
    """
    if std != "learned" and not (_is_number(std) and float(std) > 0):  # type: ignore[arg-type]
        raise ValueError(f"std must be a positive number or 'learned', got {std!r}")
    if not _is_number(beta) or float(beta) < 0:  # type: ignore[arg-type]
        raise ValueError(f"beta must be a number of at least 0, got {beta!r}")
    for name, value in (("importance_samples", importance_samples), ("seed", seed)):
        if not is_int(value) or int(value) < 0:  # type: ignore[call-overload]
            raise ValueError(f"{name} must be an integer of at least 0, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
