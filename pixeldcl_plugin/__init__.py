"""PixelDCL and iPixelDCL for MMSegmentation; importing the package registers everything."""

from . import functional, upsamplers
from .layers import IPixelDCL, PixelDCL

__version__ = "0.1.0"

__all__ = ["IPixelDCL", "PixelDCL", "__version__", "functional", "upsamplers"]
