"""Compare two models in the browser: ``python tools/demo.py [--models MODEL MODEL]``.

A MODEL is CONFIG CHECKPOINT, or the NAME of a released model. Without any it is a released model of CamVid
with bilinear logits, and the same with guided ones. The page takes a picture and shows image, both
predictions and their difference side by side, with the scores. It listens on this machine only, unless --host
says otherwise, and keeps no upload for longer than twenty minutes, nor beyond its end.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pixeldcl_plugin
from pixeldcl_plugin.apis import demo, demo_server
from pixeldcl_plugin.apis.model_arguments import SHOWN, add_models, model_names, read_models
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.utils.devices import usable_device


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Compare two models on dropped pictures.")
    add_models(parser, "--models", default=[SHOWN["bilinear"], SHOWN["bilinear, retrofit"]])
    parser.add_argument("--names", nargs=2, metavar="NAME", help="of the models (default: by the configs)")
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: a GPU if there is one)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860)")
    parser.add_argument("--max-megabytes", type=int, default=10, help="largest upload (default: %(default)s)")
    parser.add_argument(
        "--max-pixels", type=int, default=2**21, help="largest picture (default: %(default)s)"
    )
    parser.add_argument(
        "--max-disk", type=int, default=200, help="megabytes that all uploads may take (default: %(default)s)"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    console.quiet_warnings()
    enable_safe_loading()
    if args.max_megabytes < 1 or args.max_pixels < 1:
        raise cli.UsageError("--max-megabytes and --max-pixels must be at least 1")
    with tempfile.TemporaryDirectory(prefix="pixeldcl-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        serve(args, demo_server.Store(Path(folder), args.max_megabytes * 2**20, args.max_disk * 2**20))


def serve(args: argparse.Namespace, store: demo_server.Store) -> None:
    """Load the models and serve the page, whose uploads go to a folder."""
    options = demo_server.launch_options(args.host, args.port, store)
    device = usable_device(args.device)
    models = read_models(args.models)
    if len(models) != 2:
        raise cli.UsageError(f"--models: the page compares two models, got {len(models)}")
    segmenters = [pixeldcl_plugin.Segmenter(model.load_segmentor(), device=device) for model in models]
    names = args.names or model_names(models)
    page = demo.build_page(segmenters, names, args.max_pixels, store.make_room)
    store.keep()  # the examples
    try:
        _, url, _ = page.launch(prevent_thread_lock=True, **options)
    except OSError as error:
        raise cli.UsageError(f"cannot listen on {args.host}: {error}") from error
    print(f"open {url} (stop with Ctrl-C)", flush=True)
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors("the same command serves the page again", "SIGTERM", "SIGHUP"):
        run(args)


if __name__ == "__main__":
    main()
