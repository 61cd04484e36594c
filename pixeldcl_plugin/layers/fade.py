"""FADE: upsampling with kernels made from the decoder's map and the encoder's, and a gate between both.

Source: Lu, Liu, Fu, Cao, "FADE: Fusing the Assets of Decoder and Encoder for Task-Agnostic Upsampling"
(arXiv 2207.10392).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .carafe import reassemble
from .common import (
    Conv,
    channel_change,
    check_arguments,
    check_guide,
    check_input,
    check_odd,
    resize_guide,
)

__all__ = ["FADE"]


class FADE(nn.Module):
    """CARAFE's weighted means, with weights from both maps, then a gate that lets the guide through.

    The semi-shift convolution: both maps are compressed, then one kernel runs over each at its own
    resolution; every fine pixel adds what its coarse source gave. A softmax makes weights of the sums. The
    gate, of the coarse map, mixes the upsampled map with the guide.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Channels of the guide. A 1x1 convolution makes C of them where they differ.
        up_kernel: Size of the window, odd.
        encoder_kernel: Size of the convolution that makes the weights, odd.
        compressed_channels: Channels that it sees.
        scale_factor: 2; there for configs that name it.

    Shape:
        ``(N, C, H, W)`` and a guide ``(N, guide_channels, 2H, 2W)`` -> ``(N, C, 2H, 2W)``. A guide of
        another size is resized.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        *,
        up_kernel: int = 5,
        encoder_kernel: int = 3,
        compressed_channels: int = 64,
        scale_factor: int = 2,
    ) -> None:
        super().__init__()
        check_arguments(
            scale_factor,
            in_channels=in_channels,
            guide_channels=guide_channels,
            compressed_channels=compressed_channels,
        )
        check_odd("up_kernel", up_kernel)
        check_odd("encoder_kernel", encoder_kernel)
        self.in_channels = in_channels
        self.guide_channels = guide_channels
        self.compress = Conv(in_channels, compressed_channels)
        self.compress_guide = Conv(guide_channels, compressed_channels, bias=True)
        self.encode = Conv(compressed_channels, up_kernel**2, encoder_kernel, bias=True)
        self.gate = Conv(in_channels, 1, bias=True)
        self.align = channel_change(guide_channels, in_channels)
        for layer in (self.compress, self.compress_guide, self.encode, self.gate):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``(N, C, H, W)`` to ``(N, C, 2H, 2W)``.

        Raises:
            ValueError: If ``x`` or ``guide`` has another shape.
        """
        check_input(self, x, self.in_channels)
        check_guide(self, guide, x.size(0), self.guide_channels)
        guide = resize_guide(guide, (2 * x.size(2), 2 * x.size(3)))
        gate = F.interpolate(self.gate(x).sigmoid(), scale_factor=2)
        return gate * self.align(guide) + (1 - gate) * reassemble(x, self.reassembly_kernels(x, guide))

    def reassembly_kernels(self, x: Tensor, guide: Tensor) -> Tensor:
        """Predict the kernels, ``(N, up_kernel**2, 4, H, W)``, as CARAFE's: positive, with sum one."""
        fine = self.encode(self.compress_guide(guide))
        phases = [fine[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        coarse = F.conv2d(self.compress(x), self.encode.weight, padding=self.encode.weight.size(-1) // 2)
        return (torch.stack(phases, 2) + coarse.unsqueeze(2)).softmax(1)
