"""Measure and draw the checkerboard of layers or models.

``python tools/analyze_checkerboard.py --layer PixelDCL DeconvModule --channels 64 32 --out DIR``, or
``python tools/analyze_checkerboard.py [MODEL ...] --images FOLDER --out DIR``.
A MODEL is CONFIG CHECKPOINT, the NAME of a released model, or a CONFIG alone for an untrained one. Without
any these are released ones of CamVid: bilinear, deconvolution, the paper's layer, guided.
Writes checkerboard.json and checkerboard.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from mmengine.registry import init_default_scope

import pixeldcl_plugin
from pixeldcl_plugin.analysis.checkerboard import (
    Analysis,
    analyze_layer,
    analyze_model,
    profile_bins,
    profile_of_images,
)
from pixeldcl_plugin.analysis.report import print_table, write_figure
from pixeldcl_plugin.apis.folders import find_images
from pixeldcl_plugin.apis.model_arguments import SHOWN, add_models, model_names, read_models
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.devices import usable_device
from pixeldcl_plugin.utils.files import write_text_whole
from pixeldcl_plugin.visualization.pictures import read_image


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Measure and draw the checkerboard of layers or models.")
    about = "CONFIG CHECKPOINT, the NAME of a released model, or a CONFIG alone for an untrained one"
    add_models(parser, nargs="*", help=about)
    parser.add_argument("--layer", nargs="+", metavar="TYPE", help="upsamplers to analyze by themselves")
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[64], metavar="C", help="in [out]; default 64"
    )
    parser.add_argument(
        "--layer-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="of every layer",
    )
    parser.add_argument("--images", nargs="+", metavar="PATH", help="files, folders or globs")
    parser.add_argument(
        "--max-images", type=int, default=16, metavar="N", help="use the first N (default 16)"
    )
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call the models, in their order")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is untrained (default 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    cli.add_overwrite_argument(parser, "replace the results of an earlier run")
    return parser.parse_intermixed_args(argv)


def check(args: argparse.Namespace) -> tuple[Path, Path]:
    """Check the request before any work; return the files to write."""
    if args.models and args.layer:
        raise cli.UsageError("give either models or --layer")
    if len(args.channels) > 2 or min(args.channels) < 1:
        raise cli.UsageError(f"--channels takes one or two positive numbers, got {args.channels}")
    if args.max_images < 1:
        raise cli.UsageError(f"--max-images must be positive, got {args.max_images}")
    if args.layer and args.images:
        raise cli.UsageError("--images is for models: a layer by itself is shown smooth random maps")
    if not args.layer and not args.images:
        raise cli.UsageError("models need --images")
    if args.out.exists() and not args.out.is_dir():
        raise cli.UsageError(f"--out {str(args.out)!r} is a file")
    files = args.out / "checkerboard.json", args.out / "checkerboard.png"
    for file in files:
        if file.exists() and not args.overwrite:
            raise cli.UsageError(f"{str(file)!r} exists: choose another --out or replace it with --overwrite")
    return files


def analyze_layers(args: argparse.Namespace) -> list[Analysis]:
    """Analyze the layers that the command line names."""
    init_default_scope("mmseg")
    channels = (args.channels[0], args.channels[-1])
    analyses = []
    for kind in args.layer:
        cfg = dict(args.layer_options, type=kind)
        try:
            analyses.append(analyze_layer(kind, cfg, channels, bins=32, seed=args.seed))
        except (AssertionError, TypeError, ValueError) as error:  # mmseg's layers assert
            raise cli.UsageError(f"--layer {kind}: {' '.join(str(error).split())}") from error
    return analyses


def run(args: argparse.Namespace) -> None:
    """Analyze as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    record_file, figure_file = check(args)
    record: dict[str, Any] = dict(torch=torch.__version__, pixeldcl_plugin=pixeldcl_plugin.__version__)
    image = image_profile = None
    if args.layer:
        record.update(channels=args.channels, layer_options=args.layer_options, seed=args.seed)
        analyses = analyze_layers(args)
    else:
        models = read_models(args.models or SHOWN.values(), untrained=True)
        names = args.names or model_names(models)
        if len(names) != len(models):
            raise cli.UsageError(f"--names: {len(names)} names for {len(models)} models")
        paths = [file for source in args.images for file in find_images(source, args.out)[1]]
        try:
            images = [read_image(file) for file in paths[: args.max_images]]
            bins = profile_bins(images)
        except ValueError as error:
            raise cli.UsageError(f"--images: {error}") from error
        image, image_profile = images[0], profile_of_images(images, bins)
        analyses, read = [], []
        for name, model in zip(names, models, strict=True):
            weights = cli.shown(model.checkpoint) if model.checkpoint else None
            print(f"{name}: {cli.shown(model.config)}, {weights or 'untrained'}", flush=True)
            read.append(dict(config=cli.shown(model.config), checkpoint=weights))
            network = model.load_segmentor(args.seed)
            segmenter = pixeldcl_plugin.Segmenter(network, device=usable_device(None))
            analyses.append(analyze_model(name, segmenter, images, bins))
        record.update(
            models=read,
            images=[cli.shown(path) for path in paths[: args.max_images]],
            image_profile=image_profile,
        )
    args.out.mkdir(parents=True, exist_ok=True)
    record["results"] = [analysis.record() for analysis in analyses]
    write_text_whole(record_file, json.dumps(record, indent=1) + "\n")
    write_figure(analyses, figure_file, image, image_profile)
    print_table(analyses)
    cli.report_written(record_file, figure_file)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors():
        run(args)


if __name__ == "__main__":
    main()
