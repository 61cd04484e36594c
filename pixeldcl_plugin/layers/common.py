"""What the layers share: how a model builds them, a convolution that keeps its start, checks of arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import check_choice, check_positive

__all__ = [
    "Conv",
    "UpsampleLayer",
    "build_activation",
    "channel_change",
    "check_arguments",
    "check_input",
    "check_odd",
    "no_autocast",
    "pixel_shuffle",
]


class UpsampleLayer(nn.Module):
    """A layer that a model's config can name as a class: ``upsample_cfg=dict(type=PixelDCL)``.

    A model asks its upsamplers for more than the layer has: a norm and an activation after it, and
    recomputing in the backward pass (``norm_cfg``, ``act_cfg``, ``with_cp``, mmcv's contract). Called with
    these, the class gives what wraps it for models, as its registered name does.
    """

    #: From a layer's class to the class that models build; set by what knows mmcv.
    for_models: Callable[[type[UpsampleLayer]], type[nn.Module]] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the layer, or for a model what wraps it."""
        if UpsampleLayer.for_models is not None and kwargs.keys() & {"with_cp", "norm_cfg", "act_cfg"}:
            return UpsampleLayer.for_models(cls)(*args, **kwargs)
        return super().__new__(cls)


class Conv(nn.Module):
    """A stride-1 convolution that keeps the size, and its initialisation.

    It is no ``nn.Conv2d``: the ``init_cfg`` of a model that holds it re-initialises every one of those,
    after construction. Its weight begins variance-preserving, for a map that no activation follows.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd.
        bias: Whether it has one; it begins at zero.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)``."""
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.size(-1) // 2)

    def extra_repr(self) -> str:
        """Show the shape of the weight."""
        out_channels, in_channels, kernel_size, _ = self.weight.shape
        return f"{in_channels}, {out_channels}, kernel_size={kernel_size}, bias={self.bias is not None}"


def channel_change(in_channels: int, out_channels: int) -> nn.Module:
    """Return the 1x1 convolution before an upsampler that keeps channels; nothing if there is no change."""
    return nn.Identity() if in_channels == out_channels else Conv(in_channels, out_channels)


def pixel_shuffle(x: Tensor) -> Tensor:
    """Shuffle ``(N, 4C, H, W)`` to ``(N, C, 2H, 2W)``, also for an empty batch.

    The backward pass of ``F.pixel_shuffle`` fails on one.
    """
    if x.numel() == 0:
        n, c, h, w = x.shape
        return x.reshape(n, c // 4, 2 * h, 2 * w)
    return F.pixel_shuffle(x, 2)


def check_arguments(scale_factor: int, **positive: Any) -> None:
    """Check what every peer takes: a scale factor of 2, and positive integers.

    Raises:
        ValueError: Names the argument, its value and what is accepted.
    """
    check_choice("scale_factor", scale_factor, (2,))
    check_positive(**positive)


def check_odd(name: str, kernel_size: int) -> None:
    """Check a kernel size: an even kernel has no centre.

    Raises:
        ValueError: Names the argument and its value.
    """
    check_positive(**{name: kernel_size})
    if kernel_size % 2 == 0:
        raise ValueError(f"{name} must be odd, got {kernel_size}")


def check_input(layer: nn.Module, x: Tensor, in_channels: int) -> None:
    """Check the input of a layer.

    Raises:
        ValueError: If ``x`` is not ``(N, in_channels, H, W)``; names its shape.
    """
    if x.dim() != 4 or x.size(1) != in_channels:
        raise ValueError(
            f"{type(layer).__name__} takes an input of shape (N, {in_channels}, H, W), got {tuple(x.shape)}"
        )


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which operations keep the precision of their inputs."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def build_activation(cfg: dict[str, Any] | None) -> nn.Module | None:
    """Build an activation of torch, or of mmcv, from its config; it never works in place."""
    if cfg is None:
        return None
    options = dict(cfg)
    kind = options.pop("type", None)
    plain = getattr(nn, kind, None) if isinstance(kind, str) else kind
    if plain is not None:
        activation = plain(**options)
    else:  # one of mmcv's own, such as 'HSwish'
        from mmcv.cnn import build_activation_layer

        activation = build_activation_layer(dict(cfg))
    if getattr(activation, "inplace", False):  # the map itself goes to the output
        activation.inplace = False
    return activation
