"""The guided form of mmseg's encoder-decoders: keys, equality before training, kinds of heads, both grids."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import PointHead
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import pixeldcl_plugin
from pixeldcl_plugin.layers import SAPA
from pixeldcl_plugin.models.guided_heads import guide_head

BN = dict(type="BN")
LOSS = dict(type="CrossEntropyLoss", avg_non_ignore=True)
HEAD = dict(channels=8, num_classes=4, norm_cfg=BN, align_corners=False, loss_decode=LOSS)
SE = dict(loss_se_decode=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=0.2))
FCN = dict(type="FCNHead", in_channels=8, in_index=2, num_convs=1, **HEAD)
OCR = dict(type="OCRHead", in_channels=8, in_index=2, ocr_channels=8, **HEAD)
UPSAMPLE = dict(type="GuidedPixelDCL", scale_factor=8, hidden_channels=4)
# Those whose logits are one of several answers, or none in particular.
HEADS = {
    "FCN": FCN,
    "ASPP": dict(type="ASPPHead", in_channels=8, in_index=2, dilations=(1, 2), **HEAD),
    "DA": dict(type="DAHead", in_channels=8, in_index=2, pam_channels=4, **HEAD),
    "Enc": dict(type="EncHead", in_channels=[4, 6, 8], in_index=(0, 1, 2), num_codes=4, **SE, **HEAD),
    "OCR": [FCN, OCR],
    "Segformer": dict(type="SegformerHead", in_channels=[4, 6, 8], in_index=[0, 1, 2], **HEAD),
}


@pytest.fixture(scope="module", autouse=True)
def tiny_backbone() -> Any:
    """Features at strides 2, 4 and 8, registered for this module only."""

    class TinyBackbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = pairwise((3, 4, 6, 8))
            self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairs)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            features = []
            for layer in self.layers:
                x = layer(x).relu()
                features.append(x)
            return tuple(features)

    MODELS.register_module(module=TinyBackbone)
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield
    MODELS.module_dict.pop("TinyBackbone")


def build(head: Any, guided: bool = True, align_corners: bool = False, **options: Any) -> EncoderDecoder:
    kind = "CascadeEncoderDecoder" if isinstance(head, list) else "EncoderDecoder"
    head = copy.deepcopy(head)
    for each in head if isinstance(head, list) else [head]:
        each["align_corners"] = align_corners
    cfg = dict(
        type=f"Guided{kind}" if guided else kind,
        data_preprocessor=dict(type="SegDataPreProcessor", mean=[0.0] * 3, std=[1.0] * 3),
        backbone=dict(type="TinyBackbone"),
        decode_head=head,
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )
    if isinstance(head, list):
        cfg["num_stages"] = len(head)
    if guided:
        cfg |= dict(upsample_cfg=UPSAMPLE, guide_index=[1, 0, "image"])
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(cfg | options))


def samples(count: int, size: tuple[int, int]) -> list[SegDataSample]:
    torch.manual_seed(1)
    made = []
    for _ in range(count):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 4, (1, *size)))
        made.append(sample)
    return made


def smooth_image(size: tuple[int, int], count: int = 2) -> Tensor:
    torch.manual_seed(2)
    return F.interpolate(torch.rand(count, 3, 4, 5), size, mode="bicubic")


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 80), (61, 75)])
@pytest.mark.parametrize("head", HEADS)
def test_untrained_it_predicts_as_the_stock_model(
    head: str, size: tuple[int, int], align_corners: bool
) -> None:
    stock = build(HEADS[head], guided=False, align_corners=align_corners).eval()
    guided = build(HEADS[head], align_corners=align_corners).eval()
    keys = guided.load_state_dict(stock.state_dict(), strict=False)
    assert not keys.unexpected_keys
    last = "decode_head.1" if head == "OCR" else "decode_head"
    assert keys.missing_keys
    assert all(key.startswith(f"{last}.guided.") for key in keys.missing_keys)
    image = smooth_image(size)
    metas = [dict(img_shape=size, ori_shape=size, pad_shape=size)] * 2
    with torch.no_grad():
        expected, found = (model.encode_decode(image, metas) for model in (stock, guided))
    assert found.shape == expected.shape == (2, 4, *size)
    # Doubling three times rounds off what one bilinear resizing leaves as kinks.
    spread = expected.max() - expected.min()
    assert (found - expected).abs().mean() < 0.005 * spread
    assert (found - expected).abs().max() < 0.06 * spread


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_trains_with_every_kind_of_head(head: str, align_corners: bool) -> None:
    model = build(HEADS[head], align_corners=align_corners).train()
    losses = model.loss(smooth_image((32, 40)), samples(2, (32, 40)))
    sum(value for name, value in losses.items() if "loss" in name).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


#: What a study compares: the same model, but for ``upsample_cfg``.
ARMS = {
    "bilinear": dict(type="bilinear", scale_factor=8),
    "pixeldcl-separable": dict(type="PixelDCL", scale_factor=8, separable=True, padding_mode="replicate"),
    "shuffle": dict(type="PixelShuffleICNR", scale_factor=8),
    "carafe": dict(type="TorchCARAFE", scale_factor=8),
    "dysample": dict(type="DySample", scale_factor=8),
    "residual": dict(type="GuidedResidual", scale_factor=8),
    "sapa": dict(type="SAPA", scale_factor=8),
    "fade": dict(type="FADE", scale_factor=8),
    "joint-bilateral": dict(type="JointBilateralUpsample", scale_factor=8, embed_channels=4),
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_any_upsampler_stands_at_the_logits(arm: str, align_corners: bool) -> None:
    stock = build(FCN, guided=False, align_corners=align_corners).eval()
    model = build(FCN, align_corners=align_corners, upsample_cfg=ARMS[arm]).train()
    image, size = smooth_image((29, 43)), (29, 43)
    assert model.decode_head(model.extract_feat(image)).shape[2:] == (size if align_corners else (32, 48))
    losses = model.loss(image, samples(2, size))
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    names = [name for name, _ in model.decode_head.guided.named_parameters()]
    assert (names == []) == (arm == "bilinear")
    model.load_state_dict(stock.state_dict(), strict=False)
    with torch.no_grad():
        found, expected = (m.eval().encode_decode(image, [dict(img_shape=size)]) for m in (model, stock))
    assert found.shape == (2, 4, *size)
    if arm in ("bilinear", "dysample", "residual"):  # the untrained layer is the stock resize
        spread = expected.max() - expected.min()
        assert (found - expected).abs().mean() < 0.005 * spread


class WideSAPA(SAPA):
    """A layer of a user's own."""


@pytest.mark.parametrize("layer", [SAPA, WideSAPA])
def test_a_layer_may_be_named_as_a_class(layer: type[nn.Module]) -> None:
    guided = build(FCN, upsample_cfg=dict(type=layer, scale_factor=8, up_kernel=3)).decode_head.guided
    assert type(guided) is layer
    assert guided.guide_channels == (6, 4, 3)


def test_a_frozen_model_trains_its_upsampler_alone() -> None:
    model = build(HEADS["Enc"], frozen=True)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    losses = model.loss(smooth_image((32, 40)), samples(2, (32, 40)))
    assert set(losses) == {"decode.loss_ce", "decode.acc_seg"}
    losses["decode.loss_ce"].backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("decode_head.guided.") for name in changed)


def test_sliding_windows_take_their_own_part_of_the_image() -> None:
    model = build(FCN).eval()
    nn.init.normal_(model.decode_head.guided.steps[0].predict.weight)
    image = smooth_image((64, 96), count=1)
    metas = [dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96))]
    model.test_cfg = ConfigDict(mode="slide", crop_size=(64, 48), stride=(64, 48))
    with torch.no_grad():
        slid = model.inference(image, copy.deepcopy(metas))
        halves = [
            model.encode_decode(half, [dict(img_shape=half.shape[2:])]) for half in image.split(48, dim=3)
        ]
    torch.testing.assert_close(slid, torch.cat(halves, dim=3))


def test_test_time_augmentation_averages_over_flips() -> None:
    model = build(FCN).eval()
    for step in model.decode_head.guided.steps:
        nn.init.normal_(step.predict.weight)
    tta = MODELS.build(dict(type="SegTTAModel", module=model))
    size = (61, 75)
    image = 255 * smooth_image(size, count=1)[0]
    meta = dict(img_shape=size, ori_shape=size, img_path="")
    flips = [dict(flip=False, flip_direction=None), dict(flip=True, flip_direction="horizontal")]
    found = tta.test_step(
        dict(
            inputs=[[image], [image.flip(2)]],
            data_samples=[[SegDataSample(metainfo=meta | flip)] for flip in flips],
        )
    )[0].pred_sem_seg.data
    with torch.no_grad():
        first, second = (model.inference(x[None], [meta]) for x in (image, image.flip(2)))
    expected = (first.softmax(1) + second.flip(3).softmax(1)).argmax(1)
    assert torch.equal(found, expected)
    assert not torch.equal(first.argmax(1), second.flip(3).argmax(1))  # there is something to average


@pytest.mark.parametrize("align_corners", [False, True])
def test_overlapping_windows_are_averaged(align_corners: bool) -> None:
    model = build(FCN, align_corners=align_corners).eval()
    nn.init.normal_(model.decode_head.guided.steps[0].predict.weight)
    image, metas = smooth_image((33, 65), count=1), [dict(img_shape=(33, 65), ori_shape=(33, 65))]
    model.test_cfg = ConfigDict(mode="slide", crop_size=(33, 45), stride=(33, 20))
    with torch.no_grad():
        slid = model.inference(image, copy.deepcopy(metas))
        left, right = (
            model.encode_decode(part, [dict(img_shape=part.shape[2:])])
            for part in (image[..., :45], image[..., 20:])
        )
    torch.testing.assert_close(slid[..., :20], left[..., :20])
    torch.testing.assert_close(slid[..., 45:], right[..., 25:])
    torch.testing.assert_close(slid[..., 20:45], (left[..., 20:] + right[..., :25]) / 2)


@pytest.mark.parametrize("twice", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_model_of_its_own(twice: Any) -> None:
    model = build(FCN).eval()
    head = twice(model.decode_head)
    assert type(head) is type(model.decode_head)
    twin = copy.deepcopy(model)
    twin.decode_head = head
    nn.init.normal_(twin.decode_head.guided.steps[2].predict.weight)
    image = smooth_image((32, 40))
    with torch.no_grad():
        assert not torch.equal(model(image), twin(image))
        assert model(image).shape == (2, 4, 32, 40)


def test_guides_have_the_channels_of_their_features() -> None:
    guided = build(FCN).decode_head.guided
    assert guided.guide_channels == (6, 4, 3)
    assert build(FCN, guide_index=["image"]).decode_head.guided.guide_channels == (3,)
    model = build(
        FCN, guide_channels=[6, 4, 3], upsample_cfg=dict(type=pixeldcl_plugin.GuidedPixelDCL, scale_factor=8)
    )
    assert type(model.decode_head).__name__ == "GuidedFCNHead"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(guide_index=[7]), r"places of the 3 features or 'image', got \[7\]"),
        (dict(guide_index=["picture"]), r"places of features or 'image', got 'picture'"),
        (dict(upsample_cfg=dict(type="Linear")), r"'type' of a registered upsampler, got .*'Linear'"),
        (dict(upsample_cfg=dict(scale_factor=8)), r"'type' of a registered upsampler, got .*8"),
        (dict(upsample_cfg=dict(type="SAPA", scale_factor=16)), r"scale_factor must be one of .*got 16"),
        (dict(upsample_cfg=dict(type="FADE", scale_factor=2)), r"one to 1 of them.*got \(6, 4, 3\)"),
        (dict(upsample_cfg=dict(type="DySample", scale_factor=16)), r"scale_factor must be one of .*got 16"),
        (
            dict(upsample_cfg=dict(type="GuidedPixelDCL", scale_factor=3)),
            r"scale_factor must be one of .*got 3",
        ),
    ],
)
def test_names_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(FCN, **options)


# --- heads that name their upsampler themselves ---------------------------------------------------

UPSAMPLED = FCN | dict(type="UpsampledFCNHead", upsample_cfg=UPSAMPLE, guide_index=[1, "image"])


def test_a_head_may_name_its_upsampler() -> None:
    of_head = build(UPSAMPLED, upsample_cfg=None, guide_index=["image"]).eval()
    of_model = build(FCN, guide_index=[1, "image"]).eval()
    assert of_head.decode_head.guided.guide_channels == (6, 3)
    of_model.load_state_dict(of_head.state_dict())  # the same names
    image = smooth_image((29, 43))
    with torch.no_grad():
        torch.testing.assert_close(of_head(image), of_model(image))
        assert of_head(image).shape == (2, 4, 32, 48)
    with pytest.raises(ValueError, match=r"GuidedUpsampledFCNHead has its own upsampler, got upsample_cfg="):
        build(UPSAMPLED)


def test_a_head_of_a_stock_model_may_be_guided_by_features() -> None:
    told = UPSAMPLED | dict(guide_index=[1, 0], guide_channels=[6, 4])
    model = build(told, guided=False).train()
    losses = model.loss(smooth_image((29, 43)), samples(2, (29, 43)))
    losses["decode.loss_ce"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    # What the head reads itself it knows.
    reads = dict(type="UpsampledSegformerHead", upsample_cfg=UPSAMPLE, guide_index=[0])
    assert build(HEADS["Segformer"] | reads, guided=False).decode_head.guided.guide_channels == (4,)


def test_a_head_takes_no_notice_of_guides_that_its_upsampler_does_not_take() -> None:
    head = build(UPSAMPLED | dict(upsample_cfg=ARMS["carafe"]), guided=False).decode_head
    assert type(head).__name__ == "UpsampledFCNHead"
    assert head([torch.rand(2, c, 3, 3) for c in (4, 6, 8)]).shape == (2, 4, 24, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(guide_index=None), r"guide_index must name them, got None"),
        (dict(guide_index=[1]), r"guide_channels must be given for guide_index \[1\].* does not read \[1\]"),
        (dict(guide_index=["picture"]), r"places of features or 'image', got 'picture'"),
        (dict(guide_index=[1], guide_channels=[6, 3, 3, 3]), r"guide_channels .*got \(6, 3, 3, 3\)"),
    ],
)
def test_a_head_names_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(UPSAMPLED | options, guided=False)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (["image"], r"set model.type to 'GuidedEncoderDecoder'"),
        ([3], r"places of the 3 features or 'image', got \[3\]"),
    ],
)
def test_a_head_names_a_guide_that_is_not_there(index: list[Any], message: str) -> None:
    model = build(UPSAMPLED | dict(guide_index=index, guide_channels=[3]), guided=False).eval()
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model(smooth_image((32, 40)))


def test_a_head_without_logits_is_refused() -> None:
    class Refining(PointHead):
        def __init__(self) -> None:  # mmcv without compiled operators has none for the real one
            nn.Module.__init__(self)

    with pytest.raises(ValueError, match="Refining leaves no logits to be resized"):
        guide_head(Refining(), UPSAMPLE, ["image"], [3])
