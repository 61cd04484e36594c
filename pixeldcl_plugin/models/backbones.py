"""A pretrained encoder that stays as it is, and a U-Net whose upsamplers see the skips."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.models.backbones import TIMMBackbone, UNet
from mmseg.models.backbones.unet import InterpConv
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..layers.unet_decoder import upsample_to
from ..registry import register
from .guided_upsamplers import GuidedDoubling, is_guided


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


class _GuidedUpConvBlock(nn.Module):
    """mmseg's UpConvBlock, its upsampler called with the skip too."""

    def __init__(self, upsample: nn.Module, conv_block: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample
        self.conv_block = conv_block

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        joined = torch.cat([skip, upsample_to(self.upsample, x, skip, guided=True)], dim=1)
        decoded: Tensor = self.conv_block(joined)
        return decoded


@register(MODELS)
class GuidedUNet(UNet):
    """mmseg's ``UNet`` for guided upsamplers: those of ``UNet`` see the low-resolution map alone.

    Every level is upsampled with the skip that it is joined to as its guide. All other parameters keep their
    names. With an upsampler that takes no guide this is ``UNet``.

    Args:
        upsample_cfg: Config of the upsampler.
        with_cp: Recompute activations in the backward pass instead of keeping them.
        norm_cfg: mmcv norm config, after the convolutions and the upsamplers.
        act_cfg: mmcv activation config, likewise.
        **kwargs: The other arguments of ``UNet``.

    Raises:
        ValueError: If ``upsample_cfg`` does not fit.
    """

    def __init__(
        self,
        *,
        upsample_cfg: dict[str, Any] = dict(type="GuidedPixelDCL"),  # noqa: B006 mmseg's style, never changed
        with_cp: bool = False,
        norm_cfg: dict[str, Any] | None = dict(type="BN"),  # noqa: B006
        act_cfg: dict[str, Any] | None = dict(type="ReLU"),  # noqa: B006
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = dict(with_cp=with_cp, norm_cfg=norm_cfg, act_cfg=act_cfg)
        guided = is_guided(upsample_cfg)
        stand_in = dict(type="InterpConv") if guided else upsample_cfg
        super().__init__(upsample_cfg=stand_in, **options, **kwargs)
        for level, block in enumerate(self.decoder if guided else ()):
            if isinstance(block.upsample, InterpConv):
                above = self.base_channels * 2**level
                upsample = GuidedDoubling(upsample_cfg, 2 * above, above, above, **options)
                self.decoder[level] = _GuidedUpConvBlock(upsample, block.conv_block)
