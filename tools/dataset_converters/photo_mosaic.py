"""Write the photo mosaic set: mosaics of scikit-image's photographs, in PASCAL VOC layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pixeldcl_plugin.datasets.converters.mosaic_folder import MosaicParameters, write_mosaic


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    defaults = MosaicParameters()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--num-train", type=int, default=defaults.num_train)
    parser.add_argument("--num-val", type=int, default=defaults.num_val)
    parser.add_argument("--size", type=int, default=defaults.size, help="pixels a side")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the set; give the exit code (2: nothing written, the reason is on stderr)."""
    args = parse_args(argv)
    progress = Progress(
        TextColumn("photo mosaic"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = progress.add_task("", total=args.num_train + args.num_val)
    try:
        parameters = MosaicParameters(args.num_train, args.num_val, args.size, args.seed)
        with ExitStack() as stack:

            def advance() -> None:
                # No bar over a refusal, nor when there is nothing to do.
                if not progress.live.is_started:
                    stack.enter_context(progress)
                progress.advance(task)

            written = write_mosaic(args.out, parameters, advance)
    except (ValueError, OSError) as error:
        print(f"photo_mosaic: {error}", file=sys.stderr)
        return 2
    state = "written to" if written else "already in"
    print(f"{args.num_train} training and {args.num_val} validation images {state} {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
