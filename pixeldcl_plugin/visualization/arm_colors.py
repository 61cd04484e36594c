"""One colour for the layers of this package, wherever upsamplers are drawn side by side."""

from __future__ import annotations

__all__ = ["arm_color"]


def arm_color(name: str, other: str = "#4c72b0") -> str:
    """Return red for an upsampler of this package, told by its name, else ``other``."""
    return "#c44e52" if any(part in name for part in ("pixeldcl", "guided", "separable")) else other
