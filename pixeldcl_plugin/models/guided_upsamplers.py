"""The guided upsamplers as MMEngine's registry sees them, and in the place of a decoder's upsamplers.

The types are registered in the root registry, so every scope finds them. A guided upsampler is a
:class:`~pixeldcl_plugin.layers.guided_upsample.GuidedUpsample`, whatever its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmengine.registry import MODELS
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn

from ..layers import FADE, SAPA, GuidedPixelDCL, GuidedResidual, JointBilateralUpsample
from ..layers.common import channel_change
from ..layers.guided_upsample import GuideChannels, GuidedUpsample
from ..layers.recompute import recompute
from ..registry import register
from .upsamplers import build_upsampler

__all__ = ["GuidedDoubling", "build_doubling", "build_guided", "is_guided"]

for _layer in (GuidedPixelDCL, GuidedResidual, SAPA, FADE, JointBilateralUpsample):
    register(MODELS)(_layer)


def _layer_of(cfg: Mapping[str, Any]) -> Any:
    """Return the class that a config names."""
    kind = cfg.get("type") if isinstance(cfg, Mapping) else None
    return MMSEG_MODELS.get(kind) if isinstance(kind, str) else kind


def is_guided(cfg: Mapping[str, Any]) -> bool:
    """Tell whether a config names an upsampler that takes guides."""
    layer = _layer_of(cfg)
    return inspect.isclass(layer) and issubclass(layer, GuidedUpsample)


def build_guided(cfg: Mapping[str, Any], channels: int, guide_channels: GuideChannels) -> GuidedUpsample:
    """Build a guided upsampler, which maps channels to themselves, from its config.

    Args:
        cfg: The type and its options.
        channels: Channels of the map.
        guide_channels: Those of the guide or of the guides.

    Raises:
        ValueError: If the type takes no guides, or an option does not fit.
    """
    if not is_guided(cfg):
        kind = cfg.get("type") if isinstance(cfg, Mapping) else cfg
        raise ValueError(
            "upsample_cfg must have the type of a guided upsampler, such as 'GuidedPixelDCL', 'SAPA', 'FADE' "
            f"or 'JointBilateralUpsample', got {kind!r}"
        )
    options = {name: value for name, value in cfg.items() if name != "type"}
    layer: GuidedUpsample = _layer_of(cfg)(channels, guide_channels, **options)
    return layer


class GuidedDoubling(nn.Module):
    """A guided upsampler as a decoder's stage asks for it: other channels, twice the size, norm, activation.

    Args:
        upsample_cfg: Config of the guided upsampler; it doubles the size.
        in_channels: Channels of the input. A 1x1 convolution before the upsampling makes ``out_channels``
            of them where they differ.
        out_channels: Channels of the output.
        guide_channels: Channels of the guide.
        with_cp: Recompute the activations in the backward pass instead of keeping them.
        norm_cfg: mmcv norm config; None for none.
        act_cfg: mmcv activation config; None for none.

    Shape:
        ``(N, in_channels, H, W)`` and a guide ``(N, guide_channels, 2H, 2W)`` ->
        ``(N, out_channels, 2H, 2W)``.

    Raises:
        ValueError: If ``upsample_cfg`` names no guided upsampler, or another scale factor than 2.
    """

    def __init__(
        self,
        upsample_cfg: Mapping[str, Any],
        in_channels: int,
        out_channels: int,
        guide_channels: int,
        *,
        with_cp: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if upsample_cfg.get("scale_factor", 2) != 2:
            raise ValueError(f"scale_factor must be 2 in a decoder, got {upsample_cfg['scale_factor']!r}")
        self.with_cp = with_cp
        self.project = channel_change(in_channels, out_channels)
        self.layer = build_guided(upsample_cfg, out_channels, guide_channels)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1] if norm_cfg else nn.Identity()
        self.act = build_activation_layer(act_cfg) if act_cfg else nn.Identity()

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample ``(N, in_channels, H, W)`` by its guide."""

        def upsample(x: Tensor) -> Tensor:
            doubled: Tensor = self.act(self.norm(self.layer(self.project(x), guide)))
            return doubled

        return recompute(upsample, x, self) if self.with_cp else upsample(x)


def build_doubling(
    cfg: Mapping[str, Any], in_channels: int, out_channels: int, guide_channels: int, **options: Any
) -> nn.Module:
    """Build what doubles a map in a decoder, guided or not, for :func:`.upsample_to`.

    Args:
        cfg: The type and its options.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        guide_channels: Channels of the finer map; a guided upsampler takes it for its guide.
        **options: ``with_cp``, ``norm_cfg`` and ``act_cfg``, as of :func:`.build_upsampler`.

    Raises:
        ValueError: If ``cfg`` names no upsampler, or it does not fit.
    """
    if is_guided(cfg):
        return GuidedDoubling(cfg, in_channels, out_channels, guide_channels, **options)
    return build_upsampler(cfg, in_channels, out_channels, **options)
