"""A zoo of its own with one tiny model in it, for tests of publishing and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel

from pixeldcl_plugin.engine.builder import build_model
from pixeldcl_plugin.zoo import publishing as publish
from pixeldcl_plugin.zoo.index import Release, ZooRoot

MODEL = "unet-tiny-pixeldcl"
UPSAMPLED = "unet-tiny-upsampled"
OVERRIDE = 'model["backbone"]["upsample_cfg"] = dict(type="PixelDCL")\n'
UPSAMPLED_OVERRIDE = OVERRIDE + (
    'model["decode_head"].update(type="UpsampledFCNHead", upsample_cfg=dict(type="PixelDCL"))\n'
    'model["auxiliary_head"] = dict(model["decode_head"], type="FCNHead", in_channels=8, in_index=1)\n'
    'del model["auxiliary_head"]["upsample_cfg"]\n'
)


def make_root(folder: Path, text: str) -> ZooRoot:
    """Makes a root with the configs of two tiny models and nothing released."""
    configs = folder / "configs/tiny"
    configs.mkdir(parents=True)
    text += 'test_pipeline = [*load, dict(type="PackSegInputs")]\n'  # For mmseg's inference.
    (configs / f"{MODEL}.py").write_text(text + OVERRIDE)
    (configs / f"{UPSAMPLED}.py").write_text(text + UPSAMPLED_OVERRIDE)
    (folder / "model-index.yml").write_text("Import: []\n")
    return ZooRoot.at(folder)


def config_file(root: ZooRoot, name: str = MODEL) -> Path:
    """The config of a tiny model."""
    return root.folder / f"configs/tiny/{name}.py"


def tiny_model(root: ZooRoot, name: str = MODEL, seed: int = 0) -> BaseModel:
    """The model with weights that no initialisation gives."""
    torch.manual_seed(seed)
    model = build_model(Config.fromfile(config_file(root, name)))
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) * 0.5 + 0.1)
    return model


def save_checkpoint(root: ZooRoot, file: Path, model: BaseModel, name: str = MODEL, **more: Any) -> Path:
    """Saves what a training run does, the config as text included."""
    meta = dict(cfg=Config.fromfile(config_file(root, name)).pretty_text, seed=3, time="20260102_030405")
    optimizer = torch.optim.Adam(model.parameters()).state_dict()
    hub = {"log_scalars": {}, "runtime_info": {"iter": 3}}
    content = dict(meta=meta, state_dict=model.state_dict(), optimizer=optimizer, message_hub=hub) | more
    torch.save(content, file)
    return file


FACTS = publish.Facts(metrics={"mIoU": 12.34}, data="tiny", licence="for tests")


def release(root: ZooRoot, name: str = MODEL, seed: int = 0, facts: publish.Facts = FACTS) -> Release:
    """Publishes a tiny model with the weights of a seed."""
    checkpoint = root.folder / f"{name}-{seed}.pth"
    save_checkpoint(root, checkpoint, tiny_model(root, name, seed), name)
    return publish.publish(str(checkpoint), str(config_file(root, name)), facts, root=root)[0]
