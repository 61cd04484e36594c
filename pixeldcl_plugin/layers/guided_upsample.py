"""What the upsamplers with a guide share: x4 and x8 are x2 repeated, each time with a finer guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_choice, check_positive, is_int
from .common import check_input
from .interleave import memory_format

__all__ = ["GuideChannels", "GuidedUpsample"]

SCALE_FACTORS = (2, 4, 8)

#: Channels of the guide; or of the guides, from that of the first step to the finest.
GuideChannels = int | Sequence[int]


class GuidedUpsample(nn.Module):
    """Double the size of a map once, twice or three times, each time by what a finer map shows.

    Args:
        in_channels: Channels C of the input and of the output.
        guide_channels: Channels of the guide; or of the guides, from that of the first step to the finest.
            Where there are fewer guides than steps, the last serves the other steps too.
        scale_factor: 2, 4 or 8: one, two or three steps.
        step: Called with the channels of a guide, returns a module that makes ``(N, C, 2H, 2W)`` of
            ``(N, C, H, W)`` and a guide of twice its size.

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
        guide_channels: GuideChannels,
        scale_factor: int,
        step: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels)
        check_choice("scale_factor", scale_factor, SCALE_FACTORS)
        steps = scale_factor.bit_length() - 1
        self.in_channels = in_channels
        self.guide_channels = _check_guide_channels(guide_channels, steps)
        self.scale_factor = scale_factor
        missing = [self.guide_channels[-1]] * (steps - len(self.guide_channels))
        self.steps = nn.ModuleList(map(step, [*self.guide_channels, *missing]))

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

    def extra_repr(self) -> str:
        """Show the arguments that are not visible from the children."""
        return f"{self.in_channels}, {self.guide_channels}, scale_factor={self.scale_factor}"

    def _check_guides(self, x: Tensor, guides: list[Tensor]) -> None:
        if len(guides) != len(self.guide_channels):
            raise ValueError(
                f"{type(self).__name__} takes {len(self.guide_channels)} guide(s), of {self.guide_channels} "
                f"channels, got {len(guides)}"
            )
        for guide, channels in zip(guides, self.guide_channels, strict=True):
            if guide.dim() != 4 or guide.size(0) != x.size(0) or guide.size(1) != channels:
                raise ValueError(
                    f"{type(self).__name__} takes a guide of shape ({x.size(0)}, {channels}, H, W), "
                    f"got {tuple(guide.shape)}"
                )


def resize_guide(guide: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a guide to the size of its step: by means of blocks as far as it can be, then bilinearly."""
    factor = min(have // want for have, want in zip(guide.shape[2:], size, strict=True))
    if factor > 1:
        guide = F.avg_pool2d(guide, factor)
    if guide.shape[2:] != size:
        guide = F.interpolate(guide, size=size, mode="bilinear", align_corners=False)
    return guide


def _check_guide_channels(guide_channels: GuideChannels, steps: int) -> tuple[int, ...]:
    channels = (guide_channels,) if not isinstance(guide_channels, list | tuple) else tuple(guide_channels)
    if not 1 <= len(channels) <= steps or not all(is_int(count) and count > 0 for count in channels):
        raise ValueError(
            f"guide_channels must be a positive integer, or one to {steps} of them, one for each doubling, "
            f"got {guide_channels!r}"
        )
    return channels
