"""Try a guided upsampler on all configs of mmseg: ``python tools/stock_configs.py --out FILE.csv``."""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (registers everything)
from pixeldcl_plugin.analysis import stock_configs, stock_report
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.compat import installed_versions


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Build, train and predict with every config of mmseg, guided."
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="such as 'fcn/*' (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".csv file, a row a config")
    parser.add_argument("--resume", action="store_true", help="keep the rows of FILE, add those it lacks")
    cli.add_overwrite_argument(parser, "replace the file if it exists")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    console.quiet_warnings()
    if args.out.exists() and not args.overwrite and not args.resume:
        raise cli.UsageError(
            f"--out {str(args.out)!r} exists: choose another file, continue it with --resume or replace it "
            "with --overwrite"
        )
    root, files = stock_configs.config_files()
    files = [file for file in files if file.relative_to(root).match(args.only)]
    if not files:
        raise cli.UsageError(f"--only {args.only!r} matches none of mmseg's configs")
    rows = stock_report.read(args.out) if args.resume and args.out.exists() else {}
    facts = {
        "command": shlex.join(["python", "tools/stock_configs.py", "--only", args.only]),
        **{module: " ".join(found) for module, found in installed_versions().items()},
        "date": datetime.date.today().isoformat(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if file.relative_to(root).as_posix() not in rows]
    for outcome in stock_configs.outcomes(missing, root):
        rows[outcome.config] = stock_report.Row(outcome, facts)
        stock_report.write(args.out, rows)  # whole after each, so that a crash loses nothing
        print(f"{outcome.config}: {outcome.reason or 'ok'}", flush=True)
    stock_report.print_tables([row.outcome for row in rows.values()])
    passed = sum(row.outcome.passed == "predict" for row in rows.values())
    print(f"wrote {cli.shown(args.out)}: {passed} of {len(rows)} configs pass every stage")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("the same command with --resume does the configs that are left"):
        run(args)


if __name__ == "__main__":
    main()
