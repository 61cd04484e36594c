"""Exported segmentors: equal to the original on sizes that were not traced, and refused otherwise."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn

from pixeldcl_plugin.apis import export, exported_file
from pixeldcl_plugin.engine.builder import load_model
from pixeldcl_plugin.layers import pixel_dcl as layers
from pixeldcl_plugin.utils.checkpoints import CheckpointError
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.utils.files import part_of

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/export.py"
UPSAMPLERS: dict[str, dict[str, Any]] = {
    "PixelDCL": dict(type="PixelDCL", init="kaiming", checkerboard_free=True),
    "IPixelDCL": dict(type="IPixelDCL", init="kaiming", checkerboard_free=True),
    "PixelDCL_full": dict(type="PixelDCL", efficient=False, padding_mode="replicate"),
}


def model_config(upsample_cfg: dict[str, Any], num_stages: int = 3, **head: Any) -> dict[str, Any]:
    norm_cfg = dict(type="BN")
    return dict(
        type="EncoderDecoder",
        backbone=dict(
            type="UNet",
            base_channels=4,
            num_stages=num_stages,
            strides=(1,) * num_stages,
            enc_num_convs=(1,) * num_stages,
            dec_num_convs=(1,) * (num_stages - 1),
            downsamples=(True,) * (num_stages - 1),
            enc_dilations=(1,) * num_stages,
            dec_dilations=(1,) * (num_stages - 1),
            norm_cfg=norm_cfg,
            upsample_cfg=upsample_cfg,
        ),
        decode_head=dict(
            type="FCNHead",
            in_channels=8,
            in_index=num_stages - 2,  # half the size of the image: the logits are resized
            channels=4,
            num_convs=1,
            concat_input=False,
            num_classes=3,
            norm_cfg=norm_cfg,
            **{"align_corners": False, **head},
        ),
        auxiliary_head=dict(
            type="FCNHead", in_channels=8, in_index=1, channels=4, num_classes=3, align_corners=False
        ),
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )


def make_segmentor(upsampler: str = "PixelDCL", **options: Any) -> EncoderDecoder:
    init_default_scope("mmseg")
    torch.manual_seed(0)
    segmentor = MODELS.build(Config(dict(model=model_config(UPSAMPLERS[upsampler], **options))).model)
    for module in segmentor.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it were trained
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return segmentor.eval()


@pytest.fixture(scope="module")
def segmentor() -> EncoderDecoder:
    """One with a single upsampler, as it is quick to trace; takes multiples of 2."""
    return make_segmentor(num_stages=2)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# --- the exported file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upsampler", "format"),
    [
        *[(upsampler, "torch") for upsampler in UPSAMPLERS],
        pytest.param("PixelDCL", "onnx", marks=pytest.mark.slow),
        pytest.param("IPixelDCL", "onnx", marks=pytest.mark.slow),
    ],
)
def test_file_computes_what_the_segmentor_does(upsampler: str, format: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    segmentor = make_segmentor(upsampler)
    before = deepcopy(segmentor.state_dict())
    file = tmp_path / f"model{export.FORMATS[format]}"
    reported: list[export.Parity] = []
    parities = export.export_segmentor(segmentor, file, format, size=(16, 24), report=reported.append)

    assert parities == reported
    assert [parity.shape for parity in parities] == [(1, 3, 20, 32), (3, 3, 8, 8)]
    assert all(parity.magnitude > 0.01 and parity.difference <= 1e-4 for parity in parities)
    assert list(tmp_path.iterdir()) == [file]
    assert str(ROOT).encode() not in file.read_bytes()  # nor anything else of this machine

    run = export.load_exported(file, format)
    for shape in ((2, 3, 16, 24), (1, 3, 8, 28), (5, 3, 32, 12)):
        expected = torch.stack([sample.seg_logits.data for sample in segmentor.predict(images(*shape))])
        torch.testing.assert_close(run(images(*shape)), expected, rtol=0, atol=1e-4)

    torch.testing.assert_close(segmentor.state_dict(), before, rtol=0, atol=0)
    constrained = [m.checkerboard_free for m in segmentor.modules() if isinstance(m, layers.PixelUpsample)]
    assert constrained == [UPSAMPLERS[upsampler].get("checkerboard_free", False)] * 2
    assert segmentor.with_auxiliary_head


def test_exported_copy_is_folded_and_has_no_auxiliary_head(segmentor: EncoderDecoder, tmp_path: Path) -> None:
    def operators(program: torch.export.ExportedProgram) -> set[str]:
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    export.export_segmentor(segmentor, tmp_path / "model.pt2", "torch")
    program = torch.export.load(tmp_path / "model.pt2")
    assert not [name for name in program.state_dict if "auxiliary_head" in name]
    assert any(name.endswith("upsample.layer.weight_p11") for name in program.state_dict)

    unfolded = export.trace(export.InferenceModel(segmentor), (8, 8), 2)
    projection = operators(unfolded) - operators(program)
    assert any("sum" in name for name in projection)
    assert not operators(program) - operators(unfolded)


@pytest.mark.slow
def test_unet_of_five_stages_takes_multiples_of_16(tmp_path: Path) -> None:
    segmentor = make_segmentor(num_stages=5)
    assert export.size_multiple(segmentor) == 16
    file = tmp_path / "model.pt2"
    export.export_segmentor(segmentor, file, "torch", size=(48, 32))
    run = export.load_exported(file, "torch")
    assert run(images(1, 3, 32, 80)).shape == (1, 3, 32, 80)
    with pytest.raises(AssertionError, match="16"):
        run(images(1, 3, 40, 80))


# --- refusals ------------------------------------------------------------------------------------


def test_wrong_file_is_refused(
    segmentor: EncoderDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is of the file: a copy that computes something else does not pass."""
    file = tmp_path / "model.pt2"
    file.write_text("an earlier one")
    stripped = export.traceable

    def spoiled(segmentor: EncoderDecoder) -> EncoderDecoder:
        copy = stripped(segmentor)
        copy.decode_head.conv_seg.bias += 2e-4
        return copy

    monkeypatch.setattr(export, "traceable", spoiled)
    with pytest.raises(
        export.ExportError, match=r"differ.* by more than 0.0001: '.*model.pt2' was not written"
    ):
        export.export_segmentor(segmentor, file, "torch", overwrite=True)
    assert file.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [file]
    export.export_segmentor(segmentor, file, "torch", overwrite=True, tolerance=1e-3)
    assert file.stat().st_size > 1000


def test_nan_is_refused(tmp_path: Path) -> None:
    segmentor = make_segmentor(num_stages=2)
    nn.init.constant_(segmentor.decode_head.conv_seg.bias, float("nan"))
    with pytest.raises(export.ExportError, match="differ"):
        export.export_segmentor(segmentor, tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_file_that_does_not_run_is_refused(
    segmentor: EncoderDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Non-zero status\nand more")

    monkeypatch.setattr(exported_file, "load_exported", lambda *args: broken)
    message = r"fails on an image batch \(1, 3, 10, 12\): Non-zero status$"
    with pytest.raises(export.ExportError, match=message):
        export.export_segmentor(segmentor, tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_untraceable_model_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.conv(image) + torch.ones(16, 16)

    with pytest.raises(export.ExportError, match=r"cannot trace the model with dynamic sizes: \S+"):
        export.trace(Fixed(), (16, 16), 4)


@pytest.mark.parametrize("size", [(8, 9), (9, 8), (2, 8), (-8, 8), (0, 8)])
def test_sizes_that_do_not_fit(segmentor: EncoderDecoder, size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"multiples of 2 .* at least 4, got {size[0]} {size[1]}"):
        export.export_segmentor(segmentor, tmp_path / "model.pt2", "torch", size=size)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_full_disk_is_named_and_nothing_stays(
    segmentor: EncoderDecoder, format: str, tmp_path: Path, limit_files: Callable[[int], Any]
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    file = tmp_path / f"model{export.FORMATS[format]}"
    file.write_text("an earlier one")
    with pytest.raises(OSError, match=rf"File too large: .*/model\{file.suffix}'"), limit_files(3000):
        export.export_segmentor(segmentor, file, format, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_text() == "an earlier one"


def test_what_a_killed_export_left_is_written_over(segmentor: EncoderDecoder, tmp_path: Path) -> None:
    part_of(tmp_path / "model.pt2").write_bytes(bytes(10**6))
    export.export_segmentor(segmentor, tmp_path / "model.pt2", "torch")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").stat().st_size < 10**6


def test_align_corners_is_refused(tmp_path: Path) -> None:
    segmentor = make_segmentor(num_stages=2, align_corners=True)
    with pytest.raises(UsageError, match="align_corners=True"):
        export.export_segmentor(segmentor, tmp_path / "model.pt2", "torch")


def test_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    existing = tmp_path / "model.pt2"
    existing.touch()
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(UsageError, match=r"model.pt2' exists: .*--overwrite"):
        export.check_request(existing, "torch", overwrite=False)
    export.check_request(existing, "torch", overwrite=True)
    with pytest.raises(UsageError, match=r"folder.pt2' is a folder"):
        export.check_request(tmp_path / "folder.pt2", "torch", overwrite=True)
    with pytest.raises(UsageError, match=r"'torch' ends in '.pt2'"):
        export.check_request(tmp_path / "model.onnx", "torch", overwrite=False)
    with pytest.raises(UsageError, match="there is no folder"):
        export.check_request(tmp_path / "absent/model.pt2", "torch", overwrite=False)
    with pytest.raises(ValueError, match=r"one of \('onnx', 'torch'\), got 'tflite'"):
        export.check_request(tmp_path / "model.tflite", "tflite", overwrite=False)
    monkeypatch.setattr(exported_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the packages onnx, onnxscript, onnxruntime"):
        export.check_request(tmp_path / "model.onnx", "onnx", overwrite=False)


@pytest.mark.parametrize(
    ("strides", "downsamples", "multiple"),
    [((1, 1, 1), (True, True), 4), ((1, 2, 1), (True, False), 2), ((1, 2, 2), (False, False), 4)],
)
def test_size_multiple(strides: Any, downsamples: Any, multiple: int) -> None:
    init_default_scope("mmseg")
    config = model_config(dict(type="PixelDCL"))
    config["backbone"] |= dict(strides=strides, downsamples=downsamples)
    segmentor = MODELS.build(config).eval()
    assert export.size_multiple(segmentor) == multiple
    segmentor.backbone(images(1, 3, 3 * multiple, 2 * multiple))  # UNet itself agrees
    with pytest.raises(AssertionError, match="divisible"):
        segmentor.backbone(images(1, 3, 3 * multiple + multiple // 2, 2 * multiple))


def test_size_multiple_of_other_backbones() -> None:
    init_default_scope("mmseg")
    config = model_config(dict(type="PixelDCL"))
    config["backbone"] = dict(type="ResNetV1c", depth=18, norm_cfg=dict(type="BN"))
    assert export.size_multiple(MODELS.build(config)) == 32


# --- loading -------------------------------------------------------------------------------------


def save(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def test_load_model(segmentor: EncoderDecoder, tmp_path: Path) -> None:
    cfg = Config(dict(model=model_config(UPSAMPLERS["PixelDCL"], num_stages=2)))
    cfg.model.backbone.norm_cfg = dict(type="SyncBN")  # has no CPU kernel
    for content in (segmentor.state_dict(), dict(state_dict=segmentor.state_dict(), meta={})):
        loaded = load_model(cfg, save(tmp_path / "weights.pth", content), EncoderDecoder)
        assert not loaded.training
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in loaded.modules())
        x = images(1, 3, 8, 12)
        actual, expected = export.InferenceModel(loaded)(x), export.InferenceModel(segmentor)(x)
        torch.testing.assert_close(actual, expected)


def test_load_model_refuses_other_weights(segmentor: EncoderDecoder, tmp_path: Path) -> None:
    cfg = Config(dict(model=model_config(UPSAMPLERS["IPixelDCL"], num_stages=2)))
    state = segmentor.state_dict()
    with pytest.raises(CheckpointError, match=r"of another model: the file lacks .*weight_from_x") as caught:
        load_model(cfg, save(tmp_path / "weights.pth", state))
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_model(cfg, save(tmp_path / "list.pth", [1, 2]))
    with pytest.raises(CheckpointError, match="refused"):
        load_model(cfg, save(tmp_path / "code.pth", dict(state_dict=print)))


def test_load_model_refuses_other_models(tmp_path: Path) -> None:
    init_default_scope("mmseg")
    cfg = Config(dict(model=dict(type="SegDataPreProcessor")))
    with pytest.raises(UsageError, match="the model must be of type EncoderDecoder, got SegDataPreProcessor"):
        load_model(cfg, save(tmp_path / "weights.pth", {"a": torch.zeros(1)}), EncoderDecoder)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def files(segmentor: EncoderDecoder, tmp_path: Path) -> tuple[Path, Path]:
    """A config and a checkpoint."""
    config = tmp_path / "config.py"
    config.write_text(f"model = {model_config(UPSAMPLERS['PixelDCL'], num_stages=2)}\n")
    save(tmp_path / "weights.pth", dict(state_dict=segmentor.state_dict()))
    return config, tmp_path / "weights.pth"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The command within this process, whose way of loading checkpoints it leaves alone."""
    monkeypatch.setattr("pixeldcl_plugin.utils.checkpoints.enable_safe_loading", lambda: None)
    monkeypatch.setattr("pixeldcl_plugin.engine.console.quiet_warnings", lambda: None)
    main = runpy.run_path(str(TOOL))["main"]
    return lambda *args: main([str(arg) for arg in args])


@pytest.mark.slow
def test_command(
    files: tuple[Path, Path],
    run_tool: Callable[..., subprocess.CompletedProcess[str]],
    command: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "model.pt2"
    arguments = (*files, "--format", "torch", "--out", out)
    done = run_tool(TOOL, *arguments)
    assert done.returncode == 0, done.stderr
    assert "parity on 1x3x10x12: max abs difference" in done.stdout
    assert f"wrote {out}" in done.stdout

    written = out.stat().st_mtime_ns
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --out '{out}' exists")
    assert out.stat().st_mtime_ns == written
    command(*arguments, "--overwrite")
    assert out.stat().st_mtime_ns > written


def test_command_fails_when_parity_does(
    files: tuple[Path, Path], command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.pt2"
    with pytest.raises(SystemExit) as exit_:
        command(*files, "--format", "torch", "--out", out, "--shape", 4, 4, "--tolerance", -1)
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert captured.out.count("parity on") == 2
    assert captured.err.startswith("error: the exported logits differ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(config="absent.py"), "no config file 'absent.py'"),
        (dict(checkpoint="absent.pth"), "no file 'absent.pth'"),
        (dict(checkpoint="README.md"), "cannot read checkpoint"),
        (dict(checkpoint=__file__), "needs a checkpoint after it"),
        (dict(out="absent/model.pt2"), "there is no folder 'absent'"),
        (dict(out="model.onnx"), "ends in '.pt2'"),
        (dict(shape=(9, 8)), "multiples of 2"),
    ],
)
def test_command_reports_user_errors(
    change: dict[str, Any],
    message: str,
    files: tuple[Path, Path],
    command: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = dict(config=files[0], checkpoint=files[1], out=tmp_path / "model.pt2", shape=(16, 16)) | change
    with pytest.raises(SystemExit) as exit_:
        command(
            given["config"], given["checkpoint"], "--format", "torch", "--out", given["out"],
            "--shape", *given["shape"],
        )  # fmt: skip
    assert exit_.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
