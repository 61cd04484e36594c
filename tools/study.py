"""Run a study: ``python tools/study.py STUDY.yaml``. Started again after a kill, it goes on where it was.

Every run is a process of one thread. One CSV row a finished run; then a table of the paired differences to
the reference and a picture, all in the folder that the study names.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin import study
from pixeldcl_plugin.utils.cli import UsageError, report_written, user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run a study: configs x seeds, compared by pairs.")
    parser.add_argument("study", help="YAML file, see docs/study.md")
    default = len(study.gpus()) or os.cpu_count() or 1
    help_ = "runs at a time (default: one a GPU, without GPUs one a core)"
    parser.add_argument("--processes", type=int, default=default, help=help_)
    parser.add_argument("--work-dir", type=Path, help="logs, checkpoints (default: work_dirs/studies/NAME)")
    parser.add_argument("--arms", nargs="+", help="only these arms")
    parser.add_argument("--dry-run", action="store_true", help="list the runs that are left, and stop")
    parser.add_argument("--report", action="store_true", help="only write table and picture anew")
    parser.add_argument("--run", metavar="KEY", help="one run, in this process")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> bool:
    """Do what the command line says; return False if a run failed."""
    if args.processes < 1:
        raise UsageError(f"--processes must be positive, got {args.processes}")
    plan = study.load_study(args.study)
    work_dir = args.work_dir or Path("work_dirs/studies") / plan.name
    if args.run:
        study.follow_study()
        if plan.together is None:
            study.execute(plan, study.find_run(plan, args.run), work_dir / args.run)
        else:
            group = study.find_group(plan, args.run, args.arms)
            study.execute_together(plan, group.runs, work_dir / args.run)
        return True
    if args.dry_run:
        left = study.check_runs(plan, study.runs_left(plan, args.arms))
        print("\n".join(left) or "nothing left")
        return True
    base = [sys.executable, __file__, args.study, "--work-dir", str(work_dir)]
    base += ["--arms", *args.arms] if args.arms else []
    whole = args.report or study.conduct(
        plan,
        lambda run: [*base, "--run", run.key],
        lambda run: work_dir / run.key,
        processes=args.processes,
        arms=args.arms,
    )
    if written := study.write_summary(plan, study.results_of(plan).rows):
        report_written(*written)
    return whole


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    # Signals that would leave the processes of the runs behind. Those end by them at once.
    signals = () if args.run else ("SIGTERM", "SIGHUP")
    with user_errors("the same command goes on where it was", *signals):
        whole = run(args)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
