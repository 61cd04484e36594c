"""Any encoder-decoder of mmseg with a guided upsampler in place of the final resize of its logits.

A stock model leaves its logits at the stride of its features and enlarges them bilinearly: what it knows of
boundaries at finer strides is lost. Here :class:`~pixeldcl_plugin.GuidedPixelDCL` enlarges them, guided by
earlier features of the backbone or by the image itself, or any other upsampler of the registry. All weights
of the stock model keep their names; those of the upsampler are ``decode_head.guided.*`` (of a cascade: of
its last head).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..registry import register
from .guided_heads import Guide, GuidedHead, check_places, guide_head, take_guides, with_image
from .guided_upsamplers import is_guided

__all__ = ["GuidedCascadeEncoderDecoder", "GuidedEncoderDecoder"]

#: Side of the picture from which the channels of the guides are learned.
_PROBE = 128
#: What enlarges the logits unless something else is named.
_UPSAMPLE = dict(type="GuidedPixelDCL", scale_factor=8)


class _Guided(EncoderDecoder):
    """What makes a segmentor guided; it stands before mmseg's class in the list of bases."""

    frozen = False

    def __init__(
        self,
        *args: Any,
        upsample_cfg: Mapping[str, Any] | None = None,
        guide_index: Sequence[Guide] = ("image",),
        guide_channels: Sequence[int] | None = None,
        frozen: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self._last_head, "guided"):
            upsample_cfg = _UPSAMPLE if upsample_cfg is None else upsample_cfg
            if guide_channels is None and is_guided(upsample_cfg):
                guide_channels = self._channels_of(guide_index)
            guide_head(self._last_head, upsample_cfg, guide_index, guide_channels or ())
        elif upsample_cfg is not None:
            raise ValueError(
                f"the logits are enlarged once: {type(self._last_head).__name__} has its own upsampler, got "
                f"upsample_cfg={upsample_cfg!r} for the model too"
            )
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self._last_head.guided.requires_grad_(True)

    def _init_decode_head(self, decode_head: Any) -> None:
        super()._init_decode_head(self._with_channels(decode_head))

    def _init_auxiliary_head(self, auxiliary_head: Any) -> None:
        super()._init_auxiliary_head(self._with_channels(auxiliary_head))

    def _with_channels(self, head: Any) -> Any:
        """Tell a head, or several, that takes guides itself how many channels they have."""
        if isinstance(head, list):
            return [self._with_channels(each) for each in head]
        if head is None or "guide_index" not in head or "guide_channels" in head:
            return head
        head = copy.copy(head)
        head["guide_channels"] = self._channels_of(head["guide_index"])
        return head

    @property
    def _last_head(self) -> GuidedHead:
        head = self.decode_head
        return cast(GuidedHead, head[-1] if isinstance(head, nn.ModuleList) else head)

    @torch.no_grad()
    def _channels_of(self, index: Sequence[Guide]) -> list[int]:
        """Return the channels of the guides, learned from the features of a black picture."""
        check_places(index)
        mean = getattr(self.data_preprocessor, "mean", None)
        image = torch.zeros(1, 3 if mean is None else len(mean), _PROBE, _PROBE)
        if all(place == "image" for place in index):
            return [image.size(1)] * len(index)
        was_training = self.training
        self.eval()
        with torch.random.fork_rng(devices=[]):
            features = self.extract_feat(image)
        self.train(was_training)
        return [guide.size(1) for guide in take_guides(features, index)]

    def extract_feat(self, inputs: Tensor) -> Any:
        """Extract the features, and keep the image with them."""
        return with_image(super().extract_feat(inputs), inputs)

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
            guided: what remains is resized bilinearly. ``'GuidedPixelDCL'``, ``'SAPA'``, ``'FADE'``,
            ``'JointBilateralUpsample'``; or one that looks at the logits alone (``'TorchCARAFE'``,
            ``'PixelDCL'``, ``'bilinear'``, ...), to compare with: it takes no notice of the guides. None for
            GuidedPixelDCL x8, or for a head that has a guided upsampler of its own.
        guide_index: Its guides, from that of the first doubling to the finest: places among the features of
            the backbone (of the neck, if there is one), or ``'image'``: the network's own normalised input.
            Where there are fewer guides than doublings, the last serves the others too.
        guide_channels: The channels of each; None to learn them from the backbone when it is built.
        frozen: Train nothing but the upsampler, on a model that is trained already.
        **kwargs: Those of ``EncoderDecoder``.

    Raises:
        ValueError: If the head leaves no logits to be resized, a guide is none of the above, or both the
            model and its head name an upsampler.
    """


@register(MODELS)
class GuidedCascadeEncoderDecoder(_Guided, CascadeEncoderDecoder):
    """mmseg's CascadeEncoderDecoder, its last head guided, see :class:`GuidedEncoderDecoder`."""
