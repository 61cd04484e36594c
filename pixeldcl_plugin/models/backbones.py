"""A pretrained encoder that stays as it is."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.backbones import TIMMBackbone
from mmseg.registry import MODELS
from torch import Tensor

from ..registry import register


@register(MODELS)
class FrozenTIMMBackbone(TIMMBackbone):
    """mmseg's ``TIMMBackbone`` with fixed weights and fixed batch statistics.

    For comparing decoders, and for training them where compute is scarce: nothing is back-propagated through
    the encoder, and its features do not change from one decoder to the other.

    Args:
        **kwargs: The arguments of ``TIMMBackbone``, such as ``model_name`` and ``features_only=True``.

    Shape:
        Images ``(N, 3, H, W)`` -> a list of features, as ``TIMMBackbone``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenTIMMBackbone:
        """Stay in evaluation mode, whatever the mode: batch statistics and dropout are fixed too."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the features without recording a graph."""
        with torch.no_grad():
            return super().forward(x)
