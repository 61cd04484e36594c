"""Train a model of a config: ``python tools/train.py CONFIG [options]``.

The flags are MMSegmentation's, with a path for --resume, and --seed, --deterministic and
--overwrite besides.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin.engine import console, data_check, folder_data, hardware, preflight, runtime, settings
from pixeldcl_plugin.engine.hooks import ReplaceRunHook
from pixeldcl_plugin.engine.progress import progress_shown
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.files import writing_to
from pixeldcl_plugin.visualization import reports


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train a model of a config.")
    parser.add_argument("config", help="config file, or mmseg::PATH for one that mmseg ships")
    cli.add_common_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from a checkpoint; without a path, from the newest whole one in the "
        "work dir (give the flag after the config)",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision; bfloat16 on CPU")
    parser.add_argument("--deterministic", action="store_true", help="deterministic algorithms")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the checkpoints of an earlier run in the work dir",
    )
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    """Train as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    cfg = runtime.load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    runtime.set_work_dir(cfg, args.config, args.work_dir)
    runtime.set_randomness(cfg, args.seed, args.deterministic)
    if args.amp:
        hardware.enable_amp(cfg)
    notes = hardware.adapt_to_hardware(cfg)
    settings.check_settings(cfg, "train", "val", options=args.cfg_options)
    data_check.check_data(cfg, "train", "val", read=args.data_check)
    notes += folder_data.describe_folders(cfg)
    preflight.check_weights(cfg)
    with preflight.claimed_work_dir(cfg), writing_to(cfg.work_dir):
        preflight.prepare_work_dir(cfg, args.resume, args.overwrite)
        earlier = preflight.written_files(cfg) if args.overwrite else []
        runtime.add_training_hooks(cfg)
        runner = runtime.build_runner(cfg)
        runner.register_hook(ReplaceRunHook(earlier))
        for note in notes:
            runner.logger.info(note)
        with progress_shown(runner):
            runner.train()
        reports.finish_training(runner)
    runtime.close_process_group()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("the same command with --resume goes on from the last checkpoint"):
        train(args)


if __name__ == "__main__":
    main()
