"""What a map and a finer guide show together, and the control of guided pixel deconvolution made from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_positive
from .common import Conv, pixel_shuffle
from .guided_upsample import GuideChannels, GuidedUpsample

__all__ = ["GuidedResidual", "Hidden", "Residual"]


class GuidedResidual(GuidedUpsample):
    """Bilinear interpolation and a residual of the map and a finer guide: what a user would try first.

    The control of :class:`~pixeldcl_plugin.layers.guided.GuidedPixelDCL`: it sees the same and has about as
    many parameters, but adds in place of choosing among neighbours. A step doubles the size::

        h   = relu(norm(conv1x1(x)) + norm(conv2x2_stride2(guide)))
        out = bilinear(x) + pixel_shuffle(conv3x3(relu(conv3x3(h))))

    The last convolution begins at zero: the untrained layer is bilinear interpolation, whatever the guide.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Those of the guide or guides, see :class:`GuidedUpsample`.
        scale_factor: 2, 4 or 8.
        hidden_channels: Channels of h, and between the two 3x3 convolutions.

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
        hidden_channels: int = 32,
    ) -> None:
        check_positive(hidden_channels=hidden_channels)
        super().__init__(
            in_channels,
            guide_channels,
            scale_factor,
            lambda guided_by: _Step(in_channels, guided_by, hidden_channels),
        )


class _Step(nn.Module):
    def __init__(self, channels: int, guide_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.hidden = Hidden(channels, guide_channels, hidden_channels)
        self.residual = Residual(hidden_channels, channels)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        coarse = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return coarse + self.residual(self.hidden(x, guide)).to(x.dtype)


class Hidden(nn.Module):
    """``relu(norm(conv1x1(x)) + norm(conv2x2_stride2(guide)))``: both maps at the resolution of ``x``.

    Args:
        channels: Channels C of the map.
        guide_channels: Channels G of the guide.
        hidden_channels: Channels of the output.

    Shape:
        ``(N, C, H, W)`` and ``(N, G, 2H, 2W)`` -> ``(N, hidden_channels, H, W)``.
    """

    def __init__(self, channels: int, guide_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.reduce = Conv(channels, hidden_channels)
        self.reduce_norm = _BatchNorm(hidden_channels)
        # No nn.Conv2d, see Conv.
        self.reduce_guide = nn.Parameter(torch.empty(hidden_channels, guide_channels, 2, 2))
        self.guide_norm = _BatchNorm(hidden_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernels; norms follow, so that their scale does not count."""
        for weight in (self.reduce.weight, self.reduce_guide):
            nn.init.kaiming_normal_(weight)
        for norm in (self.reduce_norm, self.guide_norm):
            norm.reset_parameters()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Join the map and the guide."""
        of_guide = self.guide_norm(F.conv2d(guide, self.reduce_guide, stride=2))
        return F.relu(self.reduce_norm(self.reduce(x)) + of_guide)


class Residual(nn.Module):
    """``pixel_shuffle(conv3x3(relu(conv3x3(h))))``, which begins at zero.

    Args:
        hidden_channels: Channels D of h, and between the convolutions.
        channels: Channels C of the output.

    Shape:
        ``(N, D, H, W)`` -> ``(N, C, 2H, 2W)``.
    """

    def __init__(self, hidden_channels: int, channels: int) -> None:
        super().__init__()
        self.mix = Conv(hidden_channels, hidden_channels, 3, bias=True)
        self.correct = Conv(hidden_channels, 4 * channels, 3, bias=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first convolution, and set the second to zero."""
        nn.init.kaiming_normal_(self.mix.weight)
        for parameter in (self.mix.get_parameter("bias"), *self.correct.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute the residual at twice the resolution."""
        return pixel_shuffle(self.correct(F.relu(self.mix(hidden))))


class _BatchNorm(nn.BatchNorm2d):
    """A batch norm that does not fail on a single value for each channel, nor learn from none.

    Such are an empty batch, and one picture that has become a single pixel. The running statistics serve.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() <= x.size(1):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
