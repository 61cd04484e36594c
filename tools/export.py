"""Export a trained model: ``python tools/export.py MODEL --format onnx --out FILE``.

MODEL is CONFIG CHECKPOINT, or the NAME of a released model. The file takes normalised images
(N, channels, H, W) and gives logits (N, classes, H, W), for any N, H and W that the model takes; of a VAE it
takes latents and gives pictures. It is loaded again, run on other shapes than it was traced with, and written
only if it computes what the model does.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin.apis import export
from pixeldcl_plugin.apis.model_arguments import add_models, read_one_model
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.models.vae import VAE
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
        help="largest absolute difference of the output allowed (default: %(default)g)",
    )
    cli.add_overwrite_argument(parser, "replace the file if it exists")
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> None:
    """Export as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    export.check_request(args.out, args.format, args.overwrite)
    model = read_one_model(args.models)
    is_vae = model.cfg.model.get("type") in ("VAE", VAE)
    if is_vae and args.shape:
        raise cli.UsageError("--shape: a VAE takes no images but latents, and makes pictures of one size")
    network = model.load(VAE) if is_vae else model.load_segmentor()

    print(f"exporting {model.config} with the weights of {model.checkpoint}", flush=True)

    def report(parity: export.Parity) -> None:
        shape = "x".join(map(str, parity.shape))
        print(
            f"parity on {shape}: max abs difference {parity.difference:.2e} "
            f"of values up to {parity.magnitude:.3g}",
            flush=True,
        )

    start = time.perf_counter()

    def note(step: str) -> None:
        print(f"{time.perf_counter() - start:4.0f} s: {step}", flush=True)

    shared: dict[str, Any] = dict(
        tolerance=args.tolerance, overwrite=args.overwrite, report=report, note=note
    )
    if isinstance(network, VAE):
        export.export_vae(network, args.out, args.format, **shared)
    else:
        size = tuple(args.shape) if args.shape else None
        export.export_segmentor(network, args.out, args.format, size=size, **shared)
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
