"""Paint COCO's detection instances into segmentation masks: background, 80 classes, void crowds."""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(1, str(Path(__file__).parents[1]))
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pixeldcl_plugin.utils import cli


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


def paint(args: argparse.Namespace) -> tuple[int, int]:
    """Write the masks as the command line says; return how many there are, and how many are new."""
    try:
        from pixeldcl_plugin.datasets.converters.coco_folder import convert
    except ModuleNotFoundError as error:
        if error.name != "pycocotools":
            raise
        raise cli.UsageError("pycocotools is missing; run: pip install pycocotools") from error
    progress = Progress(
        TextColumn("{task.description:6}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}
    with ExitStack() as stack:

        def show(stage: str, done: int, total: int) -> None:
            # No bar over a refusal.
            if not progress.live.is_started:
                stack.enter_context(progress)
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        try:
            return convert(args.annotations, args.images, args.out, args.split, args.workers, show)
        except (ValueError, OSError, RuntimeError) as error:
            raise cli.UsageError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. What is written stays valid, whatever ends it."""
    args = parse_args(argv)
    with cli.user_errors("the same command goes on where it was"):
        total, painted = paint(args)
        masks = args.out / args.split
        kept = total - painted
        print(f"wrote {painted} of {total} masks to {cli.shown(masks)}, {kept} stood there; all verified")


if __name__ == "__main__":
    main()
