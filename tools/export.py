"""Export a trained model: ``python tools/export.py MODEL --format onnx --out FILE``.

MODEL is CONFIG CHECKPOINT, or the NAME of a released model. The file takes normalised images
(N, channels, H, W) and gives logits (N, classes, H, W), for any N, H and W that the model takes. It is loaded
again, run on other shapes than it was traced with, and written only if it computes what the model does.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin.apis import export
from pixeldcl_plugin.apis.model_arguments import add_models, read_one_model
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Export a model to ONNX or torch.export.")
    add_models(parser)
    parser.add_argument("--format", choices=export.FORMATS, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".onnx or .pt2 file")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="image size to trace with (other sizes work too)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest absolute difference of the logits allowed (default: %(default)g)",
    )
    cli.add_overwrite_argument(parser, "replace the file if it exists")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Export as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    export.check_request(args.out, args.format, args.overwrite)
    model = read_one_model(args.models)
    segmentor = model.load_segmentor()

    print(f"exporting {model.config} with the weights of {model.checkpoint}", flush=True)

    def report(parity: export.Parity) -> None:
        shape = "x".join(map(str, parity.shape))
        print(
            f"parity on {shape}: max abs difference {parity.difference:.2e} "
            f"of logits up to {parity.magnitude:.3g}",
            flush=True,
        )

    start = time.perf_counter()

    def note(step: str) -> None:
        print(f"{time.perf_counter() - start:4.0f} s: {step}", flush=True)

    size = tuple(args.shape) if args.shape else None
    export.export_segmentor(
        segmentor,
        args.out,
        args.format,
        size=size,
        tolerance=args.tolerance,
        overwrite=args.overwrite,
        report=report,
        note=note,
    )
    seconds = time.perf_counter() - start
    print(f"wrote {cli.shown(args.out)} in {seconds:.0f} s ({args.out.stat().st_size / 1e6:.1f} MB)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors():
        try:
            run(args)
        except export.ExportError as error:
            cli.notify(f"error: {error}")
            sys.exit(1)


if __name__ == "__main__":
    main()
