"""Every config that mmseg ships, its model made guided: does it build, train and predict?"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from ..engine.builder import forget_pretraining
from ..engine.hardware import replace_sync_bn
from ..models.guided_heads import has_logits
from ..utils.config_errors import first_import_error

__all__ = ["STAGES", "Outcome", "config_files", "outcomes"]

#: What a config passes one after the other.
STAGES = ("config", "build", "loss", "backward", "predict")
#: Sides of the images that are tried in turn: some heads pool more pixels than a small image has.
SIZES = (64, 128, 400)
_GUIDED = ("EncoderDecoder", "CascadeEncoderDecoder")


@dataclass(frozen=True)
class Outcome:
    """How far a config came.

    Attributes:
        config: Its path below mmseg's configs.
        segmentor: Type of the model.
        head: Type of the head whose logits are evaluated.
        passed: The last stage that it passed, of :data:`STAGES`; ``'predict'`` if all.
        reason: What stopped it; empty if nothing did.
        same_as: A config before it that has the same model, and so was run in its place.
    """

    config: str
    segmentor: str
    head: str
    passed: str
    reason: str = ""
    same_as: str = ""


def config_files() -> tuple[Path, list[Path]]:
    """Return the folder of the configs that the installed mmseg ships, and the configs in it."""
    spec = importlib.util.find_spec("mmseg")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("mmseg is not installed")
    root = Path(spec.submodule_search_locations[0]) / ".mim/configs"
    return root, sorted(file for file in root.rglob("*.py") if "_base_" not in file.parts)


def outcomes(files: Sequence[Path], root: Path) -> Iterator[Outcome]:
    """Run the models of configs on small images, without pretrained weights, each distinct one once."""
    seen: dict[str, Outcome] = {}
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            model = Config.fromfile(file).model.to_dict()
        except Exception as error:  # a config is a program
            yield Outcome(name, "", "", "", _line(error))
            continue
        _shrink(model)
        key = hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()
        if key in seen:
            yield replace(seen[key], config=name, same_as=seen[key].config)
        else:
            seen[key] = _run(name, model)
            yield seen[key]


def _run(name: str, model: dict[str, Any]) -> Outcome:
    segmentor = model.get("type", "")
    head = model.get("decode_head") or {}
    kind = (head[-1] if isinstance(head, list | tuple) else head).get("type", "")
    if segmentor not in _GUIDED:
        return Outcome(name, segmentor, kind, "config", f"{segmentor} is no encoder-decoder")
    if not has_logits(MODELS.get(f"mmseg.{kind}")):
        return Outcome(name, segmentor, kind, "config", f"{kind} leaves no logits to be resized")
    model["type"] = f"Guided{segmentor}"
    model["upsample_cfg"] = dict(type="GuidedPixelDCL", scale_factor=4)
    outcome = Outcome(name, segmentor, kind, "config")
    for size in SIZES:
        outcome = _try(outcome, model, size)
        if outcome.passed in ("config", "predict"):  # what cannot be built has no size
            break
    return outcome


def _try(outcome: Outcome, model: dict[str, Any], size: int) -> Outcome:
    model = copy.deepcopy(model)
    if "img_size" in (model.get("backbone") or {}):  # such a backbone takes images of that size only
        model["backbone"]["img_size"] = (size, size)
    passed, reason = "config", ""
    try:
        with DefaultScope.overwrite_default_scope("mmseg"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for stage in _stages(ConfigDict(model), size):
                passed = stage
    except Exception as error:  # whatever it is, it goes into the report
        reason = _line(error)
    return replace(outcome, passed=passed, reason=reason)


def _stages(model: ConfigDict, size: int) -> Iterator[str]:
    """Build, train and predict; yield the name of each stage that is passed."""
    torch.manual_seed(0)
    segmentor = MODELS.build(model)
    yield "build"
    images, samples = torch.rand(2, 3, size, size), [_sample(segmentor.num_classes, size) for _ in range(2)]
    losses = segmentor.train().loss(images, samples)
    yield "loss"
    sum(value for key, value in losses.items() if "loss" in key).backward()
    grads = [weight.grad for name, weight in segmentor.named_parameters() if ".guided." in name]
    if any(grad is None for grad in grads):
        raise RuntimeError("a parameter of the upsampler has no gradient")
    yield "backward"
    with torch.no_grad():
        predicted = segmentor.eval().predict(images[:1], samples[:1])
    if any(sample.pred_sem_seg.data.shape != (1, size, size) for sample in predicted):
        raise RuntimeError("a prediction has another size than its image")
    yield "predict"


def _sample(classes: int, size: int) -> SegDataSample:
    shape = (size, size)
    sample = SegDataSample(
        metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, padding_size=[0] * 4)
    )
    sample.gt_sem_seg = PixelData(data=torch.randint(0, max(classes, 2), (1, *shape)))
    sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *shape)))  # PIDNet's loss wants one
    return sample


def _shrink(model: dict[str, Any]) -> None:
    """Make a model run on a small image, without files and without a GPU."""
    forget_pretraining(model)
    replace_sync_bn(model, "BN")
    model["test_cfg"] = dict(mode="whole")


def _line(error: Exception) -> str:
    first = first_import_error(error)
    return f"{type(first).__name__}: {' '.join(str(first).split())[:200]}"
