"""The bytes of a released file: weights, perhaps in float16, and a header that says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from safetensors.torch import save
from torch import Tensor

from ..engine.builder import dataset_meta
from ..utils.checkpoints import CheckpointError
from ..utils.cli import UsageError
from ..utils.safetensors_files import base_header, without_base

__all__ = ["half_kernels", "pack"]


def half_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round floating-point tensors of two dimensions and more to float16.

    Vectors, such as biases and the statistics of norms, stay as they are: they are small, and variances may
    leave float16's range. A model loads the file as any other, in its own precision.

    Raises:
        CheckpointError: If a weight is too large for float16.
    """
    rounded = {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in state.items()
    }
    for name, tensor in rounded.items():
        if state[name].isfinite().all() and not tensor.isfinite().all():
            raise CheckpointError(f"{name} has weights of more than 65504: it cannot be released in float16")
    return rounded


def pack(state: Mapping[str, Tensor], cfg: Config, config: str, base: Path | None = None) -> bytes:
    """Return the content of a released file. Equal weights make equal bytes.

    Args:
        state: The weights.
        cfg: The config of their model.
        config: Its path; the stem is the model's name.
        base: A released file of the same folder that the new one completes; None for a whole one.

    Raises:
        UsageError: If ``base`` is no file that the weights complete.
    """
    header = _header(cfg, config)
    if base is not None:
        header |= base_header(base)
        try:
            state = without_base(state, base)
        except ValueError as error:
            raise UsageError(f"--base: {error}") from error
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    return _in_order(save(tensors, metadata=header))


def _header(cfg: Config, config: str) -> dict[str, str]:
    """Return what a released file says of itself: its model, and the names and colours of its classes."""
    header = {"format": "pt", "model": Path(config).stem}
    if meta := dataset_meta(cfg):
        header["dataset_meta"] = json.dumps({key: meta.get(key) for key in ("classes", "palette")})
    return header


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, whose order changes: equal weights are to be equal files."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
