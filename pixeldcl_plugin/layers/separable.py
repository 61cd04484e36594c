"""The separable form of pixel deconvolution under a name of its own: what an unguided decoder should try."""

from __future__ import annotations

from typing import Any

from .pixel_dcl import PixelDCL

__all__ = ["SeparablePixelDCL"]


class SeparablePixelDCL(PixelDCL):
    """``PixelDCL(separable=True)``: a 1 x 1 convolution, then a learned interpolation channel by channel.

    Its four phases are made in pixel deconvolution's order, which makes it ``InterpConv`` with the
    interpolation learned and the channels mixed before it. Not in the paper. The state dict is that of
    ``PixelDCL(separable=True)``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels C of the output.
        **options: Those of :class:`PixelDCL`, but for ``groups`` and ``separable``.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, out_channels, scale_factor H, scale_factor W)``.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        if not options.setdefault("separable", True):
            raise ValueError("SeparablePixelDCL is separable, got separable=False: that is PixelDCL")
        super().__init__(in_channels, out_channels, **options)
