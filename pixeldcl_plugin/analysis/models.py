"""The models that an analysis of the checkerboard is asked for on a command line."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from ..apis.gallery import default_names
from ..apis.segmenter import Segmenter
from ..engine.console import quiet_logger
from ..engine.preflight import check_upsamplers, check_weights
from ..engine.runtime import load_config
from ..utils.cli import UsageError

__all__ = ["load_model", "model_names", "pair_models"]

#: What the names of checkpoints end in.
_WEIGHTS = (".pth", ".pt", ".safetensors")


def pair_models(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Split a command line's ``CONFIG [CHECKPOINT] ...`` into pairs; weights belong to the config before.

    Raises:
        UsageError: If a checkpoint follows no config.
    """
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        if not argument.endswith(_WEIGHTS):
            pairs.append((argument, None))
        elif pairs and pairs[-1][1] is None:
            pairs[-1] = (pairs[-1][0], argument)
        else:
            raise UsageError(f"checkpoint {argument!r} does not follow a config")
    return pairs


def load_model(config: str, checkpoint: str | None, seed: int = 0) -> Segmenter:
    """Load a model; without a checkpoint it is as its config initialises it, with the given seed.

    Raises:
        UsageError: If the config cannot be read or names weights that are not there.
        CheckpointError: As :class:`~pixeldcl_plugin.apis.segmenter.Segmenter`.
    """
    cfg = load_config(config)
    check_upsamplers(cfg)
    check_weights(cfg, checkpoint)
    if checkpoint is not None:
        return Segmenter(cfg, checkpoint)
    torch.manual_seed(seed)
    init_default_scope(cfg.get("default_scope", "mmseg"))
    model = MODELS.build(cfg.model)
    with quiet_logger():
        model.init_weights()
    # The segmenter takes weights only from a file, with all its checks.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "untrained.pth")
        torch.save(dict(state_dict=model.state_dict()), file)
        return Segmenter(cfg, file)


def model_names(pairs: Sequence[tuple[str, str | None]]) -> list[str]:
    """Name models by what tells their configs apart, and by their checkpoints where that is not enough."""
    names = default_names([config for config, _ in pairs])
    weights = [Path(checkpoint).stem if checkpoint else "untrained" for _, checkpoint in pairs]
    return [
        f"{name} ({of})" if of == "untrained" or names.count(name) > 1 else name
        for name, of in zip(names, weights, strict=True)
    ]
