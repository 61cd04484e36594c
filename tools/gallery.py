"""Compare checkpoints in pictures: ``python tools/gallery.py [MODEL ...] --out FILE``.

A MODEL is CONFIG CHECKPOINT, or the NAME of a released model. Without any these are released ones of CamVid:
bilinear, deconvolution, the paper's layer, guided. One column an image; below it the ground truth and one row
a model, each with a magnified inset of the window in which the models disagree the most. The data are those
of the first config.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin
from pixeldcl_plugin.apis import gallery
from pixeldcl_plugin.apis.model_arguments import SHOWN, ModelArgument, add_models, model_names, read_models
from pixeldcl_plugin.engine import console, data_check
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.devices import usable_device
from pixeldcl_plugin.utils.files import written_whole
from pixeldcl_plugin.visualization import gallery_figure


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Draw the predictions of several checkpoints.")
    add_models(parser, nargs="*")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png file")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="one a checkpoint (default: by the configs)"
    )
    parser.add_argument("--split", choices=["val", "test"], default="val", help="(default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--indices", nargs="+", type=int, metavar="N", help="these images, in this order")
    which.add_argument(
        "--seed", type=int, help="images drawn at random (default: those of most disagreement)"
    )
    parser.add_argument("--count", type=int, default=4, help="number of images (default: %(default)s)")
    parser.add_argument(
        "--pool", type=int, default=100, help="look for disagreement in so many images (default: %(default)s)"
    )
    parser.add_argument(
        "--inset",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="side of the magnified window as a share of the image's, 0 for none (default: %(default)s)",
    )
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: a GPU if there is one)")
    cli.add_overwrite_argument(parser, "replace the file if it exists")
    return parser.parse_intermixed_args(argv)


def check(args: argparse.Namespace) -> list[ModelArgument]:
    """Check the command line; return the models."""
    if args.count < 1 or args.pool < 1:
        raise cli.UsageError(f"--count and --pool must be at least 1, got {args.count} and {args.pool}")
    if not 0 <= args.inset <= 1:
        raise cli.UsageError(f"--inset must be within 0 and 1, got {args.inset:g}")
    if args.seed is not None and args.seed < 0:
        raise cli.UsageError(f"--seed must not be negative, got {args.seed}")
    if args.out.suffix.lower() != ".png":
        raise cli.UsageError(f"--out {str(args.out)!r} does not end in .png")
    if not args.out.parent.is_dir():
        raise cli.UsageError(f"--out {str(args.out)!r}: there is no folder {str(args.out.parent)!r}")
    if args.out.exists() and not args.overwrite:
        raise cli.UsageError(
            f"--out {str(args.out)!r} exists: choose another file or replace it with --overwrite"
        )
    models = read_models(args.models or SHOWN.values())
    if args.names is not None and len(args.names) != len(models):
        raise cli.UsageError(f"--names: {len(args.names)} names for {len(models)} models")
    return models


def run(args: argparse.Namespace) -> None:
    """Draw as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    device = usable_device(args.device)
    models = check(args)
    data_check.check_data(models[0].cfg, args.split)
    segmenters = [pixeldcl_plugin.Segmenter(model.load_segmentor(), device=device) for model in models]
    for segmenter, model in zip(segmenters, models, strict=True):
        if segmenter.classes != segmenters[0].classes:
            raise cli.UsageError(
                f"{model.config!r} has other classes than {models[0].config!r}: they cannot be compared"
            )

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} images", end="\n" * (done == total), file=sys.stderr, flush=True)

    columns = gallery.choose(
        gallery.Samples(models[0].cfg, args.split),
        segmenters,
        indices=args.indices,
        count=args.count,
        seed=args.seed,
        pool=args.pool,
        report=report,
    )
    names = args.names or model_names(models)
    classes, palette = segmenters[0].classes, segmenters[0].palette
    figure = gallery_figure.draw(columns, names, classes, palette, inset=args.inset)
    with written_whole(args.out) as part:
        figure.savefig(part)
    indices = " ".join(str(column.index) for column in columns)
    print(f"wrote {cli.shown(args.out)}: images {indices} of {args.split}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors():
        run(args)


if __name__ == "__main__":
    main()
