"""Models as the registry sees them, registered on import."""

from . import backbones, decode_heads, guided, unet_head, upsamplers, vae

__all__ = ["backbones", "decode_heads", "guided", "unet_head", "upsamplers", "vae"]
