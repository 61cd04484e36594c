"""mmseg's decode heads with a learned upsampler on their logits.

A stock head leaves its logits at the stride of its features and mmseg enlarges them bilinearly. Here a
learned layer does so: two lines of a config, ``type='UpsampledFCNHead'`` and, for example,
``upsample_cfg=dict(type='PixelDCL', scale_factor=8)``. The parameters of the stock head keep their names,
so that its checkpoints load with only those of ``upsample`` missing; of ``guided``, if the upsampler is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.registry import MODELS as ROOT_MODELS
from mmseg.models.decode_heads import (
    ASPPHead,
    DepthwiseSeparableASPPHead,
    FCNHead,
    PSPHead,
    SegformerHead,
    UPerHead,
)
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..registry import register
from .guided_heads import Guide, check_places, guide_head
from .guided_upsamplers import is_guided
from .upsamplers import build_upsampler


@register(ROOT_MODELS)
class UpsampleStages(nn.Module):
    """Several upsamplers in a row, each followed by a 3x3 convolution: the paper's form for DeepLab.

    ``upsample_cfg=dict(type='UpsampleStages', num_stages=3, upsample_cfg=dict(type='PixelDCL'))`` has the
    stages x2, x2, x2. The convolutions start as the identity, so that the untrained stages do what
    their untrained upsamplers do. Itself under the contract of mmcv's ``build_upsample_layer``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output and between the stages.
        with_cp: Passed on to the upsamplers.
        norm_cfg: mmcv norm config, after every upsampler and every convolution; None for none.
        act_cfg: mmcv activation config, likewise. Between logits none is usual.
        num_stages: Number of stages.
        upsample_cfg: Config of the upsampler of every stage.
        with_conv: Whether the convolutions are there. Without them the upsamplers alone follow each other.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, out_channels, s H, s W)``, s the product of the stages' factors.

    Raises:
        ValueError: If ``num_stages`` is not positive, or ``upsample_cfg`` is none, see
            :func:`build_upsampler`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        with_cp: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
        *,
        num_stages: int = 3,
        upsample_cfg: dict[str, Any] = dict(type="PixelDCL"),  # noqa: B006 never changed
        with_conv: bool = True,
    ) -> None:
        super().__init__()
        if num_stages < 1:
            raise ValueError(f"num_stages must be a positive integer, got {num_stages!r}")
        stages = []
        for stage in range(num_stages):
            upsample = build_upsampler(
                upsample_cfg,
                in_channels if stage == 0 else out_channels,
                out_channels,
                with_cp=with_cp,
                norm_cfg=norm_cfg,
                act_cfg=act_cfg,
            )
            parts: dict[str, nn.Module] = dict(upsample=upsample)
            if with_conv:
                conv = ConvModule(
                    out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg
                )
                nn.init.dirac_(conv.conv.weight)
                parts["conv"] = conv
            stages.append(nn.Sequential(OrderedDict(parts)))
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``x`` stage by stage."""
        return self.stages(x)


class UpsampledHead(BaseDecodeHead):
    """Puts a learned upsampler on the logits of the head that follows it in the list of bases.

    Loss and prediction resize only what remains: logits of a 97-pixel image at stride 8 are 13 pixels wide,
    upsampled 104, and resizing 104 to 97 maps the same pixels onto each other as 13 to 97 does. A
    ``scale_factor`` equal to the stride of the logits fits; a larger one computes what is then thrown away.

    With ``init='interpolate'`` (the default of PixelDCL and IPixelDCL) the untrained upsampler is
    a smooth interpolation of every class by itself, close to the bilinear one of the stock head;
    ``padding_mode='replicate'`` makes it so at the image's border too.

    A guided upsampler needs to be told what guides it, by ``guide_index``; any other takes no notice of that.

    Args:
        upsample_cfg: Config of the upsampler, see :func:`build_upsampler` and
            :func:`~pixeldcl_plugin.models.guided_upsamplers.build_guided`. It has no normalisation and no
            activation unless the config names them.
        guide_index: The guides, from that of the first doubling to the finest: places among the features of
            the backbone, or ``'image'``, the network's own normalised input, which a ``GuidedEncoderDecoder``
            hands to its heads. Where there are fewer guides than doublings, the last serves the others too.
        guide_channels: Their channels. None to take three for the image, and those of ``in_channels`` for
            a feature that is in ``in_index``; a ``GuidedEncoderDecoder`` knows them all.
        **kwargs: The arguments of the stock head.

    Raises:
        ValueError: If ``upsample_cfg`` does not fit, a guide or its channels are missing, or
            ``align_corners`` is true: the upsamplers work on the half-pixel grid, and resizing their output
            on another one would shift it by up to half a pixel of the features.
    """

    def __init__(
        self,
        *,
        upsample_cfg: dict[str, Any],
        guide_index: Sequence[Guide] | None = None,
        guide_channels: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if self.align_corners:
            raise ValueError(
                f"{type(self).__name__} takes align_corners=False only, got {self.align_corners!r}"
            )
        if not is_guided(upsample_cfg):
            self.upsample = build_upsampler(upsample_cfg, self.out_channels, self.out_channels)
            return
        if not guide_index:
            raise ValueError(
                f"upsample_cfg type {upsample_cfg['type']!r} takes guides: guide_index must name them, "
                f"got {guide_index!r}"
            )
        self.upsample = nn.Identity()
        guide_head(self, upsample_cfg, guide_index, guide_channels or self._channels_of(guide_index))

    def _channels_of(self, index: Sequence[Guide]) -> list[int]:
        """Return the channels of the guides, as far as the head can know them."""
        check_places(index)
        known: dict[Guide, int] = {"image": 3}
        if self.input_transform == "multiple_select":
            known |= zip(self.in_index, self.in_channels, strict=True)
        if unknown := [place for place in index if place not in known]:
            raise ValueError(
                f"guide_channels must be given for guide_index {list(index)}: {type(self).__name__} does not "
                f"read {unknown}; or set model.type to 'GuidedEncoderDecoder', which learns them"
            )
        return [known[place] for place in index]

    def cls_seg(self, feat: Tensor) -> Tensor:
        """Classify each pixel of ``(N, channels, H, W)``: ``(N, out_channels, s H, s W)``."""
        return self.upsample(super().cls_seg(feat))


@register(MODELS)
class UpsampledFCNHead(UpsampledHead, FCNHead):
    """FCNHead with a learned upsampler, see :class:`UpsampledHead`."""


@register(MODELS)
class UpsampledASPPHead(UpsampledHead, ASPPHead):
    """ASPPHead (DeepLabV3) with a learned upsampler, see :class:`UpsampledHead`."""


@register(MODELS)
class UpsampledDepthwiseSeparableASPPHead(UpsampledHead, DepthwiseSeparableASPPHead):
    """DepthwiseSeparableASPPHead (DeepLabV3+) with a learned upsampler, see :class:`UpsampledHead`."""


@register(MODELS)
class UpsampledPSPHead(UpsampledHead, PSPHead):
    """PSPHead with a learned upsampler, see :class:`UpsampledHead`."""


@register(MODELS)
class UpsampledUPerHead(UpsampledHead, UPerHead):
    """UPerHead with a learned upsampler, see :class:`UpsampledHead`."""


@register(MODELS)
class UpsampledSegformerHead(UpsampledHead, SegformerHead):
    """SegformerHead with a learned upsampler, see :class:`UpsampledHead`."""
