"""What is timed, by name: upsamplers as layers, in whole models, of volumes and on logits; retrofits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_upsample_layer
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..layers.pixel_dcl import PixelDCL
from ..models.upsamplers import LearnedUpsample
from ..registry import register
from .decoders import DECODER_SHAPES, DECODER_VARIANTS, decoder_case
from .logits import LOGITS_SHAPES, LOGITS_VARIANTS, logits_case
from .retrofit import RETROFIT_SHAPES, RETROFIT_VARIANTS, retrofit_case

__all__ = ["KINDS", "VARIANTS", "Kind", "LiteralPixelDCL", "layer_case", "model_case"]


#: The four upsamplers of mmseg's U-Net at 256 x 256, batch 4, and 256 channels at 120 x 120:
#: (batch, in_channels, out_channels, height, width).
LAYER_SHAPES = (
    (4, 1024, 512, 16, 16),
    (4, 512, 256, 32, 32),
    (4, 256, 128, 64, 64),
    (4, 128, 64, 128, 128),
    (4, 256, 256, 120, 120),
)

#: (base_channels, batch, height, width) of whole U-Nets; in the small one calls and memory traffic count.
MODEL_SHAPES = ((16, 8, 128, 160), (32, 4, 256, 256), (64, 4, 256, 256))

#: Two upsamplers of a volumetric U-Net: (batch, in_channels, out_channels, depth, height, width).
VOLUME_SHAPES = ((1, 64, 32, 16, 16, 16), (1, 64, 32, 32, 32, 32))

#: Every variant as an ``upsample_cfg``. The first is the one that ratios refer to.
VARIANTS: dict[str, dict[str, Any]] = {
    "deconv k4": dict(type="DeconvModule", kernel_size=4),
    "deconv k2": dict(type="DeconvModule", kernel_size=2),
    "deconv k6": dict(type="DeconvModule", kernel_size=6),
    "interp": dict(type="InterpConv"),
    "pixeldcl literal": dict(type="LiteralPixelDCL"),
    "pixeldcl": dict(type="PixelDCL"),
    "pixeldcl checkerboard-free": dict(type="PixelDCL", checkerboard_free=True),
    "pixeldcl depthwise": dict(type="PixelDCL", groups="out_channels"),
    "pixeldcl separable": dict(type="PixelDCL", separable=True),
    "pixeldcl full": dict(type="PixelDCL", efficient=False),
    "ipixeldcl": dict(type="IPixelDCL"),
    "ipixeldcl depthwise": dict(type="IPixelDCL", groups="out_channels"),
    "ipixeldcl full": dict(type="IPixelDCL", efficient=False),
    "pixel shuffle": dict(type="PixelShuffleICNR"),
    "carafe": dict(type="TorchCARAFE"),
    "dysample": dict(type="DySample"),
}

_ALONE = dict(norm_cfg=None, act_cfg=None)
#: Upsamplers of volumes, without norm and activation, which mmcv does not give its own.
VOLUME_VARIANTS: dict[str, dict[str, Any]] = {
    "deconv3d k4": dict(type="deconv3d", kernel_size=4, stride=2, padding=1, bias=False),
    "deconv3d k6": dict(type="deconv3d", kernel_size=6, stride=2, padding=2, bias=False),
    "pixeldcl3d": dict(type="PixelDCL3d", **_ALONE),
    "pixeldcl3d efficient": dict(type="PixelDCL3d", efficient=True, **_ALONE),
    "pixeldcl3d separable": dict(type="PixelDCL3d", separable=True, **_ALONE),
    "ipixeldcl3d": dict(type="IPixelDCL3d", **_ALONE),
}


class _LiteralLayer(PixelDCL):
    """Fig. 6 as it is drawn: dilate both maps onto the 2H x 2W grid, masked convolution, add."""

    def _upsample(self, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        pad = self.kernel_size // 2
        p00 = F.conv2d(x, weights["weight_p00"], padding=pad)
        p11 = F.conv2d(p00, weights["weight_p11"], padding=pad)
        n, c, h, w = p00.shape
        grid = p00.new_zeros(n, c, 2 * h, 2 * w)
        grid[..., ::2, ::2] = p00
        grid[..., 1::2, 1::2] = p11
        kernel = p00.new_zeros(c, c, self.kernel_size, self.kernel_size)
        kernel[:, :, pad % 2 :: 2, 1 - pad % 2 :: 2] = weights["weight_h"]
        kernel[:, :, 1 - pad % 2 :: 2, pad % 2 :: 2] = weights["weight_v"]
        return grid + F.conv2d(grid, kernel, padding=pad)


@register(MODELS)
class LiteralPixelDCL(LearnedUpsample):
    """What efficient PixelDCL is measured against: the same layer by the paper's own steps."""

    layer_type = _LiteralLayer


def layer_case(cfg: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Build one upsampler (with the norm and activation of its config) and its input."""
    batch, in_channels, out_channels, *size = shape
    init_default_scope("mmseg")
    module = build_upsample_layer(dict(cfg), in_channels=in_channels, out_channels=out_channels)
    return module, torch.randn(batch, in_channels, *size)


def model_case(cfg: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Build mmseg's five-level U-Net with that upsampler; the map of its last level is the output."""
    base_channels, batch, height, width = shape
    init_default_scope("mmseg")
    model = MODELS.build(dict(type="mmseg.UNet", base_channels=base_channels, upsample_cfg=dict(cfg)))
    return nn.Sequential(model, _Last()), torch.randn(batch, 3, height, width)


class _Last(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[-1]


@dataclass(frozen=True)
class Kind:
    """A kind of cases: what builds one, the shapes that are measured by default, its variants."""

    build: Callable[[dict[str, Any], tuple[int, ...]], tuple[nn.Module, Tensor]]
    shapes: tuple[tuple[int, ...], ...]
    variants: dict[str, dict[str, Any]]


KINDS = {
    "layer": Kind(layer_case, LAYER_SHAPES, VARIANTS),
    "model": Kind(model_case, MODEL_SHAPES, VARIANTS),
    "volume": Kind(layer_case, VOLUME_SHAPES, VOLUME_VARIANTS),
    "decoder": Kind(decoder_case, DECODER_SHAPES, DECODER_VARIANTS),
    "logits": Kind(logits_case, LOGITS_SHAPES, LOGITS_VARIANTS),
    "retrofit": Kind(retrofit_case, RETROFIT_SHAPES, RETROFIT_VARIANTS),
}
