"""A dataset and a config small enough to train within a test."""

from __future__ import annotations

import os

# Before torch starts its threads. Several test processes share the cores, and threads that wait for one
# another on busy cores take ten times as long as a single one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

TINY_CONFIG = """
_base_ = ["{root}/configs/_base_/default_runtime.py"]
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True,
        pad_val=0, seg_pad_val=255, size=(32, 32),
    ),
    backbone=dict(
        type="UNet", in_channels=3, base_channels=4, num_stages=3, strides=(1, 1, 1),
        enc_num_convs=(1, 1, 1), dec_num_convs=(1, 1), downsamples=(True, True),
        enc_dilations=(1, 1, 1), dec_dilations=(1, 1), norm_cfg=norm_cfg,
        upsample_cfg=dict(type="DeconvModule", kernel_size=4),
    ),
    decode_head=dict(
        type="FCNHead", in_channels=4, in_index=2, channels=4, num_convs=1, concat_input=False,
        dropout_ratio=0.5, num_classes=3, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
dataset = dict(
    type="BaseSegDataset", data_root="{data}", img_suffix=".jpg", seg_map_suffix=".png",
    data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
    metainfo=dict(classes=("dark", "red", "blue"), palette=[[9, 9, 9], [200, 0, 0], [0, 0, 200]]),
)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **dataset, ann_file="ImageSets/Segmentation/train.txt",
        pipeline=[
            *load,
            dict(type="RandomResize", scale=(40, 40), ratio_range=(1.0, 1.5), keep_ratio=True),
            dict(type="RandomCrop", crop_size=(32, 32), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset, ann_file="ImageSets/Segmentation/val.txt",
        pipeline=[*load, dict(type="PackSegInputs")],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-2))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-4, end=12, by_epoch=False)]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=12, val_interval=6)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1, log_metric_by_epoch=False),
    checkpoint=dict(interval=4),
)
"""


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the verdicts on data out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation set in PASCAL VOC layout: 6 training and 3 validation images of 32x32."""
    root = tmp_path_factory.mktemp("tiny_voc")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        names = [f"{split}_{index}" for index in range(count)]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            label = np.zeros((32, 32), np.uint8)
            image = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            for value, channel in ((1, 2), (2, 0)):  # OpenCV writes BGR
                y, x = rng.integers(0, 16, 2)
                label[y : y + 14, x : x + 14] = value
                image[y : y + 14, x : x + 14, channel] = 220
            label[:, 0] = 255
            cv2.imwrite(str(root / f"JPEGImages/{name}.jpg"), image)
            cv2.imwrite(str(root / f"SegmentationClass/{name}.png"), label)
    return root


@pytest.fixture(scope="session")
def tiny_config_text(tiny_data: Path) -> str:
    """A config that trains a U-Net of 4 base channels for 12 iterations on the tiny set."""
    return TINY_CONFIG.replace("{root}", str(ROOT)).replace("{data}", str(tiny_data))


@pytest.fixture
def tiny_config(tiny_config_text: str, tmp_path: Path) -> Path:
    """That config as a file."""
    path = tmp_path / "tiny.py"
    path.write_text(tiny_config_text)
    return path


@pytest.fixture
def limit_files() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Let files grow to so many bytes only: what lies beyond is refused by the system, as on a full disk."""
    resource = pytest.importorskip("resource", reason="the system has no such limit")

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python as a user would at the root of the repository, on one thread, without a display.

    Keyword arguments but ``timeout`` (seconds) are environment variables; PYTHONPATH is searched after the
    repository.
    """

    def run(*args: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        for display in ("DISPLAY", "WAYLAND_DISPLAY"):
            env.pop(display, None)
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)

    return run
