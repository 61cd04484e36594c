"""The benchmark measures what it says, in turn, and refuses to overwrite."""

from __future__ import annotations

import csv
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pixeldcl_plugin.benchmark import cases, report
from pixeldcl_plugin.benchmark import measure as benchmark
from pixeldcl_plugin.benchmark.targets import TARGETS, Target, compare
from pixeldcl_plugin.layers.pixel_dcl import PixelDCL
from pixeldcl_plugin.utils.cli import UsageError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_literal_variant_is_the_same_layer(kernel_size: int) -> None:
    torch.manual_seed(0)
    fast = PixelDCL(3, 4, kernel_size=kernel_size, init="kaiming").double()
    literal = cases._LiteralLayer(3, 4, kernel_size=kernel_size).double()
    literal.load_state_dict(fast.state_dict())
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(fast(x), literal(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backward", [False, True])
def test_variants_are_measured_in_turn(backward: bool) -> None:
    variants = {name: cases.VARIANTS[name] for name in ("deconv k4", "pixeldcl literal", "pixeldcl")}
    order: list[str] = []
    results = benchmark.measure(
        cases.layer_case,
        (1, 8, 4, 8, 8),
        variants,
        benchmark.Setting(backward),
        threads=1,
        rounds=3,
        min_seconds=0.0,
        progress=order.append,
    )
    assert order == list(variants) * 4  # once to build and warm up, then three rounds
    assert results[0].ratio == 1.0
    for result in results:
        assert result.median_ms > 0
        assert result.ratio == pytest.approx(result.median_ms / results[0].median_ms)
    deconv, literal, fast = results
    assert deconv.parameters == 8 * 4 * 16 + 4 + 8  # kernel, bias, norm
    assert fast.parameters == literal.parameters == (9 * 8 + 9 * 4 + 4 * 4) * 4 + 8
    pixels = 8 * 8
    assert deconv.mmacs * 1e6 == 16 * 8 * 4 * pixels
    assert literal.mmacs * 1e6 == (9 * 8 + 9 * 4 + 36 * 4) * 4 * pixels
    # 8 C^2 a pixel for the last step, and the row or column that the slices leave out
    assert fast.mmacs * 1e6 == (9 * 8 + 9 * 4) * 4 * pixels + 8 * 4 * 4 * (pixels + 8)


def test_whole_models_can_be_measured() -> None:
    variants = {name: cases.VARIANTS[name] for name in ("deconv k4", "pixeldcl depthwise", "ipixeldcl")}
    results = benchmark.measure(
        cases.model_case,
        (2, 1, 32, 32),
        variants,
        benchmark.Setting(True, dtype=torch.bfloat16, channels_last=True),
        threads=1,
        rounds=1,
        min_seconds=0.0,
    )
    assert [r.variant for r in results] == list(variants)
    assert {r.dtype for r in results} == {"bfloat16"}


@pytest.mark.parametrize("channels_last", [False, True])
def test_volumes_can_be_measured(channels_last: bool) -> None:
    kind = cases.KINDS["volume"]
    results = benchmark.measure(
        kind.build,
        (1, 4, 2, 2, 3, 4),
        kind.variants,
        benchmark.Setting(True, channels_last=channels_last),
        threads=1,
        rounds=1,
        min_seconds=0.0,
    )
    by_name = {result.variant: result for result in results}
    assert by_name["deconv3d k4"].mmacs * 1e6 == 64 * 4 * 2 * 24
    assert by_name["pixeldcl3d"].mmacs * 1e6 == 27 * (4 * 2 + 19 * 2 * 2) * 24
    assert by_name["ipixeldcl3d"].parameters == 27 * (8 * 4 * 2 + 22 * 2 * 2)


def test_upsamplers_on_logits_can_be_measured() -> None:
    """A frozen encoder, guided and other upsamplers; in the time of the processor."""
    kind = cases.KINDS["logits"]
    names = ("bilinear", "guided", "guided, convolutions alone", "carafe", "fade")
    results = benchmark.measure(
        kind.build,
        (2, 64, 32),
        {name: kind.variants[name] for name in names},
        benchmark.Setting(True, channels_last=True),
        threads=1,
        rounds=1,
        min_seconds=0.0,
        processor_time=True,
    )
    sizes = [result.parameters for result in results]
    assert min(sizes[1:]) > sizes[0]
    assert all(result.median_ms > 0 for result in results)
    module, image = kind.build(kind.variants["sapa"], (2, 64, 96))
    assert module.eval()(image).shape == (2, 21, 64, 96)


def test_retrofits_can_be_measured() -> None:
    """Of the same weights: only those named learn, and what is kept gives what is computed anew."""
    kind = cases.KINDS["retrofit"]
    trained, outs = {}, {}
    for name, cfg in kind.variants.items():
        torch.manual_seed(0)
        module, image = kind.build(cfg, (2, 64, 64))
        trained[name] = {n for n, p in module.named_parameters() if p.requires_grad}
        module.train(cfg["trained"] != "upsampler")
        outs[name] = [module(image) for _ in range(2)]
    assert all(".guided." in name for name in trained["retrofit"])
    assert trained["retrofit"] == trained["retrofit from kept features"]
    assert trained["retrofit"] < trained["all but the encoder"] < trained["whole model"]
    for out in outs["retrofit from kept features"]:
        torch.testing.assert_close(out, outs["retrofit"][0])


def test_whole_decoders_can_be_measured() -> None:
    """In the setting of the configs; the separable form has the parameters of InterpConv and 22 a channel."""
    kind = cases.KINDS["decoder"]
    results = benchmark.measure(
        kind.build,
        (2, 32, 64),
        {name: kind.variants[name] for name in ("interp", "pixeldcl separable")},
        benchmark.Setting(True, torch.bfloat16, channels_last=True),
        threads=1,
        rounds=1,
        min_seconds=0.0,
    )
    interp, separable = results
    assert separable.parameters == interp.parameters + (2 * 9 + 4) * (128 + 64 + 48 + 32)
    assert {result.dtype for result in results} == {"bfloat16"}
    module, image = kind.build(kind.variants["interp"], (1, 32, 64))
    assert module.eval()(image).shape == (1, 11, 16, 32)


def test_command_writes_once(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "layer", "--shapes", "1,4,4,8,8"]
    command += ["--variants", "deconv k4", "pixeldcl", "--rounds", "2", "--threads", "1"]
    path = tmp_path / "layers.csv"
    command += ["--out", str(path)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert path.with_suffix(".png").stat().st_size > 0
    assert first.stdout.splitlines()[-1] == f"wrote {path.name} and {path.stem}.png in {path.parent}"
    rows = list(csv.DictReader(path.open()))
    assert [row["variant"] for row in rows] == ["deconv k4", "pixeldcl"] * 2
    assert {row["direction"] for row in rows} == {"forward", "forward+backward"}
    assert float(rows[0]["sgemm_gflops"]) > 0
    assert rows[0]["torch"] == torch.__version__
    assert shlex.split(rows[0]["command"])[1:] == command[1:]

    before = path.read_text()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "holds this run already" in again.stderr
    assert "Traceback" not in again.stderr
    assert path.read_text() == before


def test_check_reads_what_a_pattern_finds(tmp_path: Path) -> None:
    """The help asks for every CSV of a folder, among them records that no run of the benchmark wrote."""
    other = tmp_path / "record.csv"
    other.write_text("x,y\n1,2\n")
    command = [sys.executable, str(ROOT / "tools/benchmark.py"), "check", str(other)]
    alone = subprocess.run(command, capture_output=True, text=True)
    assert alone.returncode == 2
    assert "no measurements" in alone.stderr
    both = subprocess.run(
        [*command, str(ROOT / "docs/benchmarks/layers.csv")], capture_output=True, text=True
    )
    assert both.returncode == 0, both.stderr
    assert "left out: " in both.stderr
    assert both.stdout.splitlines()[-1].endswith(f"of {len(TARGETS)} reached")


def test_a_file_keeps_the_runs_of_others(tmp_path: Path) -> None:
    path = tmp_path / "topic.csv"
    notes = dict(command="a", date="2026-01-01", hardware="H", threads=1, torch="2", tf32=False)
    result = benchmark.Result(
        "c", "deconv k4", "forward", "float32", "contiguous", "eager", 1, 1.0, 1.0, 4.0, 0.1, 1.0
    )
    report.write_csv([result], notes, path)
    report.write_csv([result, result], {**notes, "hardware": "another"}, path)
    assert [row["hardware"] for row in report.read_csv(path)] == ["H", "another", "another"]
    report.write_csv([result], {**notes, "date": "2026-01-02", "hardware": "another"}, path)  # measured anew
    assert [(row["hardware"], row["date"]) for row in report.read_csv(path)] == [
        ("H", "2026-01-01"),
        ("another", "2026-01-02"),
    ]
    path.write_text("x,y\n1,2\n")
    with pytest.raises(UsageError, match="no measurements"):
        report.read_csv(path)


def test_targets_are_compared_within_the_newest_run_that_holds_both() -> None:
    def row(variant: str, date: str, command: str, ms: float) -> dict[str, str]:
        return dict(
            case="c",
            variant=variant,
            direction="forward+backward",
            dtype="float32",
            memory_format="contiguous",
            mode="eager",
            date=date,
            command=command,
            hardware="H",
            median_ms=str(ms),
        )

    target = Target("mine", "theirs", "c", 1.0)
    rows = [
        row("mine", "2026-01-01", "a", 3.0),
        row("theirs", "2026-01-01", "a", 2.0),
        row("mine", "2026-01-02", "b", 1.9),
        row("theirs", "2026-01-02", "b", 2.0),
        row("mine", "2026-01-03", "c", 9.0),  # without what it is compared to
    ]
    (outcome,) = compare(rows, [target])
    assert outcome.ratio == pytest.approx(0.95)
    assert outcome.date == "2026-01-02"
    assert outcome.reached
    (short,) = compare(rows[:2], [target])
    assert short.ratio == pytest.approx(1.5)
    assert not short.reached
    (unmeasured,) = compare(rows[:1], [target])
    assert unmeasured.ratio is None
    assert not unmeasured.reached
    known = [set(kind.variants) for kind in cases.KINDS.values()]
    assert all(any({t.variant, t.reference} <= names for names in known) for t in TARGETS)
