"""Other learned x2 upsamplers under the same contract, so that one can be switched for another.

In a config: ``upsample_cfg=dict(type='PixelShuffleICNR')``, ``'TorchCARAFE'`` or ``'DySample'``. mmcv's own
``pixel_shuffle`` and ``carafe`` do not fit the contract of UNet, and its CARAFE has no CPU kernel; these
are plain torch, for CPU and GPU alike.

CARAFE and DySample move pixels and keep channels. Where a model asks for another number of channels, a 1x1
convolution goes *before* the upsampling, as in the feature pyramids of both papers, whose lateral 1x1
convolutions settle the channels that are upsampled. Afterwards it would have four times the pixels to work
on, and the upsampler, where channels are reduced, more channels to move. What is lost is small: CARAFE's
weighted means are the same for all channels and commute with a 1x1 convolution; only the prediction of the
weights sees fewer features.
"""

from .carafe import TorchCARAFE
from .conversion import Conversion, convert_upsamplers
from .dysample import DySample
from .fade import FADE
from .guided import GuidedPixelDCL
from .guided_residual import GuidedResidual
from .joint_bilateral import JointBilateralUpsample
from .pixel_dcl import IPixelDCL, PixelDCL
from .pixel_dcl_3d import IPixelDCL3d, PixelDCL3d
from .pixel_shuffle import PixelShuffleICNR
from .sapa import SAPA
from .separable import SeparablePixelDCL
from .unet_decoder import UNetDecoder

__all__ = [
    "FADE",
    "SAPA",
    "Conversion",
    "DySample",
    "GuidedPixelDCL",
    "GuidedResidual",
    "IPixelDCL",
    "IPixelDCL3d",
    "JointBilateralUpsample",
    "PixelDCL",
    "PixelDCL3d",
    "PixelShuffleICNR",
    "SeparablePixelDCL",
    "TorchCARAFE",
    "UNetDecoder",
    "convert_upsamplers",
]
