"""The configs of a retrofit: what can guide a trained model, and how the upsampler is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from ..engine import runtime
from ..engine.builder import forget_pretraining
from ..utils.cli import UsageError

__all__ = ["Guides", "find_guides", "guided_config", "guided_type", "training_config"]

#: Segmentors of mmseg, and what takes their place.
_GUIDED = {
    "EncoderDecoder": "GuidedEncoderDecoder",
    "CascadeEncoderDecoder": "GuidedCascadeEncoderDecoder",
}
_LARGEST_SCALE = 8
#: Chosen on held-out training images of CamVid and VOC (studies/*_retrofit.yaml).
_RATE = 1e-2


@dataclass(frozen=True)
class Guides:
    """What guides the logits of a model on their way to the size of the image.

    Attributes:
        scale_factor: How much of the way: 2, 4 or 8.
        guide_index: The guide of every doubling, without repetitions at the end: a place among the outputs of
            the backbone, or ``'image'``.
        guide_channels: The channels of each.
    """

    scale_factor: int
    guide_index: tuple[int | str, ...]
    guide_channels: tuple[int, ...]


@torch.no_grad()
def find_guides(model: EncoderDecoder, guide: Literal["image", "features"]) -> Guides:
    """Find out by a dry run at which stride a model leaves its logits, and which features are finer.

    Args:
        model: In evaluation mode.
        guide: What to guide by: the image alone; or for every doubling the first of the backbone's outputs
            (the neck's, if there is one) at the stride that it leads to, and the image where there is none.
            The last doubling, from stride 2, is guided only where it is the only one.

    Raises:
        UsageError: If the logits are as large as the image: nothing is left to be guided.
    """
    size = model.test_cfg.get("crop_size") or (256, 256)
    mean = getattr(model.data_preprocessor, "mean", None)
    parameter = next(model.parameters())
    image = parameter.new_zeros(1, 3 if mean is None else len(mean), *size)
    features = model.extract_feat(image)
    features = list(features) if isinstance(features, list | tuple) else [features]
    logits = model._forward(image)
    logits = logits if isinstance(logits, Tensor) else logits[0]

    def stride(x: Any) -> int | None:
        return 2 ** round(math.log2(size[1] / x.size(3))) if isinstance(x, Tensor) and x.dim() == 4 else None

    coarse = stride(logits) or 1
    if coarse < 2:
        raise UsageError("config: the logits are as large as the image: no resize is left to be guided")
    # The last doubling, to the size of the image, costs more than the others together and adds little
    # (docs/study.md): it stays bilinear.
    scale = min(max(coarse // 2, 2), _LARGEST_SCALE)
    strides = [stride(x) for x in features]
    index: list[int | str] = []
    while len(index) < scale.bit_length() - 1:
        coarse //= 2
        found = guide == "features" and coarse in strides
        index.append(strides.index(coarse) if found else "image")
    while len(index) > 1 and index[-1] == index[-2] == "image":
        index.pop()
    channels = [image.size(1) if i == "image" else features[int(i)].size(1) for i in index]
    return Guides(scale, tuple(index), tuple(channels))


def guided_config(cfg: Config, guides: Guides) -> Config:
    """Return the config of a model with its final resize guided, which needs no other weights than its own.

    Auxiliary heads, which predict nothing, are left out.

    Raises:
        UsageError: If the model is none whose resize can be guided.
    """
    kind = guided_type(cfg)
    cfg = copy.deepcopy(cfg)
    forget_pretraining(cfg.model)
    cfg.model.pop("auxiliary_head", None)
    cfg.model.update(
        type=kind,
        upsample_cfg=dict(
            type="GuidedPixelDCL", scale_factor=guides.scale_factor, separable=False, residual=True
        ),
        guide_index=list(guides.guide_index),
        guide_channels=list(guides.guide_channels),
    )
    cfg.load_from, cfg.resume = None, False
    cfg.pop("work_dir", None)
    runtime.import_plugin(cfg)
    return cfg


def guided_type(cfg: Config) -> str:
    """Return the type of the guided form of a config's model.

    Raises:
        UsageError: If it has none.
    """
    kind = str(cfg.model.get("type")).rpartition(".")[2]
    if kind not in _GUIDED:
        raise UsageError(f"config: the model must be of type {' or '.join(_GUIDED)}, got {kind}")
    return _GUIDED[kind]


def training_config(guided: Config, iters: int) -> Config:
    """Return the config that trains the upsampler of a guided model alone, on the config's training data.

    AdamW, its rate rising over a tenth of the iterations and falling by half a cosine; mixed precision is the
    config's.
    """
    cfg = copy.deepcopy(guided)
    cfg.model.frozen = True
    wrapper = cfg.get("optim_wrapper")
    kind = str(wrapper.get("type")) if isinstance(wrapper, Mapping) else ""
    cfg.optim_wrapper = dict(
        type=kind if kind in ("AmpOptimWrapper", "BFloat16OptimWrapper") else "OptimWrapper",
        optimizer=dict(type="AdamW", lr=_RATE, weight_decay=1e-4),
    )
    warmup = iters // 10
    cfg.param_scheduler = [
        dict(type="LinearLR", start_factor=0.1, begin=0, end=warmup, by_epoch=False),
        dict(type="CosineAnnealingLR", eta_min=0, begin=warmup, end=iters, by_epoch=False),
    ][warmup == 0 :]
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iters, val_interval=iters)
    for split in ("val", "test"):
        for part in ("dataloader", "cfg", "evaluator"):
            cfg[f"{split}_{part}"] = None
    for key in ("auto_scale_lr", "model_wrapper_cfg"):
        cfg.pop(key, None)
    cfg.custom_hooks = []
    cfg.log_processor = dict(by_epoch=False)
    interval = max(iters // 10, 1)
    cfg.default_hooks = dict(
        timer=dict(type="IterTimerHook"),
        logger=dict(type="LoggerHook", interval=min(interval, 50), log_metric_by_epoch=False),
        param_scheduler=dict(type="ParamSchedulerHook"),
        checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=interval, max_keep_ckpts=2),
        sampler_seed=dict(type="DistSamplerSeedHook"),
    )
    runtime.add_training_hooks(cfg)
    return cfg
