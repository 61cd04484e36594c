"""tools/infer.py as a user runs it, and the planning of its files."""

from __future__ import annotations

import errno
import json
import runpy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.registry import MODELS
from PIL import Image

from pixeldcl_plugin import Segmenter
from pixeldcl_plugin.apis import folders as inference_folder
from pixeldcl_plugin.utils.cli import UsageError

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/infer.py"
Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.py").write_text(tiny_config_text)
    save_weights(folder / "tiny.py", folder / "tiny.pth", seed=0)
    return folder / "tiny.py", folder / "tiny.pth"


def save_weights(config: Path, file: Path, seed: int) -> None:
    init_default_scope("mmseg")
    torch.manual_seed(seed)
    network = MODELS.build(Config.fromfile(config).model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    torch.save(network.state_dict(), file)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six readable images of which two share a stem in one folder and two across folders."""
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg", "b.png", "deep/a.jpg", "deep/er/c.PNG", "d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        size = (24, 32, 3) if name != "d.png" else (40, 20, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not taken")
    return folder


@pytest.fixture
def infer(
    model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Tool:
    """Runs the tool within this process."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", OrderedDict(CheckpointLoader._schemes))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")

    def run(source: object, *args: object, checkpoint: Path = model[1]) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL))["main"]([str(a) for a in (model[0], checkpoint, source, *args)])
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content."""
    return {
        file.relative_to(folder).as_posix(): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_folder_becomes_overlays_labels_and_probabilities(
    infer: Tool, model: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = infer(
        pictures, "--out", out, "--probabilities", "--batch-size", 4, "--device", "cpu"
    )
    assert (code, stdout) == (0, f"wrote the results of 6 images to {out}\n"), stderr
    names = {"a", "b_jpg", "b_png", "d", "deep/a", "deep/er/c"}
    kinds = ("overlay.png", "labels.png", "probabilities.npz")
    assert set(files(out)) == {"infer.json"} | {f"{name}_{kind}" for name in names for kind in kinds}

    segmenter = Segmenter(*model, "cpu")
    for name, image in (("a", "a.jpg"), ("d", "d.png"), ("deep/er/c", "deep/er/c.PNG")):
        expected = segmenter(pictures / image)
        with Image.open(out / f"{name}_labels.png") as labels:
            np.testing.assert_array_equal(np.array(labels), expected)
            assert labels.getpalette()[:9] == [9, 9, 9, 200, 0, 0, 0, 0, 200]
        stored = np.load(out / f"{name}_probabilities.npz")
        assert stored["classes"].tolist() == ["dark", "red", "blue"]
        error = stored["probabilities"] / 255 - segmenter.probabilities(pictures / image)
        assert np.abs(error).max() < 0.5 / 255 + 1e-4
        with Image.open(pictures / image) as picture, Image.open(out / f"{name}_overlay.png") as overlay:
            half = np.asarray(picture) / 2 + segmenter.palette[expected] / 2
            assert np.abs(np.asarray(overlay) - half).max() <= 0.5


def test_a_broken_image_is_reported_and_the_rest_done(infer: Tool, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.jpg").write_bytes((pictures / "b.jpg").read_bytes()[:300])
    code, stdout, stderr = infer(pictures, "--out", tmp_path / "out", "--batch-size", 3)
    assert code == 1
    assert "wrote the results of 5 images" in stdout
    assert "1 failed" in stdout
    assert "skipped: cannot read" in stderr
    assert str(pictures / "a.jpg") in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "out/a_labels.png").exists()
    assert (tmp_path / "out/d_labels.png").exists()


def test_results_whose_names_are_too_long_fail_alone(infer: Tool, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.jpg").rename(pictures / f"{'a' * 240}.jpg")
    (pictures / "deep/a.jpg").rename(pictures / "deep/z.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/deep").write_text("in the way of a folder")
    for _ in range(2):
        code, stdout, stderr = infer(pictures, "--out", tmp_path / "out", "--batch-size", 3, "--resume")
        assert code == 1
        assert "3 failed" in stdout
        (line,) = [line for line in stderr.splitlines() if "aaa.jpg" in line]
        assert line.startswith("skipped: ")
        assert line.endswith("_overlay.png': File name too long")
        assert "/deep': File exists" in stderr or "/deep': Not a directory" in stderr
        assert "Traceback" not in stderr
    names = {name for name in files(tmp_path / "out") if name.endswith("_labels.png")}
    assert names == {"b_jpg_labels.png", "b_png_labels.png", "d_labels.png"}


def test_a_full_disk_is_one_line_and_the_rest_is_done_later(
    infer: Tool, pictures: Path, tmp_path: Path, limit_files: Callable[[int], Any]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "c.png")
    out = tmp_path / "out"
    full = OSError(errno.ENOSPC, "No space left on device")

    def fill(*args: object, **kwargs: object) -> None:
        raise full

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_folder.Path, "write_text", fill)
        code, _, stderr = infer(pictures, "--out", out)
    assert (code, stderr) == (2, f"error: '{out}/infer.json': No space left on device\n")
    assert files(out) == {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_folder, "_OF_ALL_FILES", (errno.EFBIG,))
        with limit_files(100_000):
            code, _, stderr = infer(pictures, "--out", out, "--resume")
    assert code == 2
    assert stderr.splitlines()[-1] == f"error: '{out}/c_overlay.png': File too large"
    assert "Traceback" not in stderr
    assert {name.partition("_")[0] for name in files(out)} == {"infer.json", "a", "b"}
    assert infer(pictures, "--out", out, "--resume")[0] == 0
    assert sum(name.endswith("_labels.png") for name in files(out)) == 7


def test_nothing_is_overwritten_unasked(infer: Tool, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert infer(pictures / "a.jpg", "--out", out)[0] == 0
    before = files(out)
    code, stdout, stderr = infer(pictures, "--out", out)
    assert (code, stdout) == (2, "")
    assert "2 results exist already" in stderr
    assert "--resume" in stderr
    assert stderr.count("\n") == 1
    assert files(out) == before

    code, stdout, _ = infer(pictures, "--out", out, "--resume")
    assert code == 0
    assert "1 of 6 images are done already" in stdout
    assert files(out)["a_labels.png"] == before["a_labels.png"]
    after = files(out)
    assert infer(pictures, "--out", out, "--resume")[1].startswith("6 of 6 images are done already")
    assert infer(pictures, "--out", out, "--overwrite")[0] == 0
    assert files(out)["a_labels.png"][0] > after["a_labels.png"][0]


def test_results_of_two_checkpoints_do_not_mix(
    infer: Tool, model: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.pth"
    save_weights(model[0], other, seed=1)
    assert infer(pictures / "a.jpg", "--out", out)[0] == 0
    code, _, stderr = infer(pictures, "--out", out, "--resume", checkpoint=other)
    assert code == 2
    assert "results of another checkpoint" in stderr
    assert infer(pictures, "--out", out, "--overwrite", checkpoint=other)[0] == 0
    assert json.loads((out / "infer.json").read_text())["checkpoint"] == str(other)


def test_a_glob_and_results_beside_the_images(infer: Tool, pictures: Path) -> None:
    out = pictures / "out"
    for _ in range(2):  # the second time the results are among what the folder holds
        assert infer(pictures, "--out", out, "--resume")[0] == 0
        assert sum(name.endswith("_labels.png") for name in files(out)) == 6
    code, _, _ = infer(f"{pictures}/**/a.*", "--out", pictures.parent / "globbed")
    assert code == 0
    assert {"a_labels.png", "deep/a_labels.png"} < set(files(pictures.parent / "globbed"))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("{pictures}/*.gif", [], "no image found"),
        ("{pictures}", ["--batch-size", "0"], "--batch-size must be at least 1"),
        ("{pictures}", ["--max-pixels", "9"], "max_pixels must be at least"),
        ("{pictures}", ["--device", "abacus"], "device 'abacus' cannot be used"),
        ("{pictures}", ["--overwrite", "--resume"], "give one of them"),
        ("{pictures}", ["--out", "{pictures}"], "is the folder of the images"),
        ("{pictures}", ["--out", "{pictures}/a.jpg"], "cannot be made"),
    ],
)
def test_mistakes_are_one_line(
    infer: Tool, pictures: Path, tmp_path: Path, source: str, options: list[str], message: str
) -> None:
    before = files(pictures)
    args = [text.replace("{pictures}", str(pictures)) for text in ["--out", f"{tmp_path}/out", *options]]
    code, _, stderr = infer(source.replace("{pictures}", str(pictures)), *args)
    assert code == 2
    assert message in stderr
    assert stderr.count("\n") == 1
    assert files(pictures) == before
    if "--device" in options:  # named before a folder is made
        assert not (tmp_path / "out").exists()


def test_an_unsafe_checkpoint_is_refused(infer: Tool, pictures: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save(dict(state_dict={}, extra=Payload()), tmp_path / "unsafe.pth")
    code, _, stderr = infer(pictures, "--out", tmp_path / "out", checkpoint=tmp_path / "unsafe.pth")
    assert code == 2
    assert "refused checkpoint" in stderr
    assert not (tmp_path / "ran").exists()


def test_names_that_would_collide_are_refused(tmp_path: Path) -> None:
    images = [tmp_path / name for name in ("b.jpg", "b.png", "b_png.jpg")]
    with pytest.raises(UsageError, match="rename one"):
        inference_folder.plan(tmp_path, images, tmp_path / "out", probabilities=False)
    (tmp_path / "x_labels.png").touch()
    with pytest.raises(UsageError, match="rename one"):
        inference_folder.plan(tmp_path, [tmp_path / "x.png", tmp_path / "x_labels.png"], tmp_path, False)


def test_probabilities_beyond_memory_are_refused(
    model: tuple[Path, Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_folder, "_MOST_PROBABILITIES", 1000)
    reported: list[str | None] = []
    (tmp_path / "out").mkdir()
    jobs = inference_folder.plan(pictures, [pictures / "a.jpg"], tmp_path / "out", probabilities=True)
    segmenter = Segmenter(*model, "cpu")
    assert inference_folder.segment(segmenter, jobs, report=lambda job, error: reported.append(error)) == 1
    assert "leave out --probabilities" in str(reported[0])
    assert not list((tmp_path / "out").iterdir())
