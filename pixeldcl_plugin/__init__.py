"""PixelDCL and iPixelDCL for MMSegmentation; importing the package registers everything."""

from . import compat

compat.setup()  # before anything below reads a config or imports mmseg

from . import (  # noqa: E402
    backbones,
    datasets,
    decode_heads,
    functional,
    hooks,
    metrics,
    optim,
    peers,
    unet_head,
    upsamplers,
    vae,
    vae_pictures,
)
from .layers import IPixelDCL, PixelDCL  # noqa: E402
from .segmenter import Segmenter  # noqa: E402
from .zoo import create_model, list_models, load_weights, model_info  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "IPixelDCL",
    "PixelDCL",
    "Segmenter",
    "__version__",
    "backbones",
    "create_model",
    "datasets",
    "decode_heads",
    "functional",
    "hooks",
    "list_models",
    "load_weights",
    "metrics",
    "model_info",
    "optim",
    "peers",
    "unet_head",
    "upsamplers",
    "vae",
    "vae_pictures",
]
