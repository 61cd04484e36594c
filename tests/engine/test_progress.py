"""A training on a terminal shows one line; elsewhere its log stays as it is."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from rich.console import Console

from pixeldcl_plugin.engine import progress

TRAIN = "Iter(train) [2/4]  lr: 1.0e-02  eta: 0:00:01  loss: 0.5000"
VAL = "Iter(val) [1/2]  eta: 0:00:01  time: 0.1"
SCORES = "Iter(val) [2/2]  aAcc: 90.0  mIoU: 50.0"


class Training:
    """Goes through the hooks as a runner does, and logs as MMEngine does."""

    def __init__(self) -> None:
        self.logger = logging.Logger("training")
        self.logger.addHandler(logging.StreamHandler(sys.stdout))
        self.hooks: list[Hook] = []
        self.iter, self.max_iters, self.val_dataloader = 0, 4, range(2)
        self.message_hub = MessageHub("progress")

    def register_hook(self, hook: Hook, priority: str) -> None:
        self.hooks.append(hook)

    def call(self, name: str, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, name)(self, *args)

    def train(self, fails: bool = False) -> None:
        self.call("before_train")
        for self.iter in range(4):
            self.message_hub.update_scalar("train/loss", 1.0 - 0.25 * self.iter)
            self.call("after_train_iter", 0)
            if fails:
                raise KeyboardInterrupt
        self.logger.info(TRAIN)
        self.call("before_val")
        self.call("after_val_iter", 0)
        self.logger.info(VAL)
        self.logger.info(SCORES)
        self.call("after_val")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda: console)
    return shown


def test_a_terminal_shows_one_line(terminal: io.StringIO) -> None:
    training = Training()
    with progress.progress_shown(training):  # type: ignore[arg-type]
        training.train()
        bar = training.hooks[0]._progress  # type: ignore[attr-defined]
        (task,) = bar.tasks
        assert (task.completed, task.total, task.fields["loss"]) == (4, 4, "loss 0.6250")
        bar.refresh()
    text = terminal.getvalue()
    assert SCORES in text
    assert not any(line in text for line in (TRAIN, VAL))
    lines = [line for line in text.replace("\r", "\n").split("\n") if "training" in line]
    assert lines
    assert "4/4" in lines[-1]
    assert "loss 0.6250" in lines[-1]
    assert "0:00:00" in lines[-1]
    assert len(lines[-1].rpartition("\x1b[2K")[2]) <= 80


def test_an_interrupt_gives_the_terminal_back(terminal: io.StringIO, capsys: pytest.CaptureFixture) -> None:
    training = Training()
    with pytest.raises(KeyboardInterrupt), progress.progress_shown(training):  # type: ignore[arg-type]
        training.train(fails=True)
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # the cursor
    training.logger.info(TRAIN)
    assert TRAIN in capsys.readouterr().out


def test_a_file_gets_plain_lines(capsys: pytest.CaptureFixture) -> None:
    training = Training()
    with progress.progress_shown(training):  # type: ignore[arg-type]
        training.train()
    assert training.hooks == []
    assert capsys.readouterr().out == f"{TRAIN}\n{VAL}\n{SCORES}\n"
