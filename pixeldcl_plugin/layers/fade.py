"""FADE: upsampling with kernels made from the decoder's map and the encoder's, and a gate between both.

Source: Lu, Liu, Fu, Cao, "FADE: Fusing the Assets of Decoder and Encoder for Task-Agnostic Upsampling"
(arXiv 2207.10392).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_positive
from .carafe import reassemble
from .common import Conv, channel_change, check_odd
from .guided_upsample import GuideChannels, GuidedUpsample

__all__ = ["FADE"]


class FADE(GuidedUpsample):
    """CARAFE's weighted means, with weights from both maps, then a gate that lets the guide through.

    The semi-shift convolution: both maps are compressed, then one kernel runs over each at its own
    resolution; every fine pixel adds what its coarse source gave. A softmax makes weights of the sums. The
    gate, of the coarse map, mixes the upsampled map with the guide.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Those of the guide or guides, see :class:`GuidedUpsample`. A 1x1 convolution makes C
            of them where they differ.
        scale_factor: 2, 4 or 8.
        up_kernel: Size of the window, odd.
        encoder_kernel: Size of the convolution that makes the weights, odd.
        compressed_channels: Channels that it sees.

    Shape:
        See :class:`GuidedUpsample`.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: GuideChannels,
        *,
        scale_factor: int = 2,
        up_kernel: int = 5,
        encoder_kernel: int = 3,
        compressed_channels: int = 64,
    ) -> None:
        check_positive(compressed_channels=compressed_channels)
        check_odd("up_kernel", up_kernel)
        check_odd("encoder_kernel", encoder_kernel)
        super().__init__(
            in_channels,
            guide_channels,
            scale_factor,
            lambda guided_by: _Step(in_channels, guided_by, up_kernel, encoder_kernel, compressed_channels),
        )


class _Step(nn.Module):
    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        up_kernel: int,
        encoder_kernel: int,
        compressed_channels: int,
    ) -> None:
        super().__init__()
        self.compress = Conv(in_channels, compressed_channels)
        self.compress_guide = Conv(guide_channels, compressed_channels, bias=True)
        self.encode = Conv(compressed_channels, up_kernel**2, encoder_kernel, bias=True)
        self.gate = Conv(in_channels, 1, bias=True)
        self.align = channel_change(guide_channels, in_channels)
        for layer in (self.compress, self.compress_guide, self.encode, self.gate):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        gate = F.interpolate(self.gate(x).sigmoid(), scale_factor=2)
        return gate * self.align(guide) + (1 - gate) * reassemble(x, self._kernels(x, guide))

    def _kernels(self, x: Tensor, guide: Tensor) -> Tensor:
        """Predict the kernels, ``(N, up_kernel**2, 4, H, W)``, as CARAFE's: positive, with sum one."""
        fine = self.encode(self.compress_guide(guide))
        phases = [fine[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        coarse = F.conv2d(self.compress(x), self.encode.weight, padding=self.encode.weight.size(-1) // 2)
        return (torch.stack(phases, 2) + coarse.unsqueeze(2)).softmax(1)
