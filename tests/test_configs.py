"""Every config of the repository is built, run forward and backward, and saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample

from pixeldcl_plugin.runtime import load_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.py")
    if "_base_" not in path.relative_to(ROOT).parts
)
#: Files of one family: the stem with the upsampler in braces, and what stands there.
UPSAMPLERS = ("", "-deconv-k4", "-pixeldcl", "-ipixeldcl")
FAMILIES = sorted(
    {path.replace("-pixeldcl", "{}") for path in CONFIGS if "-pixeldcl" in path and "-ipixeldcl" not in path}
)


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 12
    assert FAMILIES


def _segmentation_sample(height: int, width: int, classes: int) -> SegDataSample:
    from mmengine.structures import PixelData

    label = torch.randint(0, classes, (1, height, width))
    return SegDataSample(
        gt_sem_seg=PixelData(data=label),
        metainfo=dict(
            img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width), flip=False
        ),
    )


@pytest.mark.parametrize("path", CONFIGS)
def test_config_trains_and_round_trips(path: str, tmp_path: Path) -> None:
    cfg = load_config(str(ROOT / path))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8) for _ in range(2)],
        data_samples=[_segmentation_sample(48, 64, cfg.model.decode_head.num_classes) for _ in range(2)],
    )
    data = model.data_preprocessor(batch, training=True)
    losses = model.loss(**data)
    loss, _ = model.parse_losses(losses)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        assert parameter.grad.isfinite().all(), name

    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = MODELS.build(cfg.model)
    other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    # A size that is no multiple of 16: the preprocessor pads, the prediction has the image's size.
    odd = dict(inputs=[torch.randint(0, 256, (3, 45, 61), dtype=torch.uint8)])
    odd["data_samples"] = [_segmentation_sample(45, 61, cfg.model.decode_head.num_classes)]
    predictions = []
    for trained in (model.eval(), other.eval()):
        with torch.no_grad():
            data = trained.data_preprocessor(odd, training=False)
            predictions.append(trained.predict(**data)[0].seg_logits.data)
    assert predictions[0].shape == (cfg.model.decode_head.num_classes, 45, 61)
    torch.testing.assert_close(predictions[0], predictions[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_differs_only_in_its_upsampler(family: str) -> None:
    members = {name: ROOT / family.format(name) for name in UPSAMPLERS}
    assert all(path.is_file() for path in members.values()), members
    configs = []
    for path in members.values():
        cfg = Config.fromfile(path).to_dict()
        assert cfg["model"]["backbone"].pop("upsample_cfg")
        configs.append(cfg)
    assert all(cfg == configs[0] for cfg in configs[1:])


def test_data_of_a_dataset_config_are_read_where_present() -> None:
    path = ROOT / "configs/camvid/unet-s5-d16-c16-pixeldcl_fcn_1xb8-1k_camvid-160x128.py"
    cfg = load_config(str(path))
    root = ROOT / cfg.data_root
    if not (root / "val").is_dir():
        pytest.skip(f"CamVid is not in {root}")
    from mmengine.registry import DATASETS

    init_default_scope("mmseg")
    dataset_cfg = cfg.val_dataloader.dataset
    dataset_cfg.data_root = str(root)
    dataset = DATASETS.build(dataset_cfg)
    assert len(dataset) == 101
    labels = {int(v) for i in range(8) for v in dataset[i]["data_samples"].gt_sem_seg.data.unique()}
    assert labels <= {*range(11), 255}
    assert 255 in labels  # void, 11 in the files
