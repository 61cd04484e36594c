"""Segment a brain with a small volumetric U-Net, once for each upsampler and seed.

    pip install pixeldcl-plugin nilearn matplotlib
    python docs/examples/volume.py --out volume.json --picture volume.png

The volume is the ICBM 152 2009a template that nilearn ships: the mean of 152 brains, 1 mm voxels, with maps of
the probability of grey and of white matter. The label of a voxel is the likeliest of grey matter, white matter
and neither. A mean of 152 brains is far smoother than a scan, so noise is added to it. The network learns from
one hemisphere and is scored on the other, which resembles it: this is an example, not a study.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from nilearn import datasets
from torch import Tensor, nn

from pixeldcl_plugin import IPixelDCL3d, PixelDCL3d

CLASSES = ("neither", "grey matter", "white matter")
CHANNELS = (8, 16, 32)
NOISE = 0.1  # of the template's range
CROP, BATCH = 32, 2
UPSAMPLERS = {
    "deconv k4": lambda i, o: nn.ConvTranspose3d(i, o, 4, stride=2, padding=1, bias=False),
    "pixeldcl3d": PixelDCL3d,
    "pixeldcl3d efficient": lambda i, o: PixelDCL3d(i, o, efficient=True),
    "ipixeldcl3d": IPixelDCL3d,
}


class UNet(nn.Module):
    """Three levels, an upsampler with norm and activation before each of the two upper ones."""

    def __init__(self, upsampler: str) -> None:
        super().__init__()
        top, middle, bottom = CHANNELS
        self.down = nn.ModuleList([convs(1, top), convs(top, middle), convs(middle, bottom)])
        self.up = nn.ModuleList(
            nn.Sequential(UPSAMPLERS[upsampler](i, o), nn.BatchNorm3d(o), nn.ReLU())
            for i, o in ((bottom, middle), (middle, top))
        )
        self.join = nn.ModuleList([convs(2 * middle, middle), convs(2 * top, top)])
        self.classify = nn.Conv3d(top, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, 3, D, H, W)`` of a volume ``(N, 1, D, H, W)``, sizes divisible by 4."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.classify(x)


def convs(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two 3x3x3 convolutions, each with norm and activation."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        convolution = nn.Conv3d(channels, out_channels, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm3d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


def load() -> tuple[list[Tensor], list[Tensor]]:
    """Return the images ``(D, H, W)`` and labels of both hemispheres, the left one first."""
    image, grey, white = (
        np.asarray(template(resolution=1).dataobj, np.float32)
        for template in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    image += NOISE * np.random.default_rng(0).standard_normal(image.shape, np.float32)
    label = np.stack([1 - grey - white, grey, white]).argmax(0)
    inside = np.argwhere(label > 0)
    box = tuple(slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True))
    # The first axis runs from left to right; its middle is that of the head.
    halves = slice(box[0].start, len(image) // 2), slice(len(image) // 2, box[0].stop)
    fits = [(half, *box[1:]) for half in halves]
    return [torch.from_numpy(image[i]) for i in fits], [torch.from_numpy(label[i]) for i in fits]


def train(model: nn.Module, image: Tensor, label: Tensor, iterations: int) -> None:
    """Train on random crops of a hemisphere, flipped along every axis in turn by chance."""
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=iterations)
    for _ in range(iterations):
        crops = []
        for _ in range(BATCH):
            start = [int(torch.randint(size - CROP + 1, ())) for size in image.shape]
            crop = tuple(slice(at, at + CROP) for at in start)
            flips = [axis for axis in range(3) if torch.rand(()) < 0.5]
            crops.append((image[crop].flip(flips), label[crop].flip(flips)))
        images, labels = (torch.stack(part) for part in zip(*crops, strict=True))
        loss = F.cross_entropy(model(images[:, None]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def predict(model: nn.Module, image: Tensor) -> Tensor:
    """Return the classes of a hemisphere as a whole."""
    padding = [p for size in reversed(image.shape) for p in (0, -size % 4)]
    logits = model.eval()(F.pad(image, padding)[None, None])[0]
    return logits.argmax(0)[tuple(slice(size) for size in image.shape)]


def dice(prediction: Tensor, label: Tensor, index: int) -> float:
    """Return the Dice coefficient of a class: twice the overlap over the sum of both sizes."""
    a, b = prediction == index, label == index
    return 2 * (a & b).sum().item() / (a.sum() + b.sum()).item()


def draw(columns: dict[str, np.ndarray], path: Path) -> None:
    """Draw a slice across each axis, one column a volume."""
    colors = ListedColormap(["black", "#c97b63", "#f2efe9"])
    figure = Figure(figsize=(2.2 * len(columns), 6.6), layout="constrained")
    axes = figure.subplots(3, len(columns))
    for column, (title, volume) in enumerate(columns.items()):
        for axis in range(3):
            # Across the first axis a third of the way from the middle of the head to its side.
            at = volume.shape[axis] // (3 if axis == 0 else 2)
            plane = np.take(volume, at, axis).T
            options = dict(cmap="gray") if title == "image" else dict(cmap=colors, vmin=0, vmax=2)
            axes[axis, column].imshow(plane, origin="lower", interpolation="nearest", **options)
            axes[axis, column].set_axis_off()
        axes[0, column].set_title(title, fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--upsamplers", nargs="+", choices=list(UPSAMPLERS), default=list(UPSAMPLERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("volume.json"))
    parser.add_argument("--picture", type=Path, default=Path("volume.png"))
    args = parser.parse_args()

    (left, right), (left_label, right_label) = load()
    columns = {"image": right.numpy(), "label": right_label.numpy()}
    # A file that is there is continued, and a command that is cut short keeps what is done.
    runs = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    for seed in args.seeds:
        for name in args.upsamplers:
            runs = [run for run in runs if (run["upsampler"], run["seed"]) != (name, seed)]
            torch.manual_seed(seed)
            model = UNet(name)
            torch.manual_seed(seed)  # the same crops for every upsampler
            start = time.process_time()
            train(model, left, left_label, args.iterations)
            seconds = time.process_time() - start
            prediction = predict(model, right)
            scores = {CLASSES[c]: round(dice(prediction, right_label, c), 4) for c in (1, 2)}
            parameters = sum(p.numel() for p in model.parameters())
            run = dict(upsampler=name, seed=seed, dice=scores, parameters=parameters)
            runs.append({**run, "cpu_seconds": round(seconds, 1), **notes(name, seed, args.iterations)})
            print(json.dumps(runs[-1]), flush=True)
            args.out.write_text(json.dumps({"summary": summary(runs), "runs": runs}, indent=1) + "\n")
            columns.setdefault(name, prediction.numpy())
            draw(columns, args.picture)


def summary(runs: list[dict]) -> dict[str, dict]:
    """Return means and standard deviations over the seeds."""
    table = {}
    for name in dict.fromkeys(run["upsampler"] for run in runs):
        own = [run for run in runs if run["upsampler"] == name]
        values = {c: [run["dice"][c] for run in own] for c in CLASSES[1:]}
        values["cpu_seconds"] = [run["cpu_seconds"] for run in own]
        table[name] = {"seeds": len(own)} | {
            key: dict(mean=round(mean(v), 4), std=round(stdev(v), 4) if len(v) > 1 else None)
            for key, v in values.items()
        }
    return table


def notes(name: str, seed: int, iterations: int) -> dict[str, object]:
    """Return what a reader needs to repeat a run."""
    options = ["--upsamplers", name, "--seeds", str(seed), "--iterations", str(iterations)]
    return {
        "command": shlex.join(["python", "docs/examples/volume.py", *options]),
        "date": datetime.date.today().isoformat(),
        "versions": {package: version(package) for package in ("pixeldcl-plugin", "torch", "nilearn", "numpy")},
    }


if __name__ == "__main__":
    main()
