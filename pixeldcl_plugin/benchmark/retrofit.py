"""What is timed of a retrofit: an iteration that trains the upsampler alone, beside one that trains more."""

from __future__ import annotations

from typing import Any, cast

import torch
from mmengine.registry import init_default_scope
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..models.guided import GuidedEncoderDecoder
from ..models.guided_heads import GuidedHead
from .logits import logits_model

__all__ = ["RETROFIT_SHAPES", "RETROFIT_VARIANTS", "retrofit_case"]

#: (batch, height, width) of training in ``configs/voc12_subset``.
RETROFIT_SHAPES = ((16, 128, 128),)

#: What is trained, the rest being frozen; and whether what the frozen part computes is there already, as it
#: would be if images were not augmented anew.
RETROFIT_VARIANTS: dict[str, dict[str, Any]] = {
    "whole model": dict(trained="model"),
    "all but the encoder": dict(trained="head"),
    "retrofit": dict(trained="upsampler"),
    "retrofit from kept features": dict(trained="upsampler", kept=True),
}


def retrofit_case(cfg: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Build the model that ``tools/retrofit.py`` makes of ``configs/voc12_subset/unethead_lite0-s8*``.

    The output is the logits at the size of the image.
    """
    batch, height, width = shape
    init_default_scope("mmseg")
    model_cfg = logits_model("TIMMBackbone" if cfg["trained"] == "model" else "FrozenTIMMBackbone")
    model = MODELS.build(
        dict(
            model_cfg,
            type="GuidedEncoderDecoder",
            upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=4, residual=True),
            guide_index=[1, 0],
            frozen=cfg["trained"] == "upsampler",
        )
    )
    return _Retrofit(model, kept=cfg.get("kept", False)), torch.randn(batch, 3, height, width)


class _Retrofit(nn.Module):
    """The model as it trains: nobody asks for a gradient of the image, or of what is frozen."""

    def __init__(self, model: GuidedEncoderDecoder, *, kept: bool) -> None:
        super().__init__()
        self.model = model
        self.keep = kept
        self.kept: tuple[Any, Tensor] | None = None

    def forward(self, image: Tensor) -> Tensor:
        image = image.detach()
        if self.keep:
            if self.kept is None:
                self.kept = self._frozen(image)
            features, logits = self.kept
            logits = self.model.decode_head.enlarge(logits, features)
        else:
            logits = self.model(image, mode="tensor")
        return resize(logits, size=image.shape[2:], mode="bilinear", align_corners=False)

    @torch.no_grad()
    def _frozen(self, image: Tensor) -> tuple[Any, Tensor]:
        """Compute the features and the stock head's logits."""
        features = self.model.extract_feat(image)
        head = cast(GuidedHead, self.model.decode_head)
        logits: Tensor = super(GuidedHead, head).forward(features)
        return features, logits
