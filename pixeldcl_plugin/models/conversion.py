"""MMSegmentation's upsamplers for :func:`~pixeldcl_plugin.convert_upsamplers`."""

from __future__ import annotations

from mmseg.models.backbones.unet import DeconvModule, InterpConv
from torch import Tensor, nn

from ..layers.converters import CONVERTERS
from ..layers.fixed_upsamplers import from_interpolation
from ..layers.pixel_dcl import IPixelDCL
from .upsamplers import IPixelDCLUpsample, LearnedUpsample

__all__: list[str] = []


def _from_deconv_module(module: DeconvModule, x: Tensor | None) -> LearnedUpsample:
    """Take over the deconvolution; its norm and activation stay."""
    deconv, norm, act = module.deconv_upsamping
    return IPixelDCLUpsample.around(IPixelDCL.from_deconvolution(deconv), norm, act, with_cp=module.with_cp)


def _from_interp_conv(module: InterpConv, x: Tensor | None) -> LearnedUpsample:
    """Take over the interpolation and the 1x1 convolution, which commute."""
    first, second = module.interp_upsample
    conv_first = hasattr(first, "conv")
    block, upsample = (first, second) if conv_first else (second, first)
    conv = block.conv
    if upsample.size or upsample.scale_factor != 2 or upsample.align_corners:
        raise ValueError(
            f"the interpolation must be x2 without align_corners, got size={upsample.size}, "
            f"scale_factor={upsample.scale_factor}, align_corners={upsample.align_corners}"
        )
    if conv_first and (block.with_norm or block.with_activation):
        raise ValueError("conv_first=True has its norm and activation before the interpolation")
    plain = type(conv) is nn.Conv2d and conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
    if not plain or conv.padding != (0, 0) or block.order != ("conv", "norm", "act"):
        raise ValueError("the convolution must be a plain 1x1, before its norm and activation")
    layer = from_interpolation(IPixelDCL, conv.out_channels, upsample.mode, conv=conv)
    norm = block.norm if block.with_norm else nn.Identity()
    act = block.activate if block.with_activation else nn.Identity()
    return IPixelDCLUpsample.around(layer, norm, act, with_cp=module.with_cp)


CONVERTERS[DeconvModule] = _from_deconv_module
CONVERTERS[InterpConv] = _from_interp_conv
