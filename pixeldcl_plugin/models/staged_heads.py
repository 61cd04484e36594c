"""Decode heads of mmseg whose feature maps are enlarged by doublings, each by any upsampler.

SegFormer's head resizes each of its levels to the finest at once; UPer's adds each level, resized, to the
next finer one. In the papers on upsampling from SAPA (arXiv 2209.12866) on, learned doublings stand in their
place, guided by the finer levels where the upsampler takes a guide. The other parameters of the stock heads
keep their names.
"""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.decode_heads import SegformerHead, UPerHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..layers.unet_decoder import upsample_to
from ..registry import register
from .guided_upsamplers import build_doubling, is_guided

__all__ = ["StagedHead", "StagedSegformerHead", "StagedUPerHead"]


class StagedHead(BaseDecodeHead):
    """Builds the doublings of the head that follows it in the list of bases.

    Args:
        upsample_cfg: Config of the upsampler of every doubling, guided or not. It maps the head's channels
            to themselves, without norm and activation unless the config names them.
        **kwargs: The arguments of the stock head.

    Raises:
        ValueError: If ``upsample_cfg`` does not fit, or ``align_corners`` is true. From ``forward``, if
            a feature is not half as large as the one before it.
    """

    def __init__(self, *, upsample_cfg: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.align_corners:
            raise ValueError(
                f"{type(self).__name__} takes align_corners=False only, got {self.align_corners!r}"
            )
        self.guided = is_guided(upsample_cfg)
        self.upsamplers = nn.ModuleList(
            build_doubling(upsample_cfg, self.channels, self.channels, self.channels)
            for _ in range(self.count_doublings(len(self.in_channels)))
        )

    def count_doublings(self, levels: int) -> int:
        """Return how many doublings the head has."""
        raise NotImplementedError

    def double(self, number: int, x: Tensor, finer: Tensor) -> Tensor:
        """Enlarge a map to the size of the next finer one."""
        return upsample_to(self.upsamplers[number], x, finer, guided=self.guided)


@register(MODELS)
class StagedSegformerHead(StagedHead, SegformerHead):
    """SegformerHead with every level doubled until it is as large as the finest, see :class:`StagedHead`.

    With four levels these are 3 + 2 + 1 doublings with weights of their own. Their guides are the levels
    after their 1x1 convolutions.
    """

    def count_doublings(self, levels: int) -> int:
        """Return how many doublings the head has: one for the second level, two for the third, ..."""
        return levels * (levels - 1) // 2

    def forward(self, inputs: Any) -> Tensor:
        """Make logits of the size of the finest level."""
        maps = [conv(x) for conv, x in zip(self.convs, self._transform_inputs(inputs), strict=True)]
        outs = []
        number = 0
        for level, x in enumerate(maps):
            for finer in reversed(maps[:level]):
                x = self.double(number, x, finer)
                number += 1
            outs.append(x)
        logits: Tensor = self.cls_seg(self.fusion_conv(torch.cat(outs, dim=1)))
        return logits


@register(MODELS)
class StagedUPerHead(StagedHead, UPerHead):
    """UPerHead with a learned top-down path, see :class:`StagedHead`.

    The lateral map that a level is added to is its guide. What joins the levels in the end stays bilinear.
    """

    def count_doublings(self, levels: int) -> int:
        """Return how many doublings the head has: one for every level but the finest."""
        return levels - 1

    def _forward_feature(self, inputs: Any) -> Tensor:
        maps = self._transform_inputs(inputs)
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        laterals.append(self.psp_forward(maps))
        for level in range(len(laterals) - 1, 0, -1):
            finer = laterals[level - 1]
            laterals[level - 1] = finer + self.double(level - 1, laterals[level], finer)
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)] + laterals[-1:]
        size = outs[0].shape[2:]
        outs = [resize(x, size=size, mode="bilinear", align_corners=False) for x in outs]
        features: Tensor = self.fpn_bottleneck(torch.cat(outs, dim=1))
        return features
