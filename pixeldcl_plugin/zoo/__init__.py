"""Models by name, and their released weights; on import MMEngine learns to read these."""

from . import loaders

__all__ = ["loaders"]
