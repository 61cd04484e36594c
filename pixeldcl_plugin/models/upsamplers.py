"""The learned upsamplers as MMEngine's registry sees them: layer, then norm, then activation.

The contract is that of mmcv's ``build_upsample_layer`` as mmseg's UNet uses it (that of ``InterpConv`` and
``DeconvModule``): ``in_channels, out_channels, with_cp, norm_cfg, act_cfg`` come from the model, the
options of the layer from the user's ``upsample_cfg``, and the forward takes only the low-resolution map.
The types are registered in the root registry, so every scope finds them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer, build_upsample_layer
from mmengine.registry import MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn

from ..layers.arguments import check_choice
from ..layers.carafe import TorchCARAFE
from ..layers.common import UpsampleLayer
from ..layers.dysample import DySample
from ..layers.pixel_dcl import IPixelDCL, PixelDCL
from ..layers.pixel_dcl_3d import IPixelDCL3d, PixelDCL3d
from ..layers.pixel_shuffle import PixelShuffleICNR
from ..layers.recompute import recompute
from ..layers.separable import SeparablePixelDCL
from ..registry import register

SCALE_FACTORS = (2, 4, 8)


class LearnedUpsample(nn.Module):
    """A learned upsampling layer under mmcv's contract.

    Subclasses name the layer. It is called ``layer`` in the state dict, its norm ``norm``. Of a layer that
    doubles and no more, ``scale_factor`` 4 and 8 make two and three in a row.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        with_cp: Recompute the activations in the backward pass instead of keeping them. The gradients and
            the running statistics of the norm are the same.
        norm_cfg: mmcv norm config; None for none.
        act_cfg: mmcv activation config; None for none.
        conv_first: Have a 3x3 convolution, with the same norm and activation, change the number of channels
            before, so that the layer upsamples C to C: the U-Net of PixelDCL's authors.
        **layer_cfg: Options of the layer.

    Raises:
        ValueError: If an option of the layer is not what it takes.
    """

    layer_type: type[nn.Module]
    #: Whether the layer doubles the size, and knows no other scale factor.
    doubles = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        with_cp: bool = False,
        norm_cfg: dict[str, Any] | None = dict(type="BN"),  # noqa: B006 mmcv's contract, never changed
        act_cfg: dict[str, Any] | None = dict(type="ReLU"),  # noqa: B006
        *,
        conv_first: bool = False,
        **layer_cfg: Any,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        check_choice("conv_first", conv_first, (True, False))
        self.conv: nn.Module = nn.Identity()
        if conv_first:
            self.conv = ConvModule(
                in_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg
            )
            in_channels = out_channels
        self.layer = self._layer(in_channels, out_channels, **layer_cfg)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1] if norm_cfg else nn.Identity()
        self.act = build_activation_layer(act_cfg) if act_cfg else nn.Identity()

    @classmethod
    def around(
        cls, layer: nn.Module, norm: nn.Module, act: nn.Module, *, with_cp: bool = False
    ) -> LearnedUpsample:
        """Return a layer, a norm and an activation that exist already as one module."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module.with_cp = with_cp
        module.conv, module.layer, module.norm, module.act = nn.Identity(), layer, norm, act
        return module

    def _layer(self, in_channels: int, out_channels: int, **layer_cfg: Any) -> nn.Module:
        scale_factor = layer_cfg.get("scale_factor", 2)
        if not self.doubles or scale_factor == 2:
            return self.layer_type(in_channels, out_channels, **layer_cfg)
        check_choice("scale_factor", scale_factor, SCALE_FACTORS)
        doublings = [in_channels] + [out_channels] * (scale_factor.bit_length() - 2)
        options = {**layer_cfg, "scale_factor": 2}
        return nn.Sequential(*(self.layer_type(channels, out_channels, **options) for channels in doublings))

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``(N, in_channels, H, W)`` to ``(N, out_channels, s H, s W)``, s the scale factor."""
        return recompute(self._forward, x, self) if self.with_cp else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.layer(self.conv(x))))


@register(MODELS, "PixelDCL")
class PixelDCLUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='PixelDCL')``: options as in :class:`~pixeldcl_plugin.PixelDCL`."""

    layer_type = PixelDCL


@register(MODELS, "SeparablePixelDCL")
class SeparablePixelDCLUpsample(LearnedUpsample):
    """``dict(type='SeparablePixelDCL')``: options as in :class:`~pixeldcl_plugin.SeparablePixelDCL`."""

    layer_type = SeparablePixelDCL


@register(MODELS, "IPixelDCL")
class IPixelDCLUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='IPixelDCL')``: options as in :class:`~pixeldcl_plugin.IPixelDCL`."""

    layer_type = IPixelDCL


@register(MODELS, "PixelDCL3d")
class PixelDCL3dUpsample(LearnedUpsample):
    """``dict(type='PixelDCL3d')``: options as in :class:`PixelDCL3d`; its norm is 'BN3d'."""

    layer_type = PixelDCL3d


@register(MODELS, "IPixelDCL3d")
class IPixelDCL3dUpsample(LearnedUpsample):
    """``dict(type='IPixelDCL3d')``: options as in :class:`IPixelDCL3d`; its norm is 'BN3d'."""

    layer_type = IPixelDCL3d


@register(MODELS, "PixelShuffleICNR")
class PixelShuffleICNRUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='PixelShuffleICNR')``: options as in :class:`PixelShuffleICNR`."""

    layer_type = PixelShuffleICNR
    doubles = True


@register(MODELS, "TorchCARAFE")
class TorchCARAFEUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='TorchCARAFE')``: options as in :class:`TorchCARAFE`."""

    layer_type = TorchCARAFE
    doubles = True


@register(MODELS, "DySample")
class DySampleUpsample(LearnedUpsample):
    """``upsample_cfg=dict(type='DySample')``: options as in :class:`DySample`."""

    layer_type = DySample
    doubles = True


def for_models(layer: type[UpsampleLayer]) -> type[LearnedUpsample]:
    """Return the class that models build for a layer: the registered one, or one made for a subclass."""
    wrappers = LearnedUpsample.__subclasses__()
    for wrapper in wrappers:
        if wrapper.layer_type is layer:
            return wrapper
    base = next((wrapper for wrapper in wrappers if issubclass(layer, wrapper.layer_type)), LearnedUpsample)
    return type(f"{layer.__name__}Upsample", (base,), {"layer_type": layer})


UpsampleLayer.for_models = staticmethod(for_models)


def build_upsampler(
    cfg: Mapping[str, Any],
    in_channels: int,
    out_channels: int,
    *,
    with_cp: bool = False,
    norm_cfg: Mapping[str, Any] | None = None,
    act_cfg: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an upsampling layer from its config, for logits as well as for features.

    Differs from mmcv's ``build_upsample_layer``, which it calls, in four points: the type is found without a
    default scope, layers without normalisation or activation of their own (``'deconv'``) are taken where
    none is asked for, as are those without weights (``'bilinear'``) where the channels stay, and those that
    insist on both (``DeconvModule``) get an identity.

    Args:
        cfg: The layer's config. ``with_cp``, ``norm_cfg`` and ``act_cfg`` in it win over the arguments.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        with_cp: Recompute activations in the backward pass, where the layer can.
        norm_cfg: mmcv norm config; None for none.
        act_cfg: mmcv activation config; None for none.

    Raises:
        ValueError: If ``cfg`` is no dict with a registered ``type``, or the type does not take what is asked.
    """
    kind = cfg.get("type") if isinstance(cfg, Mapping) else None
    layer = kind if inspect.isclass(kind) else MMSEG_MODELS.get(kind) if isinstance(kind, str) else None
    if inspect.isclass(layer) and issubclass(layer, UpsampleLayer):
        layer = for_models(layer)
    if layer is None:
        raise ValueError(
            f"upsample_cfg must be a dict with the 'type' of a registered upsampler, got {cfg!r}"
        )
    if layer is nn.Upsample and isinstance(kind, str) and in_channels == out_channels:
        needed: dict[str, Any] = {}
    else:
        needed = dict(in_channels=in_channels, out_channels=out_channels)
    needed |= {name: c for name, c in dict(norm_cfg=norm_cfg, act_cfg=act_cfg).items() if c}
    taken = inspect.signature(layer).parameters
    if lacking := sorted(needed.keys() - taken.keys()):
        raise ValueError(
            f"upsample_cfg type {kind!r} takes no {', '.join(lacking)}; types that do are 'PixelDCL', "
            "'IPixelDCL', 'DeconvModule' and 'InterpConv'"
        )
    identity = dict(type=nn.Identity)
    offered = dict(norm_cfg=identity, act_cfg=identity, with_cp=with_cp) | needed
    arguments = {name: value for name, value in offered.items() if name in taken and name not in cfg}
    named = kind if layer is nn.Upsample else layer  # mmcv takes the mode from the name
    return build_upsample_layer({**cfg, "type": named}, **arguments)
