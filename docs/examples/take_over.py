"""Train a released deconvolution U-Net on, as it is and taken over into iPixelDCL.

Both arms start from the same function: the second has layers that compute what the deconvolutions do.
Arms that are trained already are not trained again, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pixeldcl_plugin import convert_upsamplers, create_model
from pixeldcl_plugin.utils.compat import installed_versions

MODEL = "unethead_lite0-{}_1xb8-amp-1k_camvid-160x128"
#: Arm -> the model's name of its config, and what the config is to be told besides.
ARMS = {"deconv": ("deconv-k4", []), "ipixeldcl": ("ipixeldcl", ["model.decode_head.upsample_cfg.bias=True"])}
ITERATIONS = 500


def write_weights(out: Path) -> dict[str, Any]:
    """Write the weights that each arm begins with; return how far they are from each other."""
    model = create_model(MODEL.format("deconv-k4"), pretrained=True).eval()
    image = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(image)
        torch.save({"state_dict": model.state_dict()}, out / "deconv.pth")
        rows = convert_upsamplers(model, probe=image)
        torch.save({"state_dict": model.state_dict()}, out / "ipixeldcl.pth")
        logits = float((model(image) - before).abs().max() / before.abs().max())
    print(*rows, f"logits differ by {logits:.1e} of the largest, in float32", sep="\n", flush=True)
    return {"largest difference of the logits": logits, "layers": [asdict(row) for row in rows]}


def training_command(arm: str, seed: int, out: Path) -> list[str]:
    """Return the command that trains one arm."""
    name, options = ARMS[arm]
    options = [
        *options,
        f"load_from={out / arm}.pth",
        f"train_cfg.max_iters={ITERATIONS}",
        f"train_cfg.val_interval={ITERATIONS}",
        f"param_scheduler.0.end={ITERATIONS}",
        f"default_hooks.checkpoint.interval={ITERATIONS}",
        "optim_wrapper.optimizer.lr=5e-4",
        *(f"{split}_dataloader.num_workers=0" for split in ("train", "val")),
        *(f"{split}_dataloader.persistent_workers=False" for split in ("train", "val")),
    ]
    config = f"configs/camvid/{MODEL.format(name)}.py"
    work_dir = out / f"{arm}_s{seed}"
    head = ["python", "tools/train.py", config, "--seed", str(seed), "--work-dir", str(work_dir)]
    return [*head, "--cfg-options", *options]


def score(arm: str, seed: int, out: Path) -> dict[str, float] | None:
    """Return what the last validation of an arm found, or None before that."""
    for log in sorted((out / f"{arm}_s{seed}").glob("*/vis_data/scalars.json"), reverse=True):
        last = json.loads(log.read_text().splitlines()[-1])
        if last.get("step") == ITERATIONS and "mIoU" in last:
            return {name: round(last[name], 2) for name in ("mIoU", "aAcc", "mAcc")}
    return None


def main() -> None:
    """Take the model over, train both arms with every seed, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/take_over"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--result", type=Path, help="JSON to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    taken_over = write_weights(args.out)
    runs = []
    for seed in args.seeds:
        for arm in ARMS:
            command = training_command(arm, seed, args.out)
            if score(arm, seed, args.out) is None:
                subprocess.run([sys.executable, *command[1:]], check=True)
            found = score(arm, seed, args.out) or {}
            runs.append({"arm": arm, "seed": seed, "command": " ".join(command), **found})
    result = {
        "command": " ".join(["python", *sys.argv]),
        "model": MODEL.format("deconv-k4"),
        "iterations": ITERATIONS,
        "scored_on": "CamVid val, 101 images",
        "taken_over": taken_over,
        "runs": runs,
        "versions": {module: " ".join(found) for module, found in installed_versions().items()},
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
    }
    print(json.dumps(runs, indent=1))
    if args.result is not None:
        args.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
