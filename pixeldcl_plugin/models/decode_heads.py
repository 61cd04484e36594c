"""mmseg's decode heads with a learned upsampler on their logits.

A stock head leaves its logits at the stride of its features and mmseg enlarges them bilinearly. Here a
learned layer does so: two lines of a config, ``type='UpsampledFCNHead'`` and, for example,
``upsample_cfg=dict(type='PixelDCL', scale_factor=8)``. The parameters of the stock head keep their names,
so that its checkpoints load with only those of ``upsample`` missing.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mmcv.cnn import ConvModule, build_upsample_layer
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

from ..layers.common import UpsampleLayer
from ..registry import register
from .upsamplers import for_models


def build_upsampler(
    cfg: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    *,
    with_cp: bool = False,
    norm_cfg: Mapping[str, Any] | None = None,
    act_cfg: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an upsampling layer from its config, for logits as well as for features.

    Differs from mmcv's ``build_upsample_layer``, which it calls, in three points: the type is found without a
    default scope, layers without normalisation or activation of their own (``'deconv'``) are taken where
    none is asked for, and those that insist on both (``DeconvModule``) get an identity.

    Args:
        cfg: The layer's config. ``with_cp``, ``norm_cfg`` and ``act_cfg`` in it win over the arguments.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        with_cp: Recompute activations in the backward pass, where the layer can.
        norm_cfg: mmcv norm config; None for none.
        act_cfg: mmcv activation config; None for none.

    Raises:
        ValueError: If ``cfg`` is no dict with a registered ``type``, or the type does not take what is asked.
    """
    kind = cfg.get("type") if isinstance(cfg, Mapping) else None
    layer = kind if inspect.isclass(kind) else MODELS.get(kind) if isinstance(kind, str) else None
    if inspect.isclass(layer) and issubclass(layer, UpsampleLayer):
        layer = for_models(layer)
    if layer is None:
        raise ValueError(
            f"upsample_cfg must be a dict with the 'type' of a registered upsampler, got {cfg!r}"
        )
    needed: dict[str, Any] = dict(in_channels=in_channels, out_channels=out_channels)
    needed |= {name: c for name, c in dict(norm_cfg=norm_cfg, act_cfg=act_cfg).items() if c}
    taken = inspect.signature(layer).parameters
    if lacking := sorted(needed.keys() - taken.keys()):
        raise ValueError(
            f"upsample_cfg type {kind!r} takes no {', '.join(lacking)}; types that do are 'PixelDCL', "
            "'IPixelDCL', 'DeconvModule' and 'InterpConv'"
        )
    identity = dict(type=nn.Identity)
    offered = dict(norm_cfg=identity, act_cfg=identity, with_cp=with_cp) | needed
    arguments = {name: value for name, value in offered.items() if name in taken and name not in cfg}
    return build_upsample_layer({**cfg, "type": layer}, **arguments)


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
            conv = ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
            nn.init.dirac_(conv.conv.weight)
            stages.append(nn.Sequential(OrderedDict(upsample=upsample, conv=conv)))
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

    Args:
        upsample_cfg: Config of the upsampler, see :func:`build_upsampler`. It has no normalisation and no
            activation unless the config names them.
        **kwargs: The arguments of the stock head.

    Raises:
        ValueError: If ``upsample_cfg`` does not fit, or ``align_corners`` is true: the upsamplers work on the
            half-pixel grid, and resizing their output on another one would shift it by up to half
            a pixel of the features.
    """

    def __init__(self, *, upsample_cfg: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.align_corners:
            raise ValueError(
                f"{type(self).__name__} takes align_corners=False only, got {self.align_corners!r}"
            )
        self.upsample = build_upsampler(upsample_cfg, self.out_channels, self.out_channels)

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
