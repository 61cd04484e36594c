"""Pictures of VAEs: ``python tools/sample.py MODEL [MODEL ...] --out DIR``.

A MODEL is CONFIG CHECKPOINT, or the NAME of a released model. Writes samples.png (rows of samples a model,
the same latents for all: Fig. 9 of the paper), reconstructions.png and interpolations.png, the latter two of
faces in the first config's test data.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin.apis import vae_gallery
from pixeldcl_plugin.apis.model_arguments import add_models, read_models
from pixeldcl_plugin.engine import console, data_check, preflight
from pixeldcl_plugin.models.vae import VAE
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.files import written_whole


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Draw samples, reconstructions and interpolations of VAEs.")
    add_models(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="of the models (default: the upsamplers)")
    parser.add_argument(
        "--pictures",
        nargs="+",
        metavar="KIND",
        choices=vae_gallery.PICTURES,
        default=vae_gallery.PICTURES,
        help=f"what to draw, of {', '.join(vae_gallery.PICTURES)} (default: all); samples need no data",
    )
    for flag, default, meaning in (
        ("--columns", 10, "pictures a row"),
        ("--rows", 2, "rows of samples a model"),
        ("--pairs", 2, "pairs of faces to interpolate"),
        ("--seed", 0, "seed of the samples"),
    ):
        parser.add_argument(flag, type=int, default=default, help=f"{meaning} (default: {default})")
    cli.add_overwrite_argument(parser, "write into a folder that is not empty")
    return parser.parse_intermixed_args(argv)


def sample(args: argparse.Namespace) -> None:
    """Draw as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    for name, least in (("columns", 1), ("rows", 1), ("pairs", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise cli.UsageError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if "interpolations" in args.pictures and args.columns < 2:
        raise cli.UsageError("an interpolation has at least 2 pictures: --columns 2 or more")
    preflight.check_output_dir("--out", str(args.out), args.overwrite)
    found = read_models(args.models)
    cfgs = [model.cfg for model in found]
    labels = vae_gallery.model_labels(cfgs, args.labels)
    models = {label: model.load(VAE) for label, model in zip(labels, found, strict=True)}
    vae_gallery.check_sizes(models, cfgs[0])
    figures = {}
    if "samples" in args.pictures:
        figures["samples"] = vae_gallery.draw_samples(models, args.columns, args.rows, args.seed)
    if {"reconstructions", "interpolations"} & set(args.pictures):
        data_check.check_data(cfgs[0], "test")
        if "reconstructions" in args.pictures:
            faces = vae_gallery.read_faces(cfgs[0], args.columns)
            figures["reconstructions"] = vae_gallery.draw_reconstructions(models, faces)
        if "interpolations" in args.pictures:
            faces = vae_gallery.read_faces(cfgs[0], 2 * args.pairs)
            figures["interpolations"] = vae_gallery.draw_interpolations(models, faces, args.columns)
    args.out.mkdir(parents=True, exist_ok=True)
    files = [args.out / f"{name}.png" for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        with written_whole(file) as part:
            figure.savefig(part)
    cli.report_written(*files)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("run the same command again, with --overwrite where pictures were written already"):
        sample(args)


if __name__ == "__main__":
    main()
