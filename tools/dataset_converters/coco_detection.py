"""Paint COCO's detection instances into segmentation masks: background, 80 classes, void crowds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path, help="COCO's instances_*.json")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images; not copied")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the masks and split lists; new, empty or ours"
    )
    parser.add_argument("--split", help="default: the name of the annotation file after 'instances_'")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: all cores")
    args = parser.parse_args(argv)
    args.split = args.split or args.annotations.stem.removeprefix("instances_")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Write the masks; give the exit code (2: the reason is on stderr, what is written stays valid)."""
    args = parse_args(argv)
    try:
        from pixeldcl_plugin.datasets.converters.coco_folder import convert
    except ModuleNotFoundError as error:
        if error.name != "pycocotools":
            raise
        print("coco_detection: pycocotools is missing; run: pip install pycocotools", file=sys.stderr)
        return 2
    progress = Progress(
        TextColumn("{task.description:6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}
    try:
        with ExitStack() as stack:

            def show(stage: str, done: int, total: int) -> None:
                # No bar over a refusal.
                if not progress.live.is_started:
                    stack.enter_context(progress)
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total)
                progress.update(tasks[stage], completed=done)

            total, painted = convert(args.annotations, args.images, args.out, args.split, args.workers, show)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"coco_detection: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("coco_detection: stopped; the same command continues", file=sys.stderr)
        return 130
    print(f"{total} masks in {args.out / args.split}: {painted} painted, {total - painted} kept; verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
