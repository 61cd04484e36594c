"""The models that a command line asks for: configs with their checkpoints, and names of released models."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder
from torch import nn

from ..engine.builder import build_model, load_model
from ..engine.preflight import check_weights
from ..engine.runtime import load_config
from ..utils.cli import UsageError
from ..zoo.models import UnknownModelError, model_info, released_file

__all__ = [
    "SHOWN",
    "ModelArgument",
    "add_models",
    "model_names",
    "read_model",
    "read_models",
    "read_one_model",
]

#: What a comparison shows where no model is named, released ones of VOC by what to call them: one head whose
#: logits are enlarged bilinearly, by deconvolutions, by the paper's layer, and guided, trained together and
#: afterwards.
SHOWN = {
    "bilinear": "fcn_lite0-d8_1xb16-amp-1k_voc12-subset-128x128",
    "deconvolution k4": "fcn_lite0-d8-deconv-k4_1xb16-amp-1k_voc12-subset-128x128",
    "PixelDCL": "fcn_lite0-d8-pixeldcl_1xb16-amp-1k_voc12-subset-128x128",
    "guided": "fcn_lite0-d8-guided_1xb16-amp-1k_voc12-subset-128x128",
    "bilinear, retrofit": "fcn_lite0-d8-retrofit_1xb16-amp-300_voc12-subset-128x128",
}

Model = TypeVar("Model", bound=nn.Module)

_CONFIGS, _WEIGHTS = (".py", ".json", ".yaml", ".yml"), (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class ModelArgument:
    """A model that was asked for.

    Args:
        config: The file of its config, or ``'<module>::<path>'``.
        checkpoint: The file or URL of its weights; None for an untrained model.
        cfg: The config.
    """

    config: str
    checkpoint: str | None
    cfg: Config

    def load(self, kind: type[Model], seed: int = 0) -> Model:
        """Build the model, in evaluation mode on the CPU.

        Args:
            kind: What it must be.
            seed: Of an untrained model, which is as its config initialises it.

        Raises:
            UsageError: If it is of another kind.
            CheckpointError: If the checkpoint cannot be read safely, or is another model's.
        """
        if self.checkpoint is not None:
            return load_model(self.cfg, self.checkpoint, kind)
        torch.manual_seed(seed)
        return build_model(self.cfg, kind=kind, pretraining=True)

    def load_segmentor(self, seed: int = 0) -> EncoderDecoder:
        """Build the model as :meth:`load`, which must be an ``EncoderDecoder``."""
        return self.load(EncoderDecoder, seed)


def add_models(parser: ArgumentParser, *flags: str, **settings: Any) -> None:
    """Add the argument ``models`` to a command; :func:`read_models` reads it."""
    names = flags or ("models",)
    about = "CONFIG CHECKPOINT, or the NAME of a released model"
    parser.add_argument(*names, **{"nargs": "+", "metavar": "MODEL", "help": about} | settings)


def read_models(
    arguments: Sequence[str], *, untrained: bool = False, options: Mapping[str, Any] | None = None
) -> list[ModelArgument]:
    """Read models from a command line, in any mixture of these forms.

    - ``CONFIG CHECKPOINT``: a config and the weights of its model.
    - ``NAME``: a model of the zoo with its newest weights, or the full name of a release.
    - ``NAME CHECKPOINT``: a model of the zoo with other weights.
    - ``CONFIG``, if ``untrained``: a model without weights.

    Args:
        arguments: What was given.
        untrained: Whether a config may stand without a checkpoint.
        options: Settings that override those of every config, with dotted keys.

    Raises:
        UsageError: Names what cannot be read, is missing or left over; of an unknown name, the nearest.
        CheckpointError: If released weights are missing, or are not the released ones.
    """
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        if not _is_checkpoint(argument):
            pairs.append((argument, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], argument)
        else:
            raise UsageError(f"checkpoint {argument!r} does not follow a config or the name of a model")
    return [
        read_model(model, checkpoint, untrained=untrained, options=options) for model, checkpoint in pairs
    ]


def read_one_model(arguments: Sequence[str], *, options: Mapping[str, Any] | None = None) -> ModelArgument:
    """Read the one model that a command takes.

    Raises:
        UsageError: As :func:`read_models`, and if there are several.
        CheckpointError: As :func:`read_models`.
    """
    models = read_models(arguments, options=options)
    if len(models) != 1:
        raise UsageError(f"expected one model, CONFIG CHECKPOINT or NAME, got {' '.join(arguments)!r}")
    return models[0]


def read_model(
    model: str,
    checkpoint: str | None = None,
    *,
    untrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> ModelArgument:
    """Read a model: a config's file or the name of a model of the zoo, and its checkpoint.

    Raises:
        UsageError: As :func:`read_models`.
        CheckpointError: As :func:`read_models`.
    """
    config = model
    if not _is_config(model):
        try:
            info = model_info(model)
        except UnknownModelError as error:
            raise UsageError(
                f"{error}; a config ends in .py, a checkpoint in .pth or .safetensors"
            ) from error
        config = str(info.config)
        checkpoint = checkpoint or str(released_file(info))
    elif checkpoint is None and not untrained:
        raise UsageError(f"config {model!r} needs a checkpoint after it")
    cfg = load_config(config, options)
    check_weights(cfg, checkpoint)
    return ModelArgument(config, checkpoint, cfg)


def _is_checkpoint(argument: str) -> bool:
    if argument.endswith(_WEIGHTS) or "://" in argument:
        return True
    return Path(argument).is_file() and not _is_config(argument)


def _is_config(argument: str) -> bool:
    return argument.endswith(_CONFIGS) or "::" in argument


def model_names(models: Sequence[ModelArgument]) -> list[str]:
    """Name models by what tells their configs apart, and by their checkpoints where that is not enough.

    ``unet-c16-deconv-k4_fcn.py`` and ``unet-c16-pixeldcl_fcn.py`` become ``deconv-k4`` and ``pixeldcl``; a
    name that has nothing which the others lack stays whole. Those of :data:`SHOWN` are called as there.
    """
    stems = [Path(model.config).stem for model in models]
    called = {stem: name for name, stem in SHOWN.items()}
    parts = [re.split(r"[-_]", stem) for stem in stems]
    common = set(parts[0]).intersection(*parts[1:])
    short = ["-".join(part for part in words if part not in common) for words in parts]
    names = [name or stem for name, stem in zip(short, stems, strict=True)]
    if all(stem in called for stem in stems):
        names = [called[stem] for stem in stems]
    weights = [Path(model.checkpoint).stem if model.checkpoint else "untrained" for model in models]
    return [
        f"{name} ({of})" if of == "untrained" or names.count(name) > 1 else name
        for name, of in zip(names, weights, strict=True)
    ]
