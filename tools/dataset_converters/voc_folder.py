"""Write a part of a data set in PASCAL VOC's layout as a folder of images and color masks."""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(1, str(Path(__file__).parents[1]))
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (finds the installed distribution of mmseg)
from pixeldcl_plugin.datasets.converters.voc_folder import write_folder
from pixeldcl_plugin.utils import cli


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the data set, such as data/voc2012_subset")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument(
        "--classes", nargs="+", default=["cat", "dog", "horse", "sheep"], help="default: %(default)s"
    )
    parser.add_argument("--images", type=int, default=100, help="of each class (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("remove what it wrote and run it again"):
        try:
            counts = write_folder(args.source, args.out, args.classes, args.images)
        except (ValueError, FileNotFoundError) as error:
            raise cli.UsageError(str(error)) from error
        print(f"wrote {', '.join(f'{n} {name}' for name, n in counts.items())} to {cli.shown(args.out)}")


if __name__ == "__main__":
    main()
