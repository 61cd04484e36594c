"""A trained model is frozen, and a guided upsampler is trained for it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model, init_model

from pixeldcl_plugin import Segmenter
from pixeldcl_plugin.apis.retrofit_config import find_guides
from pixeldcl_plugin.engine.builder import build_model
from pixeldcl_plugin.engine.random_state import RandomStateHook

ROOT = Path(__file__).parents[2]

#: The logits of the tiny U-Net are those of its bottom, at stride 4; an auxiliary head predicts nothing.
COARSE = """
model["decode_head"].update(in_index=0, in_channels=16)
model["auxiliary_head"] = dict(model["decode_head"], in_index=2, in_channels=4)
test_pipeline = [*load, dict(type="PackSegInputs")]
optim_wrapper["type"] = "BFloat16OptimWrapper"
"""


@pytest.fixture(scope="module")
def trained(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and a checkpoint whose weights no initialisation gives."""
    folder = tmp_path_factory.mktemp("trained")
    config, checkpoint = folder / "tiny.py", folder / "tiny.pth"
    config.write_text(tiny_config_text + COARSE)
    torch.manual_seed(3)
    model = build_model(Config.fromfile(config))
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) - 0.5 * (tensor.ndim > 1))
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    return config, checkpoint


@pytest.fixture(scope="module")
def tool() -> Any:
    """The command, as a module."""
    sys.path.insert(0, str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("retrofit_tool", ROOT / "tools/retrofit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


@pytest.fixture(scope="module")
def run(tool: Any, trained: tuple[Path, Path]) -> Callable[..., Path]:
    def call(work_dir: Path, *args: str, checkpoint: Path = trained[1]) -> Path:
        command = [str(trained[0]), str(checkpoint), "--work-dir", str(work_dir), "--iters", "6"]
        tool.main([*command, "--no-data-check", *args])
        return work_dir

    return call


@pytest.fixture(scope="module")
def done(run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a whole retrofit."""
    return run(tmp_path_factory.mktemp("retrofit") / "work")


def state(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["state_dict"]


def test_nothing_but_the_upsampler_changes(done: Path, trained: tuple[Path, Path]) -> None:
    before, after = state(trained[1]), state(done / "tiny-guided.pth")
    kept = {name for name in before if not name.startswith("auxiliary_head.")}
    new = after.keys() - kept
    assert kept <= after.keys()
    assert new
    assert all(name.startswith("decode_head.guided.") for name in new)
    for name in kept:
        assert torch.equal(before[name], after[name]), name
    predictions = [name for name in new if name.endswith("predict.weight")]
    assert len(predictions) == 1  # from stride 4; the doubling from stride 2 stays bilinear
    assert all(after[name].abs().sum() > 0 for name in predictions)  # they begin at zero


def test_scores_and_a_picture_are_left(done: Path, trained: tuple[Path, Path]) -> None:
    record = json.loads((done / "scores.json").read_text())
    assert (record["config"], record["checkpoint"]) == tuple(map(str, trained))
    assert record["iters"] == 6
    assert record["scale_factor"] == 2
    assert record["guide_index"] == [1]  # of the decoder's three outputs, the coarsest first
    assert set(record["classes"]) == {"dark", "red", "blue"}
    for when in ("before", "after"):
        values = [scores[when]["IoU"] for scores in record["classes"].values()]
        assert record[when]["mIoU"] == pytest.approx(np.mean([v for v in values if v is not None]), abs=0.01)
        assert 0 <= record[when]["mBIoU"] <= 100
    assert (done / "before_after.png").stat().st_size > 5000


def test_the_result_is_a_model_as_any_other(done: Path) -> None:
    config, checkpoint = str(done / "tiny-guided.py"), str(done / "tiny-guided.pth")
    cfg = Config.fromfile(config)
    picture = next((Path(cfg.train_dataloader.dataset.data_root) / "JPEGImages").iterdir())
    segmenter = Segmenter(config, checkpoint)
    labels = segmenter(picture)
    assert labels.shape == (32, 32)
    assert segmenter.classes == ("dark", "red", "blue")
    assert cfg.load_from is None
    assert "frozen" not in cfg.model
    assert all(p.requires_grad for p in segmenter.model.parameters())
    model = init_model(config, checkpoint, device="cpu")
    assert tuple(model.dataset_meta["classes"]) == ("dark", "red", "blue")
    answer = inference_model(model, str(picture)).pred_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(answer, labels)


def test_tools_test_scores_what_was_recorded(done: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("test_tool", ROOT / "tools/test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(done / "tiny-guided.py"), str(done / "tiny-guided.pth"), "--work-dir", str(tmp_path)])
    logged = next(tmp_path.glob("*/*.json")).read_text()
    recorded = json.loads((done / "scores.json").read_text())["after"]["mIoU"]
    assert json.loads(logged)["mIoU"] == pytest.approx(recorded, abs=0.01)


def test_a_killed_run_goes_on_to_the_same_weights(
    run: Callable[..., Path], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def stop(self: RandomStateHook, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RandomStateHook, "before_train_iter", stop)
        with pytest.raises(SystemExit) as end:
            run(tmp_path / "work")
    assert end.value.code == 130
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path / "work")
    assert "continue it with --resume" in capsys.readouterr().err
    run(tmp_path / "work", "--resume")
    first, second = (state(folder / "tiny-guided.pth") for folder in (done, tmp_path / "work"))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_other_weights_are_one_line(
    run: Callable[..., Path], done: Path, trained: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    weights = state(trained[1])
    other, changed = tmp_path / "other.pth", tmp_path / "changed.pth"
    torch.save({"state_dict": {k: v for k, v in weights.items() if not k.startswith("backbone.enc")}}, other)
    torch.save({"state_dict": {k: v + 1 for k, v in weights.items()}}, changed)
    for checkpoint, work_dir, flags, message in (
        (other, tmp_path / "work", [], "the weights are of another model: the file lacks 'backbone.enc"),
        (changed, done, ["--resume"], "it is of another checkpoint than"),
    ):
        with pytest.raises(SystemExit) as end:
            run(work_dir, *flags, checkpoint=checkpoint)
        assert end.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
        assert len([line for line in lines if "error" in line]) == 1
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('model["decode_head"].update(in_index=2, in_channels=4)', "as large as the image"),
        ('model["type"] = "VAE"', "must be of type EncoderDecoder or CascadeEncoderDecoder, got VAE"),
    ],
)
def test_what_cannot_be_guided_is_one_line(
    trained: tuple[Path, Path], tool: Any, change: str, message: str, tmp_path: Path, capsys
) -> None:
    config, checkpoint = tmp_path / "other.py", tmp_path / "other.pth"
    config.write_text(trained[0].read_text() + change + '\nmodel["auxiliary_head"] = None\n')
    if "VAE" not in change:
        torch.save({"state_dict": build_model(Config.fromfile(config)).state_dict()}, checkpoint)
    else:
        torch.save({"state_dict": {"a": torch.zeros(1)}}, checkpoint)
    with pytest.raises(SystemExit) as end:
        tool.main([str(config), str(checkpoint), "--work-dir", str(tmp_path / "work")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("guide", "expected"), [("features", (4, (0, "image"))), ("image", (4, ("image",)))])
def test_guides_are_the_first_features_at_the_strides_of_the_steps(guide: str, expected: tuple) -> None:
    cfg = Config.fromfile(ROOT / "configs/voc12aug/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py")
    cfg.model.backbone.depth = 18
    cfg.model.backbone.type = "ResNetV1c"
    cfg.model.decode_head.update(in_channels=512, channels=8)
    cfg.model.pop("auxiliary_head")
    cfg.model.test_cfg = dict(mode="whole")
    guides = find_guides(build_model(cfg), guide)
    assert (guides.scale_factor, guides.guide_index) == expected
    assert guides.guide_channels == ((64, 3) if guide == "features" else (3,))


def test_a_cascade_is_guided_at_its_last_head(
    trained: tuple[Path, Path], tool: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = tmp_path / "cascade.py", tmp_path / "cascade.pth"
    config.write_text(
        trained[0].read_text()
        + 'del model["auxiliary_head"]\n'
        + 'model.update(type="CascadeEncoderDecoder", num_stages=2)\n'
        'model["decode_head"] = [model["decode_head"], dict(\n'
        '    type="OCRHead", in_index=0, in_channels=16, channels=8, ocr_channels=8, num_classes=3,\n'
        "    norm_cfg=norm_cfg, align_corners=True)]\n"
    )
    stock = build_model(Config.fromfile(config)).state_dict()
    torch.save({"state_dict": stock}, checkpoint)
    tool.main([str(config), str(checkpoint), "--work-dir", str(tmp_path / "work"), "--iters", "2"])
    written = f"cascade-guided.py, cascade-guided.pth and before_after.png in {tmp_path / 'work'}"
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {written}"
    after = state(tmp_path / "work/cascade-guided.pth")
    assert all(name.startswith("decode_head.1.guided.") for name in after.keys() - stock.keys())
    assert all(torch.equal(after[name], tensor) for name, tensor in stock.items())
    labels = Segmenter(*(tmp_path / f"work/cascade-guided{suffix}" for suffix in (".py", ".pth")))(
        np.zeros((32, 32, 3), np.uint8)
    )
    assert labels.shape == (32, 32)
