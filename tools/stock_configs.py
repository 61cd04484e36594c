"""Try a guided upsampler on all configs of mmseg: ``python tools/stock_configs.py --out FILE.csv``."""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (registers everything)
from pixeldcl_plugin.analysis import stock_configs
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.files import written_whole


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Build, train and predict with every config of mmseg, guided."
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="such as 'fcn/*' (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".csv file, a row a config")
    cli.add_overwrite_argument(parser, "replace the file if it exists")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    console.quiet_warnings()
    if args.out.exists() and not args.overwrite:
        raise cli.UsageError(
            f"--out {str(args.out)!r} exists: choose another file or replace it with --overwrite"
        )
    root, files = stock_configs.config_files()
    files = [file for file in files if file.relative_to(root).match(args.only)]
    if not files:
        raise cli.UsageError(f"--only {args.only!r} matches none of mmseg's configs")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with written_whole(args.out) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(stock_configs.Outcome)])
        writer.writeheader()
        for outcome in stock_configs.outcomes(files, root):
            writer.writerow(asdict(outcome))
            counts["all" if outcome.passed == "predict" else outcome.passed or "none"] += 1
            print(f"{outcome.config}: {outcome.reason or 'ok'}"[:200], flush=True)
    print(f"wrote {args.out}: {counts['all']} of {len(files)} configs pass every stage")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors():
        run(args)


if __name__ == "__main__":
    main()
