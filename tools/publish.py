"""Publish a checkpoint in the model zoo: ``python tools/publish.py CHECKPOINT CONFIG [options]``.

Writes the weights alone as ``<config>_<date>-<hash>.safetensors``, proves that the config's model answers
with them as with the checkpoint, and appends a record to ``configs/<folder>/metafile.yaml``.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _interrupts  # noqa: F401  (first: what follows takes seconds)

import argparse
from collections.abc import Sequence

import pixeldcl_plugin  # noqa: F401  (registers everything; before any config is read)
from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import cli
from pixeldcl_plugin.utils.checkpoints import enable_safe_loading
from pixeldcl_plugin.zoo import index as zoo_index
from pixeldcl_plugin.zoo import publishing as publish


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Publish a checkpoint in the model zoo.")
    parser.add_argument("checkpoint", help=".pth or .safetensors file")
    parser.add_argument("config", help="config file in configs/<folder>/")
    parser.add_argument(
        "--metrics",
        nargs="+",
        required=True,
        metavar="FILE|KEY=VALUE",
        help="scores: values, or a .json file that tools/test.py left in its work dir",
    )
    parser.add_argument("--data", required=True, metavar="NAME", help="what it was trained on")
    parser.add_argument(
        "--licence", required=True, metavar="NOTE", help="what weights and data may be used for"
    )
    parser.add_argument(
        "--evaluated-on", metavar="NAME", help="what the scores were measured on (default: NAME of --data)"
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="publish the averaged weights of a run with EMAHook, or its last ones",
    )
    parser.add_argument("--half", action="store_true", help="kernels in float16: half the size")
    parser.add_argument(
        "--base",
        metavar="RELEASE",
        help="write only what differs from a release, which stays beside the file",
    )
    parser.add_argument(
        "--command", help="how it was trained (default: tools/train.py, if that config and seed say it all)"
    )
    parser.add_argument(
        "--test-command",
        help="how the scores were measured, {file} standing for the released file (default: tools/test.py)",
    )
    parser.add_argument("--task", help="default for segmentors: Semantic Segmentation")
    parser.add_argument("--url", help="address of the folder that the file will be uploaded to")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="image size to compare the answers with (default: the config's crop_size, else 64 64)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="publish into a zoo of its own (default: here)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Publish as the command line says."""
    console.quiet_warnings()
    enable_safe_loading()
    facts = publish.Facts(
        metrics=publish.parse_metrics(args.metrics),
        data=args.data,
        licence=args.licence,
        evaluated_on=args.evaluated_on,
        task=args.task,
        command=args.command,
        test_command=args.test_command,
        url=args.url,
    )
    release, file = publish.publish(
        args.checkpoint,
        args.config,
        facts,
        ema=args.ema,
        half=args.half,
        base=args.base,
        root=zoo_index.ZooRoot.at(args.out) if args.out else None,
        size=tuple(args.shape) if args.shape else None,
    )
    print(f"published {release.name}, sha256 {release.sha256}")
    if args.url:
        print(f"  upload it to {release.weights}")
    print(f"wrote {cli.shown(file)} ({release.size / 1e3:,.0f} kB)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = parse_args(argv)
    with cli.user_errors():
        run(args)


if __name__ == "__main__":
    main()
