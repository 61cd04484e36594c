"""What draws. The hook that draws a VAE is registered on import."""

from . import vae_pictures

__all__ = ["vae_pictures"]
