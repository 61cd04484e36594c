"""Any encoder-decoder of mmseg with a guided upsampler in place of the final resize of its logits.

A stock model leaves its logits at the stride of its features and enlarges them bilinearly: what it knows of
boundaries at finer strides is lost. Here :class:`~pixeldcl_plugin.GuidedPixelDCL` enlarges them, guided by
earlier features of the backbone or by the image itself. All weights of the stock model keep their names;
those of the upsampler are ``decode_head.guided.*`` (of a cascade: of its last head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS as ROOT_MODELS
from mmseg.models.decode_heads import MaskFormerHead, PointHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..layers import FADE, SAPA, GuidedPixelDCL, GuidedResidual, JointBilateralUpsample
from ..layers.guided_upsample import GuidedUpsample
from ..registry import register

__all__ = ["GuidedCascadeEncoderDecoder", "GuidedEncoderDecoder", "guide_head"]

#: Heads that make label maps in another way than by resizing logits.
_REFUSED = (PointHead, MaskFormerHead)
#: Where the logits that are evaluated stand among several answers of a head, if not first.
_PLACE = {"IterativeDecodeHead": -1, "PIDHead": 1}
#: Side of the picture from which the channels of the guides are learned.
_PROBE = 128

Guide = int | str

for _layer in (GuidedPixelDCL, GuidedResidual, SAPA, FADE, JointBilateralUpsample):
    register(ROOT_MODELS)(_layer)


class Features(tuple):
    """The features of a backbone, with the image that they are of."""

    image: Tensor


def _with_image(features: Any, image: Tensor) -> Any:
    """Return features, a sequence or a single map, with an attribute ``image``."""
    if isinstance(features, list | tuple):
        features = Features(features)
    features.image = image
    return features


def _guides(features: Any, index: Sequence[Guide]) -> list[Tensor]:
    """Return the guides by their places among the features, or ``'image'``."""
    maps = features if isinstance(features, tuple) else (features,)
    return [features.image if place == "image" else maps[int(place)] for place in index]


class _GuidedHead(BaseDecodeHead):
    """Puts a guided upsampler on the logits of the head that follows it in the list of bases."""

    guided: GuidedUpsample
    guide_index: tuple[Guide, ...]

    def forward(self, inputs: Any, *previous: Tensor) -> Any:
        """Compute the logits at ``scale_factor`` times the size at which the stock head leaves them."""
        answer = super().forward(inputs, *previous)
        if isinstance(answer, Tensor):
            return self.upsample(answer, inputs)
        answer = list(answer)
        answer[self.place] = self.upsample(answer[self.place], inputs)
        return tuple(answer)

    @property
    def place(self) -> int:
        """Return where the logits that are evaluated stand in what the head returns, if not alone."""
        kinds = {kind.__name__ for kind in type(self).__mro__}
        return next((place for name, place in _PLACE.items() if name in kinds), 0)

    def upsample(self, logits: Tensor, inputs: Any) -> Tensor:
        """Upsample logits ``(N, classes, h, w)`` of an image; to its size if corners are aligned."""
        guides = _guides(inputs, self.guide_index)
        if not self.align_corners:
            return self.guided(logits, guides)
        # The upsampler works between pixels as areas; here their centres meet at the corners of the image.
        scale, size = self.guided.scale_factor, logits.shape[2:]
        guides = [_at_areas(guide, size, scale) for guide in guides]
        return _at_corners(self.guided(logits, guides), inputs.image.shape[2:], size, scale)


def _at_areas(guide: Tensor, size: Sequence[int], scale: int) -> Tensor:
    """Sample a guide whose corners meet those of a map of ``size`` where ``scale`` areas a pixel lie."""
    axes = []
    for have in size:
        places = (torch.arange(scale * have, device=guide.device, dtype=torch.float32) + 0.5) / scale - 0.5
        axes.append(places / max(have - 1, 1) * 2 - 1)
    return _sample(guide, axes)


def _at_corners(x: Tensor, wanted: Sequence[int], size: Sequence[int], scale: int) -> Tensor:
    """Sample a map of ``scale`` areas to each pixel of ``size`` at the ``wanted`` size so that corners meet.

    The head's own resizing to that size, with ``align_corners=True``, then changes nothing.
    """
    axes = []
    for have, want in zip(size, wanted, strict=True):
        places = torch.arange(want, device=x.device, dtype=torch.float32) * ((have - 1) / max(want - 1, 1))
        axes.append((scale * (places + 0.5) - 0.5) / max(scale * have - 1, 1) * 2 - 1)
    return _sample(x, axes)


def _sample(x: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Sample rows and columns, from -1 at the centre of the first to 1 at that of the last."""
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).to(x.dtype).expand(x.size(0), -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def guide_head(
    head: BaseDecodeHead,
    upsample_cfg: Mapping[str, Any],
    guide_index: Sequence[Guide],
    guide_channels: Sequence[int],
) -> None:
    """Give a head a guided upsampler on its logits, in place.

    Args:
        head: Any head of mmseg that leaves logits to be resized.
        upsample_cfg: The upsampler and its options: ``'GuidedPixelDCL'``, or a peer with a guide.
        guide_index: Its guides, from that of the first doubling to the finest: places among the features of
            the backbone, or ``'image'``.
        guide_channels: The channels of each.

    Raises:
        ValueError: If the head has no logits to be resized, or the upsampler does not fit.
    """
    if isinstance(head, _REFUSED) or not isinstance(head, BaseDecodeHead):
        raise ValueError(f"{type(head).__name__} leaves no logits to be resized: nothing can be guided")
    cfg = dict(upsample_cfg)
    kind = cfg.pop("type", None)
    layer = ROOT_MODELS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(layer, type) or not issubclass(layer, GuidedUpsample):
        raise ValueError(f"upsample_cfg must have a guided type, such as 'GuidedPixelDCL', got {kind!r}")
    head.guided = layer(head.out_channels, tuple(guide_channels), **cfg)
    head.guide_index = tuple(guide_index)
    # As torch's lazy modules become what they stand for: parameters and names stay.
    head.__class__ = type(f"Guided{type(head).__name__}", (_GuidedHead, type(head)), {})


class _Guided(EncoderDecoder):
    """What makes a segmentor guided; it stands before mmseg's class in the list of bases."""

    def __init__(
        self,
        *args: Any,
        upsample_cfg: Mapping[str, Any] = dict(type="GuidedPixelDCL", scale_factor=8, separable=False),
        guide_index: Sequence[Guide] = ("image",),
        guide_channels: Sequence[int] | None = None,
        frozen: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.frozen = False
        for place in guide_index:
            if place != "image" and not (isinstance(place, int) and not isinstance(place, bool)):
                raise ValueError(f"guide_index must hold places of features or 'image', got {place!r}")
        if guide_channels is None:
            guide_channels = self._channels_of(guide_index)
        guide_head(self._last_head, upsample_cfg, guide_index, guide_channels)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self._last_head.guided.requires_grad_(True)

    @property
    def _last_head(self) -> _GuidedHead:
        head = self.decode_head
        return cast(_GuidedHead, head[-1] if isinstance(head, nn.ModuleList) else head)

    @torch.no_grad()
    def _channels_of(self, index: Sequence[Guide]) -> list[int]:
        """Return the channels of the guides, learned from the features of a black picture."""
        mean = getattr(self.data_preprocessor, "mean", None)
        image = torch.zeros(1, 3 if mean is None else len(mean), _PROBE, _PROBE)
        if all(place == "image" for place in index):
            return [image.size(1)] * len(index)
        was_training = self.training
        self.eval()
        with torch.random.fork_rng(devices=[]):
            features = self.extract_feat(image)
        self.train(was_training)
        try:
            return [guide.size(1) for guide in _guides(features, index)]
        except IndexError:
            raise ValueError(
                f"guide_index must be places of the {len(features)} features or 'image', got {list(index)}"
            ) from None

    def extract_feat(self, inputs: Tensor) -> Any:
        """Extract the features, and keep the image with them."""
        return _with_image(super().extract_feat(inputs), inputs)

    def train(self, mode: bool = True) -> _Guided:
        """Set the mode; what is frozen stays in evaluation mode, its batch norms and dropout too."""
        super().train(mode)
        if mode and self.frozen:
            for module in self.children():
                module.eval()
            self._last_head.guided.train()
        return self

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Compute the losses; of a frozen model only that of the logits that are evaluated."""
        if not self.frozen:
            return super().loss(inputs, data_samples)
        head = self._last_head
        answer = self._forward(inputs)
        logits = answer if isinstance(answer, Tensor) else answer[head.place]
        losses = BaseDecodeHead.loss_by_feat(head, logits, data_samples)
        return {f"decode.{name}": value for name, value in losses.items()}


@register(MODELS)
class GuidedEncoderDecoder(_Guided, EncoderDecoder):
    """mmseg's EncoderDecoder whose logits a guided upsampler enlarges in place of the final resize.

    In training, in whole and in sliding inference, with test-time augmentation, whatever the head: only the
    last step from logits to the size of the image changes. A checkpoint of the stock model loads with the
    weights of the upsampler missing, and predicts then as it did, for an untrained upsampler interpolates.

    Args:
        *args: Those of ``EncoderDecoder``.
        upsample_cfg: The upsampler; ``scale_factor`` is the stride of the logits, or what of it is to be
            guided: what remains is resized bilinearly.
        guide_index: Its guides, from that of the first doubling to the finest: places among the features of
            the backbone (of the neck, if there is one), or ``'image'``: the network's own normalised input.
            Where there are fewer guides than doublings, the last serves the others too.
        guide_channels: The channels of each; None to learn them from the backbone when it is built.
        frozen: Train nothing but the upsampler, on a model that is trained already.
        **kwargs: Those of ``EncoderDecoder``.

    Raises:
        ValueError: If the head leaves no logits to be resized, or a guide is none of the above.
    """


@register(MODELS)
class GuidedCascadeEncoderDecoder(_Guided, CascadeEncoderDecoder):
    """mmseg's CascadeEncoderDecoder, its last head guided, see :class:`GuidedEncoderDecoder`."""
