"""Two processes against one: losses, gradients, statistics, memory format, failures. Also their program."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from pixeldcl_plugin.engine.distributed import GlobalBatchDDP
from pixeldcl_plugin.utils import checkpoints

CLASSES, STEPS = 3, 3
LOSSES = {
    "labelled": [dict(type="CrossEntropyLoss", avg_non_ignore=True)],
    "all": [dict(type="CrossEntropyLoss")],
    "weighted": [dict(type="CrossEntropyLoss", class_weight=[0.5, 1.0, 4.0])],
    "sigmoid": [
        dict(type="CrossEntropyLoss", use_sigmoid=True, avg_non_ignore=True, loss_name="loss_bce"),
        dict(type="CrossEntropyLoss", avg_non_ignore=True, loss_weight=0.5),
    ],
}
WARNING = "Grad strides do not match bucket view strides"


def build_model(losses: list[dict[str, Any]]) -> nn.Module:
    init_default_scope("mmseg")
    torch.manual_seed(0)
    norm_cfg = dict(type="SyncBN", momentum=0.2)
    head = dict(
        type="FCNHead", in_channels=4, channels=4, num_convs=1, concat_input=False, dropout_ratio=0,
        num_classes=CLASSES, norm_cfg=norm_cfg, align_corners=False, loss_decode=losses,
    )  # fmt: skip
    backbone = dict(
        type="UNet", base_channels=4, num_stages=2, strides=(1, 1), enc_num_convs=(1, 1), dec_num_convs=(1,),
        downsamples=(True,), enc_dilations=(1, 1), dec_dilations=(1,), norm_cfg=norm_cfg,
        upsample_cfg=dict(type="PixelDCL"),
    )  # fmt: skip
    model = dict(
        type="EncoderDecoder", backbone=backbone,
        data_preprocessor=dict(type="SegDataPreProcessor", size=(8, 8)),
        decode_head=dict(head, in_index=1), auxiliary_head=dict(head, in_index=0, in_channels=8),
        train_cfg=dict(), test_cfg=dict(mode="whole"),
    )  # fmt: skip
    return MODELS.build(model)


def batch(step: int, part: slice) -> dict[str, list[Any]]:
    """Four images of which the first two have far fewer labelled pixels."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 8, 8, generator=generator)
    labels = torch.randint(CLASSES, (4, 1, 8, 8), generator=generator)
    labels[:2, :, :6] = 255
    labels[2:, :, 4:] = 2
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    return dict(inputs=list(images[part]), data_samples=samples[part])


def train(model: nn.Module, part: slice, **wrapper: Any) -> dict[str, Any]:
    """Take some steps; return what was logged and the weights, on the CPU."""
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9)
    optim_wrapper = build_optim_wrapper(model, dict(type="OptimWrapper", optimizer=optimizer, **wrapper))
    model.train()
    logged = [model.train_step(batch(step, part), optim_wrapper) for step in range(STEPS)]
    state = (model.module if isinstance(model, GlobalBatchDDP) else model).state_dict()
    return {
        "losses": {k: torch.stack([log[k].detach().cpu() for log in logged]) for k in logged[0]},
        "state": {name: value.cpu() for name, value in state.items()},
    }


def program_on_gpu(rank: int, folder: Path) -> None:
    """What each of two processes with a GPU each does."""
    torch.cuda.set_device(rank)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("nccl", init_method=store, rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    results = {
        name: train(GlobalBatchDDP(build_model(losses).cuda(), device_ids=[rank]), part)
        for name, losses in LOSSES.items()
    }
    torch.save(results, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


def program(rank: int, folder: Path) -> None:
    """What each of the two processes does: everything that the tests look at, into one file."""
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    results: dict[str, Any] = {}
    for name, losses in LOSSES.items():
        results[name] = train(GlobalBatchDDP(build_model(losses), device_ids=[0]), part)
    norm = GlobalBatchDDP(nn.SyncBatchNorm(2, momentum=None))
    x = torch.full((1, 2, 2, 2), 1.0 + rank).bfloat16()
    results["cumulative"] = [norm(x * k).dtype for k in (1, 2)], norm.module.state_dict()
    results["eval"] = norm.eval()(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = GlobalBatchDDP(build_model(LOSSES["labelled"]), channels_last=True)
        results["channels_last"] = train(model, part)
    results["warnings"] = [str(w.message) for w in caught]
    os.environ["LOCAL_RANK"] = str(rank)
    try:
        checkpoints._load_from_http("http://127.0.0.1:9/model.pth")
    except checkpoints.CheckpointError as error:
        results["download"] = str(error)
    torch.save(results, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of("program", tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def gpu_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of("program_on_gpu", tmp_path_factory.mktemp("gpu_ranks"))


def results_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """Run a program of this file in two processes."""
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "TORCH_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, name, str(folder)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=env, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pth", weights_only=False) for rank in (0, 1)]


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_train_as_one(name: str, ranks: list[dict[str, Any]]) -> None:
    assert_trained_as_one(name, ranks)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", LOSSES)
def test_two_gpus_train_as_one(name: str, gpu_ranks: list[dict[str, Any]]) -> None:
    assert_trained_as_one(name, gpu_ranks)


def assert_trained_as_one(name: str, ranks: list[dict[str, Any]]) -> None:
    expected = train(revert_sync_batchnorm(build_model(LOSSES[name])), slice(0, 4))
    for rank in ranks:
        assert_same(rank[name]["state"], expected["state"])
        # The accuracy is a mean of means: it is logged, and nothing follows from it.
        for losses in (rank[name]["losses"], expected["losses"]):
            losses.pop("decode.acc_seg", None), losses.pop("aux.acc_seg", None)
        assert_same(rank[name]["losses"], expected["losses"])


def test_the_mean_of_the_ranks_own_losses_is_another() -> None:
    """What the equality above is worth."""
    model = revert_sync_batchnorm(build_model(LOSSES["labelled"])).eval()

    def loss(part: slice) -> Tensor:
        data = model.data_preprocessor(batch(0, part), True)
        return model.parse_losses(model(**data, mode="loss"))[0]

    difference = (loss(slice(0, 2)) + loss(slice(2, 4))) / 2 - loss(slice(0, 4))
    assert difference.abs() > 1e-2


def test_synchronised_norm_follows_batch_norm(ranks: list[dict[str, Any]]) -> None:
    norm = nn.BatchNorm2d(2, momentum=None)
    x = torch.stack([torch.full((2, 2, 2), 1.0), torch.full((2, 2, 2), 2.0)])
    for factor in (1, 2):
        norm(factor * x)
    for rank, result in enumerate(ranks):
        dtypes, state = result["cumulative"]
        assert dtypes == [torch.bfloat16] * 2
        assert_same(state, norm.state_dict())
        expected = norm.eval()(x[rank : rank + 1])
        torch.testing.assert_close(result["eval"].float(), expected, rtol=1e-2, atol=1e-2)


def test_gradients_have_the_strides_of_their_buckets(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert not [text for text in rank["warnings"] if WARNING in text]
        weights = [v for v in rank["channels_last"]["state"].values() if v.dim() == 4 and min(v.shape) > 1]
        assert weights
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
        assert_same(rank["channels_last"]["state"], rank["labelled"]["state"])


def test_a_failed_download_is_every_processs(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["download"] for rank in ranks)
    assert first == second
    assert "cannot download 'http://127.0.0.1:9/model.pth'" in first


if __name__ == "__main__":
    {"program": program, "program_on_gpu": program_on_gpu}[sys.argv[1]](int(sys.argv[3]), Path(sys.argv[2]))
