"""One forward pass before the run, so that parts of a model that do not fit each other are told at once."""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ..utils.cli import UsageError
from ..utils.config_errors import find_key
from .dry_build import given_below, silently

__all__ = ["run_model_once"]

#: Side of the images that are tried first: two pixels at stride 32.
_SIDE = 64
#: What a training set of the user's own has and these samples lack is no mistake in a config.
_LACKING = (AttributeError, KeyError, NotImplementedError)
#: Settings that say what a part is given.
_INPUTS, _GUIDES = ("in_channels", "in_index"), ("guide_channels", "guide_index")


def run_model_once(cfg: Config, model: nn.Module, options: Mapping[str, Any], training: bool) -> None:
    """Compute the losses, or the logits, of two small images; the model is not to be used afterwards.

    A model that cannot take images as small is given those of the size that it is trained on, on the device
    that it is trained on. The random generators are left as they were.

    Args:
        cfg: The config.
        model: Its model, on the CPU. One that is no segmentor of mmseg's is not run.
        options: What ``--cfg-options`` set.
        training: Whether to compute the losses of training, else the logits of prediction.

    Raises:
        UsageError: Names the setting that does not fit.
    """
    if not isinstance(model, BaseSegmentor):
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    attempts = [((_SIDE, _SIDE), torch.device("cpu")), (_size_of(cfg), device)]
    with _random_state_kept(), silently(), torch.no_grad():
        for number, (size, where) in enumerate(attempts):
            outputs: dict[str, Any] = {}
            try:
                _run(model.to(where).train(training), size, training, outputs)
                return
            except _LACKING:
                return
            except Exception as error:  # layers fail in any way
                if number == 0 or _is_out_of_memory(error):
                    continue
                reason = _misfit(cfg.model, outputs) or _reason(error, cfg.model, model, options)
                raise UsageError(f"config: {reason}") from error


def _size_of(cfg: Config) -> tuple[int, int]:
    """Return height and width of the images that a model is trained on, as far as a config tells."""
    candidates = [(cfg.model.get("data_preprocessor") or {}).get("size")]
    candidates += [size for _, size in find_key(cfg.get("train_dataloader"), "crop_size", "")]
    for size in candidates:
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return size[0], size[1]
    return 512, 512


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _channels(model: nn.Module) -> int:
    mean = getattr(getattr(model, "data_preprocessor", None), "mean", None)
    return 3 if mean is None else len(mean)


def _run(model: BaseSegmentor, size: tuple[int, int], training: bool, outputs: dict[str, Any]) -> None:
    """Run a model; note what its backbone and its neck are given and give, as far as it comes."""
    handles = [
        getattr(model, name).register_forward_hook(_noting(name, outputs))
        for name in ("backbone", "neck")
        if isinstance(getattr(model, name, None), nn.Module)
    ]
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    outputs["image"] = torch.rand(2, _channels(model), *size, device=device)
    try:
        if training:
            model.loss(outputs["image"], [_sample(size, device) for _ in range(2)])
        else:
            model(outputs["image"], mode="tensor")
    finally:
        for handle in handles:
            handle.remove()


def _noting(name: str, outputs: dict[str, Any]) -> Any:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs[name] = output

    return note


def _sample(size: tuple[int, int], device: torch.device) -> SegDataSample:
    sample = SegDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0] * 4)
    )
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
    sample.gt_edge_map = PixelData(data=torch.zeros(1, *size, dtype=torch.long))
    sample.gt_depth_map = PixelData(data=torch.ones(1, *size))
    return sample.to(device)


# --- what does not fit ---------------------------------------------------------------------------


def _misfit(model: Mapping[str, Any], outputs: Mapping[str, Any]) -> str | None:
    """Return which part asks for other features than it is given, in words; None if none is known to."""
    image = outputs["image"]
    backbone = model.get("backbone") or {}
    wanted = backbone.get("in_channels")
    if "backbone" not in outputs:
        if isinstance(wanted, int) and wanted != image.size(1):
            return f"model.backbone.in_channels={wanted!r}: the images have {image.size(1)} channels"
        return None
    if model.get("neck") and "neck" not in outputs:
        have, wanted = _widths(outputs["backbone"]), model["neck"].get("in_channels")
        if have and isinstance(wanted, list | tuple) and list(wanted) != have:
            return f"model.neck.in_channels={wanted!r}: the outputs of the backbone have {have} channels"
        return None
    source = "neck" if "neck" in outputs else "backbone"
    have = _widths(outputs[source])
    for part in ("decode_head", "auxiliary_head"):
        heads = model.get(part)
        paths = {f"model.{part}": heads}
        if isinstance(heads, list | tuple):
            paths = {f"model.{part}.{index}": head for index, head in enumerate(heads)}
        for path, head in paths.items():
            if have and isinstance(head, Mapping) and (reason := _misfit_of_head(head, path, have, source)):
                return reason
    return None


def _widths(features: Any) -> list[int] | None:
    """Return the channels of features; None where they are not a sequence of maps."""
    maps = features if isinstance(features, list | tuple) else [features]
    return [x.size(1) for x in maps] if all(isinstance(x, Tensor) and x.dim() == 4 for x in maps) else None


def _misfit_of_head(head: Mapping[str, Any], path: str, have: Sequence[int], source: str) -> str | None:
    places, wanted = head.get("in_index", -1), head.get("in_channels")
    indices = places if isinstance(places, list | tuple) else [places]
    if not all(isinstance(place, int) for place in indices):
        return None
    count = len(have)
    if not all(-count <= place < count for place in indices):
        return f"{path}.in_index={places!r}: the {source} has {count} output(s), 0 to {count - 1}"
    given = [have[place] for place in indices]
    channels = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    if all(isinstance(width, int) for width in channels) and channels != given:
        widths = ", ".join(map(str, given))
        return f"{path}.in_channels={wanted!r}: output {places!r} of the {source} has {widths} channels"
    return None


def _reason(error: Exception, model_cfg: Any, model: nn.Module, options: Mapping[str, Any]) -> str:
    """Return what failed: the setting of the command line, else the part with what it says of its inputs."""
    message = " ".join(str(error).split()) or type(error).__name__
    path, node = _place(error, model_cfg, model)
    if given := given_below(path, options):
        return f"{', '.join(given)}: {message}"
    settings = [(f"{path}.{key}", node[key]) for key in _INPUTS if isinstance(node, Mapping) and key in node]
    if "guide" in message:  # whose settings may stand further out
        settings = [item for key in _GUIDES for item in find_key(model_cfg, key, "model")]
    named = [f"{key}={value!r}" for key, value in settings if value is not None]
    return f"{', '.join(named) or path}: does not fit what it is given: {message}"


def _place(error: Exception, model_cfg: Any, model: nn.Module) -> tuple[str, Any]:
    """Return the innermost part of a model's config whose module an error passed through."""
    names = {id(module): name for name, module in model.named_modules()}
    best: tuple[str, Any] = ("model", model_cfg)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        path, node = "model", model_cfg
        for step in names.get(id(frame.f_locals.get("self")), "").split("."):
            if isinstance(node, list | tuple) and step.isdigit() and int(step) < len(node):
                path, node = f"{path}.{step}", node[int(step)]
            elif isinstance(node, Mapping) and isinstance(node.get(step), Mapping | list | tuple):
                path, node = f"{path}.{step}", node[step]
            else:
                break
        if len(path) > len(best[0]):
            best = (path, node)
    return best
