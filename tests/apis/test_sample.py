"""Configs of the VAE, and training, testing and drawing it with the tools, as a user does."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader

from pixeldcl_plugin.apis import vae_gallery
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.engine.builder import load_model
from pixeldcl_plugin.engine.runtime import load_config
from pixeldcl_plugin.models.vae import VAE
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.visualization.vae_pictures import draw_grid

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/lfw_faces/vae_pixeldcl_1xb16-1k_lfw-64x64.py"
RELEASED = "vae_pixeldcl_1xb64-5k_celeba64-64x64"
DECONV = ROOT / "configs/lfw_faces/vae_deconv-k4_1xb16-1k_lfw-64x64.py"
FAMILIES = ["celeba", "celeba64", "lfw_faces"]
UPSAMPLERS = {"deconv-k4": "DeconvModule", "ipixeldcl": "IPixelDCL", "pixeldcl": "PixelDCL"}
# A moving average of the weights too, whose states checkpoints must carry.
SMALL = f"""
_base_ = "{CONFIG}"
model = dict(encoder_channels=(4,) * 4, decoder_channels=(4,) * 5, latent_channels=4)
train_cfg = dict(max_iters=6, val_interval=3)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=3, max_keep_ckpts=9))
custom_hooks = [dict(type="EMAHook")]
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


# --- configs -------------------------------------------------------------------------------------


def family(folder: str) -> dict[str, Config]:
    files = {file.name.split("_")[1]: file for file in (ROOT / "configs" / folder).glob("vae_*.py")}
    assert files.keys() == UPSAMPLERS.keys()
    return {name: load_config(str(file)) for name, file in files.items()}


@pytest.mark.parametrize("folder", FAMILIES)
def test_a_family_differs_in_the_upsampler_and_the_width_that_its_size_asks_for(folder: str) -> None:
    cfgs, counts = family(folder), {}
    rests = []
    for name, cfg in cfgs.items():
        assert cfg.model.upsample_cfg.type == UPSAMPLERS[name]
        counts[name] = sum(parameter.numel() for parameter in MODELS.build(cfg.model).parameters())
        rest = cfg.to_dict()
        del rest["model"]["upsample_cfg"], rest["model"]["decoder_channels"]
        rests.append(rest)
    assert rests[0] == rests[1] == rests[2]
    assert max(counts.values()) < 1.1 * min(counts.values()), counts
    assert cfgs["deconv-k4"].model.decoder_channels == cfgs["pixeldcl"].model.decoder_channels


def test_families_share_the_model() -> None:
    for name in UPSAMPLERS:
        models = [family(folder)[name].model.to_dict() for folder in FAMILIES]
        assert models[0] == models[1] == models[2]


# --- pictures ------------------------------------------------------------------------------------


def pixels_of(figure: object, path: Path) -> np.ndarray:
    figure.savefig(path)
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def test_grid_shows_every_pixel_as_it_is(tmp_path: Path) -> None:
    rows = list(torch.randint(0, 256, (2, 3, 3, 8, 8)) / 255)
    picture = pixels_of(draw_grid(rows, ["first", "second"], zoom=3), tmp_path / "g.png")
    height, width = (2 * 8 + 2) * 3, (3 * 8 + 2 * 2) * 3
    grid = picture[-height:, -width:]
    for row in range(2):
        for column in range(3):
            shown = grid[30 * row : 30 * row + 24 : 3, 30 * column : 30 * column + 24 : 3]
            expected = (rows[row][column] * 255).round().byte().permute(1, 2, 0).numpy()
            assert np.array_equal(shown, expected)
    assert (picture[:, :-width] < 128).any()  # the labels


def test_grid_refuses_rows_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="label each"):
        draw_grid([torch.rand(2, 3, 8, 8)], ["a", "b"])
    with pytest.raises(ValueError, match="one shape"):
        draw_grid([torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8)], ["a", "b"])
    with pytest.raises(ValueError, match="rows must be"):
        draw_grid([], [])


def test_labels_of_models() -> None:
    cfgs = [load_config(str(path)) for path in (CONFIG, DECONV, CONFIG)]
    assert vae_gallery.model_labels(cfgs) == ["PixelDCL 1", "DeconvModule", "PixelDCL 2"]
    assert vae_gallery.model_labels(cfgs[:2]) == ["PixelDCL", "DeconvModule"]
    assert vae_gallery.model_labels(cfgs, ["a", "b", "c"]) == ["a", "b", "c"]
    for wrong in (["a"], ["a", "a", "b"], ["a", "b", ""]):
        with pytest.raises(UsageError, match="--labels: expected 3 different names"):
            vae_gallery.model_labels(cfgs, wrong)


def test_models_of_a_picture_get_the_same_latents(tmp_path: Path) -> None:
    settings = dict(encoder_channels=(4,), decoder_channels=(4, 4), latent_channels=4, image_size=8)
    model = VAE(**settings).eval()
    figure = vae_gallery.draw_samples({"one": model, "two": model}, columns=3, rows=1, seed=4)
    picture = pixels_of(figure, tmp_path / "s.png")
    first, second = picture[-36:-20, -56:], picture[-16:, -56:]
    assert np.array_equal(first, second)
    assert first.std() > 0
    other = VAE(**{**settings, "image_size": 16})
    with pytest.raises(UsageError, match="different sizes"):
        vae_gallery.check_sizes({"one": model, "two": other}, load_config(str(CONFIG)))
    with pytest.raises(UsageError, match="the test data have size 64"):
        vae_gallery.check_sizes({"one": model}, load_config(str(CONFIG)))


# --- the tools -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "small.py"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def work_dir(small: Path, run_tool: Run) -> Path:
    """A small VAE, trained for six iterations on the embedded faces."""
    folder = small.parent / "whole"
    result = run_tool("tools/train.py", small, "--work-dir", folder)
    assert result.returncode == 0, result.stderr
    (folder / "stdout.txt").write_text(result.stdout)
    return folder


@pytest.mark.slow
def test_training_leaves_scores_pictures_and_a_best_checkpoint(work_dir: Path) -> None:
    last = (work_dir / "stdout.txt").read_text().splitlines()[-2:]
    assert re.search(r"Validation at iteration 6: bpd \d.*psnr.*ssim.*nelbo.*kl.*nyquist_samples", last[0])
    assert last[1].startswith("wrote ")
    assert "curves.png and predictions.png in" in last[1]
    assert list(work_dir.glob("best_nelbo_iter_*.pth"))
    for name in ("curves.png", "predictions.png"):
        assert cv2.imread(str(work_dir / name)).std() > 10


@pytest.mark.slow
def test_a_resumed_run_repeats_the_uninterrupted_one(
    work_dir: Path, small: Path, run_tool: Run, tmp_path: Path
) -> None:
    shutil.copy(work_dir / "iter_3.pth", tmp_path)
    result = run_tool("tools/train.py", small, "--work-dir", tmp_path, "--resume")
    assert result.returncode == 0, result.stderr
    states = [torch.load(d / "iter_6.pth", weights_only=True)["state_dict"] for d in (work_dir, tmp_path)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_testing_scores_and_draws(work_dir: Path, small: Path, run_tool: Run, tmp_path: Path) -> None:
    result = run_tool(
        "tools/test.py", small, work_dir / "iter_6.pth", "--work-dir", tmp_path,
        "--show-dir", tmp_path / "shown", "--cfg-options", "model.importance_samples=5",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    scores = dict(re.findall(r"(\w+): ([\d.]+)", result.stdout.splitlines()[-2]))
    assert {"nelbo", "bpd", "kl", "iw_nelbo", "iw_bpd", "psnr", "ssim", "nyquist_images"} <= scores.keys()
    assert float(scores["bpd"]) == pytest.approx(float(scores["nelbo"]) / (12288 * np.log(2)), abs=1e-3)
    drawn = list((tmp_path / "shown").rglob("*.png"))
    assert len(drawn) == 10
    assert cv2.imread(str(drawn[0])).shape == (64, 128, 3)
    refused = run_tool("tools/test.py", CONFIG, work_dir / "iter_6.pth", "--work-dir", tmp_path)
    assert refused.returncode == 2  # weights of narrower layers
    assert refused.stderr.startswith("error: the weights are of another model")


@pytest.mark.slow
def test_two_processes_train_together(small: Path, tmp_path: Path, run_tool: Run) -> None:
    result = run_tool(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "tools/train.py", small,
        "--launcher", "pytorch", "--amp", "--work-dir", tmp_path,
        "--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Validation at iteration 2: bpd" in result.stdout


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs tools/sample.py within this process, for speed; leaves nothing of it behind."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", OrderedDict(CheckpointLoader._schemes))
    monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict())
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    monkeypatch.setattr(console, "quiet_warnings", lambda: None)

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools/sample.py"))["main"]([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return run


@pytest.mark.slow
def test_sample_draws_all_pictures_of_several_models(
    work_dir: Path, small: Path, sample: Run, tmp_path: Path
) -> None:
    model = (small, work_dir / "iter_6.pth")
    out = tmp_path / "pictures"
    arguments = (*model, *model, "--columns", 4, "--pairs", 1, "--out", out)
    result = sample(*arguments)
    assert result.returncode == 0, result.stderr
    assert {file.name for file in out.iterdir()} == {f"{name}.png" for name in vae_gallery.PICTURES}
    rows = dict(samples=4, reconstructions=3, interpolations=2)
    for name, count in rows.items():
        picture = cv2.imread(str(out / f"{name}.png"))
        assert picture.shape[0] == 30 + 2 * (66 * count - 2)
        assert picture.std() > 10

    refused = sample(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "is not an empty folder" in refused.stderr
    assert sample(*arguments, "--overwrite", "--pictures", "samples").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], "needs a checkpoint after it"),
        ([CONFIG, "none.pth"], "no file 'none.pth'"),
        ([CONFIG, "none.pth", "--columns", 0], "--columns must be at least 1, got 0"),
        ([CONFIG, "none.pth", "--columns", 1], "an interpolation has at least 2 pictures"),
        ([CONFIG, "none.pth", "--seed", -1], "--seed must be at least 0"),
        ([RELEASED, "--labels", "a", "b"], "--labels: expected 1 different names"),
    ],
)
def test_sample_explains_what_is_wrong(arguments: list, message: str, sample: Run, tmp_path: Path) -> None:
    result = sample(*arguments, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_sample_refuses_what_is_no_vae(tmp_path: Path) -> None:
    cfg = load_config(str(ROOT / "configs/camvid/unet-s5-d16-c16-pixeldcl_fcn_1xb8-1k_camvid-160x128.py"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="the model must be of type VAE, got EncoderDecoder"):
        load_model(cfg, tmp_path / "a.pth", VAE)
