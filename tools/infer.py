"""Segment pictures: ``python tools/infer.py MODEL IMAGES --out DIR [options]``.

MODEL is CONFIG CHECKPOINT, or the NAME of a released model. IMAGES is a file, a folder (with its subfolders),
or a glob in quotes. For each image the folder gets IMAGE_overlay.png, IMAGE_labels.png (class indices with a
palette) and, with --probabilities, IMAGE_probabilities.npz. A broken image is reported, the rest is done, and
the exit code is 1.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import pixeldcl_plugin
from pixeldcl_plugin.apis import folders as inference_folder
from pixeldcl_plugin.apis.model_arguments import add_models, read_one_model
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.devices import usable_device


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Segment pictures with a trained model.")
    add_models(parser)
    parser.add_argument("images", help="a file, a folder, or a glob in quotes such as 'shots/**/*.jpg'")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="write the probability of every class too, in 255ths: uint8 (classes, H, W) in an .npz file",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images of one size at once")
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=2**21,
        help="larger images pass the model in overlapping blocks of this size (default: %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="leave out images whose results are there")
    cli.add_overwrite_argument(parser, "replace results that are there")
    return parser.parse_intermixed_args(argv)


def infer(args: argparse.Namespace) -> int:
    """Segment as the command line says; return how many images failed."""
    console.quiet_warnings()
    enable_safe_loading()
    if args.resume and args.overwrite:
        raise cli.UsageError("--resume keeps results and --overwrite replaces them: give one of them")
    if args.batch_size < 1:
        raise cli.UsageError(f"--batch-size must be at least 1, got {args.batch_size}")
    device = usable_device(args.device)
    model = read_one_model(args.models)
    root, images = inference_folder.find_images(args.images, args.out)
    jobs = inference_folder.plan(root, images, args.out, args.probabilities)
    network = model.load_segmentor()  # Before the folder is made.
    todo, digest = inference_folder.check_output(
        jobs, args.out, Path(str(model.checkpoint)).expanduser(), force=args.overwrite, resume=args.resume
    )
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} images are done already")
    segmenter = pixeldcl_plugin.Segmenter(network, device=device, max_pixels=args.max_pixels)
    inference_folder.write_record(args.out, model.config, str(model.checkpoint), digest, segmenter)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("segmenting", total=len(todo))
        inside = progress.add_task("blocks of this image", visible=False)

        def on_block(done: int, total: int) -> None:
            if done == 1:
                progress.reset(inside)
            progress.update(inside, completed=done, total=total, visible=done < total)

        def report(job: inference_folder.Job, error: str | None) -> None:
            progress.advance(task)
            if error is not None:
                progress.console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)

        failed = inference_folder.segment(segmenter, todo, args.batch_size, report, on_block)
    print(
        f"wrote the results of {len(todo) - failed} images to {cli.shown(args.out)}"
        + (f", {failed} failed" * bool(failed))
    )
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("the same command with --resume does the pictures that are left"):
        failed = infer(args)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
