"""Guided pixel deconvolution: upsampling as a choice among neighbours that a finer map makes.

Pixel deconvolution's order of the phases (Gao, Yuan, Wang, Ji, arXiv 1705.06820, Fig. 5), with weights that
differ from pixel to pixel and are the same for all channels. They are predicted from the map and from a guide
at twice its size: a feature of the encoder, or the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_choice, check_positive, is_int
from .common import Conv, check_guide, check_input, pixel_shuffle, resize_guide
from .interleave import memory_format
from .neighbour_means import mean_of_neighbours
from .neighbours import ORDERS, bilinear_weights, phase_neighbours

__all__ = ["GuidedPixelDCL"]

SCALE_FACTORS = (2, 4, 8)

#: What the untrained layer gives each neighbour that bilinear interpolation leaves out. A logarithm needs
#: more than zero, and so does a gradient; three steps with up to nine of these stay within 1e-3 of the range.
_LEFT_OUT = 3e-5


class GuidedPixelDCL(nn.Module):
    """Upsample by weighted means of neighbours, with weights predicted from the map and a finer guide.

    A step doubles the size (:func:`~pixeldcl_plugin.layers.neighbour_means.mean_of_neighbours`)::

        h      = relu(norm(conv1x1(x)) + norm(conv2x2_stride2(guide)))
        logits = conv1x1(depthwise_conv3x3(h))
        out    = mean_of_neighbours(x, logits)

    Every output is a convex combination of pixels of ``x``: a constant stays one, in all phases alike, so
    there is no checkerboard, and nothing overshoots. The prediction works at the low resolution, and its cost
    barely depends on the channels. The untrained layer is bilinear interpolation, whatever the guide.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Channels of the guide; or of the guides, from that of the first step to the finest.
            Where there are fewer guides than steps, the last serves the other steps too.
        scale_factor: 2, 4 or 8: one, two or three steps.
        order: 'ipixeldcl', each phase from the input and the earlier phases; 'pixeldcl', the first phase from
            the input and the others from the earlier phases; None, each phase from the input alone.
        groups: Groups of channels with weights of their own; must divide C.
        hidden_channels: Channels of h, from which the weights are predicted.
        separable: Predict by a depthwise 3x3 and a 1x1 convolution. If false, by a dense 3x3 convolution,
            which costs more and predicts better.
        residual: Add ``conv1x1(h)``, which begins at zero, to every step. The output is no longer a convex
            combination; where classes are few, this reaches further than a choice among neighbours.

    Shape:
        ``(N, C, H, W)`` and guides ``(N, G, 2H, 2W)``, ``(N, G', 4H, 4W)``, ... ->
        ``(N, C, scale_factor H, scale_factor W)``, in the memory format of the input. A guide of another
        size is taken to show the same picture, and resized.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int | Sequence[int],
        *,
        scale_factor: int = 2,
        order: str | None = "ipixeldcl",
        groups: int = 1,
        hidden_channels: int = 32,
        separable: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, groups=groups, hidden_channels=hidden_channels)
        check_choice("scale_factor", scale_factor, SCALE_FACTORS)
        check_choice("order", order, ORDERS)
        check_choice("separable", separable, (False, True))
        check_choice("residual", residual, (False, True))
        if in_channels % groups:
            raise ValueError(f"groups must divide in_channels, got {groups} with in_channels={in_channels}")
        steps = scale_factor.bit_length() - 1
        self.in_channels = in_channels
        self.guide_channels = _check_guide_channels(guide_channels, steps)
        self.scale_factor = scale_factor
        self.order = order
        self.groups = groups
        self.hidden_channels = hidden_channels
        self.separable = separable
        self.residual = residual
        missing = [self.guide_channels[-1]] * (steps - len(self.guide_channels))
        self.steps = nn.ModuleList(
            _Step(in_channels, channels, order, groups, hidden_channels, separable, residual)
            for channels in [*self.guide_channels, *missing]
        )

    def forward(self, x: Tensor, guide: Tensor | Sequence[Tensor]) -> Tensor:
        """Upsample ``(N, C, H, W)`` to ``(N, C, s H, s W)``, s the scale factor.

        Args:
            x: The map.
            guide: The guide or a sequence of guides, as many as ``guide_channels`` names.

        Raises:
            ValueError: If ``x`` or a guide has another shape, or their number differs.
        """
        check_input(self, x, self.in_channels)
        guides = [guide] if isinstance(guide, Tensor) else list(guide)
        self._check_guides(x, guides)
        out = x
        for number, step in enumerate(self.steps):
            size = (2 * out.size(2), 2 * out.size(3))
            out = step(out, resize_guide(guides[min(number, len(guides) - 1)], size))
        return out.contiguous(memory_format=memory_format(x))

    def reset_parameters(self) -> None:
        """Make the layer bilinear interpolation again."""
        for step in self.modules():
            if isinstance(step, _Step):
                step.reset_parameters()

    def extra_repr(self) -> str:
        """Show the arguments."""
        return (
            f"{self.in_channels}, {self.guide_channels}, scale_factor={self.scale_factor}, "
            f"order={self.order!r}, groups={self.groups}, hidden_channels={self.hidden_channels}, "
            f"separable={self.separable}, residual={self.residual}"
        )

    def _check_guides(self, x: Tensor, guides: list[Tensor]) -> None:
        if len(guides) != len(self.guide_channels):
            raise ValueError(
                f"{type(self).__name__} takes {len(self.guide_channels)} guide(s), of {self.guide_channels} "
                f"channels, got {len(guides)}"
            )
        for guide, channels in zip(guides, self.guide_channels, strict=True):
            check_guide(self, guide, x.size(0), channels)


class _Step(nn.Module):
    """One doubling: predict the logits, take the means.

    The kernels are no ``nn.Conv2d``, see :class:`~pixeldcl_plugin.layers.common.Conv`.
    """

    spread: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        guide_channels: int,
        order: str | None,
        groups: int,
        hidden: int,
        separable: bool,
        residual: bool,
    ) -> None:
        super().__init__()
        self.order = order
        self.groups = groups
        taps = sum(map(len, phase_neighbours(order)))
        self.reduce = Conv(channels, hidden)
        self.reduce_norm = _BatchNorm(hidden)
        self.reduce_guide = nn.Parameter(torch.empty(hidden, guide_channels, 2, 2))
        self.guide_norm = _BatchNorm(hidden)
        self.register_parameter("spread", nn.Parameter(torch.empty(hidden, 1, 3, 3)) if separable else None)
        self.predict = Conv(hidden, groups * taps, 1 if separable else 3, bias=True)
        self.correct = Conv(hidden, 4 * channels, bias=True) if residual else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw what makes the hidden channels; make of them bilinear interpolation, and no residual."""
        for weight in (self.reduce.weight, self.reduce_guide):  # norms follow: their scale does not count
            nn.init.kaiming_normal_(weight)
        if self.spread is not None:
            nn.init.kaiming_normal_(self.spread, nonlinearity="linear")
        for norm in (self.reduce_norm, self.guide_norm):
            norm.reset_parameters()
        nn.init.zeros_(self.predict.weight)
        logits = torch.cat([weights.clamp(min=_LEFT_OUT).log() for weights in bilinear_weights(self.order)])
        with torch.no_grad():
            self.get_parameter("predict.bias").copy_(logits.repeat(self.groups))
        if self.correct is not None:
            for parameter in self.correct.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        hidden = self.reduce_norm(self.reduce(x))
        hidden = F.relu(hidden + self.guide_norm(F.conv2d(guide, self.reduce_guide, stride=2)))
        spread = hidden
        if self.spread is not None:
            spread = F.conv2d(hidden, self.spread, padding=1, groups=hidden.size(1))
        logits = self.predict(spread)
        if self.groups == 1:  # a reshape to the same shape would hide channels_last where N is 1
            out = mean_of_neighbours(x, logits, self.order)
        else:
            n, c, h, w = x.shape
            out = mean_of_neighbours(
                x.reshape(n * self.groups, c // self.groups, h, w),
                logits.reshape(n * self.groups, logits.size(1) // self.groups, h, w),
                self.order,
            ).reshape(n, c, 2 * h, 2 * w)
        return out if self.correct is None else out + pixel_shuffle(self.correct(hidden)).to(out.dtype)


class _BatchNorm(nn.BatchNorm2d):
    """A batch norm that does not fail on a single value for each channel, nor learn from none.

    Such are an empty batch, and one picture that has become a single pixel. The running statistics serve.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() <= x.size(1):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _check_guide_channels(guide_channels: int | Sequence[int], steps: int) -> tuple[int, ...]:
    channels = (guide_channels,) if not isinstance(guide_channels, list | tuple) else tuple(guide_channels)
    if not 1 <= len(channels) <= steps or not all(is_int(count) and count > 0 for count in channels):
        raise ValueError(
            f"guide_channels must be a positive integer, or one to {steps} of them, one for each doubling, "
            f"got {guide_channels!r}"
        )
    return channels
