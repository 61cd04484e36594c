"""A U-Net decoder, with any upsampler, over the features of any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmseg.models.backbones.unet import BasicConvBlock
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..registry import register
from .decode_heads import build_upsampler
from .upsamplers import recompute


@register(MODELS)
class UNetHead(BaseDecodeHead):
    """The decoder of a U-Net (Ronneberger et al. 2015): upsample x2, join the skip, convolve; repeat.

    One stage for every entry of ``decoder_channels``, the deepest first. Those that come after the
    shallowest feature is used up have no skip: with features at strides 2 to 32, four entries give
    logits at stride 2, five at the size of the image. Every feature must be half as large as
    the one before it, rounded either way.

    Args:
        in_channels: Channels of the features, the shallowest first.
        in_index: Their places among the backbone's outputs.
        decoder_channels: Output channels of the stages, the deepest first; at least one for every skip.
        upsample_cfg: Config of the upsampler of every stage, which must double the size. It maps to
            the stage's output channels and is followed by ``norm_cfg`` and ``act_cfg``.
        num_convs: 3x3 convolutions after the upsampler of every stage.
        with_cp: Recompute the stages' activations in the backward pass instead of keeping them.
        norm_cfg: mmcv norm config; None for none.
        skip_norm_cfg: mmcv norm config for the skips, before they are joined; None for none. Needed with
            encoders whose features leave a linear layer, such as EfficientNet's: they are several times as
            large as the normalised map beside them, whose classes they drown.
        **kwargs: The other arguments of mmseg's decode heads, such as ``num_classes``. ``channels`` and
            ``input_transform`` follow from the above.

    Shape:
        Features ``(N, in_channels[i], H_i, W_i)`` -> ``(N, num_classes, 2^k H_0, 2^k W_0)``, k the number of
        stages without a skip.

    Raises:
        ValueError: If the lists do not fit each other, or ``upsample_cfg`` is none, see
            :func:`~pixeldcl_plugin.models.decode_heads.build_upsampler`. From ``forward``, if a feature is
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
        _check_lists(in_channels, in_index, decoder_channels)
        if num_convs < 1:
            raise ValueError(f"num_convs must be a positive integer, got {num_convs!r}")
        super().__init__(
            in_channels=in_channels,
            channels=decoder_channels[-1],
            in_index=in_index,
            input_transform="multiple_select",
            norm_cfg=norm_cfg,
            **kwargs,
        )
        *skips, below = in_channels
        stages = []
        for channels, skip in zip_longest(decoder_channels, reversed(skips), fillvalue=0):
            stages.append(
                _Stage(
                    below,
                    skip,
                    channels,
                    upsample_cfg,
                    num_convs=num_convs,
                    with_cp=with_cp,
                    skip_norm_cfg=skip_norm_cfg,
                    conv_cfg=self.conv_cfg,
                    norm_cfg=self.norm_cfg,
                    act_cfg=self.act_cfg,
                )
            )
            below = channels
        self.stages = nn.ModuleList(stages)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Decode the backbone's features to logits."""
        *skips, x = self._transform_inputs(inputs)
        for stage, skip in zip_longest(self.stages, reversed(skips)):
            x = stage(x, skip)
        return self.cls_seg(x)


class _Stage(nn.Module):
    """Upsample x2, join the skip if there is one, convolve."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        upsample_cfg: dict[str, Any],
        *,
        num_convs: int,
        with_cp: bool,
        skip_norm_cfg: dict[str, Any] | None,
        conv_cfg: dict[str, Any] | None,
        norm_cfg: dict[str, Any] | None,
        act_cfg: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.upsample = build_upsampler(
            upsample_cfg,
            in_channels,
            out_channels,
            with_cp=with_cp,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )
        norm = skip_norm_cfg if skip_channels else None
        self.skip_norm = build_norm_layer(norm, skip_channels)[1] if norm else nn.Identity()
        # The block's own with_cp would count every batch twice in the running statistics.
        self.convs = BasicConvBlock(
            out_channels + skip_channels,
            out_channels,
            num_convs=num_convs,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
        )

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.upsample(x)
        if skip is not None:
            x = torch.cat([self.skip_norm(skip), _fit(x, skip.shape[2:])], dim=1)
        return recompute(self.convs, x, self.convs) if self.with_cp else self.convs(x)


def _fit(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop or repeat the last row and column where halving an odd size had rounded it.

    Not a resize: that would stretch the map, by up to a pixel of this level at the far end, which is 16
    pixels of the image at stride 16. Here every pixel keeps the place that it has at even sizes.
    """
    missing = [wanted - got for wanted, got in zip(size, x.shape[2:], strict=True)]
    if any(abs(pixels) > 1 for pixels in missing):
        raise ValueError(
            "every feature must be half as large as the one before it: an upsampled map of size "
            f"{tuple(x.shape[2:])} does not fit a skip of size {tuple(size)}"
        )
    x = x[..., : size[0], : size[1]]
    bottom, right = (max(pixels, 0) for pixels in missing)
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def _check_lists(
    in_channels: Sequence[int], in_index: Sequence[int], decoder_channels: Sequence[int]
) -> None:
    lists = dict(in_channels=in_channels, in_index=in_index, decoder_channels=decoder_channels)
    for name, values in lists.items():
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{name} must be a non-empty list of integers, got {values!r}")
    if len(in_channels) != len(in_index):
        raise ValueError(
            f"in_channels and in_index must be equally long, got {in_channels!r} and {in_index!r}"
        )
    if len(decoder_channels) < len(in_channels) - 1:
        raise ValueError(
            f"decoder_channels must have an entry for each of the {len(in_channels) - 1} skips, "
            f"got {decoder_channels!r}"
        )
