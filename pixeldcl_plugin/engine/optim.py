"""Mixed precision without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ..registry import register


@register(OPTIM_WRAPPERS)
class BFloat16OptimWrapper(OptimWrapper):
    """An ``OptimWrapper`` whose forward passes run under bfloat16 autocast, on CPU or GPU.

    MMEngine's ``AmpOptimWrapper`` needs a GPU, because it scales the loss for float16. bfloat16
    has the exponent range of float32, so no scaling is needed and every other option of
    ``OptimWrapper`` (gradient clipping, accumulation) works unchanged.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast, besides what gradient accumulation needs.

        Args:
            model: The training model, possibly wrapped for distributed training.
        """
        autocast = torch.autocast(device_type=get_device(), dtype=torch.bfloat16)
        with super().optim_context(model), autocast:
            yield
