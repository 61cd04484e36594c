"""The comparison of checkpoints in pictures: what it chooses, where it looks, what it draws."""

from __future__ import annotations

import runpy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.registry import MODELS
from PIL import Image

from pixeldcl_plugin import Segmenter
from pixeldcl_plugin.apis import gallery
from pixeldcl_plugin.apis.gallery import Samples
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.visualization.disagreement import Column, Window, disagreement, disagreement_window
from pixeldcl_plugin.visualization.gallery_figure import draw

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/gallery.py"
Tool = Callable[..., tuple[int, str, str]]
PALETTE = np.array([[9, 9, 9], [200, 0, 0], [0, 0, 200]], np.uint8)
CLASSES = ("dark", "red", "blue")


@pytest.fixture(scope="module")
def models(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A config and two checkpoints of random weights."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.py").write_text(tiny_config_text)
    init_default_scope("mmseg")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = MODELS.build(Config.fromfile(folder / "tiny.py").model)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        torch.save(model.state_dict(), folder / f"{seed}.pth")
    return [folder / "tiny.py", folder / "0.pth", folder / "1.pth"]


@pytest.fixture
def segmenters(models: list[Path]) -> list[Segmenter]:
    config, *checkpoints = models
    return [Segmenter(config, checkpoint, "cpu") for checkpoint in checkpoints]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """Runs the tool within this process."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", OrderedDict(CheckpointLoader._schemes))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOL))["main"]([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def column(height: int = 20, width: int = 30) -> Column:
    """Two models that disagree in a 4x4 square, and void in a corner."""
    truth = np.zeros((height, width), np.uint8)
    truth[0, 0] = 255
    one, other = np.zeros_like(truth), np.zeros_like(truth)
    one[12:16, 20:24] = 1
    return Column(7, "street", np.full((height, width, 3), 50, np.uint8), truth, (one, other))


def test_disagreement_counts_pairs_outside_of_void() -> None:
    maps = [np.array([[0, 0, 0, 0]]), np.array([[0, 1, 1, 1]]), np.array([[0, 1, 2, 2]])]
    assert disagreement(maps).tolist() == [[0, 2, 3, 3]]
    assert disagreement(maps, np.array([[0, 0, 0, 255]])).tolist() == [[0, 2, 3, 0]]
    assert disagreement(maps[1:2], np.array([[0, 0, 1, 255]])).tolist() == [[0, 1, 0, 0]]


def test_the_window_lies_on_the_largest_sum() -> None:
    counts = np.zeros((50, 80), np.int32)
    counts[5:10, 60:68] = 1  # exactly as large as the window
    counts[40, 3] = 30
    assert disagreement_window(counts, 0.1) == Window(5, 60, 5, 8)
    counts[40, 3] = 41
    assert disagreement_window(counts, 0.1) == Window(36, 3, 5, 8)  # of those that hold it
    assert disagreement_window(np.zeros((11, 11), np.int32), 0.3) == Window(4, 4, 3, 3)
    assert disagreement_window(counts, 1) == Window(0, 0, 50, 80)
    for share in (0, 1.1, -1):
        with pytest.raises(ValueError, match="share must be within"):
            disagreement_window(counts, share)


def test_samples_are_the_images_and_labels_of_the_data(models: list[Path], tiny_data: Path) -> None:
    samples = Samples(Config.fromfile(models[0]), "val")
    assert len(samples) == 3
    name, image, truth = samples[1]
    with Image.open(tiny_data / "JPEGImages/val_1.jpg") as file:
        np.testing.assert_array_equal(image, np.array(file))
    with Image.open(tiny_data / "SegmentationClass/val_1.png") as file:
        np.testing.assert_array_equal(truth, np.array(file))
    assert name == "val_1"


def test_images_are_chosen(models: list[Path], segmenters: list[Segmenter]) -> None:
    samples = Samples(Config.fromfile(models[0]), "val")
    scores = []
    for _, image, truth in (samples[i] for i in range(3)):
        maps = [segmenter(image) for segmenter in segmenters]
        scores.append(((maps[0] != maps[1]) & (truth != 255)).mean())
    (worst,) = gallery.choose(samples, segmenters, count=1)
    assert worst.index == int(np.argmax(scores))
    assert max(scores) > min(scores)
    parts = gallery.choose(samples, segmenters, count=2)
    assert [c.index for c in parts] == [int(np.argmax(scores[:2])), 2]
    for segmenter, prediction in zip(segmenters, worst.predictions, strict=True):
        np.testing.assert_array_equal(prediction, segmenter(worst.image))

    assert [c.index for c in gallery.choose(samples, segmenters, indices=[2, 0])] == [2, 0]
    drawn = [c.index for c in gallery.choose(samples, segmenters, count=2, seed=5)]
    assert drawn == [c.index for c in gallery.choose(samples, segmenters, count=2, seed=5)]
    assert len(set(drawn)) == 2
    assert len(gallery.choose(samples, segmenters, count=9)) == 3
    for wrong in (3, -4):
        with pytest.raises(UsageError, match=rf"--indices: {wrong} is none of the data's images, 0 to 2"):
            gallery.choose(samples, segmenters, indices=[wrong])


def panels(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_rows_are_image_truth_and_models() -> None:
    one = column()
    figure = draw([one, column(30, 30)], ["deconvolution", "PixelDCL"], CLASSES, PALETTE)
    shown = panels(figure)
    assert len(shown) == 8
    np.testing.assert_array_equal(shown[0], one.image)
    assert shown[2][0, 0].tolist() == [224, 224, 224]  # void
    assert shown[4][12, 20].tolist() == [200, 0, 0]
    assert shown[6][12, 20].tolist() == [9, 9, 9]
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["image", "ground truth", "deconvolution", "PixelDCL"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dark", "red", "void"]


def test_images_of_any_shape_leave_no_gaps() -> None:
    maps = [(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)) for shape in ((40, 80), (80, 40))]
    figure = draw([Column(0, "x", image, None, [m]) for image, m in maps], ["a"], CLASSES, PALETTE, inset=0)
    figure.draw_without_rendering()
    wide, tall, below, _ = (axes.get_position() for axes in figure.axes)
    assert wide.height == pytest.approx(tall.height, rel=0.02)
    assert (wide.y0 - below.y1) * figure.get_figheight() < 0.3
    assert (tall.x0 - wide.x1) * figure.get_figwidth() < 0.3


def test_the_inset_shows_the_disagreement() -> None:
    figure = draw([column()], ["a", "b"], CLASSES, PALETTE, inset=0.2)
    insets = [np.asarray(c.images[0].get_array()) for axes in figure.axes for c in axes.child_axes]
    assert len(insets) == 4
    assert insets[2].shape == (4, 6, 3)
    assert (insets[2] == [200, 0, 0]).all(2).sum() == 16
    assert not draw([column()], ["a", "b"], CLASSES, PALETTE, inset=0).axes[0].child_axes


def test_data_without_labels_have_no_row_for_them() -> None:
    bare = Column(0, "x", column().image, None, column().predictions)
    figure = draw([bare], ["a", "b"], CLASSES, PALETTE)
    assert len(panels(figure)) == 3


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        draw([], ["a"], CLASSES, PALETTE)
    with pytest.raises(ValueError, match=r"2 predictions for the names \['a'\]"):
        draw([column()], ["a"], CLASSES, PALETTE)


def test_the_command_writes_a_picture_once(tool: Tool, models: list[Path], tmp_path: Path) -> None:
    config, one, other = models
    out = tmp_path / "gallery.png"
    args = (config, one, config, other, "--names", "one", "other", "--device", "cpu", "--out", out)
    code, stdout, stderr = tool(*args, "--indices", 1, 0)
    assert (code, stdout) == (0, f"wrote {out}: images 1 0 of val\n"), stderr
    with Image.open(out) as picture:
        assert min(picture.size) > 500
        assert len(picture.getcolors(2**24) or ()) > 10
    before = out.read_bytes()
    code, _, stderr = tool(*args)
    assert code == 2
    assert "exists" in stderr
    assert out.read_bytes() == before
    assert tool(*args, "--overwrite", "--count", 1, "--inset", 0)[0] == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--names", "a", "b"], "2 names for 1 models"),
        (["--out", "x.jpg"], "does not end in .png"),
        (["--out", "absent/x.png"], "there is no folder"),
        (["--count", "0"], "must be at least 1"),
        (["--inset", "2"], "--inset must be within 0 and 1"),
        (["--indices", "99"], "99 is none of"),
        (["--indices", "-1"], "-1 is none of"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_mistakes_are_one_line(
    tool: Tool, models: list[Path], tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "x.png"
    code, _, stderr = tool(*models[:2], "--out", out, *options)
    assert code == 2
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not out.exists()
    assert tool(*models, "--out", out)[0] == 2  # a checkpoint without its config
