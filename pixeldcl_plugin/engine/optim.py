"""Mixed precision without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..registry import register


@register(OPTIM_WRAPPERS)
class BFloat16OptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` whose forward passes run under bfloat16 autocast, on CPU or GPU.

    MMEngine's ``AmpOptimWrapper`` needs a GPU, because it scales the loss for float16. bfloat16
    has the exponent range of float32, so no scaling is needed and every other option of
    ``OptimWrapper`` (gradient clipping, accumulation) works unchanged.

    On a CPU depthwise convolutions compute in float32, and round what they return: their backward pass is
    several times as slow in bfloat16. Half of an EfficientNet's training step goes into it.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast, besides what gradient accumulation needs.

        Args:
            model: The training model, possibly wrapped for distributed training.
        """
        device = get_device()
        autocast = torch.autocast(device_type=device, dtype=torch.bfloat16)
        depthwise = _DepthwiseInFloat32() if device == "cpu" else nullcontext()
        with super().optim_context(model), autocast, depthwise:
            yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Takes depthwise convolutions out of autocast, whichever module calls them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or not _is_depthwise(*args, **kwargs):
            return func(*args, **kwargs)
        # No mode is active in here: the call ends at torch.
        with torch.autocast("cpu", enabled=False):
            single = [_in_float32(argument) for argument in args]
            out = func(*single, **{key: _in_float32(value) for key, value in kwargs.items()})
        return out.to(torch.get_autocast_dtype("cpu"))


def _is_depthwise(input: Tensor, weight: Tensor, *args: Any, groups: int = 1, **kwargs: Any) -> bool:
    groups = args[4] if len(args) > 4 else groups  # after bias, stride, padding and dilation
    return groups > 1 and weight.size(1) == 1


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value
