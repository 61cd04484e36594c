"""Write the photo mosaic set: mosaics of scikit-image's photographs, in PASCAL VOC layout."""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(1, str(Path(__file__).parents[1]))
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pixeldcl_plugin.datasets.converters.mosaic_folder import MosaicParameters, write_mosaic
from pixeldcl_plugin.utils import cli


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


def convert(args: argparse.Namespace) -> bool:
    """Write the set as the command line says; return False if it was there already."""
    progress = Progress(
        TextColumn("photo mosaic"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = progress.add_task("", total=args.num_train + args.num_val)
    with ExitStack() as stack:

        def advance() -> None:
            # No bar over a refusal, nor when there is nothing to do.
            if not progress.live.is_started:
                stack.enter_context(progress)
            progress.advance(task)

        try:
            parameters = MosaicParameters(args.num_train, args.num_val, args.size, args.seed)
            return write_mosaic(args.out, parameters, advance)
        except (ValueError, OSError) as error:
            raise cli.UsageError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("the same command goes on where it was"):
        state = "wrote" if convert(args) else "found, written before:"
        print(
            f"{state} {args.num_train} training and {args.num_val} validation images in {cli.shown(args.out)}"
        )


if __name__ == "__main__":
    main()
