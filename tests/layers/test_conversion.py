"""Upsamplers of models of all kinds replaced by IPixelDCL that computes the same."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models.detection as detection
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from pixeldcl_plugin import IPixelDCL, UNetDecoder, convert_upsamplers
from pixeldcl_plugin.layers.rerouting import CHILD


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Decoder(nn.Module):
    """One of everything that can be taken over."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.deconv = nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.nearest = nn.Upsample(scale_factor=2)
        self.bilinear = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear"))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bilinear(self.nearest(self.norm(self.deconv(x))))
        return F.interpolate(x, scale_factor=2, mode="bicubic")


def count(model: nn.Module) -> int:
    return sum(isinstance(module, IPixelDCL) for module in model.modules())


def check_same(model: nn.Module, *args: Any, pick: Any = lambda out: out, **options: Any) -> list[Any]:
    """Convert a model, and check that its outputs are the same to float32's rounding."""
    model.eval()
    with torch.no_grad():
        before = pick(model(*args))
    assert before.numel()
    report = convert_upsamplers(model, probe=args, **options)
    with torch.no_grad():
        after = pick(model(*args))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    return report


def test_everything_is_taken_over_and_goes_on_learning() -> None:
    model, x = Decoder(), random(2, 3, 4, 5)
    running = model.norm.running_mean.clone()
    report = check_same(model.train(), x)
    assert [(row.name, row.converted) for row in report] == [
        ("deconv", True), ("nearest", True), ("bilinear.1", True), ("", True),
    ]  # fmt: skip
    assert all(row.difference < 1e-12 for row in report)
    assert "ConvTranspose2d(3, 4, kernel_size=(4, 4)" in str(report[0])
    assert "-> IPixelDCL(3, 4, kernel_size=3" in str(report[0])
    assert "differs by" in str(report[0])
    assert count(model) == 4
    assert not any(isinstance(module, nn.ConvTranspose2d | nn.Upsample) for module in model.modules())
    assert torch.equal(model.norm.running_mean, running)

    model.train()(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert convert_upsamplers(model, probe=x) == []


def test_the_probe_leaves_modes_and_random_numbers_as_they_are() -> None:
    model = Decoder().train()
    model.norm.eval()
    before = torch.get_rng_state()
    convert_upsamplers(model, probe=random(1, 3, 4, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.norm.training
    assert all(m.training for m in model.modules() if m is not model.norm)


def test_where_selects_by_name_or_function() -> None:
    x = random(1, 3, 4, 4)
    for where in ("bilinear.*", lambda name, module: name.startswith("bilinear")):
        model = Decoder()
        (row,) = convert_upsamplers(model, where=where, probe=x)
        assert row.name == "bilinear.1"
        assert count(model) == 1
        assert isinstance(model.deconv, nn.ConvTranspose2d)


def test_without_a_probe_deconvolutions_are_compared_on_random_numbers() -> None:
    model = Decoder()
    deconv, nearest, bilinear = convert_upsamplers(model)
    assert deconv.converted
    assert deconv.difference < 1e-12
    for row in (nearest, bilinear):
        assert not row.converted
        assert "probe=" in row.reason
        assert "stays" in str(row)
    assert count(model) == 1


def test_a_difference_leaves_the_model_as_it_was() -> None:
    class Odd(nn.Module):
        """An odd size, to which a bilinear map cannot be resized afterwards."""

        def __init__(self) -> None:
            super().__init__()
            self.deconv = nn.ConvTranspose2d(3, 3, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(self.deconv(x), size=(15, 15), mode="bilinear")

    model, x = Odd(), random(1, 3, 4, 4)
    before, state = model(x), copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="left as it was.*more than 1e-05"):
        report = convert_upsamplers(model, probe=x)
    assert [row.converted for row in report] == [False, False]
    assert type(model) is Odd
    assert type(model.deconv) is nn.ConvTranspose2d
    torch.testing.assert_close(model.state_dict(), state)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("size", [(7, 9), (8, 10), (9, 11)])
def test_the_nearest_pixel_is_exact_at_odd_sizes_too(size: tuple[int, int]) -> None:
    class Nearest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, size=size)

    (row,) = check_same(Nearest(), random(1, 3, 4, 5))
    assert row.difference < 1e-12


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.UpsamplingBilinear2d(scale_factor=2), "align_corners=True"),
        (nn.Upsample(scale_factor=3), "power of two, got 3"),
        (nn.Upsample(scale_factor=4, mode="bilinear"), "bilinear x2, repeated, is not bilinear x4"),
        (nn.Upsample(size=(8, 8)), r"fixed size, \(8, 8\)"),
        (nn.ConvTranspose2d(4, 4, 4, stride=4), "stride must be 2"),
        (
            parametrizations.weight_norm(nn.ConvTranspose2d(4, 4, 2, stride=2)),
            "computed from other parameters",
        ),
    ],
)
def test_what_cannot_be_held_stays_with_the_reason(module: nn.Module, reason: str) -> None:
    model = nn.Sequential(module)
    (row,) = convert_upsamplers(model, probe=random(1, 4, 4, 4))
    assert not row.converted
    assert re.search(reason, row.reason), row.reason
    assert model[0] is module


def test_hooks_and_other_calls_are_not_lost() -> None:
    hooked = nn.ConvTranspose2d(4, 4, 2, stride=2)
    hooked.register_forward_hook(lambda *args: None)
    (row,) = convert_upsamplers(nn.Sequential(hooked))
    assert "hooks" in row.reason

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deconv = nn.ConvTranspose2d(4, 4, 2, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.deconv(x, output_size=(8, 8))

    (row,) = convert_upsamplers(Sized(), probe=random(1, 4, 4, 4))
    assert "output_size" in row.reason
    (row,) = convert_upsamplers(nn.ConvTranspose2d(4, 4, 2, stride=2))
    assert row.reason == "it is the model itself"


def test_a_module_used_twice_is_replaced_at_both_places() -> None:
    shared = nn.ConvTranspose2d(4, 4, 2, stride=2)
    model = nn.ModuleDict(dict(a=shared, b=nn.Sequential(shared)))
    assert len(convert_upsamplers(model)) == 1
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], IPixelDCL)


def test_a_call_within_a_module_that_stays_is_not_taken() -> None:
    """The outer module's layer would take the call of the inner one, which was not to be converted."""

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(self.inner(x), scale_factor=2)

    x = random(1, 3, 4, 4)
    model = Outer()
    (row,) = convert_upsamplers(model, where=lambda name, module: isinstance(module, Outer), probe=x)
    assert row.reason == "inner, inside of it, interpolates otherwise"
    assert type(model) is Outer
    assert len(check_same(model, x)) == 2
    for layer in (getattr(model, CHILD), getattr(model.inner, CHILD)):
        layer["nearest_3"].weight_pointwise.data.mul_(2)
    torch.testing.assert_close(model(x), 4 * F.interpolate(x, scale_factor=4))


def test_refuses_another_layer() -> None:
    with pytest.raises(ValueError, match=r"to must be one of \('IPixelDCL',\), got 'PixelDCL'"):
        convert_upsamplers(Decoder(), to="PixelDCL")


def test_a_converted_model_is_copied_saved_compiled_and_exported() -> None:
    model, x = Decoder().eval(), random(1, 3, 4, 5)
    convert_upsamplers(model, probe=x)
    with torch.no_grad():
        expected = model(x)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(copied) is type(model)
            assert torch.equal(copied(x), expected)
        compiled = torch.compile(model, backend="eager")(x)
        exported = torch.export.export(model, (x,)).module()(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
    other = Decoder()
    convert_upsamplers(other, probe=x)
    for parameter in other.parameters():
        parameter.data.add_(1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(x), expected)


def test_half_precision_models_are_taken_over() -> None:
    model, x = Decoder().bfloat16(), random(1, 3, 4, 4).bfloat16()
    report = convert_upsamplers(model, where=lambda name, _: bool(name), probe=x)
    assert [row.difference for row in report] == [pytest.approx(0, abs=1e-12)] * 3
    assert all(row.converted for row in report)
    # The taps of bicubic interpolation have more digits than bfloat16.
    with pytest.warns(UserWarning, match="left as it was"):
        convert_upsamplers(model, probe=x)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


# --- models that others wrote --------------------------------------------------------------------


def test_torchvision_mask_rcnn() -> None:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    sizes = dict(min_size=64, max_size=96, rpn_post_nms_top_n_test=20, box_detections_per_img=5)
    model = detection.MaskRCNN(backbone, 5, box_score_thresh=0.0, **sizes)
    report = check_same(model, [random(3, 64, 96)], pick=lambda out: out[0]["masks"])
    assert {row.name for row in report if row.converted} == {
        "backbone.fpn", "roi_heads.mask_predictor.conv5_mask",
    }  # fmt: skip


def test_torchvision_keypoint_predictor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(detection.keypoint_rcnn.KeypointRCNNPredictor(16, num_keypoints=17))
    report = check_same(model, random(2, 16, 14, 14))
    assert [(row.name, row.converted) for row in report] == [("0.kps_score_lowres", True), ("0", True)]


def test_torchvision_segmentation() -> None:
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    (row,) = check_same(model, random(1, 3, 64, 96), pick=lambda out: out["out"])
    assert row.name == "classifier"
    assert row.converted


@pytest.mark.parametrize("kind", ["deconvolution", "nearest", "bilinear"])
def test_timm_features_under_a_u_net_decoder(kind: str) -> None:
    def upsample(in_channels: int, out_channels: int) -> nn.Module:
        if kind == "deconvolution":
            return nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        resize = nn.Upsample(scale_factor=2, mode=kind)
        return nn.Sequential(resize, nn.Conv2d(in_channels, out_channels, 1))

    torch.manual_seed(0)
    encoder = timm.create_model("resnet10t", features_only=True)
    decoder = UNetDecoder(encoder.feature_info.channels(), (16, 16, 8, 8, 4), upsample=upsample)
    model = nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))
    assert sum(row.converted for row in check_same(model, random(1, 3, 64, 96))) == 5


def test_segmentation_models_pytorch_unet() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install segmentation-models-pytorch")
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=3)
    report = check_same(model, random(1, 3, 64, 96))
    assert [row.name for row in report if row.converted] == [f"decoder.blocks.{i}" for i in range(5)]
