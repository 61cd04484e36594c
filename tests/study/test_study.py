"""Studies: what is run, that nothing is lost or repeated, and what the table says."""

from __future__ import annotations

import io
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from scipy import stats

from pixeldcl_plugin.study import (
    ResultFile,
    Run,
    Selection,
    Study,
    choose_learning_rates,
    find_run,
    load_study,
    results_of,
    run_all,
    run_config,
    runs_left,
    summarise,
    write_summary,
)
from pixeldcl_plugin.study.configs import fingerprint, held_out_indices
from pixeldcl_plugin.study.execute import _StepTimer, validation_history
from pixeldcl_plugin.study.report import difference_table, markdown_table
from pixeldcl_plugin.study.summary import difference, last_change, paired_interval
from pixeldcl_plugin.utils.cli import UsageError, user_errors

ROOT = Path(__file__).parents[2]


@pytest.fixture
def raw(tiny_config: Path, tmp_path: Path) -> dict[str, Any]:
    """A study of two upsamplers with two seeds, as the YAML file says it."""
    return {
        "name": "tiny",
        "config": str(tiny_config),
        "out": str(tmp_path / "out"),
        "seeds": [0, 1],
        "reference": "deconv-k4",
        "options": {"train_cfg.max_iters": 4, "train_cfg.val_interval": 2},
        "arms": {
            "deconv-k4": {"upsampler": {"type": "DeconvModule", "kernel_size": 4}},
            "pixeldcl": {"upsampler": {"type": "PixelDCL"}, "seeds": [0, 1, 2]},
        },
    }


def _write(raw: dict[str, Any], folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def _row(arm: str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    row = {"arm": arm, "seed": seed, "mIoU": score, "learning_rate": 0.01, "stage": "main", "parameters": 2e6}
    return {**row, "fingerprint": "0", **more}


def test_runs_take_one_seed_of_every_arm_in_turn(raw: dict[str, Any], tmp_path: Path) -> None:
    study = load_study(_write(raw, tmp_path))
    assert [run.key for run in study.runs()] == [
        "deconv-k4_seed0",
        "pixeldcl_seed0",
        "deconv-k4_seed1",
        "pixeldcl_seed1",
        "pixeldcl_seed2",
    ]
    assert study.selection_runs() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("arms"), "'arms' is missing"),
        (lambda raw: raw.update(referense=1), r"unknown keys \['referense'\]"),
        (lambda raw: raw.update(reference="nobody"), "'nobody' is none of the arms"),
        (lambda raw: raw.update(also_compare_to=["deconv-k4", "x"]), "also_compare_to 'x' is none of"),
        (lambda raw: raw.update(seeds=[0, 0]), "different integers"),
        (lambda raw: raw.update(name="a/b"), "'a/b'"),
        (lambda raw: raw["arms"].update(odd=3), "must be a mapping, got 3"),
        (lambda raw: raw["arms"]["pixeldcl"].update(learning_rate_of="x"), "learning_rate_of 'x'"),
        (lambda raw: raw.update(learning_rate={"grid": ["1e-3"]}), "such as 1.0e-3"),
        (lambda raw: raw.update(learning_rate={"grid": [0.1], "held_out": 1.5}), "1.5"),
        (lambda raw: raw.update(learning_rate={"grid": [0.1], "widen": 1}), "a grid of two rates"),
        (lambda raw: raw.update(learning_rate={"grid": [0.1, 0.2], "widen": -1}), "at least 0"),
        (lambda raw: raw.pop("config"), "names a config"),
    ],
)
def test_mistakes_in_a_study_are_named(
    raw: dict[str, Any], tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(raw)
    with pytest.raises(UsageError, match=message):
        load_study(_write(raw, tmp_path))


def test_an_absent_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no study .*absent\.yaml"):
        load_study(tmp_path / "absent.yaml")
    for content in (b"a: [1", b"\x80\x00\xff", b"name: \x07"):
        (tmp_path / "broken.yaml").write_bytes(content)
        with pytest.raises(UsageError, match="is no YAML"):
            load_study(tmp_path / "broken.yaml")


@pytest.mark.parametrize("out", ["taken", "taken/below"])
def test_results_cannot_go_where_a_file_is(raw: dict[str, Any], tmp_path: Path, out: str) -> None:
    (tmp_path / "taken").write_text("mine")
    raw["out"] = str(tmp_path / out)
    with pytest.raises(UsageError, match=f"out .*{out}'.*taken' is a file"):
        load_study(_write(raw, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,price\nspoon,3\n", "has None for 'arm'"),
        (b"arm,stage,seed,learning_rate,mIoU,fingerprint\na,main,x,0.1,5,0\n", "has 'x' for 'seed'"),
        (b"arm,stage,seed,learning_rate,mIoU,fingerprint\na,main\n", "has None for 'seed'"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is no result file of a study"),
    ],
)
def test_a_foreign_result_file_is_left_alone(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tiny.csv").write_bytes(content)
    with pytest.raises(UsageError, match=message) as refusal:
        ResultFile(tmp_path / "tiny.csv")
    assert "tiny.csv" in str(refusal.value)
    assert (tmp_path / "tiny.csv").read_bytes() == content


def test_a_dry_run_names_what_a_run_would_stumble_over(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    main = runpy.run_path("tools/study.py")["main"]
    for kind, code in (("PixelDCL", 0), ("PixelDLC", 2)):
        raw["arms"]["pixeldcl"]["upsampler"]["type"] = kind
        with pytest.raises(SystemExit) as stop:
            main([str(_write(raw, tmp_path)), "--dry-run"])
        assert stop.value.code == code
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "pixeldcl_seed2"
    assert err.startswith("error: ")
    assert "'PixelDLC'" in err
    assert "did you mean 'PixelDCL'" in err
    assert err.count("\n") == 1


def test_run_config_replaces_the_upsampler_whole(raw: dict[str, Any], tmp_path: Path) -> None:
    study = load_study(_write(raw, tmp_path))
    first, second, *_ = (run_config(study, run) for run in study.runs())
    assert first.model.backbone.upsample_cfg == dict(type="DeconvModule", kernel_size=4)
    assert second.model.backbone.upsample_cfg == dict(type="PixelDCL")
    assert first.train_cfg.max_iters == 4
    assert first.default_hooks.checkpoint.save_best is None
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) == fingerprint(run_config(study, study.runs()[0]))


def test_selection_validates_on_a_part_of_the_training_set(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["learning_rate"] = {"grid": [0.001, 0.01], "held_out": 0.5, "options": {"train_cfg.max_iters": 2}}
    raw["arms"]["kaiming"] = {
        "upsampler": {"type": "PixelDCL", "init": "kaiming"},
        "learning_rate_of": "pixeldcl",
    }
    study = load_study(_write(raw, tmp_path))
    runs = study.selection_runs()
    assert [(run.arm.name, run.lr) for run in runs] == [
        ("deconv-k4", 0.001),
        ("deconv-k4", 0.01),
        ("pixeldcl", 0.001),
        ("pixeldcl", 0.01),
    ]
    cfg = run_config(study, runs[0])
    train, held_out = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert held_out.ann_file == train.ann_file
    assert sorted(train["indices"] + held_out["indices"]) == list(range(6))
    assert len(held_out["indices"]) == 3
    assert held_out.pipeline[-2].type != "PhotoMetricDistortion"
    assert cfg.optim_wrapper.optimizer.lr == 0.001
    assert cfg.train_cfg.max_iters == 2

    # Only what has been chosen is compared, and an arm may take over another's rate.
    results = results_of(study)
    assert {run.key for run in runs_left(study)} == {run.key for run in runs}
    for run, score in zip(runs, (1.0, 2.0, 5.0, 5.0), strict=True):
        identity = fingerprint(run_config(study, run))
        results.add(_row(run.arm.name, 0, score, learning_rate=run.lr, stage="select", fingerprint=identity))
    assert choose_learning_rates(study, results.rows) == {"deconv-k4": 0.01, "pixeldcl": 0.001}
    rates = {(run.arm.name, run.lr) for run in runs_left(study)}
    assert rates == {("deconv-k4", 0.01), ("pixeldcl", 0.001), ("kaiming", 0.001)}
    assert find_run(study, "kaiming_lr0.001_seed0").lr == 0.001
    with pytest.raises(UsageError, match="no run 'x'"):
        find_run(study, "x")


@pytest.mark.parametrize(("count", "fraction"), [(367, 0.2), (3131, 0.2), (2, 0.5), (7, 0.01), (5, 0.99)])
def test_held_out_blocks(count: int, fraction: float) -> None:
    chosen = held_out_indices(count, fraction)
    assert chosen == sorted(set(chosen))
    assert 0 < len(chosen) < count
    if count > 100:
        assert len(chosen) == pytest.approx(fraction * count, rel=0.05)
        assert np.count_nonzero(np.diff(chosen) > 1) < 20  # blocks, not single images


@pytest.mark.parametrize(
    ("scores", "beyond"),
    [
        ({1e-3: 5.0, 2e-3: 6.0}, None),  # the grid comes first
        ({1e-3: 5.0, 2e-3: 6.0, 4e-3: 4.0}, None),
        ({1e-3: 5.0, 2e-3: 6.0, 4e-3: 7.0}, 8e-3),
        ({1e-3: 5.0, 2e-3: 6.0, 4e-3: 7.0, 8e-3: 6.9}, None),
        ({1e-3: 5.0, 2e-3: 6.0, 4e-3: 7.0, 8e-3: 7.1}, 1.6e-2),
        ({1e-3: 5.0, 2e-3: 6.0, 4e-3: 7.0, 8e-3: 7.1, 1.6e-2: 7.2}, None),  # two were added
        ({1e-3: 5.0, 2e-3: 5.0, 4e-3: 4.0}, 5e-4),  # of equals the smaller
        ({5e-4: 1.0, 1e-3: 5.0, 2e-3: 5.0, 4e-3: 4.0}, None),
    ],
)
def test_the_grid_widens_where_its_end_is_best(scores: dict[float, float], beyond: float | None) -> None:
    grid = (1e-3, 2e-3, 4e-3)
    assert Selection(grid, widen=2).rates(scores) == [*grid, *([] if beyond is None else [beyond])]
    assert Selection(grid).rates(scores) == list(grid)


def test_a_widened_rate_is_run_before_the_arm_is_compared(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["learning_rate"] = {"grid": [1.0e-3, 2.0e-3], "widen": 1, "held_out": 0.5}
    study = load_study(_write(raw, tmp_path))
    results = results_of(study)
    for run in runs_left(study, ["pixeldcl"]):
        results.add(_selected(study, run, 1e3 * run.lr))
    (further,) = runs_left(study, ["pixeldcl"])
    assert further.key == "select_pixeldcl_lr0.004_seed0"
    assert find_run(study, further.key) == further
    results.add(_selected(study, further, 9.0))
    # Nothing beyond: one rate was allowed.
    assert {run.lr for run in runs_left(study, ["pixeldcl"])} == {0.004}


def _selected(study: Study, run: Run, score: float) -> dict[str, Any]:
    made_by = fingerprint(run_config(study, run))
    return _row(run.arm.name, run.seed, score, stage="select", learning_rate=run.lr, fingerprint=made_by)


def test_a_history_is_read_over_all_starts_of_a_run(tmp_path: Path) -> None:
    logs = {"a": (5, [(10, 1.0), (20, 2.0)]), "b": (15, [(20, 2.5), (30, 3.0)])}
    for start, (first, entries) in logs.items():
        log = tmp_path / start / "vis_data/scalars.json"
        log.parent.mkdir(parents=True)
        lines = [json.dumps({"loss": 1.0, "step": first})]
        lines += [json.dumps({"mIoU": score, "step": step}) for step, score in entries]
        log.write_text("\n".join([*lines, '{"mIoU": 7']))
    assert validation_history(tmp_path) == {10: 1.0, 20: 2.5, 30: 3.0}


@pytest.mark.parametrize(
    ("history", "change"), [("", None), ("5:1.0", None), ("5:1.00 10:3.50", 2.5), ("5:9 10:4 15:3", -1)]
)
def test_last_change(history: str, change: float | None) -> None:
    assert last_change(history) == change


def test_a_row_of_another_configuration_is_refused(raw: dict[str, Any], tmp_path: Path) -> None:
    study = load_study(_write(raw, tmp_path))
    results = results_of(study)
    run = study.runs()[0]
    results.add(_row("deconv-k4", 0, 1.0, fingerprint="other"))
    assert ResultFile(results.path).rows == results.rows
    with pytest.raises(UsageError, match="made by another configuration"):
        runs_left(study)
    assert results.find(run, "other") is not None


def test_unknown_arms_are_named(raw: dict[str, Any], tmp_path: Path) -> None:
    study = load_study(_write(raw, tmp_path))
    assert {run.arm.name for run in runs_left(study, ["pixeldcl"])} == {"pixeldcl"}
    with pytest.raises(UsageError, match=r"no arms \['x'\]"):
        runs_left(study, ["x"])


def test_paired_interval_is_students() -> None:
    differences = np.random.default_rng(0).normal(1.0, 2.0, 6).tolist()
    mean, (low, high) = paired_interval(differences)
    expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(differences))
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert paired_interval([1.0]) == (1.0, (-math.inf, math.inf))
    assert math.isnan(paired_interval([])[0])


def test_summary_pairs_equal_seeds_only(raw: dict[str, Any], tmp_path: Path) -> None:
    study = load_study(_write(raw, tmp_path))
    rows = [_row("deconv-k4", 0, 10.0), _row("deconv-k4", 1, 30.0)]
    rows += [_row("pixeldcl", 0, 12.0), _row("pixeldcl", 1, 31.0), _row("pixeldcl", 2, 99.0)]
    rows += [_row("pixeldcl", 0, 1.0, stage="select")]
    summaries = summarise(study, rows)
    deconv, pixeldcl = summaries["deconv-k4"], summaries["pixeldcl"]
    assert deconv.mean("mIoU") == 20.0
    assert pixeldcl.mean("mIoU") == pytest.approx((12 + 31 + 99) / 3)
    gain = difference(pixeldcl, deconv)
    assert (gain.mean, gain.pairs) == (pytest.approx(1.5), 2)
    table = markdown_table(study, summaries)
    assert "+1.50 [-4.85, +7.85]" in table
    assert "| 2.00 |" in table  # parameters in millions
    timed = [{**rows[0], "train_ms": 4.0}, {**rows[1], "train_ms": math.nan}]  # resumed at its end
    assert summarise(study, timed)["deconv-k4"].mean("train_ms") == 4.0
    flattened = summarise(study, [{**row, "history": "1:3.00 2:4.25"} for row in rows])
    assert "+1.25 [+1.25, +1.25]" in markdown_table(study, flattened)
    study.out.mkdir()
    timed = [{**row, "mBIoU": 5.0, "predict_ms": 7.0} for row in rows]
    (*_, cost) = write_summary(study, timed)
    assert cost.name == "tiny_cost.png"
    assert cost.stat().st_size
    written = write_summary(study, rows)
    assert [path.name for path in written] == ["tiny.md", "tiny.png"]
    assert all(path.stat().st_size for path in written)
    assert written[0].read_text() == table


def test_arms_are_compared_to_further_ones(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["also_compare_to"] = ["pixeldcl"]
    study = load_study(_write(raw, tmp_path))
    rows = [_row("deconv-k4", seed, 10.0 * seed, mBIoU=5.0 + seed) for seed in (0, 1)]
    rows += [_row("pixeldcl", 0, 2.0, mBIoU=4.0), _row("pixeldcl", 1, 9.0, mBIoU=math.nan)]
    table = difference_table(study, summarise(study, rows))
    head, _, first, second = table.splitlines()
    assert "| mIoU minus pixeldcl [95 %] | Boundary IoU minus pixeldcl [95 %] |" in head
    assert first == "| pixeldcl | reference | reference |"
    # -2 and +1; a seed without a finite score is no pair.
    assert second == "| deconv-k4 | -0.50 [-19.56, +18.56] | too few pairs |"
    study.out.mkdir()
    assert write_summary(study, rows)[0].read_text().endswith("\n\n" + table)


def test_summary_takes_the_chosen_rate_only(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["learning_rate"] = {"grid": [0.01, 0.02]}
    raw["arms"]["pixeldcl-kaiming"] = {**raw["arms"]["pixeldcl"], "learning_rate_of": "pixeldcl"}
    study = load_study(_write(raw, tmp_path))
    rows = [
        _row("deconv-k4", 0, 10.0),
        _row("pixeldcl", 0, 1.0, learning_rate=0.02),
        _row("pixeldcl", 0, 7.0),
    ]
    rows += [
        _row("pixeldcl", 0, score, stage="select", learning_rate=lr) for lr, score in ((0.01, 2), (0.02, 1))
    ]
    rows += [_row("pixeldcl-kaiming", 0, 3.0, learning_rate=0.02), _row("pixeldcl-kaiming", 0, 4.0)]
    rows += rows[1:2]  # whichever stands last in the file
    assert {name: s.mean("mIoU") for name, s in summarise(study, rows).items()} == {
        "deconv-k4": 10.0,
        "pixeldcl": 7.0,
        "pixeldcl-kaiming": 4.0,
    }


def _script(folder: Path, body: str) -> Callable[[Run], list[str]]:
    path = folder / "run.py"
    path.write_text(f"import json, os, sys, time\nfrom pathlib import Path\nkey = sys.argv[1]\n{body}\n")
    return lambda run: [sys.executable, str(path), run.key]


def test_pool_runs_each_once_and_goes_on_after_a_failure(raw: dict[str, Any], tmp_path: Path) -> None:
    study = load_study(_write(raw, tmp_path))
    body = f"""
folder = Path({str(tmp_path)!r}) / "work" / key
assert os.environ["OMP_NUM_THREADS"] == "1"
with (folder / "calls").open("a") as file: file.write("x")
if key == "pixeldcl_seed1": sys.exit("out of luck")
(folder / "result.json").write_text(json.dumps(dict(key=key)))
"""
    rows: list[str] = []
    console = Console(file=(tmp_path / "shown.txt").open("w"), width=200)
    failed = run_all(
        study.runs(),
        lambda run: 4,
        _script(tmp_path, body),
        lambda run: tmp_path / "work" / run.key,
        lambda run, row: rows.append(row["key"]),
        processes=2,
        console=console,
    )
    assert [run.key for run in failed] == ["pixeldcl_seed1"]
    assert sorted(rows) == sorted(run.key for run in study.runs() if run not in failed)
    assert all((tmp_path / "work" / run.key / "calls").read_text() == "x" for run in study.runs())
    console.file.close()
    assert "failed pixeldcl_seed1: out of luck" in (tmp_path / "shown.txt").read_text()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_study_that_is_stopped_ends_its_processes(
    raw: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(_write(raw, tmp_path))
    # One of them will not go.
    body = """
import signal
if key == "pixeldcl_seed0": signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path("{folder}", key).write_text(str(os.getpid()))
time.sleep(100)
""".replace("{folder}", str(tmp_path))
    monkeypatch.setattr("pixeldcl_plugin.study.pool.POLL", 0.05)
    monkeypatch.setattr("pixeldcl_plugin.study.pool.PATIENCE", 0.5)
    started = [tmp_path / "deconv-k4_seed0", tmp_path / "pixeldcl_seed0"]

    def stop() -> None:
        while not all(file.is_file() and file.read_text() for file in started):
            time.sleep(0.02)
        os.kill(os.getpid(), getattr(signal, name))

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit) as ended, user_errors("go on", "SIGTERM", "SIGHUP"):
        run_all(
            study.runs(),
            lambda run: 4,
            _script(tmp_path, body),
            lambda run: tmp_path / "work" / run.key,
            lambda run, row: None,
            processes=2,
            console=Console(file=io.StringIO()),
        )
    assert ended.value.code == 128 + getattr(signal, name)
    for file in started:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)


@pytest.mark.parametrize(("visible", "expected"), [(None, {"0", "1"}), ("3,7", {"3", "7"})])
def test_pool_gives_every_process_a_gpu_of_its_own(
    visible: str | None,
    expected: set[str],
    raw: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # Both are there at once, which shows that they run side by side.
    body = f"""
folder = Path({str(tmp_path)!r}) / "work"
(folder / key / "started").touch()
while len(list(folder.glob("*/started"))) < 2: time.sleep(0.01)
(folder / key / "result.json").write_text(json.dumps(os.environ["CUDA_VISIBLE_DEVICES"]))
"""
    seen: list[str] = []
    run_all(
        load_study(_write(raw, tmp_path)).runs()[:2],
        lambda run: 4,
        _script(tmp_path, body),
        lambda run: tmp_path / "work" / run.key,
        lambda run, row: seen.append(row),
        processes=2,
        console=Console(file=(tmp_path / "shown.txt").open("w")),
    )
    assert set(seen) == expected


def test_times_on_a_gpu_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    timer = _StepTimer()
    timer.before_train_epoch(None)
    time.sleep(0.05)  # no work of the processor
    timer.after_train_iter(None, 0)
    assert len(waited) == 2
    assert timer.seconds[0] >= 0.05


def test_a_run_whose_only_checkpoint_is_half_starts_anew(
    raw: dict[str, Any], tmp_path: Path, run_tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = tmp_path / "work/pixeldcl_seed1"
    folder.mkdir(parents=True)
    for name in ("iter_2.pth", ".partial-iter_4.pth"):
        (folder / name).write_bytes(b"PK\x03\x04 the beginning of a checkpoint")
    (folder / "last_checkpoint").write_text(str(folder / "iter_2.pth"))
    command = (ROOT / "tools/study.py", _write(raw, tmp_path), "--work-dir", tmp_path / "work")
    done = run_tool(*command, "--run", "pixeldcl_seed1")
    assert done.returncode == 0, done.stderr
    assert "is whole: starting anew" in done.stderr
    assert json.loads((folder / "result.json").read_text())["iterations"] == 4


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["arms"]["pixeldcl"]["seeds"] = [0]
    raw["seeds"] = [0]
    raw["options"] = {"train_cfg.max_iters": 12, "default_hooks.checkpoint.interval": 2}
    path = _write(raw, tmp_path)
    work = tmp_path / "work"
    command = [sys.executable, str(ROOT / "tools/study.py"), str(path), "--processes", "1"]
    command += ["--work-dir", str(work)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    out = tmp_path / "out" / "tiny.csv"
    deadline = time.monotonic() + 200
    # Killed with one run finished and the other under way, as a machine that is switched off would kill it.
    second = work / "pixeldcl_seed0"
    while not (out.is_file() and any(second.glob("iter_*.pth"))) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    process.kill()
    process.communicate()
    # No training outlives its study: the group of processes ends.
    with pytest.raises(ProcessLookupError):  # noqa: PT012
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    first = out.read_text().splitlines()[1]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert len(lines) == 3
    assert lines[1] == first
    table = tmp_path / "out" / "tiny.md"
    assert "| pixeldcl |" in table.read_text()
    written = f"tiny.md, tiny.png and tiny_cost.png in {table.parent}"
    assert done.stdout.splitlines()[-1] == f"wrote {written}"
    row = ResultFile(out).rows[1]
    for key in ("mIoU", "aAcc", "mBIoU", "logit_nyquist_energy", "parameters", "mmacs", "predict_ms"):
        assert math.isfinite(float(row[key])), key
    assert json.loads(row["options"])["model.backbone.upsample_cfg"]["type"] == "PixelDCL"
    assert row["history"].split()[-1] == f"12:{float(row['mIoU']):.2f}"
    again = subprocess.run([*command, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert again.stdout.strip() == "nothing left"
