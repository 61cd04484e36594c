"""Sharpen a trained model: ``python tools/retrofit.py MODEL [options]``.

MODEL is CONFIG CHECKPOINT, or the NAME of a released model. The model is frozen, and a guided upsampler in
place of its final resize is trained alone on the config's own training data. The work dir gets a config and a
checkpoint of the new model, the scores of both models by class, and a picture.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin.apis.model_arguments import add_models, read_one_model
from pixeldcl_plugin.apis.retrofit import Retrofit
from pixeldcl_plugin.apis.scores import comparison_table
from pixeldcl_plugin.engine import console, data_check
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.files import writing_to


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Sharpen a trained model by a guided upsampler.")
    add_models(parser)
    parser.add_argument("--iters", type=int, default=500, help="of the training (default: %(default)s)")
    parser.add_argument(
        "--guide",
        choices=["image", "features"],
        default="features",
        help="what shows the upsampler where objects end: the image alone, or the backbone's features where "
        "they are fine enough (default: %(default)s)",
    )
    parser.add_argument(
        "--split", choices=["val", "test"], default="val", help="scored (default: %(default)s)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the work dir's newest checkpoint"
    )
    cli.add_overwrite_argument(parser, "replace an earlier retrofit in the work dir")
    cli.add_common_arguments(parser)
    return parser.parse_intermixed_args(argv)


def retrofit(args: argparse.Namespace) -> None:
    """Sharpen as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    if args.launcher != "none":
        raise cli.UsageError(f"--launcher {args.launcher}: a retrofit runs in a single process")
    model = read_one_model(args.models, options=args.cfg_options)
    data_check.check_data(model.cfg, "train", args.split, read=args.data_check)
    work_dir = args.work_dir or Path("work_dirs") / f"{Path(model.config).stem}-guided"
    job = Retrofit(model, work_dir, iters=args.iters, guide=args.guide, split=args.split, seed=args.seed)
    with writing_to(work_dir):
        result = job.run(resume=args.resume, overwrite=args.overwrite)
    print(comparison_table(result.before, result.after))
    cli.report_written(result.config, result.checkpoint, result.picture)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("the same command with --resume goes on from the last checkpoint"):
        retrofit(args)


if __name__ == "__main__":
    main()
