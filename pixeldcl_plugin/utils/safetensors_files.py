"""Files of safetensors with what this package writes into their headers: classes, and the file they complete.

``dataset_meta`` holds names and colours of the classes as JSON. A file with ``base`` holds only those tensors
of a model that another file of its folder has not, or has otherwise: such as the upsampler of a retrofit,
whose model is a hundred times as large. ``base_sha256`` is the hash of that other file.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .files import file_sha256

__all__ = ["base_header", "check_dataset_meta", "load_safetensors", "without_base"]


def load_safetensors(file: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a file, and the one that it completes.

    Args:
        file: The file.
        map_location: A device; anything else means the CPU.

    Returns:
        ``'state_dict'`` and ``'meta'``, which has the ``'dataset_meta'`` of files that have one.

    Raises:
        ValueError: If the classes are none, or the file that it completes is missing or another one.
        OSError, SafetensorError: If it cannot be read.
    """
    device = map_location if isinstance(map_location, str | torch.device) else "cpu"
    state, header = _read(file, device)
    if "base" in header:
        base = file.with_name(Path(header["base"]).name)
        if not base.is_file():
            raise ValueError(f"it completes {base.name!r}, which must lie beside it")
        if file_sha256(base) != header.get("base_sha256"):
            raise ValueError(f"it completes {base.name!r}, and the one beside it is another file")
        state = {**_read(base, device)[0], **state}
    # Nothing else of the header: MMEngine runs what it finds as a config in a checkpoint's meta.
    meta = (
        {"dataset_meta": check_dataset_meta(json.loads(header["dataset_meta"]))}
        if "dataset_meta" in header
        else {}
    )
    return {"state_dict": state, "meta": meta}


def _read(file: Path, device: str | torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, "pt", device=str(device)) as opened:
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
        return state, opened.metadata() or {}


def base_header(base: Path) -> dict[str, str]:
    """Return what the header of a file says of the one that it completes."""
    return {"base": base.name, "base_sha256": file_sha256(base)}


def without_base(state: Mapping[str, Tensor], base: Path) -> dict[str, Tensor]:
    """Return the tensors of a model that a file does not have, or has otherwise: by type, shape and bits.

    Raises:
        ValueError: If the file completes another one itself, has a tensor that the model has not, or no
            weight is the same in both.
    """
    found, header = _read(base, "cpu")
    if "base" in header:
        raise ValueError(f"{base.name!r} completes another file itself")
    if more := found.keys() - state.keys():
        raise ValueError(f"the model has no {min(more)!r}, which is in {base.name!r}")
    own = {name: tensor for name, tensor in state.items() if not _same(tensor, found.get(name))}
    # Two models that have nothing else in common still count their batches alike.
    if not any(tensor.is_floating_point() for name, tensor in state.items() if name not in own):
        raise ValueError(f"no weight is as in {base.name!r}: there is nothing to complete")
    return own


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.dtype == other.dtype and torch.equal(tensor.cpu(), other)


def check_dataset_meta(meta: Any) -> dict[str, Any]:
    """Return the names and colours of classes that a checkpoint holds, and nothing else.

    Raises:
        ValueError: If they are of another form.
    """
    classes, palette = (meta.get(k) if isinstance(meta, Mapping) else None for k in ("classes", "palette"))
    shown = " ".join(reprlib.repr(meta).split())
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"its dataset_meta has no list of classes: {shown}")
    palette = None if isinstance(palette, list | tuple) and not palette else palette
    try:
        colors = np.zeros((len(classes), 3), int) if palette is None else np.array(palette)
    except ValueError:  # a ragged list
        colors = np.zeros(0)
    if colors.shape != (len(classes), 3) or colors.dtype.kind not in "iu" or (colors != colors % 256).any():
        raise ValueError(f"its dataset_meta has no color of 0 to 255 for each class: {shown}")
    return {"classes": classes, "palette": palette}
