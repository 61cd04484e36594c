"""Heads and backbones whose maps are enlarged by doublings: which map is doubled, and what guides it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models.backbones import UNet
from mmseg.registry import MODELS
from torch import Tensor, nn

from pixeldcl_plugin.models.backbones import GuidedUNet

CHANNELS = [3, 4, 5, 6]
BASE = dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3], channels=8, num_classes=3, norm_cfg=dict(type="BN"))
HEADS = {"Segformer": dict(), "UPer": dict(pool_scales=(1, 2))}
GUIDED = [
    dict(type="GuidedPixelDCL", hidden_channels=4),
    dict(type="SAPA", embed_channels=4),
    dict(type="FADE", compressed_channels=4),
    dict(type="JointBilateralUpsample", embed_channels=4, up_kernel=3),
]
UNGUIDED = [
    dict(type="bilinear", scale_factor=2),
    dict(type="DySample"),
    dict(type="TorchCARAFE"),
    dict(type="PixelDCL", separable=True),
]
SIZES = [[(16, 24), (8, 12), (4, 6), (2, 3)], [(15, 21), (8, 11), (4, 6), (2, 3)]]
by_type = dict(ids=lambda cfg: cfg["type"])


@pytest.fixture(autouse=True)
def scope() -> Any:
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def build(name: str, upsample_cfg: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    own = dict(type=f"{name}Head") if upsample_cfg is None else dict(type=f"Staged{name}Head")
    if upsample_cfg is not None:
        own["upsample_cfg"] = upsample_cfg
    return MODELS.build({**BASE, **HEADS[name], "align_corners": False, **own, **options})


def features(sizes: list[tuple[int, int]]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(2, channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize("sizes", SIZES, ids=["even", "odd"])
@pytest.mark.parametrize("upsample_cfg", [*GUIDED, *UNGUIDED], **by_type)
@pytest.mark.parametrize("name", HEADS)
def test_trains_with_any_upsampler(
    name: str, upsample_cfg: dict[str, Any], sizes: list[tuple[int, int]]
) -> None:
    head = build(name, upsample_cfg).train()
    logits = head(features(sizes))
    assert logits.shape == (2, 3, *sizes[0])
    logits.square().sum().backward()
    without = [key for key, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.parametrize("name", HEADS)
def test_takes_the_stock_checkpoint(name: str) -> None:
    stock, head = build(name).eval(), build(name, GUIDED[0]).eval()
    keys = head.load_state_dict(stock.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    assert keys.missing_keys
    assert all(key.startswith("upsamplers.") for key in keys.missing_keys)
    # Untrained, three doublings are the resize of the stock head but for its kinks.
    inputs = [F.interpolate(x[..., :2, :2], x.shape[2:], mode="bicubic") for x in features(SIZES[0])]
    with torch.no_grad():
        expected, found = stock(inputs), head(inputs)
    assert (found - expected).abs().mean() < 0.02 * (expected.max() - expected.min())


@torch.no_grad()
def test_segformer_doubles_every_level_by_the_finer_ones() -> None:
    head = build("Segformer", GUIDED[2]).eval()
    inputs = features(SIZES[0])
    m0, m1, m2, m3 = (conv(x) for conv, x in zip(head.convs, inputs, strict=True))
    up = head.upsamplers
    assert len(up) == 3 + 2 + 1
    levels = [m0, up[0](m1, m0), up[2](up[1](m2, m1), m0), up[5](up[4](up[3](m3, m2), m1), m0)]
    expected = head.conv_seg(head.fusion_conv(torch.cat(levels, 1)))
    torch.testing.assert_close(head(inputs), expected)


@torch.no_grad()
def test_uper_doubles_its_top_down_path_by_the_laterals() -> None:
    head = build("UPer", GUIDED[2]).eval()
    inputs = features(SIZES[0])
    l0, l1, l2 = (conv(x) for conv, x in zip(head.lateral_convs, inputs[:3], strict=True))
    top = head.psp_forward(inputs)
    up = head.upsamplers
    assert len(up) == 3
    p2 = l2 + up[2](top, l2)
    p1 = l1 + up[1](p2, l1)
    p0 = l0 + up[0](p1, l0)
    outs = [*(conv(x) for conv, x in zip(head.fpn_convs, (p0, p1, p2), strict=True)), top]
    outs = [F.interpolate(x, (16, 24), mode="bilinear") for x in outs]
    expected = head.conv_seg(head.fpn_bottleneck(torch.cat(outs, 1)))
    torch.testing.assert_close(head(inputs), expected)


@torch.no_grad()
def test_bilinear_doublings_in_uper_are_its_own() -> None:
    stock, head = build("UPer").eval(), build("UPer", UNGUIDED[0]).eval()
    head.load_state_dict(stock.state_dict())
    torch.testing.assert_close(head(features(SIZES[0])), stock(features(SIZES[0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(align_corners=True), "takes align_corners=False only, got True"),
        (dict(upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=4)), "scale_factor must be 2 .*got 4"),
        (dict(upsample_cfg=dict(type="Linear")), "'type' of a registered upsampler, got .*'Linear'"),
    ],
)
@pytest.mark.parametrize("name", HEADS)
def test_names_what_does_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **{"upsample_cfg": GUIDED[0], **options})


@pytest.mark.parametrize("upsample_cfg", [GUIDED[0], dict(type="PixelDCL", scale_factor=4)], **by_type)
def test_names_sizes_that_are_no_pyramid(upsample_cfg: dict[str, Any]) -> None:
    sizes = SIZES[0] if upsample_cfg["type"] == "PixelDCL" else [(16, 24), (8, 12), (8, 12), (8, 12)]
    with pytest.raises(ValueError, match="every feature must be half as large as the one before it"):
        build("Segformer", upsample_cfg)(features(sizes))


# --- what the page says ---------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs/guided.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.search(r'type="(\w+)"', text)[1])
def test_examples_of_the_page(example: str, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(example)
    model_cfg = Config.fromfile(tmp_path / "config.py").model
    model_cfg.pretrained = None
    model = revert_sync_batchnorm(MODELS.build(model_cfg)).eval()
    kinds = {type(module).__name__ for module in model.modules()}
    assert "GuidedPixelDCL" in kinds
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 48)).isfinite().all()


# --- U-Nets --------------------------------------------------------------------------------------

UNET_HEAD = dict(
    in_channels=[3, 4, 5], in_index=[0, 1, 2], decoder_channels=[6, 5], num_classes=3, dropout_ratio=0
)


def build_unet_head(upsample_cfg: dict[str, Any], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type="UNetHead", upsample_cfg=upsample_cfg, **{**UNET_HEAD, **options}))


@pytest.mark.parametrize("sizes", [size[:3] for size in SIZES], ids=["even", "odd"])
@pytest.mark.parametrize("upsample_cfg", GUIDED, **by_type)
def test_unet_head_is_guided_by_its_skips(upsample_cfg: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    head = build_unet_head(upsample_cfg, skip_norm_cfg=dict(type="BN")).train()
    inputs = [
        x.requires_grad_() for x in (torch.rand(2, c, *s) for c, s in zip((3, 4, 5), sizes, strict=True))
    ]
    recomputed = copy.deepcopy(head)
    for stage in recomputed.stages:
        stage.with_cp = stage.upsample.with_cp = True
    results = []
    for each in (head, recomputed):
        logits = each(inputs)
        assert logits.shape == (2, 3, *sizes[0])
        results.append([logits, *torch.autograd.grad(logits.square().sum(), [*inputs, *each.parameters()])])
    torch.testing.assert_close(*results)


@torch.no_grad()
def test_unet_head_gives_each_stage_its_own_skip() -> None:
    head = build_unet_head(GUIDED[2]).eval()
    skips = [torch.rand(2, 3, 16, 24), torch.rand(2, 4, 8, 12)]
    x = deepest = torch.rand(2, 5, 4, 6)
    for stage, skip in zip(head.stages, reversed(skips), strict=True):
        x = stage.convs(torch.cat([skip, stage.upsample(x, skip)], 1))
    torch.testing.assert_close(head([*skips, deepest]), head.conv_seg(x))


def test_unet_head_without_a_skip_has_no_guide() -> None:
    with pytest.raises(ValueError, match=r"must have 2 entries, one for each, got \[6, 5, 4\]"):
        build_unet_head(GUIDED[0], decoder_channels=[6, 5, 4])


UNET = dict(
    base_channels=4,
    num_stages=4,
    strides=(1, 1, 1, 1),
    enc_num_convs=(1,) * 4,
    dec_num_convs=(1,) * 3,
    downsamples=(True, True, False),
    enc_dilations=(1,) * 4,
    dec_dilations=(1,) * 3,
)


@pytest.mark.parametrize("upsample_cfg", GUIDED, **by_type)
def test_unet_is_guided_by_its_skips(upsample_cfg: dict[str, Any]) -> None:
    torch.manual_seed(0)
    unet, stock = MODELS.build(dict(type="GuidedUNet", upsample_cfg=upsample_cfg, **UNET)), UNet(**UNET)
    upsamplers = [f"decoder.{level}.upsample." for level in (0, 1)]  # the deepest level stays as large
    same = {key for key in stock.state_dict() if not key.startswith(tuple(upsamplers))}
    own = unet.state_dict().keys() - same
    assert same < unet.state_dict().keys()
    assert own
    assert all(key.startswith(tuple(upsamplers)) for key in own)

    before = {key: unet.state_dict()[key].clone() for key in own if "layer." in key}
    unet.init_weights()
    assert all(torch.equal(unet.state_dict()[key], value) for key, value in before.items())

    unet.train()
    outputs = unet(torch.rand(2, 3, 16, 24))
    assert [tuple(x.shape[1:]) for x in outputs] == [(32, 4, 6), (16, 4, 6), (8, 8, 12), (4, 16, 24)]
    outputs[-1].square().sum().backward()
    assert [key for key, p in unet.named_parameters() if p.grad is None] == []
    block = unet.decoder[0].eval()
    skip, x = torch.rand(1, 4, 8, 8), torch.rand(1, 8, 4, 4)
    with torch.no_grad():
        expected = block.conv_block(torch.cat([skip, block.upsample(x, skip)], 1))
        torch.testing.assert_close(block(skip, x), expected)


def test_unet_without_guides_is_that_of_mmseg() -> None:
    unet = GuidedUNet(upsample_cfg=dict(type="InterpConv"), **UNET)
    unet.load_state_dict(UNet(**UNET).state_dict())
