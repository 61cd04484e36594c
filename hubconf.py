"""Models for torch.hub: ``torch.hub.load(REPOSITORY, "create_model", NAME, pretrained=True)``."""

from pixeldcl_plugin import create_model, list_models

__all__ = ["create_model", "list_models"]

dependencies = ["torch", "mmengine", "mmcv", "mmseg", "filelock", "safetensors", "yaml"]
