"""Models as the registry sees them, registered on import."""

from . import (
    backbones,
    conversion,
    decode_heads,
    guided,
    guided_upsamplers,
    staged_heads,
    unet_head,
    upsamplers,
    vae,
)

__all__ = [
    "backbones",
    "conversion",
    "decode_heads",
    "guided",
    "guided_upsamplers",
    "staged_heads",
    "unet_head",
    "upsamplers",
    "vae",
]
