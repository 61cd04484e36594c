"""What a checkpoint says never harms: damaged and hostile files against everything that opens one."""

from __future__ import annotations

import copy
import functools
import runpy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import CosineAnnealingLR, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.visualization import Visualizer
from mmseg.visualization import SegLocalVisualizer

import pixeldcl_plugin
from pixeldcl_plugin.engine import console, runtime
from pixeldcl_plugin.engine.builder import build_model
from pixeldcl_plugin.engine.random_state import get_random_state, set_random_state
from pixeldcl_plugin.engine.resume_hook import CheckedResumeHook
from pixeldcl_plugin.utils import checkpoints

TOOLS = Path(__file__).parents[2] / "tools"
Damage = Callable[[dict[str, Any]], Any]


def load_tool(name: str) -> Callable[[list[str]], object]:
    main: Callable[[list[str]], object] = runpy.run_path(str(TOOLS / f"{name}.py"))["main"]

    def run(arguments: list[str]) -> object:
        # MMEngine keeps one logger and so on for each name, which has the second in it.
        with pytest.MonkeyPatch.context() as monkeypatch:
            for manager in (DefaultScope, MessageHub, MMLogger, Visualizer, SegLocalVisualizer):
                monkeypatch.setattr(manager, "_instance_dict", OrderedDict())
            return main(arguments)

    return run


@pytest.fixture(scope="module", autouse=True)
def _process_as_before() -> Iterator[None]:
    """Commands change how their process loads checkpoints and draws numbers; the tests after these go on."""
    state = get_random_state()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(CheckpointLoader, "_schemes", OrderedDict(CheckpointLoader._schemes))
        monkeypatch.setattr(DefaultScope, "_instance_dict", OrderedDict(DefaultScope._instance_dict))
        monkeypatch.setattr(console, "quiet_warnings", lambda: None)
        monkeypatch.setattr(Runner, "_log_env", lambda *_: None)  # half of the time of a refusal
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
        yield
    set_random_state(state)


@pytest.fixture(scope="module")
def config(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text(
        tiny_config_text
        + "train_cfg.update(max_iters=6, val_interval=2)\n"
        + 'default_hooks["checkpoint"].update(interval=2, save_best="mIoU", max_keep_ckpts=2)\n'
        + 'default_hooks["logger"].update(interval=50)\n'
    )
    return file


def train(config: Path, work_dir: Path, *more: object) -> None:
    load_tool("train")([str(config), "--work-dir", str(work_dir), *map(str, more)])


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a training of 4 iterations, validated at 2 and 4."""
    work_dir = tmp_path_factory.mktemp("run")
    train(config, work_dir, "--seed", 3, "--cfg-options", "train_cfg.max_iters=4")
    return work_dir


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> dict[str, Any]:
    return checkpoints.load_checkpoint(run / "iter_4.pth")


def refused(capsys: pytest.CaptureFixture[str], command: Callable[[], object]) -> str:
    """Returns the line with which a command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        command()
    assert exit.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


# --- files that hold no weights ------------------------------------------------------------------

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"


def states(change: Damage) -> Damage:
    return lambda whole: {**whole, "state_dict": change(dict(whole["state_dict"]))}


NO_WEIGHTS: dict[str, bytes | Damage] = {
    "text": b"a text\n",
    "jpeg": JPEG,
    "empty": b"",
    "another zip": b"PK\x05\x06" + bytes(18),
    "list": lambda whole: [1, 2],
    "tensor": lambda whole: torch.ones(3),
    "number": lambda whole: 5,
    "none": lambda whole: None,
    "string": lambda whole: "state_dict",
    "integer keys": lambda whole: dict(enumerate(whole["state_dict"].values())),
    "state of integer keys": states(lambda state: dict(enumerate(state.values()))),
    "one integer key": states(lambda state: {**state, 7: torch.ones(1)}),
    "state is a list": states(lambda state: list(state.values())),
    "state is none": states(lambda state: None),
    "state holds text": states(lambda state: {**state, next(iter(state)): "text"}),
    "state holds a number": states(lambda state: {**state, next(iter(state)): 1.0}),
    "sparse": states(lambda state: {k: v.to_sparse() if v.ndim else v for k, v in state.items()}),
    "no tensors": states(lambda state: {}),
    "other shapes": states(lambda state: {name: value[..., None] for name, value in state.items()}),
    "half of it": states(lambda state: dict(list(state.items())[: len(state) // 2])),
}


def write(damage: bytes | Damage, whole: dict[str, Any], file: Path) -> Path:
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        torch.save(damage(copy.deepcopy(whole)), file)
    return file


@pytest.fixture
def doors(config: Path, tiny_data: Path, tmp_path: Path) -> dict[str, Callable[[Path], object]]:
    images = tiny_data / "JPEGImages"

    def tool(name: str, *after: object) -> Callable[[Path], object]:
        module = load_tool(name)
        return lambda file: module([str(config), str(file), *map(str, after)])

    return {
        "train --resume": lambda file: train(config, tmp_path / "new", "--resume", file),
        "test": tool("test", "--work-dir", tmp_path / "tested"),
        "infer": tool("infer", images, "--out", tmp_path / "inferred"),
        "export": tool("export", "--out", tmp_path / "model.pt2", "--format", "torch"),
    }


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_no_weights(
    kind: str, checkpoint: dict[str, Any], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    doors: dict[str, Callable[[Path], object]],
) -> None:  # fmt: skip
    file = write(NO_WEIGHTS[kind], checkpoint, tmp_path / "damaged.pth")
    for door in doors.values():
        line = refused(capsys, lambda door=door: door(file))  # type: ignore[misc]
        assert "damaged.pth" in line or "another model" in line
    cfg = runtime.load_config(str(config))
    model = build_model(cfg)
    for load in (
        lambda: pixeldcl_plugin.load_weights(model, file),
        lambda: pixeldcl_plugin.Segmenter(str(config), file),
    ):
        with pytest.raises(checkpoints.CheckpointError) as refusal:
            load()
        assert "\n" not in str(refusal.value)
    assert list(tmp_path.rglob("*")) == [file]  # No empty folder either.


# --- points to resume from -----------------------------------------------------------------------


def _parent(whole: Any, path: tuple[Any, ...]) -> Any:
    for part in path[:-1]:
        whole = whole[part]
    return whole


def put(*path: Any, value: Any) -> Damage:
    """Returns a change of one entry; a function makes the value out of the old one."""

    def change(whole: dict[str, Any]) -> dict[str, Any]:
        parent = _parent(whole, path)
        parent[path[-1]] = value(parent[path[-1]]) if callable(value) else value
        return whole

    return change


def without(*path: Any) -> Damage:
    def change(whole: dict[str, Any]) -> dict[str, Any]:
        del _parent(whole, path)[path[-1]]
        return whole

    return change


SCALARS, INFO = ("message_hub", "log_scalars"), ("message_hub", "runtime_info")
LOSS, GROUP, MOMENTS = (*SCALARS, "train/loss"), ("optimizer", "param_groups", 0), ("optimizer", "state", 0)
NUMPY, PYTHON = ("random_state", "numpy"), ("random_state", "python")
ITERATIONS = (7, 10**9)
WRONG: dict[tuple[Any, ...], list[Any]] = {
    ("meta",): [None, "text", [1], torch.ones(2)],
    ("meta", "iter"): [*ITERATIONS, -1, "4", 4.0, None, True, torch.tensor(4)],
    ("meta", "epoch"): ["0", -1, None],
    ("meta", "seed"): ["abc", -1, 2**32, 1.5, [1]],
    ("message_hub",): [None, "text", [1], {}, torch.ones(2)],
    SCALARS: [None, "text", [1]],
    LOSS: [None, "text", 1.0, {}, {"values": 1}],
    (*LOSS, "values"): [None, "text", torch.ones(2, 2), torch.ones(1), torch.ones(()).expand(10**13)],
    (*LOSS, "counts"): [[1.0], torch.ones(0)],
    (*LOSS, "max_length"): [-1, "1", None, 10**12],
    INFO: [None, "text", [1]],
    (*INFO, "best_score"): ["text", None, float("nan"), [1]],
    (*INFO, "best_ckpt"): [5, [1], None],
    (*INFO, "keep_ckpt_ids"): ["text", 5, ["../../x"], [4.5], [{}]],
    ("message_hub", "resumed_keys"): [None, "text", [1]],
    ("optimizer",): [None, "text", [1], {}, torch.ones(2)],
    ("optimizer", "state"): [None, "text", [1]],
    ("optimizer", "param_groups"): [None, "text", [], ["text"], {}],
    (*GROUP, "params"): [None, "text", [0], lambda old: [*old[:-1], 10**6], lambda old: old[::-1]],
    (*GROUP, "lr"): ["text", None, [1], float("nan"), torch.ones(2)],
    (*GROUP, "betas"): ["text", 0.9, (0.9,), (0.9, "0.99")],
    MOMENTS: [None, "text", [1], {"step": torch.tensor(4.0)}],
    (*MOMENTS, "exp_avg"): [
        None,
        "text",
        1.0,
        torch.ones(2),
        lambda old: old[..., None],
        lambda old: old[:1],
    ],
    (*MOMENTS, "step"): ["text", None, torch.ones(3)],
    ("optimizer", "state", "text"): [{}],
    ("random_state",): [None, "text", [1], {}, torch.ones(2)],
    NUMPY: [None, "text", {}],
    (*NUMPY, "position"): [10**9, -1, "text", 2.5, None],
    (*NUMPY, "name"): ["PCG64", 5],
    (*NUMPY, "keys"): [None, "text", torch.ones(5).long(), torch.ones(624), torch.full((624,), -1)],
    (*NUMPY, "has_gauss"): ["text", None, 7],
    (*NUMPY, "cached"): ["text", None],
    PYTHON: [None, "text", {}],
    (*PYTHON, "version"): [7, "text"],
    (*PYTHON, "internal"): [None, torch.ones(5).long(), lambda old: old * -1, lambda old: old * 10**9],
    (*PYTHON, "gauss"): ["text", [1]],
    ("random_state", "torch"): [None, "text", torch.ones(3), lambda old: old[:-1], torch.zeros_like],
    ("param_schedulers",): [None, "text", [], ["text"], [1, 2], {"a": [{}]}],
    ("param_schedulers", 0, "last_step"): ["text", None, [1], 10**9],
    ("param_schedulers", 0, "base_values"): ["text", [], ["text"]],
}
MISSING: list[tuple[Any, ...]] = [
    ("meta",), ("meta", "iter"), ("meta", "epoch"), ("message_hub",), ("optimizer",), SCALARS, INFO,
    ("message_hub", "resumed_keys"), ("optimizer", "state"), ("optimizer", "param_groups"),
    (*LOSS, "values"), (*MOMENTS, "exp_avg"), NUMPY, PYTHON, ("random_state", "torch"), (*NUMPY, "position"),
]  # fmt: skip


@pytest.fixture(scope="module")
def runner(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that is about to load a checkpoint, as far as the hook looks at it."""
    cfg = runtime.load_config(str(config))
    cfg.load_from = "damaged.pth"
    wrapper = build_optim_wrapper(build_model(cfg), cfg.optim_wrapper)
    work_dir = str(tmp_path_factory.mktemp("unused"))
    scheduler = CosineAnnealingLR(wrapper, eta_min=1e-4, end=12, by_epoch=False)
    return SimpleNamespace(
        _resume=True,
        cfg=cfg,
        work_dir=work_dir,
        hooks=[],
        optim_wrapper=wrapper,
        param_schedulers=[scheduler],
    )


@pytest.mark.parametrize("path", WRONG, ids=lambda path: ".".join(map(str, path)))
def test_damaged_training_state(
    path: tuple[Any, ...], runner: Any, checkpoint: dict[str, Any], config: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "damaged.pth"
    for value in WRONG[path]:
        write(put(*path, value=value), checkpoint, file)
        if path != ("meta", "iter") or value not in ITERATIONS:  # possible, but not in this training
            with pytest.raises(checkpoints.CheckpointError, match=r"damaged\.pth") as refusal:
                CheckedResumeHook().after_load_checkpoint(runner, checkpoints.load_checkpoint(file))
            assert "\n" not in str(refusal.value)
        if path[0] not in ("optimizer", "param_schedulers"):  # They cannot be judged before the run exists.
            line = refused(capsys, lambda: train(config, tmp_path / "new", "--resume", file))
            assert "damaged.pth" in line
            assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", MISSING, ids=lambda path: ".".join(map(str, path)))
def test_missing_training_state(path: tuple[Any, ...], runner: Any, checkpoint: dict[str, Any]) -> None:
    damaged = without(*path)(copy.deepcopy(checkpoint))
    with pytest.raises(checkpoints.CheckpointError, match=r"damaged\.pth"):
        CheckedResumeHook().after_load_checkpoint(runner, damaged)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*MOMENTS, "exp_avg"), torch.ones(2)),
        (("param_schedulers", 0, "last_step"), "text"),
        (("param_schedulers",), []),
    ],
)
def test_damage_that_only_the_run_can_judge(
    path: tuple[Any, ...], value: Any, checkpoint: dict[str, Any], config: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = write(put(*path, value=value), checkpoint, tmp_path / "damaged.pth")
    line = refused(capsys, lambda: train(config, tmp_path / "new", "--resume", file))
    assert "damaged.pth" in line
    assert path[0] in line


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_whole_checkpoint_passes_unchanged(runner: Any, checkpoint: dict[str, Any]) -> None:
    loaded = copy.deepcopy(checkpoint)
    CheckedResumeHook().after_load_checkpoint(runner, loaded)
    for key in ("optimizer", "param_schedulers", "random_state", "state_dict"):
        assert_same(loaded[key], checkpoint[key])


def test_a_checkpoint_sets_no_attributes(runner: Any, checkpoint: dict[str, Any]) -> None:
    loaded = copy.deepcopy(checkpoint)
    loaded["param_schedulers"][0].update(step="text", optimizer="text", _get_value="text")
    loaded["optimizer"]["param_groups"][0]["more"] = "text"
    CheckedResumeHook().after_load_checkpoint(runner, loaded)
    for key in ("optimizer", "param_schedulers"):
        assert_same(loaded[key], checkpoint[key])


# --- code, and files of others -------------------------------------------------------------------


def test_a_config_in_a_checkpoint_is_not_executed(
    checkpoint: dict[str, Any], config: Path, tmp_path: Path
) -> None:
    code = f"open({str(tmp_path / 'executed')!r}, 'w')"
    whole = copy.deepcopy(checkpoint)
    for key in ("config", "cfg", "experiment_name"):
        whole["meta"][key] = code
        whole["message_hub"]["runtime_info"][key] = code
    file = tmp_path / "hostile.pth"
    torch.save(whole, file)
    train(config, tmp_path / "new", "--resume", file)
    assert (tmp_path / "new/iter_6.pth").is_file()
    load_tool("test")([str(config), str(file), "--work-dir", str(tmp_path / "tested")])
    assert not (tmp_path / "executed").exists()


def test_resuming_elsewhere_leaves_the_old_run_whole(
    run: Path, config: Path, tmp_path: Path, checkpoint: dict[str, Any]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    whole = copy.deepcopy(checkpoint)
    whole["message_hub"]["runtime_info"]["best_score"] = -1.0
    torch.save(whole, run / "copy.pth")
    train(config, tmp_path / "new", "--resume", run / "copy.pth")
    (run / "copy.pth").unlink()
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert len(list((tmp_path / "new").glob("best_*.pth"))) == 1


def test_a_checkpoint_deletes_nothing_that_it_names(
    checkpoint: dict[str, Any], config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").touch()
    whole = copy.deepcopy(checkpoint)
    whole["message_hub"]["runtime_info"].update(best_score=-1.0, best_ckpt=str(folder))
    torch.save(whole, tmp_path / "hostile.pth")
    train(config, tmp_path / "new", "--resume", tmp_path / "hostile.pth")
    assert (folder / "precious").exists()
    assert len(list((tmp_path / "new").glob("best_*.pth"))) == 1


def test_only_files_of_the_run_are_taken_over(
    runner: Any, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    run = SimpleNamespace(**{**vars(runner), "work_dir": str(tmp_path / "run")})
    own, foreign = "best_mIoU_iter_2.pth", ["best.pth", "notes.txt", "best_mIoU_iter_3.pth"]
    (tmp_path / "run/best_mIoU_iter_3.pth").mkdir(parents=True)
    for name in [own, *foreign[:2]]:
        (tmp_path / "run" / name).touch()
    (tmp_path / "best_mIoU_iter_9.pth").touch()
    for name in [*foreign, "best_mIoU_iter_4.pth", "../best_mIoU_iter_9.pth", "..", "", own]:
        loaded = copy.deepcopy(checkpoint)
        info = loaded["message_hub"]["runtime_info"]
        # An earlier run may have stood elsewhere, under a path of its own.
        info.update(best_ckpt=f"/elsewhere/{name}", best_ckpt_mIoU=name, best_score_mIoU=1.0)
        CheckedResumeHook().after_load_checkpoint(run, loaded)
        info = loaded["message_hub"]["runtime_info"]
        best = {key: value for key, value in info.items() if key.startswith("best")}
        file = str(tmp_path / "run" / own)
        scores = {
            "best_score": checkpoint["message_hub"]["runtime_info"]["best_score"],
            "best_score_mIoU": 1.0,
        }
        assert best == ({"best_ckpt": file, "best_ckpt_mIoU": file, **scores} if name == own else {})


# --- another model -------------------------------------------------------------------------------

# Data that have as many: otherwise that is what is refused.
FOUR_CLASSES = " ".join(
    f"{split}_dataloader.dataset.metainfo.{setting}"
    for split in ("train", "val")
    for setting in ("classes=[a,b,c,d]", "palette=[[1,1,1],[2,2,2],[3,3,3],[4,4,4]]")
)


@pytest.mark.parametrize(
    "option",
    [
        f"model.decode_head.num_classes=4 {FOUR_CLASSES}",
        "model.backbone.upsample_cfg.type=PixelDCL model.backbone.upsample_cfg.kernel_size=3",
        "model.backbone.upsample_cfg.kernel_size=2",
        "model.backbone.base_channels=8 model.decode_head.in_channels=8",
    ],
)
def test_resuming_another_model(
    option: str, run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    for arguments in ((tmp_path / "new", "--resume", run / "iter_4.pth"), (run, "--resume")):
        command = functools.partial(train, config, *arguments, "--cfg-options", *option.split())
        line = refused(capsys, command)
        assert "iter_4.pth" in line
    assert sorted(run.rglob("*")) == before
    assert not (tmp_path / "new").exists()


# --- overwriting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        "model.backbone.depth=3",
        "model.backbone.upsample_cfg.kernal_size=4",
        "optim_wrapper.optimizer.type=Adom",
        "param_scheduler.0.type=CosineAnealingLR",
        "train_dataloader.dataset.pipeline.0.type=LoadImage",
        "val_evaluator.type=IoUMetrik",
        "train_dataloader.sampler.type=NoSampler",
        "model.decode_head.in_channels=9",
    ],
)
def test_overwrite_deletes_only_once_training_works(
    option: str, run: Path, config: Path, tmp_path: Path
) -> None:
    before = {file.name for file in run.glob("*.pth")}
    with pytest.raises((SystemExit, RuntimeError, TypeError)):
        train(config, run, "--overwrite", "--cfg-options", option)
    assert {file.name for file in run.glob("*.pth")} == before
    assert (run / "last_checkpoint").is_file()


def test_overwrite_deletes_what_a_run_wrote(run: Path, config: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    foreign = ["pretrained.pth", "iter_x.pth", "best.pth", "my_iter_4.pth"]
    written = ["iter_900.pth", "epoch_12.pth", "best_mIoU_iter_900.pth", "best_a_b_epoch_3.pth"]
    for name in [*foreign, *written]:
        (work_dir / name).touch()
    (work_dir / "iter_5.pth").mkdir()
    train(config, work_dir, "--overwrite")
    left = {path.name for path in work_dir.glob("*.pth")}
    assert left >= {*foreign, "iter_5.pth"}
    assert not left & set(written)
