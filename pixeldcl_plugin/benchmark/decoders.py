"""What is timed of a decoder's upsamplers: whole models with a small encoder, as the configs build them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn

from .logits import logits_model

__all__ = ["DECODER_SHAPES", "DECODER_VARIANTS", "decoder_case"]

#: (batch, height, width): a batch of ``configs/camvid``, and one picture.
DECODER_SHAPES = ((8, 128, 160), (1, 128, 160))

#: Upsamplers of every stage; the first is that of ``configs/camvid/unethead_lite0_*``.
DECODER_VARIANTS: dict[str, dict[str, Any]] = {
    "interp": dict(type="InterpConv"),
    "pixeldcl separable": dict(type="PixelDCL", separable=True),
    "pixeldcl": dict(type="PixelDCL"),
    "ipixeldcl": dict(type="IPixelDCL"),
    "deconv k4": dict(type="DeconvModule", kernel_size=4),
}


def decoder_case(cfg: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Build the model of ``configs/camvid/unethead_lite0_*`` with an upsampler in every stage.

    The output is the logits as the head leaves them, at half the size of the image.
    """
    batch, height, width = shape
    init_default_scope("mmseg")
    model_cfg = logits_model("TIMMBackbone")
    model_cfg["decode_head"].update(
        in_channels=[16, 24, 40, 112, 320],
        in_index=[0, 1, 2, 3, 4],
        decoder_channels=[128, 64, 48, 32],
        norm_cfg=dict(type="BN"),
        num_classes=11,
        upsample_cfg=dict(cfg),
    )
    model = MODELS.build(model_cfg)
    return _ToLogits(model), torch.randn(batch, 3, height, width)


class _ToLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image, mode="tensor")
        return logits
