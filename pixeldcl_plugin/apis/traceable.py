"""A model as torch.export can trace it: what stands in its way replaced by what computes the same."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import Upsample
from torch import Tensor, nn

__all__ = ["traceable"]


Model = TypeVar("Model", bound=nn.Module)


def traceable(model: Model) -> Model:
    """Return a copy for inference only: constraints folded into the weights, no auxiliary head."""
    copy = deepcopy(model).requires_grad_(False)
    for module in list(copy.modules()):
        if callable(fold := getattr(module, "fold", None)):
            fold()
        if type(module).__name__ == "Conv2dSame" and isinstance(module, nn.Conv2d):
            module.__class__ = _EvenConv2dSame  # of a copy for tracing only; its weights stay
        elif isinstance(module, Upsample) and module.size is None:
            module.__class__ = _WholeUpsample
        elif type(module) is nn.ReLU6:
            module.__class__ = _Clamped
    if isinstance(copy, EncoderDecoder) and copy.with_auxiliary_head:
        copy.auxiliary_head = None
    return copy


class _EvenConv2dSame(nn.Conv2d):
    """timm's Conv2dSame for sizes that its stride divides, as all are here: its padding is then a constant.

    Derived from the dynamic size, and nested over the stages of an encoder, the padding keeps torch.export
    busy for hours.
    """

    def forward(self, x: Tensor) -> Tensor:
        taps = zip(self.kernel_size, self.dilation, self.stride, strict=True)
        rows, columns = (max((size - 1) * dilation + 1 - stride, 0) for size, dilation, stride in taps)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class _Clamped(nn.ReLU6):
    """ReLU6 as a clamp, which ONNX has.

    As the operation of its own that it is in torch it is taken apart before the conversion. With open sizes
    that took half the time of an export.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 6)


class _WholeUpsample(Upsample):
    """mmseg's Upsample by a whole factor, without the int() that makes a traced size a constant."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.scale_factor, float) or not self.scale_factor.is_integer():
            return super().forward(x)
        size = [extent * int(self.scale_factor) for extent in x.shape[2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)
