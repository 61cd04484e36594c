"""A U-Net decoder, with any upsampler, over the features of any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.backbones.unet import BasicConvBlock
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..layers.unet_decoder import UNetDecoder, decode
from ..registry import register
from .guided_upsamplers import GuidedDoubling, is_guided
from .upsamplers import build_upsampler


@register(MODELS)
class UNetHead(BaseDecodeHead):
    """The decoder of a U-Net as a head of mmseg: :class:`~pixeldcl_plugin.UNetDecoder` and a classifier.

    Args:
        in_channels: Channels of the features, the shallowest first.
        in_index: Their places among the backbone's outputs.
        decoder_channels: Output channels of the stages, the deepest first; at least one for every skip.
        upsample_cfg: Config of the upsampler of every stage, which must double the size. It maps to
            the stage's output channels and is followed by ``norm_cfg`` and ``act_cfg``. Of a guided one the
            skip is the guide; every stage must then have a skip.
        num_convs: 3x3 convolutions after the upsampler of every stage.
        with_cp: Recompute the stages' activations in the backward pass instead of keeping them.
        norm_cfg: mmcv norm config; None for none.
        skip_norm_cfg: mmcv norm config for the skips, before they are joined; None for none.
        **kwargs: The other arguments of mmseg's decode heads, such as ``num_classes``. ``channels`` and
            ``input_transform`` follow from the above.

    Shape:
        Features ``(N, in_channels[i], H_i, W_i)`` -> ``(N, num_classes, 2^k H_0, 2^k W_0)``, k the number of
        stages without a skip.

    Raises:
        ValueError: If the lists do not fit each other, or ``upsample_cfg`` is none, see
            :func:`~pixeldcl_plugin.models.upsamplers.build_upsampler`. From ``forward``, if a feature is
            not half as large as the one before it.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int],
        decoder_channels: Sequence[int],
        *,
        upsample_cfg: dict[str, Any] = dict(type="PixelDCL"),  # noqa: B006 mmseg's style, never changed
        num_convs: int = 2,
        with_cp: bool = False,
        norm_cfg: dict[str, Any] | None = dict(type="BN"),  # noqa: B006
        skip_norm_cfg: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _check(in_channels, in_index, decoder_channels, num_convs)
        super().__init__(
            in_channels=in_channels,
            channels=decoder_channels[-1],
            in_index=in_index,
            input_transform="multiple_select",
            norm_cfg=norm_cfg,
            **kwargs,
        )
        if is_guided(upsample_cfg) and len(decoder_channels) >= len(in_channels):
            raise ValueError(
                f"upsample_cfg type {upsample_cfg['type']!r} is guided by the skips: decoder_channels must "
                f"have {len(in_channels) - 1} entries, one for each, got {decoder_channels!r}"
            )
        norms = dict(norm_cfg=self.norm_cfg, act_cfg=self.act_cfg)

        def upsample(below: int, channels: int) -> nn.Module:
            return build_upsampler(upsample_cfg, below, channels, with_cp=with_cp, **norms)

        def guided_upsample(below: int, skip: int, channels: int) -> nn.Module:
            return GuidedDoubling(upsample_cfg, below, channels, skip, with_cp=with_cp, **norms)

        def convs(joined: int, channels: int) -> nn.Module:
            # The block's own with_cp would count every batch twice in the running statistics.
            return BasicConvBlock(joined, channels, num_convs=num_convs, conv_cfg=self.conv_cfg, **norms)

        def skip_norm(channels: int) -> nn.Module:
            return build_norm_layer(skip_norm_cfg, channels)[1] if skip_norm_cfg else nn.Identity()

        decoder = UNetDecoder(
            in_channels,
            decoder_channels,
            upsample=upsample,
            guided_upsample=guided_upsample if is_guided(upsample_cfg) else None,
            convs=convs,
            skip_norm=skip_norm,
            with_cp=with_cp,
        )
        self.stages = decoder.stages

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Decode the backbone's features to logits."""
        return self.cls_seg(decode(self.stages, self._transform_inputs(inputs)))


def _check(
    in_channels: Sequence[int], in_index: Sequence[int], decoder_channels: Sequence[int], num_convs: int
) -> None:
    """Check what mmseg's head would stumble over before the decoder sees it."""
    lists = dict(in_channels=in_channels, in_index=in_index, decoder_channels=decoder_channels)
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{name} must be a non-empty list of integers, got {values!r}")
    if len(in_channels) != len(in_index):
        raise ValueError(
            f"in_channels and in_index must be equally long, got {in_channels!r} and {in_index!r}"
        )
    if num_convs < 1:
        raise ValueError(f"num_convs must be a positive integer, got {num_convs!r}")
