"""An upsampler on the logits of any decode head of mmseg: guided, or of any other kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import MaskFormerHead, PointHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from ..layers.arguments import is_int
from .guided_upsamplers import build_guided, is_guided
from .upsamplers import build_upsampler

__all__ = ["Guide", "GuidedHead", "check_places", "guide_head", "has_logits", "take_guides", "with_image"]

#: Heads that make label maps in another way than by resizing logits.
_REFUSED = (PointHead, MaskFormerHead)
#: Where the logits that are evaluated stand among several answers of a head, if not first.
_PLACE = {"IterativeDecodeHead": -1, "PIDHead": 1}
#: A place among the features, or 'image'.
Guide = int | str
#: From the class of a head to its guided form.
_TYPES: dict[type[BaseDecodeHead], type[Any]] = {}


class Features(tuple):
    """The features of a backbone, with the image that they are of."""

    image: Tensor


def with_image(features: Any, image: Tensor) -> Any:
    """Return features, a sequence or a single map, with an attribute ``image``."""
    if isinstance(features, list | tuple):
        features = Features(features)
    features.image = image
    return features


def check_places(index: Sequence[Guide]) -> None:
    """Check what a config names as guides.

    Raises:
        ValueError: If one is neither an integer nor ``'image'``.
    """
    for place in index:
        if place != "image" and not is_int(place):
            raise ValueError(f"guide_index must hold places of features or 'image', got {place!r}")


def take_guides(features: Any, index: Sequence[Guide]) -> list[Tensor]:
    """Return the guides by their places among the features, or ``'image'``.

    Raises:
        ValueError: If there is no such feature, or the image is not among them.
    """
    maps = features if isinstance(features, list | tuple) else (features,)
    if "image" in index and not hasattr(features, "image"):
        raise ValueError(
            "guide_index has 'image', which a model of the type 'EncoderDecoder' keeps from its head: "
            "set model.type to 'GuidedEncoderDecoder'"
        )
    try:
        return [features.image if place == "image" else maps[int(place)] for place in index]
    except IndexError:
        raise ValueError(
            f"guide_index must be places of the {len(maps)} features or 'image', got {list(index)}"
        ) from None


class GuidedHead(BaseDecodeHead):
    """Puts an upsampler on the logits of the head that follows it in the list of bases."""

    guided: nn.Module
    #: Empty where the upsampler takes no guides.
    guide_index: tuple[Guide, ...]
    _head_type: type[BaseDecodeHead]

    def __reduce__(self) -> Any:
        """Make copies and pickles possible: the class stands in no module."""
        return _empty_guided, (self._head_type,), self.__dict__

    def forward(self, inputs: Any, *previous: Tensor) -> Any:
        """Compute the logits at ``scale_factor`` times the size at which the stock head leaves them."""
        answer = super().forward(inputs, *previous)
        if isinstance(answer, Tensor):
            return self.enlarge(answer, inputs)
        answer = list(answer)
        answer[self.place] = self.enlarge(answer[self.place], inputs)
        return tuple(answer)

    @property
    def place(self) -> int:
        """Return where the logits that are evaluated stand in what the head returns, if not alone."""
        kinds = {kind.__name__ for kind in type(self).__mro__}
        return next((place for name, place in _PLACE.items() if name in kinds), 0)

    def enlarge(self, logits: Tensor, inputs: Any) -> Tensor:
        """Enlarge logits ``(N, classes, h, w)`` of an image; to its size if corners are aligned."""
        guides = take_guides(inputs, self.guide_index)
        size = logits.shape[2:]
        if self.align_corners:
            # Upsamplers work between pixels as areas; here their centres meet at the corners of the image.
            guides = [_at_areas(guide, size, cast(int, self.guided.scale_factor)) for guide in guides]
        fine: Tensor = self.guided(logits, guides) if guides else self.guided(logits)
        return _at_corners(fine, inputs.image.shape[2:], size) if self.align_corners else fine


def _at_areas(guide: Tensor, size: Sequence[int], scale: int) -> Tensor:
    """Sample a guide whose corners meet those of a map of ``size`` where ``scale`` areas a pixel lie."""
    axes = []
    for have in size:
        places = (torch.arange(scale * have, device=guide.device, dtype=torch.float32) + 0.5) / scale - 0.5
        axes.append(places / max(have - 1, 1) * 2 - 1)
    return _sample(guide, axes)


def _at_corners(x: Tensor, wanted: Sequence[int], size: Sequence[int]) -> Tensor:
    """Sample a map of some areas to each pixel of ``size`` at the ``wanted`` size so that corners meet.

    The head's own resizing to that size, with ``align_corners=True``, then changes nothing.
    """
    axes = []
    for fine, have, want in zip(x.shape[2:], size, wanted, strict=True):
        scale = fine // have
        places = torch.arange(want, device=x.device, dtype=torch.float32) * ((have - 1) / max(want - 1, 1))
        axes.append((scale * (places + 0.5) - 0.5) / max(scale * have - 1, 1) * 2 - 1)
    return _sample(x, axes)


def _sample(x: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Sample rows and columns, from -1 at the centre of the first to 1 at that of the last."""
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).to(x.dtype).expand(x.size(0), -1, -1, -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def has_logits(kind: Any) -> bool:
    """Tell whether heads of a type leave logits for mmseg to resize, which an upsampler can take over."""
    return isinstance(kind, type) and issubclass(kind, BaseDecodeHead) and not issubclass(kind, _REFUSED)


def guide_head(
    head: BaseDecodeHead,
    upsample_cfg: Mapping[str, Any],
    guide_index: Sequence[Guide],
    guide_channels: Sequence[int],
) -> None:
    """Give a head an upsampler on its logits, in place.

    Args:
        head: Any head of mmseg that leaves logits to be resized.
        upsample_cfg: The upsampler and its options; it maps the logits' channels to themselves. One that
            takes no guides is taken as well, and gets none.
        guide_index: Its guides, from that of the first doubling to the finest: places among the features of
            the backbone, or ``'image'``.
        guide_channels: The channels of each.

    Raises:
        ValueError: If the head has no logits to be resized, or the upsampler does not fit.
    """
    if not has_logits(type(head)):
        raise ValueError(f"{type(head).__name__} leaves no logits to be resized: nothing can be guided")
    check_places(guide_index)
    channels = head.out_channels
    if is_guided(upsample_cfg):
        head.guided = build_guided(upsample_cfg, channels, tuple(guide_channels))
        head.guide_index = tuple(guide_index)
    else:
        head.guided = build_upsampler(upsample_cfg, channels, channels)
        head.guide_index = ()
    # As torch's lazy modules become what they stand for: parameters and names stay.
    head.__class__ = _guided_type(type(head))


def _guided_type(head_type: type[BaseDecodeHead]) -> type[GuidedHead]:
    """Return the guided form of a head's class, the same one every time."""
    if head_type not in _TYPES:
        own = {"_head_type": head_type, "__module__": __name__}
        _TYPES[head_type] = type(f"Guided{head_type.__name__}", (GuidedHead, head_type), own)
    return _TYPES[head_type]


def _empty_guided(head_type: type[BaseDecodeHead]) -> GuidedHead:
    guided = _guided_type(head_type)
    return guided.__new__(guided)
