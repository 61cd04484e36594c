"""The decoder of a U-Net in plain torch, over the features of any encoder and with any upsampler.

Source: Ronneberger, Fischer, Brox, "U-Net" (arXiv 1505.04597), Fig. 1, its right half.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pixel_dcl import PixelDCL
from .recompute import recompute

__all__ = ["Stage", "UNetDecoder", "conv_block", "decode", "upsample_block", "upsample_to"]

#: Makes a module from the channels of its input and its output.
Factory = Callable[[int, int], nn.Module]
#: Makes a module from the channels of its input, its guide and its output.
GuidedFactory = Callable[[int, int, int], nn.Module]


def upsample_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return PixelDCL, batch norm and ReLU: ``(N, in, H, W)`` -> ``(N, out, 2H, 2W)``."""
    layer = PixelDCL(in_channels, out_channels)
    return nn.Sequential(OrderedDict(layer=layer, norm=nn.BatchNorm2d(out_channels), act=nn.ReLU()))


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with batch norm and ReLU, that keep the size."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNetDecoder(nn.Module):
    """Upsample x2, join the skip, convolve; repeat. One stage for each of ``decoder_channels``.

    Stages that come after the shallowest feature is used up have no skip: with features at strides 2 to 32,
    four stages lead to stride 2, five to the size of the image. Every feature must be half as large as the
    one before it, rounded either way.

    Args:
        in_channels: Channels of the features, the shallowest first, as timm's
            ``feature_info.channels()`` gives them.
        decoder_channels: Output channels of the stages, the deepest first; at least one for every skip.
        upsample: Makes the upsampler of a stage, which doubles the size.
        guided_upsample: Makes in its place, for a stage with a skip, one that is called with the map and with
            the skip as its guide.
        convs: Makes the convolutions after it.
        skip_norm: Makes a norm for the channels of a skip, before it is joined; None for none. Needed with
            encoders whose features leave a linear layer, such as EfficientNet's: they are several times as
            large as the normalised map beside them, which they drown.
        with_cp: Recompute the convolutions' activations in the backward pass instead of keeping them.

    Shape:
        Features ``(N, in_channels[i], H_i, W_i)`` -> ``(N, decoder_channels[-1], 2^k H_0, 2^k W_0)``, k the
        number of stages without a skip.

    Raises:
        ValueError: If there are fewer stages than skips, or a list is empty. From ``forward``, if a feature
            is not half as large as the one before it.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        decoder_channels: Sequence[int],
        *,
        upsample: Factory = upsample_block,
        guided_upsample: GuidedFactory | None = None,
        convs: Factory = conv_block,
        skip_norm: Callable[[int], nn.Module] | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        for name, values in (("in_channels", in_channels), ("decoder_channels", decoder_channels)):
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{name} must be a non-empty list of integers, got {values!r}")
        if len(decoder_channels) < len(in_channels) - 1:
            raise ValueError(
                f"decoder_channels must have an entry for each of the {len(in_channels) - 1} skips, "
                f"got {decoder_channels!r}"
            )
        *skips, below = in_channels
        stages = []
        for channels, skip in zip_longest(decoder_channels, reversed(skips), fillvalue=0):
            norm = skip_norm(skip) if skip_norm is not None and skip else nn.Identity()
            guided = guided_upsample if skip else None
            upsampler = guided(below, skip, channels) if guided else upsample(below, channels)
            joined = convs(channels + skip, channels)
            stages.append(Stage(upsampler, norm, joined, with_cp, guided is not None))
            below = channels
        self.stages = nn.ModuleList(stages)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Decode the features, the shallowest first."""
        return decode(self.stages, features)


class Stage(nn.Module):
    """One stage: upsample x2, join the skip if there is one, convolve.

    Args:
        upsample: Doubles the size of the map from below.
        skip_norm: What the skip passes before it is joined.
        convs: What map and skip pass together.
        with_cp: Recompute what ``convs`` does in the backward pass.
        guided: Whether the upsampler takes the skip, as it is joined, for its guide.
    """

    def __init__(
        self,
        upsample: nn.Module,
        skip_norm: nn.Module,
        convs: nn.Module,
        with_cp: bool = False,
        guided: bool = False,
    ) -> None:
        super().__init__()
        self.guided = guided
        self.with_cp = with_cp
        self.upsample = upsample
        self.skip_norm = skip_norm
        self.convs = convs

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Make the map of this stage from the one below, ``(N, C, H, W)``, and a skip of twice its size."""
        if skip is None:
            x = self.upsample(x)
        else:
            skip = self.skip_norm(skip)
            x = torch.cat([skip, upsample_to(self.upsample, x, skip, guided=self.guided)], dim=1)
        return recompute(self.convs, x, self.convs) if self.with_cp else self.convs(x)


def decode(stages: Iterable[nn.Module], features: Sequence[Tensor]) -> Tensor:
    """Lead the deepest of some features, the shallowest first, through stages that join the others."""
    *skips, x = features
    for stage, skip in zip_longest(stages, reversed(skips)):
        x = stage(x, skip)
    return x


def upsample_to(upsample: nn.Module, x: Tensor, finer: Tensor, *, guided: bool) -> Tensor:
    """Double ``(N, C, H, W)``, and bring it to the size of a finer map by a last row and column at most.

    Args:
        upsample: Doubles the size.
        x: The map.
        finer: A map of twice its size, or of a pixel less or more.
        guided: Whether the upsampler takes the finer map for its guide.

    Raises:
        ValueError: If the finer map has another size.
    """
    size = finer.shape[2:]
    if guided:
        doubled = 2 * x.size(2), 2 * x.size(3)
        _check_fit(doubled, size)
        x = upsample(x, _fit(finer, doubled))
    else:
        x = upsample(x)
        _check_fit(x.shape[2:], size)
    return _fit(x, size)


def _check_fit(doubled: Sequence[int], size: Sequence[int]) -> None:
    if any(abs(got - wanted) > 1 for got, wanted in zip(doubled, size, strict=True)):
        raise ValueError(
            "every feature must be half as large as the one before it: an upsampled map of size "
            f"{tuple(doubled)} does not fit a skip of size {tuple(size)}"
        )


def _fit(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop or repeat the last row and column where halving an odd size had rounded it.

    Not a resize: that would stretch the map, by up to a pixel of this level at the far end, which is 16
    pixels of the image at stride 16. Here every pixel keeps the place that it has at even sizes.
    """
    x = x[..., : size[0], : size[1]]
    bottom, right = (max(wanted - got, 0) for wanted, got in zip(size, x.shape[2:], strict=True))
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
