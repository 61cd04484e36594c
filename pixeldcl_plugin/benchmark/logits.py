"""What is timed of upsamplers on logits: whole models that leave them at stride 8."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_upsample_layer
from mmengine.registry import init_default_scope
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..layers import GuidedPixelDCL
from ..layers.guided_upsample import GuideChannels, GuidedUpsample

__all__ = ["LOGITS_SHAPES", "LOGITS_VARIANTS", "logits_case", "logits_model"]

#: (batch, height, width): a picture, and a batch of training of ``configs/voc12_subset``.
LOGITS_SHAPES = ((1, 128, 160), (16, 128, 128))

_ALONE = dict(norm_cfg=None, act_cfg=None)


class ConvolutionsAlone(GuidedUpsample):
    """What GuidedPixelDCL cannot do without: its convolutions, and one pass that writes the output.

    No norm, no weights, no means: the least time that the layer could take, and no upsampler to use.
    """

    def __init__(self, in_channels: int, guide_channels: GuideChannels, *, scale_factor: int = 2) -> None:
        layer = GuidedPixelDCL(in_channels, guide_channels, scale_factor=scale_factor)
        steps = iter(layer.steps)
        super().__init__(in_channels, guide_channels, scale_factor, lambda _: _Convolutions(next(steps)))


class _Convolutions(nn.Module):
    def __init__(self, step: Any) -> None:
        super().__init__()
        self.hidden = step.hidden
        self.predict = step.predict

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        of_guide = F.conv2d(guide, self.hidden.reduce_guide, stride=2)
        logits = self.predict(F.relu(self.hidden.reduce(x) + of_guide))
        return F.interpolate(x, scale_factor=2.0) + logits.mean()  # so that their gradient is computed


#: What enlarges the logits by 4; the rest of the way they are resized. The first is nothing but that.
LOGITS_VARIANTS: dict[str, dict[str, Any]] = {
    "bilinear": {},
    "guided": dict(type="GuidedPixelDCL", scale_factor=4),
    "guided 3x3": dict(type="GuidedPixelDCL", scale_factor=4, order="ipixeldcl", hidden_channels=32),
    "guided separable": dict(type="GuidedPixelDCL", scale_factor=4, separable=True),
    "guided without order": dict(type="GuidedPixelDCL", scale_factor=4, order=None),
    "guided with residual": dict(type="GuidedPixelDCL", scale_factor=4, residual=True),
    "residual alone": dict(type="GuidedResidual", scale_factor=4),
    "guided, convolutions alone": dict(type=ConvolutionsAlone, scale_factor=4),
    "carafe": dict(type="TorchCARAFE", **_ALONE),
    "dysample": dict(type="DySample", groups=1, **_ALONE),
    "sapa": dict(type="SAPA", scale_factor=4),
    "fade": dict(type="FADE", scale_factor=4),
    "joint bilateral": dict(type="JointBilateralUpsample", scale_factor=4),
}

_CLASSES = 21


def logits_model(backbone: str) -> dict[str, Any]:
    """Return the model's config of ``configs/voc12_subset/unethead_lite0-s8*``, with a type of backbone."""
    return dict(
        type="EncoderDecoder",
        backbone=dict(
            type=backbone, model_name="tf_efficientnet_lite0", features_only=True, pretrained=False
        ),
        decode_head=dict(
            type="UNetHead",
            in_channels=[40, 112, 320],
            in_index=[2, 3, 4],
            decoder_channels=[256, 128],
            upsample_cfg=dict(type="InterpConv"),
            num_convs=1,
            skip_norm_cfg=dict(type="BN"),
            num_classes=_CLASSES,
            align_corners=False,
        ),
        test_cfg=dict(mode="whole"),
    )


def logits_case(cfg: dict[str, Any], shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """Build the model of ``configs/voc12_subset/unethead_lite0-s8*`` with an upsampler on its logits.

    The output is the logits at the size of the image. The encoder is frozen, as in those configs.
    """
    batch, height, width = shape
    init_default_scope("mmseg")
    guided = "scale_factor" in cfg
    options = dict(type="GuidedEncoderDecoder", upsample_cfg=dict(cfg), guide_index=[1, 0]) if guided else {}
    model = MODELS.build({**logits_model("FrozenTIMMBackbone"), **options})
    twice: nn.Module = nn.Identity()
    if cfg and not guided:
        layers = [build_upsample_layer(dict(cfg), in_channels=_CLASSES, out_channels=_CLASSES) for _ in "ab"]
        twice = nn.Sequential(*layers)
    return _ToTheEnd(model, twice), torch.randn(batch, 3, height, width)


class _ToTheEnd(nn.Module):
    """An encoder-decoder, an upsampler after it, and the resize to the size of the image."""

    def __init__(self, model: nn.Module, upsample: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.upsample = upsample

    def forward(self, image: Tensor) -> Tensor:
        logits = self.upsample(self.model(image, mode="tensor"))
        size = image.shape[2:]
        return resize(logits, size=size, mode="bilinear", align_corners=False)
