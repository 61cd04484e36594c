"""The learned upsamplers as MMEngine's registry sees them: layer, then norm, then activation.

The contract is that of mmcv's ``build_upsample_layer`` as mmseg's UNet uses it (that of ``InterpConv`` and
``DeconvModule``): ``in_channels, out_channels, with_cp, norm_cfg, act_cfg`` come from the model, the
options of the layer from the user's ``upsample_cfg``, and the forward takes only the low-resolution map.
The types are registered in the root registry, so every scope finds them.
"""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers.carafe import TorchCARAFE
from ..layers.common import UpsampleLayer
from ..layers.dysample import DySample
from ..layers.pixel_dcl import IPixelDCL, PixelDCL
from ..layers.pixel_shuffle import PixelShuffleICNR
from ..layers.recompute import recompute
from ..registry import register


class LearnedUpsample(nn.Module):
    """A learned upsampling layer under mmcv's contract.

    Subclasses name the layer. It is called ``layer`` in the state dict, its norm ``norm``.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        with_cp: Recompute the activations in the backward pass instead of keeping them. The gradients and
            the running statistics of the norm are the same.
        norm_cfg: mmcv norm config; None for none.
        act_cfg: mmcv activation config; None for none.
        **layer_cfg: Options of the layer.
    """

    layer_type: type[nn.Module]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        with_cp: bool = False,
        norm_cfg: dict[str, Any] | None = dict(type="BN"),  # noqa: B006 mmcv's contract, never changed
        act_cfg: dict[str, Any] | None = dict(type="ReLU"),  # noqa: B006
        **layer_cfg: Any,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.layer = self.layer_type(in_channels, out_channels, **layer_cfg)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1] if norm_cfg else nn.Identity()
        self.act = build_activation_layer(act_cfg) if act_cfg else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``(N, in_channels, H, W)`` to ``(N, out_channels, s H, s W)``, s the scale factor."""
        return recompute(self._forward, x, self) if self.with_cp else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.layer(x)))


@register(MODELS, "PixelDCL")
class PixelDCLUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='PixelDCL')``: options as in :class:`~pixeldcl_plugin.PixelDCL`."""

    layer_type = PixelDCL


@register(MODELS, "IPixelDCL")
class IPixelDCLUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='IPixelDCL')``: options as in :class:`~pixeldcl_plugin.IPixelDCL`."""

    layer_type = IPixelDCL


@register(MODELS, "PixelShuffleICNR")
class PixelShuffleICNRUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='PixelShuffleICNR')``: options as in :class:`PixelShuffleICNR`."""

    layer_type = PixelShuffleICNR


@register(MODELS, "TorchCARAFE")
class TorchCARAFEUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='TorchCARAFE')``: options as in :class:`TorchCARAFE`."""

    layer_type = TorchCARAFE


@register(MODELS, "DySample")
class DySampleUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='DySample')``: options as in :class:`DySample`."""

    layer_type = DySample


def for_models(layer: type[UpsampleLayer]) -> type[LearnedUpsample]:
    """Return the class that models build for a layer: the registered one, or one made for a subclass."""
    for wrapper in LearnedUpsample.__subclasses__():
        if wrapper.layer_type is layer:
            return wrapper
    return type(f"{layer.__name__}Upsample", (LearnedUpsample,), {"layer_type": layer})


UpsampleLayer.for_models = staticmethod(for_models)
