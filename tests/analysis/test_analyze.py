"""Analyses of layers and models, and the command that writes them."""

from __future__ import annotations

import copy
import json
import runpy
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.cnn import build_upsample_layer
from mmengine.registry import init_default_scope
from rich.console import Console
from torch import nn

from pixeldcl_plugin.analysis import checkerboard as analysis
from pixeldcl_plugin.analysis import report as report
from pixeldcl_plugin.apis.model_arguments import read_model
from pixeldcl_plugin.apis.segmenter import Segmenter
from pixeldcl_plugin.evaluation.checkerboard import phase_spread
from pixeldcl_plugin.layers.guided import GuidedPixelDCL
from pixeldcl_plugin.utils.cli import UsageError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/analyze_checkerboard.py"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _scope() -> None:
    init_default_scope("mmseg")


def photo(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth random picture, RGB uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def untrained(config: Path, seed: int = 0) -> Segmenter:
    return Segmenter(read_model(str(config), untrained=True).load_segmentor(seed))


@pytest.fixture
def config(tiny_config: Path) -> Path:
    return tiny_config


@pytest.fixture
def pixel_config(tiny_config: Path) -> Path:
    path = tiny_config.with_name("tiny-pixeldcl.py")
    upsampler = "dict(type='PixelDCL', init='kaiming', checkerboard_free=True, _delete_=True)"
    path.write_text(f"_base_ = ['tiny.py']\nmodel = dict(backbone=dict(upsample_cfg={upsampler}))\n")
    return path


@pytest.fixture
def models(config: Path, pixel_config: Path) -> list[Segmenter]:
    return [untrained(path) for path in (config, pixel_config)]


def test_upsamplers_are_found_as_wholes(models: list[Segmenter]) -> None:
    names = ["backbone.decoder.0.upsample", "backbone.decoder.1.upsample"]
    for model, kind in zip(models, ("DeconvModule", "PixelDCLUpsample"), strict=True):
        found = analysis.find_upsamplers(model.model)
        assert sorted(found) == names
        assert {type(module).__name__ for module in found.values()} == {kind}
    alone = nn.ConvTranspose2d(2, 2, 4, 2, 1)
    assert analysis.find_upsamplers(alone) == {"": alone}
    stages = build_upsample_layer(dict(type="UpsampleStages", in_channels=4, out_channels=4))
    assert len(analysis.find_upsamplers(stages)) == 3
    assert analysis.find_upsamplers(nn.Conv2d(1, 1, 1)) == {}


def test_measures_of_a_model(models: list[Segmenter]) -> None:
    images = [photo(0), photo(1, 80, 52)]
    bins = analysis.profile_bins(images)
    assert bins == 24
    deconv, pixel = (analysis.analyze_model("name", model, images, bins) for model in models)
    # In the order of running: the deepest level first.
    assert [u.name for u in deconv.upsamplers] == [f"backbone.decoder.{i}.upsample" for i in (1, 0)]
    assert [(u.in_channels, u.out_channels) for u in deconv.upsamplers] == [(16, 8), (8, 4)]
    for record in deconv.upsamplers:
        module = models[0].model.get_submodule(record.name)
        assert record.phase_spread == pytest.approx(phase_spread(module, record.in_channels))
        assert record.phase_spread > 0.5
    assert max(u.phase_spread for u in pixel.upsamplers) < 1e-5  # float32 parameters
    assert deconv.feature.shape == (4, 48, 64)
    assert deconv.logits.shape == (3, 48, 64)
    assert np.array_equal(deconv.labels, models[0](images[0]))
    assert len(deconv.output["azimuthal_profile"]) == len(deconv.upsamplers[-1].azimuthal_profile) == bins
    assert deconv.upsamplers[0].azimuthal_profile is None
    assert deconv.kernels.shape == (2, 2, 3, 3)
    energies = [np.mean(a.upsamplers[-1].nyquist_ratios) for a in (deconv, pixel)]
    assert energies[0] > 3 * energies[1]
    assert 0 <= deconv.output["isolated_pixel_rate"] <= 1
    assert not models[0].model.backbone.decoder[0].upsample._forward_hooks


def test_measures_are_means_over_images(models: list[Segmenter]) -> None:
    images = [photo(0), photo(1)]
    single = [analysis.analyze_model("", models[0], [image], 24) for image in images]
    both = analysis.analyze_model("", models[0], images, 24)
    for key in ("nyquist_ratios", "phase_variance_share", "azimuthal_profile", "isolated_pixel_rate"):
        expected = np.mean([a.output[key] for a in single], axis=0)
        assert np.allclose(both.output[key], expected, rtol=1e-4)
    expected = np.mean([a.upsamplers[1].nyquist_ratios for a in single], axis=0)
    assert np.allclose(both.upsamplers[1].nyquist_ratios, expected, rtol=1e-4)
    assert torch.equal(both.feature, single[0].feature)


def test_a_model_that_only_resizes_its_logits(models: list[Segmenter], tmp_path: Path) -> None:
    """Stock FCN, PSP and DeepLab: there is no layer to look into, and the logits are what there is to see."""
    resizing = copy.deepcopy(models[0])
    for stage in resizing.model.backbone.decoder:
        stage.upsample = nn.Upsample(scale_factor=2)
        stage.upsample.register_forward_pre_hook(
            lambda module, inputs: inputs[0][:, : inputs[0].size(1) // 2]
        )
    images, bins = [photo(0)], 24
    plain, deconv = (
        analysis.analyze_model(str(n), m, images, bins) for n, m in enumerate((resizing, models[0]))
    )
    assert plain.upsamplers == []
    assert plain.kernels is None
    assert torch.equal(plain.feature, plain.logits)
    assert len(plain.output["azimuthal_profile"]) == bins
    report.write_figure(
        [plain, deconv], tmp_path / "a.png", images[0], analysis.profile_of_images(images, bins)
    )
    report.write_figure([plain], tmp_path / "b.png", images[0])
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in "ab")
    report.print_table([plain])


def test_a_guided_upsampler_has_measures_but_no_kernels() -> None:
    model = nn.Sequential()
    model.guided = GuidedPixelDCL(3, 2)
    assert list(analysis.find_upsamplers(model)) == ["guided"]
    assert analysis._phase_spread(model.guided, 3) is None
    assert analysis._kernel_magnitude(model.guided, 3) is None


def test_wrong_images_are_refused(models: list[Segmenter]) -> None:
    with pytest.raises(UsageError, match=r"1 to 2097152 pixels, the largest has 2200000"):
        analysis.analyze_model("m", models[0], [np.zeros((1000, 2200, 3), np.uint8)], 8)
    with pytest.raises(UsageError, match="the largest has 0"):
        analysis.analyze_model("m", models[0], [], 8)
    with pytest.raises(ValueError, match="16 x 16 pixels, the smallest has a side of 9"):
        analysis.profile_bins([photo(0), photo(0, 9, 30)])
    assert analysis.profile_bins([photo(0, 200, 300)]) == 32


def test_profile_of_images_is_that_of_each() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    profile = analysis.profile_of_images([noise, noise], 16)
    assert profile == pytest.approx(analysis.profile_of_images([noise], 16))
    assert np.allclose(profile[3:], 1, atol=0.25)
    assert analysis.profile_of_images([photo(0)], 16)[-1] < 0.01


def test_a_layer_by_itself() -> None:
    deconv = analysis.analyze_layer("d", dict(type="DeconvModule", kernel_size=4), (8, 4), 16)
    smooth = analysis.analyze_layer("p", dict(type="PixelDCL"), (8, 4), 16)
    assert deconv.upsamplers[0].phase_spread > 0.7
    assert smooth.upsamplers[0].phase_spread < 1e-12
    assert np.mean(deconv.output["nyquist_ratios"]) > 10 * np.mean(smooth.output["nyquist_ratios"])
    inside = smooth.constant[:, 4:-4, 4:-4]
    assert torch.allclose(inside, inside[:, :1, :1].expand_as(inside))
    again = analysis.analyze_layer("d", dict(type="DeconvModule", kernel_size=4), (8, 4), 16)
    other = analysis.analyze_layer("d", dict(type="DeconvModule", kernel_size=4), (8, 4), 16, seed=1)
    assert again.record() == deconv.record() != other.record()
    adaptive = analysis.analyze_layer("c", dict(type="TorchCARAFE"), (8, 4), 16)
    assert adaptive.kernels is None
    with pytest.raises(ValueError, match="upsample_cfg"):
        analysis.analyze_layer("x", dict(type="PixelDCLL"), (8, 4), 16)


def test_zoom_finds_the_boundaries() -> None:
    labels = np.zeros((90, 120), np.uint8)
    labels[50:70, 80:100] = 1
    labels[55:65:2, 85:95] = 2
    row, column = report._zoom_corner([labels * 0, labels])
    assert row <= 50
    assert row + report._ZOOM >= 70
    assert column <= 80
    assert column + report._ZOOM >= 100
    assert report._zoom_corner([labels[:20, :30]]) == (0, 0)
    assert report._zoom_corner([]) == (0, 0)


def test_figure_and_table(models: list[Segmenter], tmp_path: Path) -> None:
    image = photo(0, 64, 96)
    analyses = [analysis.analyze_model(n, m, [image], 24) for n, m in zip("ab", models, strict=True)]
    report.write_figure(analyses, tmp_path / "models.png", image, analysis.profile_of_images([image], 24))
    layers = [
        analysis.analyze_layer(kind, dict(type=kind), (6, 4), 16) for kind in ("PixelDCL", "TorchCARAFE")
    ]
    layers.append(analysis.analyze_layer("x4", dict(type="PixelDCL", scale_factor=4), (6, 4), 16))
    report.write_figure(layers, tmp_path / "layers.png")
    for name in ("models", "layers"):
        drawn = cv2.imread(str(tmp_path / f"{name}.png"))
        assert drawn.shape[1] == 1650
        assert drawn.std() > 20
    for width, name in ((120, "a"), (80, "a model of a name that is as long as those of the configs")):
        console = Console(record=True, width=width)
        report.print_table([replace(analyses[0], name=name), *analyses[1:], *layers], console)
        text = console.export_text()
        assert text.count("logits") == 2
        assert max(map(len, text.splitlines())) <= width
        cells = [f"{u.phase_spread:.3g}" for a in (*analyses, *layers) for u in a.upsamplers]
        assert all(cell in text for cell in ["variance", "isolated", *cells])


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple]:
    """Runs the command within this process; returns exit code, output and errors."""
    for name in ("engine.console.quiet_warnings", "utils.checkpoints.enable_safe_loading"):
        monkeypatch.setattr(f"pixeldcl_plugin.{name}", lambda: None)
    tool = runpy.run_path(str(TOOL))

    def run(*args: object) -> tuple[int, str, str]:
        code = 0
        try:
            tool["main"]([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "models need --images"),
        (["a.py", "--layer", "PixelDCL"], "give either models or --layer"),
        (["a.py"], "models need --images"),
        (["--layer", "PixelDCL", "--images", "x"], "--images is for models"),
        (["--layer", "PixelDCL", "--channels", "0"], "--channels takes one or two positive numbers, got [0]"),
        (["--layer", "PixelDCL", "--max-images", "0"], "--max-images must be positive, got 0"),
        (["--layer", "PixelDCLL"], "PixelDCLL"),
        (["--layer", "PixelDCL", "--layer-options", "kernel_size=4"], "kernel_size must be one of (3, 5, 7)"),
        (["--layer", "PixelDCL", "--layer-options", "kernel=4"], "unexpected keyword argument 'kernel'"),
        (["absent.py", "--images", str(ROOT / "docs/images")], "no config file 'absent.py'"),
        (["a.pth", "--images", str(ROOT / "docs/images")], "'a.pth' does not follow a config"),
        (["CONFIG", "--images", "absent"], "no image found for 'absent'"),
        (["CONFIG", "--names", "x", "y", "--images", str(ROOT / "docs/images")], "2 names for 1 models"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    main, tmp_path: Path, config: Path, args: list[str], message: str
) -> None:
    args = [str(config) if arg == "CONFIG" else arg for arg in args]
    code, _, errors = main(*args, "--out", tmp_path / "out")
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_command_on_layers_overwrites_only_when_told(main, tmp_path: Path) -> None:
    args = ("--layer", "PixelDCL", "DeconvModule", "--channels", "8", "4", "--out", tmp_path)
    code, output, _ = main(*args)
    assert code == 0
    assert output.splitlines()[-1] == f"wrote checkerboard.json and checkerboard.png in {tmp_path}"
    record = json.loads((tmp_path / "checkerboard.json").read_text())
    assert [result["name"] for result in record["results"]] == ["PixelDCL", "DeconvModule"]
    assert record["results"][0]["upsamplers"][0]["phase_spread"] < 1e-12
    code, _, errors = main(*args)
    assert code == 2
    assert "exists: choose another --out or replace it with --overwrite" in errors
    assert main(*args, "--overwrite")[0] == 0


def test_broken_image_is_named(main, tmp_path: Path, config: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    code, _, errors = main(config, "--images", tmp_path / "broken.png", "--out", tmp_path / "out")
    assert code == 2
    assert errors.startswith("error: --images:")
    assert "broken.png" in errors


@pytest.mark.slow
def test_command_on_models(run_tool: Run, tmp_path: Path, config: Path, pixel_config: Path) -> None:
    for index in range(3):
        cv2.imwrite(str(tmp_path / f"photo_{index}.png"), photo(index))
    model = untrained(pixel_config, seed=5)
    torch.save(dict(state_dict=model.model.state_dict()), tmp_path / "weights.pth")
    out = tmp_path / "out"
    result = run_tool(
        TOOL, config, pixel_config, tmp_path / "weights.pth", "--images", tmp_path / "photo_*.png",
        "--max-images", 2, "--out", out,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert cv2.imread(str(out / "checkerboard.png")).shape[1] == 1650
    record = json.loads((out / "checkerboard.json").read_text())
    assert [m["checkpoint"] for m in record["models"]] == [None, str(tmp_path / "weights.pth")]
    assert record["images"] == [str(tmp_path / f"photo_{index}.png") for index in range(2)]
    assert record["results"][0]["name"] == "tiny (untrained)"
    expected = analysis.analyze_model("", model, [photo(0)[..., ::-1], photo(1)[..., ::-1]], 24).record()
    found = record["results"][1]["upsamplers"]
    assert np.allclose(found[1]["nyquist_ratios"], expected["upsamplers"][1]["nyquist_ratios"], rtol=1e-3)
