"""Flags and user errors of the commands."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from mmengine.config import Config
from mmengine.registry import MODELS

from pixeldcl_plugin import PixelDCL
from pixeldcl_plugin.engine import preflight
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.cli import UsageError

# What MMEngine refuses by an assertion, or parses without end.
BRACKETS = ("[(1,2)", ")1,2(", "[1,2]]", "(,)1,2(")


@pytest.mark.parametrize("seed", ["-1", "1.5", "x", str(2**32)])
def test_seed_must_fit_every_generator(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--seed", seed])
    assert stop.value.code == 2
    assert "2**32 - 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("novalue", "expected KEY=VALUE, got 'novalue'"),
        ("=3", "expected KEY=VALUE, got '=3'"),
        *((f"a={value}", f"the brackets in 'a={value}' do not match") for value in BRACKETS),
    ],
)
def test_malformed_option_is_a_usage_error(
    option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--cfg-options", "b=1", option])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument --cfg-options: {message}\n")


def test_options_are_mmengines() -> None:
    parser = argparse.ArgumentParser()
    cli.add_common_arguments(parser)
    args = parser.parse_args(
        ["--cfg-options", "a=[(1,2),(x,None)]", "b.c=1e-3", "d=k=v", "--cfg-options", "e="]
    )
    assert args.cfg_options == {"a": [(1, 2), ("x", None)], "b.c": 1e-3, "d": "k=v", "e": ""}


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (35, ["wrote a.pth, b.pth and c.png in", "work_dirs/run, maps"]),
        (0, ["wrote a.pth, b.pth and c.png in work_dirs/run, maps"]),
    ],
)
def test_a_folder_with_several_results_is_named_once(
    columns: int, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: bool(columns))
    monkeypatch.setenv("COLUMNS", str(columns))
    folder = Path.cwd() / "work_dirs/run"
    cli.report_written(folder / "a.pth", folder / "b.pth", "work_dirs/run/c.png", "maps")
    assert capsys.readouterr().out.splitlines() == [line.replace("/", os.sep) for line in lines]
    cli.report_written("a.csv", Path.cwd() / "b.csv")
    assert capsys.readouterr().out == "wrote a.csv and b.csv\n"


def _raise(error: Exception) -> None:
    raise error


@MODELS.register_module()
class FailsInside:
    """A model that a config can build, with a defect."""

    def __init__(self, width: int) -> None:
        if width < 0:
            raise ValueError(f"width {width}")
        raise TypeError(f"width {width}: got an unexpected keyword argument")


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda: MODELS.build(dict(type="NoSuchModel")), "no model is registered as 'NoSuchModel'"),
        (lambda: MODELS.build(dict(type="FailsInside", heigth=1)), "takes no 'heigth'; it takes width"),
        (lambda: MODELS.build(dict(type="FailsInside")), "'width'"),
        (lambda: MODELS.build(dict(type="PixelDCL", in_channels=3, out_channels=4, kernel_size=2)), "2"),
        (lambda: preflight.check_weights(Config(dict(model={}, load_from="no.pth"))), "no.pth"),
        (lambda: _raise(URLError("no route to host")), "no route to host"),
        (lambda: _raise(LocalEntryNotFoundError("no file in the cache\nmore")), "docs/configs.md"),
        (lambda: Path(__file__, "below a file").mkdir(), "below a file': Not a directory"),
        (lambda: Path(f"{'long' * 99}.png").touch(), "long.png': File name too long"),
        (lambda: _raise(OSError(errno.EROFS, "Read-only file system", b"/x/y")), "'/x/y': Read-only"),
        (lambda: _raise(OSError(errno.ENOSPC, "No space left on device")), "error: No space left on device"),
    ],
)
def test_user_errors_are_one_line(
    fail: Callable[[], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, cli.user_errors():
        fail()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "fail",
    [
        lambda: MODELS.build(dict(type="FailsInside", width=3)),
        lambda: {}["key"],
        lambda: Path("no such file").read_text(),
        lambda: PixelDCL(3, 4, kernel_size=2),  # By code, not by a config.
        lambda: MODELS.build(dict(type="FailsInside", width=-3)),  # Not of this package.
    ],
)
def test_defects_keep_their_traceback(fail: Callable[[], object]) -> None:
    with pytest.raises((TypeError, KeyError, ValueError, OSError)), cli.user_errors():
        fail()


def test_only_the_main_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), cli.user_errors():
        raise UsageError("nothing works")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_is_one_line_that_says_how_to_go_on(
    name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with (
        pytest.raises(SystemExit) as stop,
        cli.user_errors("take a break", "SIGTERM", "SIGHUP", "SIGNONE"),
    ):
        os.kill(os.getpid(), number)
    assert stop.value.code == code
    assert capsys.readouterr().err == "interrupted: take a break\n"
    assert signal.getsignal(number) == before


def test_an_interrupt_is_one_whatever_other_packages_make_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    def format_config() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except:  # noqa: E722  (as MMEngine's is)
            raise SyntaxError("Failed to format the config file") from None

    with pytest.raises(SystemExit) as stop, cli.user_errors("take a break"):
        format_config()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted: take a break\n"


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.user_errors("take a break", "SIGHUP"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("flag", ["--overwrite", "--force"])
def test_overwriting_has_one_name_and_an_old_one(flag: str) -> None:
    parser = argparse.ArgumentParser()
    cli.add_overwrite_argument(parser, "replace it")
    assert parser.parse_args([flag]).overwrite
    assert not parser.parse_args([]).overwrite
    assert "--force" not in parser.format_help()
