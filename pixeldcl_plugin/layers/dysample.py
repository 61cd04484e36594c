"""DySample: upsampling as sampling at learned points.

Source: Liu, Lu, Fu, Cao, "Learning to Upsample by Learning to Sample" (arXiv 2308.15085), Section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_choice
from .common import (
    Conv,
    UpsampleLayer,
    channel_change,
    check_arguments,
    check_input,
    no_autocast,
    pixel_shuffle,
)

__all__ = ["DySample"]


class DySample(UpsampleLayer):
    """Every output pixel is a bilinear sample of the input, at its own place plus a predicted offset.

    A linear layer predicts the offsets from the features, in pixels of the input, one for each output
    pixel and group of channels. They begin at zero (the published code draws them with a standard
    deviation of 0.001), so that the untrained layer is ``F.interpolate(mode='bilinear')``.

    Args:
        in_channels: Channels of the input. A 1x1 convolution before the sampling makes ``out_channels``
            of them where they differ.
        out_channels: Channels C of the output.
        style: 'lp', the linear layer first and then a pixel shuffle of its offsets, or 'pl', a pixel
            shuffle of the features first and then the linear layer, of fewer parameters.
        groups: Groups of channels that share offsets; must divide C.
        dynamic_scope: Scale the offsets by ``0.5 sigmoid(linear(x))`` in place of the constant 0.25 (the
            paper's DySample+). It begins at 0.25 too.
        scale_factor: 2; there for configs that name it.

    Shape:
        ``(N, in_channels, H, W)`` -> ``(N, out_channels, 2H, 2W)``.

    Raises:
        ValueError: If an argument is none of the above; the message names the value.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        style: str = "lp",
        groups: int = 4,
        dynamic_scope: bool = False,
        scale_factor: int = 2,
    ) -> None:
        super().__init__()
        check_arguments(scale_factor, in_channels=in_channels, out_channels=out_channels, groups=groups)
        check_choice("style", style, ("lp", "pl"))
        if out_channels % groups:
            raise ValueError(
                f"groups must divide out_channels, got {groups} with out_channels={out_channels}"
            )
        if style == "pl" and out_channels % 4:
            raise ValueError(
                f"style 'pl' shuffles four channels into one: out_channels must be a multiple of 4, "
                f"got {out_channels}"
            )
        self.in_channels = in_channels
        self.style = style
        self.groups = groups
        self.project = channel_change(in_channels, out_channels)
        # An x and a y for each group, in 'lp' for each phase of the output too.
        features, offsets = (out_channels, 8 * groups) if style == "lp" else (out_channels // 4, 2 * groups)
        self.offset = Conv(features, offsets, bias=True)
        self.scope = Conv(features, offsets) if dynamic_scope else None
        nn.init.zeros_(self.offset.weight)
        if self.scope is not None:
            nn.init.zeros_(self.scope.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``(N, in_channels, H, W)`` to ``(N, out_channels, 2H, 2W)``.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        check_input(self, x, self.in_channels)
        x = self.project(x)
        offsets = self._offsets(x)
        # Half precision has too few digits for a place in a large map.
        dtype = torch.promote_types(x.dtype, torch.float32)
        with no_autocast(x.device):
            return self._sample(x.to(dtype), offsets.to(dtype)).to(x.dtype)

    def _offsets(self, x: Tensor) -> Tensor:
        """Return the offsets in pixels of the input, ``(N, 2 * groups, 2H, 2W)``: all x, then all y."""
        features = pixel_shuffle(x) if self.style == "pl" else x
        offsets = self.offset(features)
        scope = 0.25 if self.scope is None else 0.5 * self.scope(features).sigmoid()
        offsets = scope * offsets
        return pixel_shuffle(offsets) if self.style == "lp" else offsets

    def _sample(self, x: Tensor, offsets: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x_offsets, y_offsets = offsets.view(n, 2, self.groups, 2 * h, 2 * w).unbind(1)
        # grid_sample measures in units of half the map, from its centre.
        points = torch.stack(
            (_centres(w, x) + x_offsets * (2 / w), _centres(h, x)[:, None] + y_offsets * (2 / h)),
            dim=-1,
        )
        sampled = F.grid_sample(
            x.reshape(n * self.groups, c // self.groups, h, w),
            points.flatten(0, 1),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return sampled.view(n, c, 2 * h, 2 * w)

    def extra_repr(self) -> str:
        """Show the arguments that are not visible from the children."""
        return f"style={self.style!r}, groups={self.groups}"


def _centres(size: int, like: Tensor) -> Tensor:
    """Return the centres of the ``2 * size`` output pixels on an axis of the map from -1 to 1."""
    return (torch.arange(2 * size, dtype=like.dtype, device=like.device) + 0.5) / size - 1
