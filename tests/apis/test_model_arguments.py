"""CONFIG CHECKPOINT and NAME on command lines."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder
from released import MODEL, UPSAMPLED, config_file, make_root, release, save_checkpoint, tiny_model

from pixeldcl_plugin.apis.model_arguments import (
    SHOWN,
    ModelArgument,
    add_models,
    model_names,
    read_model,
    read_models,
    read_one_model,
)
from pixeldcl_plugin.models.vae import VAE
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.zoo.download import HashMismatchError
from pixeldcl_plugin.zoo.index import ZooRoot


@pytest.fixture(scope="module")
def root(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> ZooRoot:
    """A zoo in which one of two models is released, twice."""
    root = make_root(tmp_path_factory.mktemp("zoo") / "zoo", tiny_config_text)
    for seed in (0, 1):
        release(root, seed=seed)
    return root


@pytest.fixture(autouse=True)
def in_use(root: ZooRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELDCL_ZOO", str(root.folder))
    monkeypatch.chdir(tmp_path)


def test_every_form_in_any_mixture(root: ZooRoot, tmp_path: Path) -> None:
    config = str(config_file(root))
    own = str(save_checkpoint(root, tmp_path / "own.pth", tiny_model(root, seed=7)))
    odd = tmp_path / "checkpoint"  # a file is a checkpoint whatever its name
    odd.write_bytes(Path(own).read_bytes())
    old, new = (model for model in sorted(root.checkpoints.iterdir(), key=lambda f: f.stat().st_mtime))
    found = read_models([MODEL, config, own, old.stem, UPSAMPLED, own, config, str(odd), MODEL])
    assert [(Path(m.config).stem, m.checkpoint) for m in found] == [
        (MODEL, str(new)), (MODEL, own), (MODEL, str(old)), (UPSAMPLED, own), (MODEL, str(odd)),
        (MODEL, str(new)),
    ]  # fmt: skip
    name = "decode_head.conv_seg.weight"
    for model, seed in zip(found[:3], (1, 7, 0), strict=True):
        loaded = model.load_segmentor()
        assert torch.equal(loaded.state_dict()[name], tiny_model(root, seed=seed).state_dict()[name])
    assert read_one_model([MODEL], options={"model.decode_head.dropout_ratio": 0.3}).cfg.model.decode_head[
        "dropout_ratio"
    ] == pytest.approx(0.3)
    assert [m.checkpoint for m in read_models([config, config, own], untrained=True)] == [None, own]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet-tiny-pixeldlc"], f"there is no model 'unet-tiny-pixeldlc'; did you mean '{MODEL}'"),
        (["unet-tiny-pixeldlc"], "a config ends in .py, a checkpoint in .pth or .safetensors"),
        ([UPSAMPLED], f"no weights of '{UPSAMPLED}' are released"),
        (["CONFIG"], "needs a checkpoint after it"),
        (["CONFIG", MODEL], "needs a checkpoint after it"),
        (["absent.py", "a.pth"], "no config file 'absent.py'"),
        (["CONFIG", "absent.pth"], "no file 'absent.pth'"),
        ([MODEL, "absent.pth"], "no file 'absent.pth'"),
        (["absent.pth"], "checkpoint 'absent.pth' does not follow a config or the name of a model"),
        (["CONFIG", "a.pth", "b.pth"], "checkpoint 'b.pth' does not follow"),
        (["mmseg::unet/absent", "a.pth"], "no config 'unet/absent.py'"),
        ([""], "there is no model ''"),
        ([MODEL, MODEL], "expected one model, CONFIG CHECKPOINT or NAME"),
    ],
)
def test_mistakes_name_what_is_wrong(root: ZooRoot, arguments: list[str], message: str) -> None:
    given = [str(config_file(root)) if each == "CONFIG" else each for each in arguments]
    with pytest.raises(UsageError) as caught:
        read_one_model(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_the_released_ones_are_refused(root: ZooRoot) -> None:
    (file, *_) = root.checkpoints.iterdir()
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + b"\0")
        with pytest.raises(HashMismatchError, match="not the released file"):
            read_model(file.stem)
    finally:
        file.write_bytes(content)


def test_no_weights_but_the_checkpoints_are_asked_for(root: ZooRoot, tmp_path: Path) -> None:
    """The encoder's ImageNet weights, which the config names, need not be there."""
    config = tmp_path / "pretrained.py"
    missing = 'dict(type="Pretrained", checkpoint="absent.pth")'
    config.write_text(f'_base_ = ["{config_file(root)}"]\nmodel = dict(backbone=dict(init_cfg={missing}))\n')
    own = save_checkpoint(root, tmp_path / "own.pth", tiny_model(root))
    assert isinstance(read_model(str(config), str(own)).load_segmentor(), EncoderDecoder)
    with pytest.raises(UsageError, match=r"init_cfg.checkpoint not found: no file 'absent.pth'"):
        read_model(str(config), untrained=True)


def test_untrained_models_depend_on_the_seed_alone(root: ZooRoot) -> None:
    model = read_model(str(config_file(root)), untrained=True)
    first, same, other = (model.load_segmentor(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="the model must be of type VAE, got EncoderDecoder"):
        read_model(MODEL).load(VAE)


def test_options_may_stand_between() -> None:
    parser = ArgumentParser()
    add_models(parser)
    parser.add_argument("images")
    parser.add_argument("--out", required=True)
    for line in ("C W I --out o", "--out o C W I", "C --out o W I", "C W --out o I"):
        args = parser.parse_intermixed_args(line.split())
        assert (args.models, args.images, args.out) == (["C", "W"], "I", "o")


def test_names_of_models() -> None:
    def names(*pairs: tuple[str, str | None]) -> list[str]:
        return model_names([ModelArgument(config, checkpoint, Config()) for config, checkpoint in pairs])

    deconv, pixel = "x/unet-c16-deconv-k4_set.py", "unet-c16-pixeldcl_set.py"
    assert names((deconv, "x.pth"), (pixel, "y.pth")) == ["deconv-k4", "pixeldcl"]
    assert names((deconv, "x.pth"), (pixel, None)) == ["deconv-k4", "pixeldcl (untrained)"]
    stem = "unet-c16-deconv-k4_set"
    assert names((deconv, "a/x.pth"), (deconv, "y.pth")) == [f"{stem} (x)", f"{stem} (y)"]
    assert names(("unet_fcn.py", "x.pth"), ("unet-pixeldcl_fcn.py", "x.pth")) == ["unet_fcn", "pixeldcl"]
    assert names(("unet_fcn.py", "x.pth")) == ["unet_fcn"]
    first, *_, last = SHOWN.values()
    assert names((f"{first}.py", "x"), (f"{last}.py", "x")) == ["bilinear", "bilinear, retrofit"]
    assert names((f"{first}.py", "x"), (f"{first}.py", "y")) == ["bilinear (x)", "bilinear (y)"]
