"""What every command shows: one line on an interrupt, tables of 80 columns, where results are at the end."""

from __future__ import annotations

import io
import logging
import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pixeldcl_plugin.analysis import stock_report
from pixeldcl_plugin.analysis.stock_configs import Outcome
from pixeldcl_plugin.utils import cli, quiet
from pixeldcl_plugin.utils.cli import UsageError

ROOT = Path(__file__).parents[2]
#: Command, the function that does its work, arguments that its parser takes, and how it goes on.
COMMANDS = {
    "train": ("train", ["a.py"], "the same command with --resume goes on from the last checkpoint"),
    "test": ("test", ["a.py", "b.pth"], "run the same command again, with --overwrite where results"),
    "retrofit": ("retrofit", ["a.py", "b.pth"], "the same command with --resume goes on from the last"),
    "study": ("run", ["a.yaml"], "the same command goes on where it was"),
    "benchmark": ("run", ["layer"], "run the same command again, with --overwrite where cases"),
    "infer": ("infer", ["a.py", "b.pth", "x.jpg", "--out", "o"], "the same command with --resume does the"),
    "publish": (
        "run",
        ["a.pth", "a.py", "--metrics", "mIoU=1", "--data", "d", "--licence", "l"],
        "run the same command again",
    ),
    "stock_configs": ("run", ["--out", "o.csv"], "the same command with --resume does the configs that are"),
    "gallery": ("run", ["a.py", "b.pth", "--out", "o.png"], "run the same command again"),
    "export": ("run", ["a.py", "b.pth", "--format", "onnx", "--out", "o.onnx"], "run the same command again"),
    "sample": ("sample", ["a.py", "b.pth", "--out", "o"], "run the same command again, with --overwrite"),
    "analyze_checkerboard": ("run", ["--layer", "PixelDCL", "--out", "o"], "run the same command again"),
    "demo": ("run", ["--models", "a", "b"], "the same command serves the page again"),
    "convert_timm_weights": ("convert", [], "run the same command again"),
    "dataset_converters/coco_detection": (
        "paint",
        ["a.json", "--images", "i", "--out", "o"],
        "the same command goes on where it was",
    ),
    "dataset_converters/voc_folder": ("write_folder", ["s", "--out", "o"], "remove what it wrote and run it"),
    "dataset_converters/photo_mosaic": ("convert", ["--out", "o"], "the same command goes on where it was"),
}


def test_every_command_is_looked_at() -> None:
    tools = ROOT / "tools"
    files = {file.relative_to(tools).with_suffix("").as_posix() for file in tools.rglob("[!_]*.py")}
    assert files == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_is_one_line_that_says_how_to_go_on(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    work, arguments, to_go_on = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    tool = runpy.run_path(str(ROOT / f"tools/{command}.py"))

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(tool["main"].__globals__, work, interrupted)
    with pytest.raises(SystemExit) as stop:
        tool["main"](arguments)
    assert stop.value.code == 130
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"interrupted: {to_go_on}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / f"tools/{command}.py"))["parse_args"](["--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


def test_paths_are_shown_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert cli.shown(folder / "work_dirs/a.pth") == str(Path("work_dirs/a.pth"))
    assert cli.shown("work_dirs/a.pth") == str(Path("work_dirs/a.pth"))
    assert cli.shown("../project/a.pth") == "a.pth"
    assert cli.shown("../a.pth") == cli.shown(tmp_path / "a.pth") == str(tmp_path / "a.pth")


def test_trying_stock_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tool = runpy.run_path(str(ROOT / "tools/stock_configs.py"))["main"]
    command = ["--only", "maskformer/*", "--out", "found/o.csv"]
    tool(command)
    found = (tmp_path / "found/o.csv").read_text()
    out = capsys.readouterr().out
    assert out.count("MaskFormerHead leaves no logits to be resized") == 5  # of four configs, and the table
    assert out.splitlines()[-1] == f"wrote {Path('found/o.csv')}: 0 of 4 configs pass every stage"
    with pytest.raises(SystemExit, match="2"):
        tool(command)
    assert "--resume" in capsys.readouterr().err
    (tmp_path / "found/o.csv").write_text("\n".join(found.splitlines()[:3]) + "\n")
    tool([*command, "--resume"])
    assert (tmp_path / "found/o.csv").read_text() == found
    assert capsys.readouterr().out.count("MaskFormerHead") == 3


def test_the_outcomes_of_stock_configs(tmp_path: Path) -> None:
    reason = "ModuleNotFoundError: No module named 'mmcv._ext', which the operators of this head need " * 2
    outcomes = [
        Outcome("fcn/a.py", "EncoderDecoder", "FCNHead", "predict"),
        Outcome("fcn/b.py", "EncoderDecoder", "FCNHead", "loss", "RuntimeError: x"),
        Outcome("ccnet/c.py", "EncoderDecoder", "CCHead", "build", reason),
        Outcome("ccnet/d.py", "", "", "", reason),
    ]
    counts = {"ccnet": [2, 1, 0, 0, 0], "fcn": [2, 2, 2, 1, 1]}
    assert stock_report.count_by_family(outcomes) == counts
    text = io.StringIO()
    stock_report.print_tables(outcomes, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(reason.split()) in " ".join(text.getvalue().split())
    assert ["all", "4", "3", "2", "1", "1"] in [line.split() for line in lines]
    file = tmp_path / "o.csv"
    rows = {o.config: stock_report.Row(o, {"date": "2026-01-01"}) for o in outcomes}
    stock_report.write(file, rows)
    assert stock_report.read(file) == rows
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="no file of outcomes"):
        stock_report.read(file)


def test_what_a_user_can_do_nothing_about_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        quiet.quiet_warnings()
        for message in (*quiet.HIDDEN_WARNINGS, "mask of another size"):
            warnings.warn(f"{message} and more", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["mask of another size and more"]
    for name, beginning in quiet.HIDDEN_LINES.items():
        logger = logging.getLogger(name)
        logger.addHandler(caplog.handler)  # for torch's loggers do not propagate
        logger.warning("%s, using this", beginning)
        logger.warning("something else")
        logger.removeHandler(caplog.handler)
        assert set(caplog.messages) == {"something else"}
