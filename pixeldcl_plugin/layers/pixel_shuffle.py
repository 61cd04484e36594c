"""Pixel shuffle (sub-pixel convolution) that begins without checkerboard.

Source: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network" (arXiv 1609.05158) for the layer; Aitken et al., "Checkerboard artifact free
sub-pixel convolution" (arXiv 1707.02937) for its initialisation, ICNR.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .common import Conv, UpsampleLayer, check_arguments, check_input, check_odd, pixel_shuffle

__all__ = ["PixelShuffleICNR"]


class PixelShuffleICNR(UpsampleLayer):
    """One convolution makes all four phases of the output, independently; ICNR begins them equal.

    The untrained layer is a convolution followed by nearest-neighbour upsampling. There is no bias:
    normalisation comes after.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels C of the output; the convolution makes 4C.
        kernel_size: Size of the convolution, odd.
        scale_factor: 2; there for configs that name it.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, out_channels, 2H, 2W)``.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int = 3, scale_factor: int = 2
    ) -> None:
        super().__init__()
        check_arguments(scale_factor, in_channels=in_channels, out_channels=out_channels)
        check_odd("kernel_size", kernel_size)
        self.in_channels = in_channels
        self.conv = Conv(in_channels, 4 * out_channels, kernel_size)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``(N, in_channels, H, W)`` to ``(N, out_channels, 2H, 2W)``.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        check_input(self, x, self.in_channels)
        return pixel_shuffle(self.conv(x))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the kernel of one phase, variance-preserving, and give it to all four."""
        weight = self.conv.weight
        phase = torch.empty_like(weight[::4])
        nn.init.normal_(phase, std=phase[0].numel() ** -0.5)
        # pixel_shuffle takes the phases of an output channel from neighbouring channels
        weight.copy_(phase.repeat_interleave(4, dim=0))
