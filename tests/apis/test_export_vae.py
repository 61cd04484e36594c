"""Exported decoders of VAEs: equal to the original on batches that were not traced, and refused otherwise."""

from __future__ import annotations

import runpy
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from pixeldcl_plugin.apis import export, exported_file
from pixeldcl_plugin.models.vae import VAE

TOOL = Path(__file__).parents[2] / "tools/export.py"
TINY: dict[str, Any] = dict(
    image_size=16, encoder_channels=(4, 8), decoder_channels=(8, 4, 4), latent_channels=3
)
UPSAMPLERS: dict[str, dict[str, Any]] = {
    "deconv": dict(type="DeconvModule", kernel_size=4),
    "PixelDCL": dict(type="PixelDCL", init="kaiming", checkerboard_free=True),
}


def make_vae(upsampler: str) -> VAE:
    torch.manual_seed(0)
    return VAE(UPSAMPLERS[upsampler], **TINY).eval()


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_file_computes_what_the_decoder_does(upsampler: str, format: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    vae = make_vae(upsampler)
    before = deepcopy(vae.state_dict())
    file = tmp_path / f"vae{export.FORMATS[format]}"
    reported: list[export.Parity] = []
    assert export.export_vae(vae, file, format, report=reported.append) == reported
    assert [parity.shape for parity in reported] == [(1, 3), (5, 3)]

    run = export.load_exported(file, format)
    for number in (1, 2, 7):
        latents = torch.randn(number, 3, generator=torch.Generator().manual_seed(number))
        pictures = run(latents)
        assert pictures.shape == (number, 3, 16, 16)
        assert 0 <= pictures.min() < pictures.max() <= 1
        # As a sample of the prior is shown: the mean of the dequantised value, brought back to levels.
        expected = ((vae.decode(latents) * 256 - 0.5) / 255).clamp(0, 1)
        torch.testing.assert_close(pictures, expected.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.state_dict(), before, rtol=0, atol=0)


def test_difference_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(export.ExportError, match=r"exported pictures differ .*'.*vae.pt2' was not written"):
        export.export_vae(make_vae("deconv"), tmp_path / "vae.pt2", "torch", tolerance=-1)
    assert not list(tmp_path.iterdir())


def test_file_that_does_not_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(latents: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Non-zero status")

    monkeypatch.setattr(exported_file, "load_exported", lambda *args: broken)
    with pytest.raises(export.ExportError, match=r"fails on a latent batch \(1, 3\): Non-zero status$"):
        export.export_vae(make_vae("deconv"), tmp_path / "vae.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_config_without_a_type_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pixeldcl_plugin.utils.checkpoints.enable_safe_loading", lambda: None)
    monkeypatch.setattr("pixeldcl_plugin.engine.console.quiet_warnings", lambda: None)
    config, weights = tmp_path / "config.py", tmp_path / "weights.pth"
    config.write_text("model = dict(a=1)\n")
    torch.save(dict(state_dict={"a": torch.zeros(1)}), weights)
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL))["main"](
            [str(config), str(weights), "--format", "torch", "--out", str(tmp_path / "vae.pt2")]
        )
    assert 'must contain the key "type"' in capsys.readouterr().err


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the released VAEs; --shape, of images, is refused before any work."""
    monkeypatch.setattr("pixeldcl_plugin.utils.checkpoints.enable_safe_loading", lambda: None)
    monkeypatch.setattr("pixeldcl_plugin.engine.console.quiet_warnings", lambda: None)
    main = runpy.run_path(str(TOOL))["main"]
    config, weights, out = (tmp_path / name for name in ("config.py", "weights.pth", "vae.pt2"))
    config.write_text(f"model = {dict(type='VAE', upsample_cfg=UPSAMPLERS['PixelDCL'], **TINY)}\n")
    torch.save(dict(state_dict=make_vae("PixelDCL").state_dict()), weights)
    given = [str(config), str(weights), "--format", "torch", "--out", str(out)]

    with pytest.raises(SystemExit):
        main([*given, "--shape", "16", "16"])
    assert "--shape: a VAE takes no images but latents" in capsys.readouterr().err
    assert not out.exists()

    main(given)
    assert "parity on 5x3: max abs difference" in capsys.readouterr().out
    assert out.stat().st_size > 1000
