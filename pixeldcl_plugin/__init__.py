"""Learned upsampling for MMSegmentation: importing the package registers everything.

Without MMSegmentation the layers work all the same: they are plain torch. Public names are looked up when
they are first used, so that what draws, converts or analyses is imported only by those who ask for it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__version__ = "0.1.0"

#: Public name -> the module that has it.
_NAMES = {
    "DySample": "layers.dysample",
    "GuidedPixelDCL": "layers.guided",
    "IPixelDCL": "layers.pixel_dcl",
    "IPixelDCL3d": "layers.pixel_dcl_3d",
    "PixelDCL": "layers.pixel_dcl",
    "PixelDCL3d": "layers.pixel_dcl_3d",
    "PixelShuffleICNR": "layers.pixel_shuffle",
    "Segmenter": "apis.segmenter",
    "SeparablePixelDCL": "layers.separable",
    "TorchCARAFE": "layers.carafe",
    "UNetDecoder": "layers.unet_decoder",
    "convert_upsamplers": "layers.conversion",
    "create_model": "zoo.models",
    "list_models": "zoo.models",
    "load_weights": "zoo.models",
    "model_info": "zoo.models",
}
#: Modules that were once found at the top -> where they are.
_MODULES = {
    "backbones": "models.backbones",
    "decode_heads": "models.decode_heads",
    "functional": "layers.functional",
    "hooks": "engine.hooks",
    "metrics": "evaluation",
    "optim": "engine.optim",
    "peers": "layers",
    "unet_head": "models.unet_head",
    "upsamplers": "models.upsamplers",
    "vae": "models.vae",
    "vae_pictures": "visualization.vae_pictures",
}

__all__ = [*sorted(_NAMES), *sorted(_MODULES), "__version__"]


def __getattr__(name: str) -> Any:
    module = _NAMES.get(name) or _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = importlib.import_module(f".{module}", __name__)
    except ModuleNotFoundError as error:
        if error.name not in ("mmengine", "mmcv", "mmseg"):
            raise
        raise ModuleNotFoundError(
            f"{__name__}.{name} needs MMSegmentation: pip install 'pixeldcl-plugin[onedl]'", name=error.name
        ) from error
    return getattr(found, name) if name in _NAMES else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Register models, datasets, metrics, hooks and readers of checkpoints with MMEngine."""
    from .utils import compat

    compat.setup()  # before anything below reads a config or imports mmseg
    for family in ("models", "datasets", "evaluation", "engine", "visualization", "zoo"):
        importlib.import_module(f".{family}", __name__)


if importlib.util.find_spec("mmseg") is not None:
    _register()
