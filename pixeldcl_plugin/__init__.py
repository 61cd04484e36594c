"""PixelDCL and iPixelDCL for MMSegmentation; importing the package registers everything."""

from . import compat

compat.setup()  # before anything below reads a config or imports mmseg

from . import datasets, functional, hooks, optim, upsamplers  # noqa: E402
from .layers import IPixelDCL, PixelDCL  # noqa: E402

__version__ = "0.1.0"

__all__ = ["IPixelDCL", "PixelDCL", "__version__", "datasets", "functional", "hooks", "optim", "upsamplers"]
