"""Joint bilateral upsampling with a learned range kernel.

Source: Fu, Hamilton, Brandt, Feldmann, Zhang, Freeman, "FeatUp: A Model-Agnostic Framework for Features at
Any Resolution" (arXiv 2403.10516), after Kopf, Cohen, Lischinski, Uyttendaele, "Joint Bilateral Upsampling"
(SIGGRAPH 2007).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_positive
from .carafe import reassemble
from .common import Conv, check_odd
from .guided_upsample import GuideChannels, GuidedUpsample
from .windows import window_products, window_softmax

__all__ = ["JointBilateralUpsample"]


class JointBilateralUpsample(GuidedUpsample):
    """Every output pixel is a mean of a window of the input, weighted by distance and by a guide.

    The weight of a tap is ``exp(-d^2 / (2 s^2) + t q . k)``, normalised over the window: d the distance in
    pixels of the input, q and k what a network of two 1x1 convolutions makes of the guide at the output's
    pixel and at the tap; there the guide is averaged to the input's size. The width s and the temperature t
    are learned. Taps beyond the border have no weight.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Those of the guide or guides, see :class:`GuidedUpsample`.
        scale_factor: 2, 4 or 8.
        up_kernel: Size of the window, odd.
        embed_channels: Channels of q and k.

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
        up_kernel: int = 7,
        embed_channels: int = 32,
    ) -> None:
        check_positive(embed_channels=embed_channels)
        check_odd("up_kernel", up_kernel)
        super().__init__(
            in_channels,
            guide_channels,
            scale_factor,
            lambda guided_by: _Step(guided_by, up_kernel, embed_channels),
        )


class _Step(nn.Module):
    def __init__(self, guide_channels: int, up_kernel: int, embed_channels: int) -> None:
        super().__init__()
        self.up_kernel = up_kernel
        self.expand = Conv(guide_channels, embed_channels, bias=True)
        self.embed = Conv(embed_channels, embed_channels, bias=True)
        self.log_width = nn.Parameter(torch.zeros(()))
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        queries, keys = (self.embed(F.gelu(self.expand(g))) for g in (guide, F.avg_pool2d(guide, 2)))
        logits = window_products(queries, keys, self.up_kernel) * self.log_temperature.exp()
        return reassemble(x, window_softmax(logits + self._spatial(x)))

    def _spatial(self, x: Tensor) -> Tensor:
        """Return ``-d^2 / (2 s^2)`` of the taps and phases, ``(k * k, 4, 1, 1)``."""
        reach = self.up_kernel // 2
        taps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        # The centres of the two output pixels within one of the input.
        places = torch.tensor([-0.25, 0.25], dtype=x.dtype, device=x.device)
        squares = (taps[:, None] - places).square()
        distance = squares[:, None, :, None] + squares[None, :, None, :]
        return -(distance / (2 * (2 * self.log_width).exp())).reshape(-1, 4, 1, 1)
