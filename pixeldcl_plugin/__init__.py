"""PixelDCL and iPixelDCL for MMSegmentation; importing the package registers everything."""

from . import compat

compat.setup()  # before anything below reads a config or imports mmseg

from . import (  # noqa: E402
    datasets,
    decode_heads,
    functional,
    hooks,
    optim,
    peers,
    unet_head,
    upsamplers,
)
from .layers import IPixelDCL, PixelDCL  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "IPixelDCL",
    "PixelDCL",
    "__version__",
    "datasets",
    "decode_heads",
    "functional",
    "hooks",
    "optim",
    "peers",
    "unet_head",
    "upsamplers",
]
