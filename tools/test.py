"""Evaluate a checkpoint: ``python tools/test.py MODEL [options]``.

MODEL is CONFIG CHECKPOINT, or the NAME of a released model. The flags are MMSegmentation's, with --seed and
--overwrite besides.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin.apis.model_arguments import add_models, read_one_model
from pixeldcl_plugin.engine import (
    builder,
    console,
    data_check,
    hardware,
    preflight,
    runtime,
    settings,
    testing,
)
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.files import writing_to


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on a config's test data.")
    add_models(parser)
    cli.add_common_arguments(parser)
    parser.add_argument("--out", metavar="FOLDER", help="write predicted label maps as PNG files")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", metavar="FOLDER", help="write pictures of the predictions")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds a shown picture stays")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    cli.add_overwrite_argument(parser, "write into folders that are not empty")
    return parser.parse_intermixed_args(argv)


def test(args: argparse.Namespace) -> None:
    """Evaluate as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    model = read_one_model(args.models, options=args.cfg_options)
    cfg = model.cfg
    cfg.launcher = args.launcher
    cfg.load_from, cfg.resume = model.checkpoint, False
    runtime.set_work_dir(cfg, model.config, args.work_dir)
    runtime.set_randomness(cfg, args.seed)
    settings.check_settings(cfg, "test", options=args.cfg_options)
    data_check.check_data(cfg, "test", read=args.data_check)
    builder.forget_pretraining(cfg.model)
    bare = cfg.copy()  # without test-time augmentation around the model
    for flag, folder in (("--out", args.out), ("--show-dir", args.show_dir)):
        preflight.check_output_dir(flag, folder, args.overwrite)
    if args.out:
        testing.save_predictions(cfg, args.out)
    if args.show or args.show_dir:
        testing.enable_drawing(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        testing.enable_tta(cfg)
    if not preflight.is_url(model.checkpoint):
        builder.load_model(bare, model.checkpoint)  # What refuses it does so before the work dir is made.
    testing.add_testing_hooks(cfg)
    notes = hardware.adapt_to_hardware(cfg)

    with writing_to(*filter(None, (args.out, args.show_dir, cfg.work_dir))):
        runner = runtime.build_runner(cfg, test=True)
        for note in notes:
            runner.logger.info(note)
        runner.test()
    written = [Path(runner.log_dir) / f"{runner.timestamp}.json", args.out, args.show_dir]
    if cli.is_main_process():
        cli.report_written(*(path for path in written if path and Path(path).exists()))
    runtime.close_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("run the same command again, with --overwrite where results were written already"):
        test(args)


if __name__ == "__main__":
    main()
