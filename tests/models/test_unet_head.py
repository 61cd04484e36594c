"""UNetHead: its stages, sizes, alignment and backbones. What every head must do is in test_decode_heads."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from pixeldcl_plugin.models.unet_head import UNetHead

ROOT = Path(__file__).parents[2]
SMALL = dict(in_channels=[3, 4, 5], in_index=[0, 1, 2], decoder_channels=[6, 5], num_classes=3)


def build(**changes: Any) -> UNetHead:
    torch.manual_seed(0)
    loss = dict(type="CrossEntropyLoss", avg_non_ignore=True)
    return MODELS.build(dict(type="UNetHead", loss_decode=loss, **{**SMALL, **changes}))


def features(*sizes: tuple[int, int], batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(batch, c, *size) for c, size in zip(SMALL["in_channels"], sizes, strict=True)]


@pytest.mark.parametrize(
    "upsample_cfg",
    [
        dict(type="PixelDCL"),
        dict(type="IPixelDCL", kernel_size=5),
        dict(type="DeconvModule", kernel_size=6),
        dict(type="InterpConv"),
        dict(type="UpsampleStages", num_stages=1),
    ],
    ids=lambda cfg: cfg["type"],
)
@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 24), (8, 12), (4, 6)],
        [(15, 21), (8, 11), (4, 6)],  # odd sizes halved, rounded up
        [(15, 23), (7, 11), (3, 5)],  # rounded down
        [(2, 1), (1, 1), (1, 1)],
    ],
)
def test_any_upsampler_and_size(upsample_cfg: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    head = build(upsample_cfg=upsample_cfg).train()
    logits = head(features(*sizes))
    assert logits.shape == (2, 3, *sizes[0])
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("stages_without_skip", [0, 1, 2])
def test_stages_without_skip_double_the_size(stages_without_skip: int) -> None:
    head = build(decoder_channels=[6, 5, 4, 2][: 2 + stages_without_skip])
    assert head.conv_seg.in_channels == head.channels == head.stages[-1].convs.convs[-1].out_channels
    scale = 2**stages_without_skip
    logits = head(features((9, 11), (5, 6), (3, 3)))
    assert logits.shape == (2, 3, 9 * scale, 11 * scale)


def test_one_feature_needs_no_skip() -> None:
    head = build(in_channels=[5], in_index=[2], decoder_channels=[4, 3])
    assert head(features((8, 8), (4, 4), (2, 3))).shape == (2, 3, 8, 12)


def test_reads_the_features_of_in_index() -> None:
    head = build(in_channels=[4, 5], in_index=[1, 2], decoder_channels=[4]).eval()
    inputs = features((9, 9), (6, 6), (3, 3))
    expected = head(inputs)
    inputs[0] = inputs[0] + 1
    torch.testing.assert_close(head(inputs), expected)
    for index in (1, 2):
        changed = list(inputs)
        changed[index] = inputs[index] + 1
        assert not torch.allclose(head(changed), expected)


# --- alignment -----------------------------------------------------------------------------------


def strided_filters(image: Tensor) -> list[Tensor]:
    """A pyramid as convolutions with stride 2 and padding 1 make it: odd sizes are rounded up."""
    kernel = torch.outer(torch.tensor([0.25, 0.5, 0.25]), torch.tensor([0.25, 0.5, 0.25]))
    levels = [image]
    while len(levels) < 4:
        levels.append(F.conv2d(levels[-1], kernel[None, None], stride=2, padding=1))
    return levels[1:]


def pooled(image: Tensor) -> list[Tensor]:
    """A pyramid as pooling makes it: odd sizes are rounded down."""
    return [F.max_pool2d(image, 2**level) for level in (1, 2, 3)]


@pytest.mark.parametrize("pyramid", [strided_filters, pooled])
@pytest.mark.parametrize("size", [(111, 101), (105, 127)])
@torch.no_grad()
def test_odd_sizes_move_nothing(pyramid: Callable[[Tensor], list[Tensor]], size: tuple[int, int]) -> None:
    # What the image holds further right and below cannot matter to pixels out of its reach.
    head = build(in_channels=[1, 1, 1], decoder_channels=[4, 4, 4], num_convs=1).eval()
    image = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    whole = head(pyramid(image))
    part = head(pyramid(image[..., : size[0], : size[1]]))
    inside = (..., slice(48), slice(48))
    torch.testing.assert_close(part[inside], whole[inside])
    assert whole[inside].std() > 0.01


@pytest.mark.parametrize("upsample_cfg", [dict(type="PixelDCL"), dict(type="IPixelDCL")])
@torch.no_grad()
def test_nothing_is_shifted(upsample_cfg: dict[str, Any]) -> None:
    """A blob in the deepest feature alone, through convolutions that pass it on unchanged."""
    head = build(
        in_channels=[3, 3, 3],
        decoder_channels=[3, 3, 3],
        upsample_cfg=upsample_cfg,
        norm_cfg=None,
        act_cfg=None,
    ).eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
            module.weight.zero_()
            # After a skip its channels come first, those of the upsampled map last.
            for channel in range(3):
                module.weight[
                    channel, channel - 3, module.kernel_size[0] // 2, module.kernel_size[1] // 2
                ] = 1
    centre, width = torch.tensor([30.0, 37.5]), 7.0
    rows, columns = torch.arange(64.0), torch.arange(80.0)
    blob = torch.outer(
        *(torch.exp(-(((p - c) / width) ** 2) / 2) for p, c in zip((rows, columns), centre, strict=True))
    )
    low = F.avg_pool2d(blob.expand(1, 3, -1, -1), 8)
    skips = [torch.zeros(1, 3, 64 // s, 80 // s) for s in (2, 4)]
    found = head([*skips, low])[0, 0]
    assert found.shape == blob.shape
    mass = found.sum()
    moments = torch.stack([(found.sum(1) * rows).sum() / mass, (found.sum(0) * columns).sum() / mass])
    torch.testing.assert_close(moments, centre, atol=0.05, rtol=0)


# --- options -------------------------------------------------------------------------------------


def test_with_cp_changes_nothing_but_memory() -> None:
    plain, saving = build().train(), build(with_cp=True).train()
    assert all(stage.upsample.with_cp for stage in saving.stages)
    saved: dict[bool, int] = {}
    for head in (plain, saving):
        inputs = [f.requires_grad_() for f in features((16, 16), (8, 8), (4, 4))]
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.manual_seed(3)  # dropout
            loss = head(inputs).square().sum()
        saved[head is saving] = sum(sizes)
        loss.backward()
    assert saved[True] < 0.4 * saved[False]
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (name, p), q in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("with_cp", [False, True])
def test_compiles_in_one_graph(with_cp: bool) -> None:
    plain, head = build(dropout_ratio=0).train(), build(dropout_ratio=0, with_cp=with_cp).train()
    torch.compiler.reset()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    for call in (plain, compiled):
        call([f.requires_grad_() for f in features((8, 12), (4, 6), (2, 3))]).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=lambda m, name=name: f"{name}: {m}")
    for (name, p), q in zip(plain.named_buffers(), head.buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=lambda m, name=name: f"{name}: {m}")


def test_norm_and_activation_are_passed_on() -> None:
    norm_cfg = dict(type="GN", num_groups=1)
    head = build(norm_cfg=norm_cfg, act_cfg=dict(type="GELU"), num_convs=3)
    kinds = [type(module) for module in head.stages.modules()]
    assert kinds.count(nn.GroupNorm) == kinds.count(nn.GELU) == 2 * (1 + 3)
    assert nn.BatchNorm2d not in kinds
    assert nn.ReLU not in kinds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(in_channels=5), r"in_channels must be a non-empty list of integers, got 5"),
        (dict(in_index=-1), r"in_index must be a non-empty list of integers, got -1"),
        (dict(decoder_channels=[]), r"decoder_channels must be a non-empty list of integers, got \[\]"),
        (dict(in_index=[0, 1]), r"equally long, got \[3, 4, 5\] and \[0, 1\]"),
        (dict(decoder_channels=[6]), r"an entry for each of the 2 skips, got \[6\]"),
        (dict(num_convs=0), r"num_convs must be a positive integer, got 0"),
        (dict(upsample_cfg=dict(type="Nothing")), r"registered upsampler, got \{'type': 'Nothing'\}"),
    ],
)
def test_refuses_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize("deepest", [(8, 8), (2, 2), (4, 6)])
def test_refuses_features_that_do_not_halve(deepest: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"half as large .* does not fit a skip of size \(8, 8\)"):
        build()(features((16, 16), (8, 8), deepest))


# --- backbones -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backbone",
    [
        dict(type="TIMMBackbone", model_name="test_efficientnet", pretrained=False),  # strides 2 to 32
        dict(type="TIMMBackbone", model_name="test_convnext", pretrained=False),  # 4 to 32
        dict(type="ResNet", depth=18, stem_channels=4, base_channels=4, strides=(1, 2, 2, 2)),
        dict(type="MixVisionTransformer", embed_dims=4, num_layers=[1] * 4, num_heads=[1, 2, 4, 8]),
    ],
    ids=lambda backbone: backbone.get("model_name", backbone["type"]),
)
@torch.no_grad()
def test_over_any_backbone(backbone: dict[str, Any]) -> None:
    net = MODELS.build(backbone)
    net.eval()  # returns None for mmseg's ResNet
    channels = [feature.size(1) for feature in net(torch.rand(1, 3, 64, 64))]
    head = build(
        in_channels=channels,
        in_index=list(range(len(channels))),
        decoder_channels=[8, 8, 4, 4, 4],
    ).eval()
    for size in ((64, 96), (250, 333), (97, 33)):
        inputs = net(torch.rand(1, 3, *size))
        logits = head(inputs)
        stride = 2 if len(channels) == 5 else 4  # of the shallowest feature
        assert all(abs(got - n) < stride for got, n in zip(logits.shape[2:], size, strict=True))
        assert head.predict(inputs, [dict(img_shape=size)], {}).shape == (1, 3, *size)


@torch.no_grad()
def test_base_config() -> None:
    cfg = Config.fromfile(ROOT / "configs/_base_/models/unethead_timm.py")
    cfg.model.backbone.init_cfg = None  # the weights may not have been converted
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model).eval()
    assert model.backbone.timm_model.feature_info.channels() == cfg.model.decode_head.in_channels
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(3, 70, 45)
    inputs = model.data_preprocessor(dict(inputs=[pixels], data_samples=[SegDataSample()]))["inputs"]
    assert inputs.unique().tolist() == [-1, 0, 1]  # as the weights want them; 0 is the padding
    assert inputs.shape == (1, 3, 96, 96)
    assert model(inputs).shape == (1, 21, 96, 96)


def test_skip_norm_makes_the_scale_of_the_encoder_irrelevant() -> None:
    head = build(skip_norm_cfg=dict(type="BN", eps=1e-12), dropout_ratio=0).train()
    inputs = features((16, 24), (8, 12), (4, 6))
    scaled = [10 * inputs[0], 0.1 * inputs[1], inputs[2]]
    torch.testing.assert_close(head(scaled), head(inputs), rtol=1e-3, atol=1e-4)
    plain = build(dropout_ratio=0).train()
    assert (plain(scaled) - plain(inputs)).abs().max() > 0.1


def test_skip_norm_is_asked_for_and_only_where_there_is_a_skip() -> None:
    assert not [name for name, _ in build().named_parameters() if "skip_norm" in name]
    head = build(decoder_channels=[6, 5, 4], skip_norm_cfg=dict(type="BN"))
    names = [name for name, _ in head.named_parameters() if "skip_norm" in name]
    assert [name.split(".")[1] for name in names] == ["0", "0", "1", "1"]
