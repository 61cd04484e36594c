"""The registry types under mmcv's contract, and in the place of the upsamplers of mmseg's U-Nets."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import mmengine.registry
import pytest
import torch
from mmcv.cnn import build_upsample_layer
from mmengine.config import Config
from mmseg.models import UNet
from mmseg.registry import MODELS as MMSEG_MODELS
from torch import Tensor, nn

from pixeldcl_plugin import IPixelDCL, PixelDCL
from pixeldcl_plugin.engine import runtime
from pixeldcl_plugin.models.upsamplers import IPixelDCLUpsample, LearnedUpsample, PixelDCLUpsample
from pixeldcl_plugin.utils import cli

TYPES = {"PixelDCL": (PixelDCLUpsample, PixelDCL), "IPixelDCL": (IPixelDCLUpsample, IPixelDCL)}
CONFIGS = [
    "unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py",
    "unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "unet/unet-s5-d16_pspnet_4xb4-ce-1.0-dice-3.0-40k_stare-128x128.py",
    "unet/unet-s5-d16_deeplabv3_4xb4-40k_hrf-256x256.py",
]


def build(type_: str, in_channels: int = 4, out_channels: int = 3, **options: Any) -> LearnedUpsample:
    """As mmseg's UpConvBlock builds it."""
    contract = dict(with_cp=False, norm_cfg=dict(type="BN"), act_cfg=dict(type="ReLU"))
    torch.manual_seed(0)
    return build_upsample_layer(
        cfg=dict(type=type_),
        in_channels=in_channels,
        out_channels=out_channels,
        **{**contract, **options},
    )


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_unet(**options: Any) -> UNet:
    settings = dict(
        in_channels=3,
        base_channels=4,
        num_stages=3,
        strides=(1, 1, 1),
        enc_num_convs=(1, 1, 1),
        dec_num_convs=(1, 1),
        downsamples=(True, True),
        enc_dilations=(1, 1, 1),
        dec_dilations=(1, 1),
    )
    return UNet(**{**settings, **options})


# --- mmcv's contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("type_", TYPES)
def test_registered_at_the_root(type_: str) -> None:
    upsampler, layer = TYPES[type_]
    # Found there, and not only through a scope that happens to be active.
    assert mmengine.registry.MODELS.module_dict[type_] is upsampler
    assert MMSEG_MODELS.get(type_) is upsampler
    assert MMSEG_MODELS.get(f"mmengine.{type_}") is upsampler
    assert mmengine.registry.MODELS.get(type_) is upsampler
    assert upsampler.layer_type is layer


@pytest.mark.parametrize("type_", TYPES)
def test_built_by_mmcv(type_: str) -> None:
    module = build(type_)
    assert type(module) is TYPES[type_][0]
    assert type(module.layer) is TYPES[type_][1]
    assert module(random(2, 4, 5, 6)).shape == (2, 3, 10, 12)
    names = {name.partition(".")[0] for name in module.state_dict()}
    assert names == {"layer", "norm"}


@pytest.mark.parametrize("type_", TYPES)
def test_a_convolution_before_has_the_layer_keep_the_channels(type_: str) -> None:
    module, x = build(type_, conv_first=True).double(), random(2, 4, 5, 6).double()
    assert (module.layer.in_channels, module.layer.out_channels) == (3, 3)
    reduced = module.conv(x)
    assert reduced.shape == (2, 3, 5, 6)
    assert (reduced >= 0).all()
    torch.testing.assert_close(module(x), module.act(module.norm(module.layer(reduced))))
    with pytest.raises(ValueError, match=r"conv_first must be one of \(True, False\), got 1"):
        build(type_, conv_first=1)


@pytest.mark.parametrize("type_", TYPES)
def test_layer_then_norm_then_activation(type_: str) -> None:
    module = build(type_, act_cfg=dict(type="LeakyReLU", negative_slope=0.5)).double()
    x = random(2, 4, 5, 6).double()
    raw = module.layer(x)
    normed = (raw - raw.mean((0, 2, 3), keepdim=True)) / torch.sqrt(
        raw.var((0, 2, 3), unbiased=False, keepdim=True) + module.norm.eps
    )
    torch.testing.assert_close(module(x), torch.where(normed > 0, normed, normed / 2))


@pytest.mark.parametrize("type_", TYPES)
def test_without_norm_or_activation(type_: str) -> None:
    x = random(2, 4, 5, 6)
    bare = build(type_, norm_cfg=None, act_cfg=None)
    assert torch.equal(bare(x), bare.layer(x))
    assert (bare(x) < 0).any()
    assert list(bare.state_dict()) == [f"layer.{name}" for name in bare.layer.state_dict()]
    activated = build(type_, norm_cfg=None)
    torch.testing.assert_close(activated(x), bare(x).relu())
    normed = build(type_, act_cfg=None)(x)
    torch.testing.assert_close(normed.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("type_", TYPES)
def test_options_reach_the_layer(type_: str) -> None:
    options = dict(
        kernel_size=5,
        scale_factor=4,
        efficient=False,
        padding_mode="replicate",
        init="kaiming",
        checkerboard_free=True,
        groups=2,
    )
    module = build(type_, out_channels=2, **options)
    assert {name: getattr(module.layer, name) for name in options} == options
    module = build(type_, inner_act_cfg=dict(type="Tanh"))
    assert isinstance(module.layer.inner_act, nn.Tanh)


@pytest.mark.parametrize("type_", TYPES)
def test_refuses(type_: str) -> None:
    with pytest.raises(TypeError, match="'kernel'"):
        build(type_, kernel=5)
    with pytest.raises(ValueError, match="got 4"):
        build(type_, kernel_size=4)


@pytest.mark.parametrize("type_", TYPES)
def test_default_norms_are_not_shared(type_: str) -> None:
    norms = [TYPES[type_][0](4, 3).norm for _ in range(2)]
    assert norms[0] is not norms[1]
    assert isinstance(norms[0], nn.BatchNorm2d)


# --- checkpointing -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_cfg", [dict(type="BN"), dict(type="BN", momentum=None), None], ids=str)
@pytest.mark.parametrize("type_", TYPES)
def test_checkpointing_changes_nothing(type_: str, norm_cfg: dict[str, Any] | None) -> None:
    kept = build(type_, norm_cfg=norm_cfg)
    recomputed = copy.deepcopy(kept)
    recomputed.with_cp = True
    buffers = [[*module.buffers()] for module in (kept, recomputed)]
    states = []
    for module in (kept, recomputed):
        results = []
        for step in range(2):
            x = random(2, 4, 5, 6, seed=step).requires_grad_()
            out = module(x)
            out.square().sum().backward()
            results += [out, x.grad]
        results += [p.grad for p in module.parameters()]
        states.append([results, dict(module.state_dict())])
        if norm_cfg:
            assert module.norm.num_batches_tracked == 2
            assert module.norm.momentum == norm_cfg.get("momentum", 0.1)
            assert module.norm.running_mean.abs().max() > 1e-3
    torch.testing.assert_close(*states, rtol=0, atol=0)
    # Updated in place: whoever holds the buffers (distributed training, compiled graphs) goes on seeing them.
    for module, before in zip((kept, recomputed), buffers, strict=True):
        assert all(a is b for a, b in zip(module.buffers(), before, strict=True))


@pytest.mark.parametrize("type_", TYPES)
def test_checkpointing_keeps_less(type_: str) -> None:
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    counts = []
    for with_cp in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            build(type_, with_cp=with_cp)(random(1, 4, 8, 8).requires_grad_())
        counts.append(sum(kept))
    # Without: at least the maps read by the norm, of 3 x 16 x 16. With: the input.
    assert counts[0] > 3 * 16 * 16
    assert counts[1] <= 4 * 8 * 8


def test_checkpointing_leaves_inference_alone() -> None:
    module = build("PixelDCL", with_cp=True).eval()
    x = random(2, 4, 5, 6)
    with torch.no_grad():
        assert torch.equal(module(x), build("PixelDCL").eval()(x))


# --- in mmseg's U-Net ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [dict(), dict(init="kaiming"), dict(groups="out_channels"), dict(inner_act_cfg=dict(type="ReLU"))],
    ids=str,
)
@pytest.mark.parametrize("type_", TYPES)
def test_initialisation_survives_that_of_the_unet(type_: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    unet = small_unet(upsample_cfg=dict(type=type_, **options))
    before = copy.deepcopy(unet.state_dict())
    unet.init_weights()
    layers = {
        f"{name}.{key}"
        for name, module in unet.named_modules()
        if isinstance(module, PixelDCL | IPixelDCL)
        for key in module.state_dict()
    }
    assert layers
    for name, value in unet.state_dict().items():
        if name in layers:
            assert torch.equal(value, before[name])
        elif name.endswith("conv.weight"):
            assert not torch.equal(value, before[name])  # which is what init_cfg is for


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("type_", TYPES)
def test_trains_in_a_unet(type_: str, with_cp: bool) -> None:
    torch.manual_seed(0)
    unet = small_unet(upsample_cfg=dict(type=type_), with_cp=with_cp)
    outputs = unet(random(2, 3, 16, 24))
    assert [tuple(out.shape) for out in outputs] == [(2, 16, 4, 6), (2, 8, 8, 12), (2, 4, 16, 24)]
    outputs[-1].square().sum().backward()
    for parameter in unet.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("base", CONFIGS)
def test_any_unet_config_takes_the_override(base: str, type_: str, tmp_path: Path) -> None:
    leaf = tmp_path / "leaf.py"
    leaf.write_text(
        f"_base_ = ['mmseg::{base}']\nmodel = dict(backbone=dict(upsample_cfg=dict(type={type_!r})))\n"
    )
    config = Config.fromfile(leaf)
    assert config.model.backbone.type == "UNet"
    check_config(config, type_)


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("base", CONFIGS)
def test_any_unet_config_takes_the_override_from_the_command_line(base: str, type_: str) -> None:
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    args = parser.parse_args(["--cfg-options", f"model.backbone.upsample_cfg.type={type_}"])
    check_config(runtime.load_config(f"mmseg::{base}", args.cfg_options), type_)


def check_config(config: Config, type_: str) -> None:
    """The backbone, made narrow, upsamples four times and does so by that type."""
    config.model.backbone.update(base_channels=2, norm_cfg=dict(type="BN"))
    unet = MMSEG_MODELS.build(config.model.backbone)
    upsamplers = [m for m in unet.modules() if isinstance(m, LearnedUpsample)]
    assert [type(m) for m in upsamplers] == [TYPES[type_][0]] * 4
    unet.eval()  # UNet.train returns nothing
    out = unet(random(1, 3, 32, 48))[-1]
    assert out.shape == (1, 2, 32, 48)
