"""SAPA-B: upsampling by the similarity of each fine pixel of a guide with the coarse pixels around it.

Source: Lu, Liu, Ye, Fu, Liu, Cao, "SAPA: Similarity-Aware Point Affiliation for Feature Upsampling"
(arXiv 2209.12866): the bilinear similarity in its low-rank form, of normalised features.
"""

from __future__ import annotations

from torch import Tensor, nn

from .carafe import reassemble
from .common import Conv, check_arguments, check_guide, check_input, check_odd, resize_guide
from .windows import window_products, window_softmax

__all__ = ["SAPA"]


class SAPA(nn.Module):
    """Every output pixel is a mean of a window of the input, weighted by similarity with a guide's pixel.

    Both maps are normalised over their channels and embedded linearly; the weights are the softmax of the
    scalar products over the window. Taps beyond the border have no weight.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Channels of the guide.
        up_kernel: Size of the window, odd.
        embed_channels: Channels of the embeddings, the rank of the bilinear form.
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
        embed_channels: int = 32,
        scale_factor: int = 2,
    ) -> None:
        super().__init__()
        check_arguments(
            scale_factor,
            in_channels=in_channels,
            guide_channels=guide_channels,
            embed_channels=embed_channels,
        )
        check_odd("up_kernel", up_kernel)
        self.in_channels = in_channels
        self.guide_channels = guide_channels
        self.up_kernel = up_kernel
        self.norm = nn.LayerNorm(in_channels, bias=False)  # the softmax would cancel it
        self.guide_norm = nn.LayerNorm(guide_channels)
        self.embed = Conv(in_channels, embed_channels)
        self.embed_guide = Conv(guide_channels, embed_channels)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``(N, C, H, W)`` to ``(N, C, 2H, 2W)``.

        Raises:
            ValueError: If ``x`` or ``guide`` has another shape.
        """
        check_input(self, x, self.in_channels)
        check_guide(self, guide, x.size(0), self.guide_channels)
        guide = resize_guide(guide, (2 * x.size(2), 2 * x.size(3)))
        keys = self.embed(_over_channels(self.norm, x))
        queries = self.embed_guide(_over_channels(self.guide_norm, guide))
        return reassemble(x, window_softmax(window_products(queries, keys, self.up_kernel)))


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    normed: Tensor = norm(x.permute(0, 2, 3, 1))
    return normed.permute(0, 3, 1, 2)
