"""Time the upsamplers against each other, in layers and in whole models.

All variants of a case are measured in turn in one run, so that their ratios
hold while the machine drifts:

    python tools/benchmark.py layer --threads 2
    python tools/benchmark.py model --threads 2 --shapes 32,4,256,256
    python tools/benchmark.py volume --threads 1
    python tools/benchmark.py decoder --threads 2 --dtypes bf16
    python tools/benchmark.py logits --threads 1 --processor-time
    python tools/benchmark.py retrofit --threads 1 --processor-time
    python tools/benchmark.py check docs/benchmarks/*.csv

A file holds the runs of one topic, those of several machines too. `check`
compares what files hold to the ratios that were to be reached, and prints what
falls short.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from pixeldcl_plugin.benchmark import cases
from pixeldcl_plugin.benchmark import measure as benchmark
from pixeldcl_plugin.benchmark.report import print_table, read_csv, same_run, write_csv, write_plot
from pixeldcl_plugin.benchmark.targets import compare, print_outcomes
from pixeldcl_plugin.utils.cli import UsageError, add_overwrite_argument, notify, report_written, user_errors

#: What the targets are about.
TOPICS = ("layers", "formats", "models", "decoders", "logits")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=[*cases.KINDS, "check"])
    parser.add_argument("files", nargs="*", type=Path, help="of check (default: the committed ones)")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="N,N,...",
        help="layer:  batch,in_channels,out_channels,height,width\n"
        "model:  base_channels,batch,height,width\n"
        "volume: batch,in_channels,out_channels,\n        depth,height,width\n"
        "decoder, logits, retrofit:\n        batch,height,width",
    )
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="(default: all of the kind)")
    settings = {
        "--directions": (["forward", "backward"], "both"),
        "--dtypes": (list(DTYPES), "fp32"),
        "--memory-formats": (["contiguous", "channels_last"], "contiguous"),
        "--modes": (["eager", "compiled"], "eager"),
    }
    for flag, (choices, default) in settings.items():
        parser.add_argument(
            flag,
            nargs="+",
            metavar="NAME",
            choices=choices,
            default=None if default == "both" else [default],
            help=f"of {', '.join(choices)} (default: {default})",
        )
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=int, default=threads, metavar="N", help="(default: all cores)")
    parser.add_argument("--rounds", type=int, default=11, metavar="N", help="of each variant (default: 11)")
    parser.add_argument(
        "--processor-time", action="store_true", help="of one thread, where the machine has other work"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: docs/benchmarks/, the topic's .csv file)"
    )
    add_overwrite_argument(parser, "replace what the same command wrote earlier")
    return parser.parse_args(argv)


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not numbers separated by commas: {text!r}") from None


def check(files: list[Path]) -> None:
    """Compare what files hold to the targets."""
    missing = [path for path in files if not path.exists()]
    if missing:
        raise UsageError(f"{missing[0]}: no such file")
    rows: list[dict[str, Any]] = []
    others = []
    for path in files:
        try:
            rows += read_csv(path)
        except UsageError as error:
            others.append(error)
    if others and not rows:
        raise others[0]
    for error in others:
        notify(f"left out: {error}")
    outcomes = list(compare(rows))
    print_outcomes(outcomes)
    print(f"{sum(outcome.reached for outcome in outcomes)} of {len(outcomes)} reached")


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device was found")
    if args.threads < 1 or args.rounds < 1:
        raise UsageError(f"--threads and --rounds must be positive, got {args.threads}, {args.rounds}")
    if args.processor_time and (args.threads > 1 or args.device != "cpu"):
        raise UsageError("--processor-time: only of one thread on a CPU, --threads 1 --device cpu")
    kind = cases.KINDS[args.what]
    shapes = args.shapes or kind.shapes
    for shape in shapes:
        numbers = len(kind.shapes[0])
        if len(shape) != numbers or min(shape) < 1:
            raise UsageError(f"--shapes: {args.what} takes {numbers} positive numbers, got {shape}")
    names = args.variants or list(kind.variants)
    for name in names:
        if name not in kind.variants:
            raise UsageError(f"--variants: {args.what} has no {name!r}, only {', '.join(kind.variants)}")
    variants = {name: kind.variants[name] for name in names}
    path = args.out or Path(f"docs/benchmarks/{args.what.removesuffix('s')}s.csv")
    notes = {
        "command": shlex.join(["python", *(word for word in sys.argv if word != "--overwrite")]),
        "date": datetime.date.today().isoformat(),
        "hardware": benchmark.hardware(args.device),
        "threads": args.threads,
        "torch": torch.__version__,
        "tf32": args.device == "cuda" and torch.backends.cudnn.allow_tf32,
    }
    if any(same_run(row, notes) for row in read_csv(path)) and not args.overwrite:
        raise UsageError(f"{path} holds this run already; --overwrite replaces it, --out writes elsewhere")

    torch.set_num_threads(args.threads)
    settings = list(
        benchmark.settings(
            [direction == "backward" for direction in args.directions or ("forward", "backward")],
            [DTYPES[name] for name in args.dtypes],
            [name == "channels_last" for name in args.memory_formats],
            [name == "compiled" for name in args.modes],
            args.device,
        )
    )
    notes["sgemm_gflops"] = round(benchmark.sgemm_gflops(args.threads, device=args.device), 1)
    results: list[benchmark.Result] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(
            args.what, total=len(settings) * len(shapes) * len(variants) * (args.rounds + 1)
        )

        def advance(variant: str) -> None:
            progress.update(task, advance=1, description=variant)

        for shape in shapes:
            for setting in settings:
                case = benchmark.measure(
                    kind.build,
                    shape,
                    variants,
                    setting,
                    threads=args.threads,
                    rounds=args.rounds,
                    processor_time=args.processor_time,
                    progress=advance,
                )
                results += case
                print_table(case)
                # After every case: a run that is killed keeps those that are done.
                write_csv(results, notes, path)
    write_plot(path)
    print(", ".join(f"{key}: {value}" for key, value in notes.items()))
    report_written(path, path.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with user_errors("run the same command again, with --overwrite where cases were written already"):
        if args.what == "check":
            check(args.files or [Path(f"docs/benchmarks/{name}.csv") for name in TOPICS])
        else:
            run(args)


if __name__ == "__main__":
    main()
