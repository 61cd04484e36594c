"""MMSegmentation's U-Nets taken over, and the layers of its sister projects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmcv.cnn import build_upsample_layer
from mmseg.models import UNet
from mmseg.models.backbones.unet import DeconvModule, InterpConv
from torch import Tensor, nn

from pixeldcl_plugin import IPixelDCL, convert_upsamplers
from pixeldcl_plugin.models.upsamplers import IPixelDCLUpsample


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def unet(**options: Any) -> UNet:
    torch.manual_seed(0)
    model = UNet(
        base_channels=4, num_stages=3, strides=(1,) * 3, enc_num_convs=(1,) * 3, dec_num_convs=(1,) * 2,
        downsamples=(True,) * 2, enc_dilations=(1,) * 3, dec_dilations=(1,) * 2, upsample_cfg=options,
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.bias)
    model.eval()
    return model


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (dict(type="mmseg.DeconvModule", kernel_size=4), dict(bias=True)),
        (dict(type="mmseg.DeconvModule", kernel_size=6), dict(bias=True)),
        (dict(type="mmseg.InterpConv"), dict(separable=True, padding_mode="replicate")),
    ],
    ids=str,
)
def test_unets_become_those_of_a_config(options: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What they become is what a config of IPixelDCL builds: its weights load there, and compute the same."""
    model, x = unet(**options), random(2, 3, 16, 24)
    with torch.no_grad():
        before = model(x)
    report = convert_upsamplers(model)
    assert [row.name for row in report] == ["decoder.0.upsample", "decoder.1.upsample"]
    assert all(row.converted and row.difference < 1e-12 for row in report)

    built = unet(type="IPixelDCL", **wanted)
    built.load_state_dict(model.state_dict())
    for converted in (model, built):
        with torch.no_grad():
            torch.testing.assert_close(converted(x), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, DeconvModule | InterpConv) for module in model.modules())
    model.train()
    model(x)[-1].sum().backward()
    layers = [module for module in model.modules() if isinstance(module, IPixelDCLUpsample)]
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(kernel_size=3, padding=1), "plain 1x1"),
        (dict(conv_first=True), "conv_first=True"),
        (dict(upsample_cfg=dict(scale_factor=2, mode="bilinear", align_corners=True)), "align_corners=True"),
    ],
)
def test_interpolations_that_stay(options: dict[str, Any], reason: str) -> None:
    report = convert_upsamplers(unet(type="mmseg.InterpConv", **options))
    assert all(reason in row.reason for row in report)


def test_mmcvs_deconvolution_is_one() -> None:
    """As mmdet's FCNMaskHead and mmpose's heads build it: a subclass of torch's."""
    torch.manual_seed(0)
    cfg = dict(type="deconv", kernel_size=2, stride=2)
    model = nn.Sequential(build_upsample_layer(cfg, in_channels=8, out_channels=8), nn.ReLU())
    x = random(2, 8, 7, 7)
    before = model(x)
    (row,) = convert_upsamplers(model)
    assert row.difference < 1e-12
    assert type(model[0]) is IPixelDCL
    torch.testing.assert_close(model(x), before)


def test_mmdet_mask_head() -> None:
    needs = "needs mmdet, and mmcv with its operators"
    heads = pytest.importorskip("mmdet.models.roi_heads.mask_heads", reason=needs, exc_type=ImportError)
    head = heads.FCNMaskHead(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3)
    x = random(2, 8, 7, 7)
    with torch.no_grad():
        before = head(x)
        (row,) = convert_upsamplers(head, probe=x)
        torch.testing.assert_close(head(x), before)
    assert row.converted


def test_mmpose_heatmap_head() -> None:
    heads = pytest.importorskip("mmpose.models.heads", reason="needs mmpose", exc_type=ImportError)
    head = heads.HeatmapHead(8, 5, deconv_out_channels=(8, 8), deconv_kernel_sizes=(4, 4))
    x = random(2, 8, 8, 6)
    with torch.no_grad():
        before = head((x,))
        report = convert_upsamplers(head, probe=((x,),))
        torch.testing.assert_close(head((x,)), before)
    assert [row.converted for row in report] == [True, True]
