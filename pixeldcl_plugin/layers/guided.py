"""Guided pixel deconvolution: upsampling as a choice among neighbours that a finer map makes.

Pixel deconvolution's order of the phases (Gao, Yuan, Wang, Ji, arXiv 1705.06820, Fig. 5), with weights that
differ from pixel to pixel and are the same for all channels. They are predicted from the map and from a guide
at twice its size: a feature of the encoder, or the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_choice, check_positive, is_int
from .common import Conv
from .guided_residual import Hidden, Residual
from .guided_upsample import GuideChannels, GuidedUpsample
from .neighbour_means import mean_of_neighbours
from .neighbours import ORDERS, bilinear_weights, phase_neighbours

__all__ = ["GuidedPixelDCL"]

#: What the untrained layer gives each neighbour that bilinear interpolation leaves out. A logarithm needs
#: more than zero, and so does a gradient; three steps with up to nine of these stay within 1e-3 of the range.
_LEFT_OUT = 3e-5


class GuidedPixelDCL(GuidedUpsample):
    """Upsample by weighted means of neighbours, with weights predicted from the map and a finer guide.

    A step doubles the size (:func:`~pixeldcl_plugin.layers.neighbour_means.mean_of_neighbours`)::

        h      = relu(norm(conv1x1(x)) + norm(conv2x2_stride2(guide)))
        logits = conv3x3(h)
        out    = mean_of_neighbours(x, logits)

    Every output is a convex combination of pixels of ``x``: a constant stays one, in all phases alike, so
    there is no checkerboard, and nothing overshoots. The prediction works at the low resolution, and its cost
    barely depends on the channels. The untrained layer is bilinear interpolation, whatever the guide.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Those of the guide or guides, see
            :class:`~pixeldcl_plugin.layers.guided_upsample.GuidedUpsample`.
        scale_factor: 2, 4 or 8: one, two or three steps.
        order: 'near' and 'ipixeldcl', each phase from the input and the earlier phases, with the pixels of
            the input nearest to it or all 3x3; 'pixeldcl', the first phase from the input and the others
            from the earlier phases; None, each phase from the input alone.
        groups: Groups of channels with weights of their own; must divide C.
        hidden_channels: Channels of h, from which the weights are predicted: of all steps, or of each from
            the first on. The last serves the other steps too; a step costs four times the one before it.
        separable: Predict by a depthwise 3x3 and a 1x1 convolution in place of a dense one: it costs less and
            leaves more of the boundaries as bilinear interpolation would.
        residual: Add ``pixel_shuffle(conv3x3(relu(conv3x3(h))))``, which begins at zero, to every step. The
            output is no longer a convex combination.

    Shape:
        See :class:`~pixeldcl_plugin.layers.guided_upsample.GuidedUpsample`.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: GuideChannels,
        *,
        scale_factor: int = 2,
        order: str | None = "near",
        groups: int = 1,
        hidden_channels: int | Sequence[int] = (32, 16),
        separable: bool = False,
        residual: bool = False,
    ) -> None:
        check_positive(in_channels=in_channels, groups=groups)
        hidden = (hidden_channels,) if is_int(hidden_channels) else hidden_channels
        if not isinstance(hidden, list | tuple) or not hidden:
            raise ValueError(
                f"hidden_channels must be a positive integer or one for each step, got {hidden_channels!r}"
            )
        for channels in hidden:
            check_positive(hidden_channels=channels)
        widths = chain(hidden, repeat(hidden[-1]))
        check_choice("order", order, ORDERS)
        check_choice("separable", separable, (False, True))
        check_choice("residual", residual, (False, True))
        if in_channels % groups:
            raise ValueError(f"groups must divide in_channels, got {groups} with in_channels={in_channels}")
        super().__init__(
            in_channels,
            guide_channels,
            scale_factor,
            lambda guided_by: _Step(in_channels, guided_by, order, groups, next(widths), separable, residual),
        )
        self.order = order
        self.groups = groups
        self.hidden_channels = tuple(hidden)
        self.separable = separable
        self.residual = residual

    def reset_parameters(self) -> None:
        """Make the layer bilinear interpolation again."""
        for step in self.modules():
            if isinstance(step, _Step):
                step.reset_parameters()

    def extra_repr(self) -> str:
        """Show the arguments."""
        return (
            f"{super().extra_repr()}, order={self.order!r}, groups={self.groups}, "
            f"hidden_channels={self.hidden_channels}, separable={self.separable}, residual={self.residual}"
        )


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
        self.hidden = Hidden(channels, guide_channels, hidden)
        self.register_parameter("spread", nn.Parameter(torch.empty(hidden, 1, 3, 3)) if separable else None)
        self.predict = Conv(hidden, groups * taps, 1 if separable else 3, bias=True)
        self.residual = Residual(hidden, channels) if residual else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw what makes the hidden channels; make of them bilinear interpolation, and no residual."""
        self.hidden.reset_parameters()
        if self.spread is not None:
            nn.init.kaiming_normal_(self.spread, nonlinearity="linear")
        nn.init.zeros_(self.predict.weight)
        logits = torch.cat([weights.clamp(min=_LEFT_OUT).log() for weights in bilinear_weights(self.order)])
        with torch.no_grad():
            self.get_parameter("predict.bias").copy_(logits.repeat(self.groups))
        if self.residual is not None:
            self.residual.reset_parameters()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        hidden = self.hidden(x, guide)
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
        return out if self.residual is None else out + self.residual(hidden).to(out.dtype)
