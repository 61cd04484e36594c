"""SAPA-B: upsampling by the similarity of each fine pixel of a guide with the coarse pixels around it.

Source: Lu, Liu, Ye, Fu, Liu, Cao, "SAPA: Similarity-Aware Point Affiliation for Feature Upsampling"
(arXiv 2209.12866): the bilinear similarity in its low-rank form, of normalised features.
"""

from __future__ import annotations

from torch import Tensor, nn

from .arguments import check_positive
from .carafe import reassemble
from .common import Conv, check_odd
from .guided_upsample import GuideChannels, GuidedUpsample
from .windows import window_products, window_softmax

__all__ = ["SAPA"]


class SAPA(GuidedUpsample):
    """Every output pixel is a mean of a window of the input, weighted by similarity with a guide's pixel.

    Both maps are normalised over their channels and embedded linearly; the weights are the softmax of the
    scalar products over the window. Taps beyond the border have no weight.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Those of the guide or guides, see :class:`GuidedUpsample`.
        scale_factor: 2, 4 or 8.
        up_kernel: Size of the window, odd.
        embed_channels: Channels of the embeddings, the rank of the bilinear form.

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
        embed_channels: int = 32,
    ) -> None:
        check_positive(embed_channels=embed_channels)
        check_odd("up_kernel", up_kernel)
        super().__init__(
            in_channels,
            guide_channels,
            scale_factor,
            lambda guided_by: _Step(in_channels, guided_by, up_kernel, embed_channels),
        )


class _Step(nn.Module):
    def __init__(self, in_channels: int, guide_channels: int, up_kernel: int, embed_channels: int) -> None:
        super().__init__()
        self.up_kernel = up_kernel
        self.norm = nn.LayerNorm(in_channels, bias=False)  # the softmax would cancel it
        self.guide_norm = nn.LayerNorm(guide_channels)
        self.embed = Conv(in_channels, embed_channels)
        self.embed_guide = Conv(guide_channels, embed_channels)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        keys = self.embed(_over_channels(self.norm, x))
        queries = self.embed_guide(_over_channels(self.guide_norm, guide))
        return reassemble(x, window_softmax(window_products(queries, keys, self.up_kernel)))


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    normed: Tensor = norm(x.permute(0, 2, 3, 1))
    return normed.permute(0, 3, 1, 2)
