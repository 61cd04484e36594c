"""What a release holds, what it refuses, and that nothing is overwritten."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg.apis import init_model
from released import FACTS, MODEL, UPSAMPLED, config_file, make_root, release, save_checkpoint, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file

from pixeldcl_plugin.engine import console
from pixeldcl_plugin.utils import checkpoints
from pixeldcl_plugin.utils.checkpoints import CheckpointError
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.zoo import models as zoo
from pixeldcl_plugin.zoo import packing, provenance
from pixeldcl_plugin.zoo import publishing as publish
from pixeldcl_plugin.zoo.index import ModelIndexError, Release, ZooRoot, append_release, load_releases

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/publish.py"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def root(tiny_config_text: str, tmp_path: Path) -> ZooRoot:
    return make_root(tmp_path / "zoo", tiny_config_text)


def contents(root: ZooRoot) -> dict[str, bytes]:
    files = [file for file in root.folder.rglob("*") if file.is_file() and file.suffix != ".pth"]
    return {str(file): file.read_bytes() for file in files}


@pytest.mark.slow
def test_the_command_writes_a_file_and_its_record(
    root: ZooRoot, run_tool: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(root)
    checkpoint = save_checkpoint(root, root.folder / "run.pth", model)
    scores = root.folder / "scores.json"
    scores.write_text(json.dumps({"aAcc": 80.0, "data_time": 0.1, "time": 0.5}))
    command = (
        TOOL, checkpoint, config_file(root), "--metrics", scores, "mIoU=12.34",
        "--data", "tiny", "--evaluated-on", "tiny val", "--licence", "for tests: no use",
        "--out", root.folder,
    )  # fmt: skip
    result = run_tool(*command)
    assert result.returncode == 0, result.stderr
    (file,) = root.checkpoints.glob("*")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.name == f"{MODEL}_20260102-{digest[:8]}.safetensors"
    assert file.stem in result.stdout
    assert digest in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"wrote {file} (")
    assert "INFO" not in result.stdout + result.stderr
    assert file.stat().st_mode & 0o777 == 0o644

    # Tensors of the model, all of them, and nothing else.
    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
    classes = dict(classes=["dark", "red", "blue"], palette=[[9, 9, 9], [200, 0, 0], [0, 0, 200]])
    assert meta == {"format": "pt", "model": MODEL, "dataset_meta": json.dumps(classes)}
    assert CheckpointLoader.load_checkpoint(str(file), logger=None)["meta"] == {"dataset_meta": classes}
    written, wanted = load_file(file), model.state_dict()
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)

    (record,) = load_releases(root)
    assert record.sha256 == digest
    assert record.size == file.stat().st_size
    assert record.config == f"configs/tiny/{MODEL}.py"
    assert record.weights == f"pixeldcl://{file.name}"
    assert record.metrics == {"aAcc": 80.0, "mIoU": 12.34}
    assert (record.data, record.evaluated_on, record.licence) == ("tiny", "tiny val", "for tests: no use")
    assert (record.seed, record.classes) == (3, 3)
    assert record.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert record.command == f"python tools/train.py {record.config} --seed 3"
    assert record.test_command == f"python tools/test.py {record.config} checkpoints/{file.name}"
    assert record.versions["torch"] == torch.__version__
    assert record.versions.keys() == {"pixeldcl_plugin", "torch", "mmengine", "mmcv", "mmseg"}

    before = contents(root)
    # Within this process, for speed; what it changes about the process stays out.
    monkeypatch.setattr(checkpoints, "enable_safe_loading", lambda: None)
    monkeypatch.setattr(console, "quiet_warnings", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(TOOL))["main"]([str(each) for each in command[1:]])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("is published already: nothing is overwritten")
    assert contents(root) == before

    # The recorded command of a test runs with the file.
    test = run_tool(ROOT / "tools/test.py", config_file(root), file, "--work-dir", root.folder / "work")
    assert test.returncode == 0, test.stderr
    assert "mIoU: " in test.stdout


def test_a_vae_is_published_too(tmp_path: Path) -> None:
    (name,) = zoo.list_models("vae_pixeldcl*celeba64*")
    config = ZooRoot.of_package().config_files()[name]
    model = zoo.create_model(name, pretrained=False)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "vae.pth")
    root = ZooRoot.at(tmp_path / "zoo")
    facts = dataclasses.replace(FACTS, command="python tools/train.py")
    with pytest.raises(UsageError, match="--task: needed for a VAE"):
        publish.publish(str(tmp_path / "vae.pth"), str(config), facts, root=root)
    facts = dataclasses.replace(facts, task="Image Generation")
    record, file = publish.publish(str(tmp_path / "vae.pth"), str(config), facts, root=root)
    assert (record.task, record.classes, record.seed) == ("Image Generation", None, None)
    assert load_file(file).keys() == model.state_dict().keys()
    assert load_releases(root) == [record]


def test_averaged_weights_are_chosen_by_name(root: ZooRoot) -> None:
    """With the checkpoint that mmengine's own hook makes, which swaps the two sets."""
    last, average = tiny_model(root, seed=0), tiny_model(root, seed=1)
    hook = HOOKS.build(dict(type="EMAHook"))
    assert isinstance(hook, EMAHook)
    runner = type("Runner", (), {"model": last})()
    hook.before_run(runner)
    hook.ema_model.module.load_state_dict(average.state_dict())
    saved = {"state_dict": dict(last.state_dict())}
    hook.before_save_checkpoint(runner, saved)
    for ema, model in ((True, average), (False, last)):
        chosen = provenance.released_state(saved, "run.pth", ema)
        assert chosen.keys() == model.state_dict().keys()
        for name, parameter in model.named_parameters():
            assert torch.equal(chosen[name], parameter), (ema, name)
    with pytest.raises(UsageError, match=r"choose the averages, .*--ema.*--no-ema"):
        provenance.released_state(saved, "run.pth", None)
    with pytest.raises(UsageError, match=r"--ema: checkpoint 'run\.pth' holds no averaged weights"):
        provenance.released_state({"state_dict": last.state_dict()}, "run.pth", True)


def test_releases_are_appended(root: ZooRoot) -> None:
    names = [release(root, seed=seed).name for seed in (0, 1)] + [release(root, UPSAMPLED).name]
    assert [record.name for record in load_releases(root)] == names
    index = yaml.safe_load(root.index.read_text())
    assert index == {"Import": ["configs/tiny/metafile.yaml"]}


def test_half_the_size_and_the_same_model(root: ZooRoot) -> None:
    model = tiny_model(root)
    state = model.state_dict()
    variance = "decode_head.convs.0.bn.running_var"
    state[variance].fill_(1e6)  # more than float16 holds
    checkpoint = save_checkpoint(root, root.folder / "run.pth", model, state_dict=state)
    _, file = publish.publish(str(checkpoint), str(config_file(root)), FACTS, half=True, root=root)
    written = load_file(file)
    assert torch.equal(written[variance], state[variance])
    for name, tensor in state.items():
        assert written[name].dtype == (torch.float16 if tensor.ndim > 1 else tensor.dtype)
        torch.testing.assert_close(written[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-6)
    loaded = tiny_model(root, seed=1)
    zoo.load_weights(loaded, str(file))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.state_dict(), state, rtol=1e-3, atol=1e-6)

    state["decode_head.conv_seg.weight"][0] = 1e6
    checkpoint = save_checkpoint(root, root.folder / "run2.pth", model, state_dict=state)
    with pytest.raises(CheckpointError, match=r"conv_seg\.weight has weights of more than 65504"):
        publish.publish(str(checkpoint), str(config_file(root)), FACTS, half=True, root=root)


def test_a_file_completes_another_one(root: ZooRoot, tmp_path: Path) -> None:
    base = release(root)
    model = tiny_model(root)
    changed = "decode_head.conv_seg.bias"
    model.state_dict()[changed].add_(1)
    checkpoint = save_checkpoint(root, root.folder / "run.pth", model)
    config = config_file(root)
    record, file = publish.publish(str(checkpoint), str(config), FACTS, base=MODEL, root=root)
    assert load_file(file).keys() == {changed}
    assert record.size < base.size / 2
    for state in (
        zoo.read_state(file),
        CheckpointLoader.load_checkpoint(str(file), logger=None)["state_dict"],
        init_model(str(config), str(file), device="cpu").state_dict(),
    ):
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    # No chains, no other model, and nothing that is not there.
    other = tiny_model(root, UPSAMPLED)
    save_checkpoint(root, root.folder / "other.pth", other, UPSAMPLED)
    unlike = tiny_model(root, seed=1)
    save_checkpoint(root, root.folder / "unlike.pth", unlike)
    for name, config, of, message in (
        ("run.pth", MODEL, record.name, "completes another file itself"),
        ("unlike.pth", MODEL, base.name, "no weight is as in"),
        ("run.pth", MODEL, "none", "'none' is no release with a file in"),
    ):
        with pytest.raises(UsageError, match=f"--base: .*{message}"):
            publish.publish(
                str(root.folder / name), str(config_file(root, config)), FACTS, base=of, root=root
            )
    release(root, UPSAMPLED)
    with pytest.raises(UsageError, match=r"--base: the model has no '.*', which is in"):
        publish.publish(str(checkpoint), str(config_file(root)), FACTS, base=UPSAMPLED, root=root)

    alone = tmp_path / file.name
    alone.write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match=r"it completes .* which must lie beside it"):
        checkpoints.load_checkpoint(alone)
    content = bytearray((root.checkpoints / base.file_name).read_bytes())
    content[-1] ^= 1
    (tmp_path / base.file_name).write_bytes(content)
    with pytest.raises(CheckpointError, match="the one beside it is another file"):
        checkpoints.load_checkpoint(alone)


def test_tensors_that_share_memory_are_published(root: ZooRoot) -> None:
    model = tiny_model(root)
    state = model.state_dict()
    weight = state["decode_head.convs.0.bn.weight"]
    state["decode_head.convs.0.bn.bias"] = weight
    checkpoint = save_checkpoint(root, root.folder / "run.pth", model, state_dict=state)
    _, file = publish.publish(str(checkpoint), str(config_file(root)), FACTS, root=root)
    assert torch.equal(load_file(file)["decode_head.convs.0.bn.bias"], weight)


def test_a_file_with_an_address_stays_beside_the_checkpoint(
    root: ZooRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "MAX_SHIPPED", 1000)
    with pytest.raises(UsageError, match=r"are more than the 0 MB that are shipped: .* --url"):
        release(root)
    assert not any(root.checkpoints.iterdir())
    url = "https://example.org/zoo/"
    record = release(root, facts=dataclasses.replace(FACTS, url=url, test_command="test {file}"))
    assert record.weights == f"https://example.org/zoo/{record.name}.safetensors"
    assert record.test_command == f"test {record.weights}"
    assert (root.folder / record.file_name).is_file()


def _retrained(root: ZooRoot, old: str, new: str) -> dict[str, str | int]:
    text = Config.fromfile(config_file(root)).pretty_text
    assert old in text
    return {"cfg": text.replace(old, new), "seed": 3}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr=0.01", "lr=0.02", r"other settings than .*\(optim_wrapper\): give the command .* --command"),
        ("batch_size=2", "batch_size=4", r"\(train_dataloader\)"),
        ("type='PixelDCL'", "padding_mode='reflect', type='PixelDCL'", "trained with another model"),
    ],
)
def test_a_run_with_other_settings_needs_its_command(root: ZooRoot, old: str, new: str, message: str) -> None:
    model = tiny_model(root)
    checkpoint = save_checkpoint(root, root.folder / "run.pth", model, meta=_retrained(root, old, new))
    before = contents(root)
    with pytest.raises(UsageError, match=message):
        publish.publish(str(checkpoint), str(config_file(root)), FACTS, root=root)
    assert contents(root) == before
    given = dataclasses.replace(FACTS, command="python tools/train.py --amp")
    if "model" not in message:
        record, _ = publish.publish(str(checkpoint), str(config_file(root)), given, root=root)
        assert record.command == given.command


def test_a_run_on_a_cpu_counts_as_the_same(root: ZooRoot) -> None:
    cfg = Config.fromfile(config_file(root))
    text = cfg.pretty_text
    assert "SyncBN" in text
    assert provenance.training_changes(text.replace("'SyncBN'", "'BN'"), cfg) == []


def test_the_config_in_a_checkpoint_is_not_run(root: ZooRoot, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    text = f"open({str(witness)!r}, 'w')\nmodel = __import__('os').getcwd()\n"
    assert "model" in provenance.training_changes(text, Config.fromfile(config_file(root)))
    assert not witness.exists()
    with pytest.raises(CheckpointError, match="config cannot be read"):
        provenance.training_changes("model = (", Config.fromfile(config_file(root)))


@pytest.mark.parametrize(
    "damage",
    [
        dict(meta=dict(cfg="model = " + "(" * 10**4)),
        dict(meta=dict(cfg="model = 1\0")),
        dict(meta=dict(cfg="model = " + "-" * 10**5 + "1")),
        dict(meta=dict(seed="text")),
        dict(meta=dict(seed=-1)),
        dict(ema_state_dict=[1, 2]),
        dict(ema_state_dict={1: torch.ones(1)}),
        dict(state_dict={1: torch.ones(1)}),
    ],
)
def test_damaged_checkpoints_are_not_published(damage: dict[str, Any], root: ZooRoot) -> None:
    file = save_checkpoint(root, root.folder / "damaged.pth", tiny_model(root), **damage)
    before = contents(root)
    for ema in (None, False, True):
        with pytest.raises((CheckpointError, UsageError)) as refusal:
            publish.publish(str(file), str(config_file(root, MODEL)), FACTS, ema=ema, root=root)
        assert "\n" not in str(refusal.value)
    assert contents(root) == before


def test_refusals_leave_nothing_behind(
    root: ZooRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit_files: Callable[[int], Any]
) -> None:
    model = tiny_model(root)
    checkpoint = str(save_checkpoint(root, root.folder / "run.pth", model))
    config = str(config_file(root))
    stray = tmp_path / "stray.py"
    stray.write_text(config_file(root).read_text())
    before = contents(root)
    with pytest.raises(UsageError, match="is not in configs/<folder>/"):
        publish.publish(checkpoint, str(stray), FACTS, root=root)
    other = str(config_file(root, UPSAMPLED))
    save_checkpoint(root, root.folder / "other.pth", model, UPSAMPLED)
    with pytest.raises(CheckpointError, match="of another model: the file lacks"):
        publish.publish(str(root.folder / "other.pth"), other, FACTS, root=root)
    bare = tmp_path / "bare.pth"
    torch.save(model.state_dict(), bare)
    with pytest.raises(UsageError, match="does not say how it was trained"):
        publish.publish(str(bare), config, FACTS, root=root)
    diverged = {name: value * torch.nan for name, value in model.state_dict().items()}
    torch.save({"state_dict": diverged}, bare)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        publish.publish(str(bare), config, dataclasses.replace(FACTS, command="x"), root=root)
    # A file that is written wrongly is found out by what the model answers with it.
    with monkeypatch.context() as patch:
        write = packing.save
        patch.setattr(
            packing, "save", lambda tensors, metadata: write({k: v * 2 for k, v in tensors.items()}, metadata)
        )
        with pytest.raises(CheckpointError, match="does not answer as the checkpoint does"):
            publish.publish(checkpoint, config, FACTS, root=root)
    with pytest.raises(OSError, match=r"File too large: .*/unet-tiny.*\.safetensors"), limit_files(5000):
        publish.publish(checkpoint, config, FACTS, root=root)
    # A record that cannot be written takes its file along.
    (root.folder / "model-index.yml").write_text("Import: [configs/tiny/none.yaml]\n")
    with pytest.raises(ModelIndexError, match="no file"):
        publish.publish(checkpoint, config, FACTS, root=root)
    (root.folder / "model-index.yml").write_text("Import: []\n")
    assert contents(root) == before


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["mIoU"], "expected KEY=VALUE"),
        (["mIoU=high"], "mIoU must be a number"),
        (["mIoU=nan"], "mIoU must be a finite number"),
        (["mIoU=1", "mIoU=2"], "mIoU is given twice"),
        (["none.json"], "cannot read 'none.json'"),
        ([], "no metric given"),
    ],
)
def test_metrics_that_are_none(items: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        publish.parse_metrics(items)


def test_metrics_of_a_file_must_be_numbers(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    for content, message in (
        ({"config": "a.py"}, "config must be a finite number"),
        ([1], "must hold an object"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(UsageError, match=message):
            publish.parse_metrics([str(file)])


# --- the index -----------------------------------------------------------------------------------


def test_records_round_trip_and_incomplete_ones_are_refused(root: ZooRoot) -> None:
    record = release(root)
    entry = record.to_entry("tiny")
    assert Release.from_entry(entry) == record
    with pytest.raises(ModelIndexError, match="is published already"):
        append_release(root, record)
    for spoil, message in (
        (lambda e: e.pop("Weights"), "no 'Weights'"),
        (lambda e: e["Metadata"].pop("SHA256"), "no 'SHA256'"),
        (lambda e: e["Metadata"].update(SHA256="abc"), "64 hex digits"),
        (lambda e: e["Metadata"].update(SHA256="0" * 64), "the name must be"),
        (lambda e: e["Metadata"].update(Size=0), "positive number of bytes"),
        (lambda e: e.update(Weights="checkpoints/other.safetensors"), "must be a file called"),
        (lambda e: e.update(Results=[]), "not enough values"),
    ):
        entry = record.to_entry("tiny")
        spoil(entry)
        with pytest.raises(ModelIndexError, match=f"entry '{record.name}': .*{message}"):
            Release.from_entry(entry)
    with pytest.raises(ModelIndexError, match="entry None"):
        Release.from_entry("a string")  # type: ignore[arg-type]


def test_model_index_tools_read_it(root: ZooRoot) -> None:
    """With the package that Papers with Code reads model indices with."""
    modelindex = pytest.importorskip("modelindex", reason="needs: pip install model-index")
    assert modelindex.load(str(ZooRoot.of_package().index)).check(silent=True) == []
    record = release(root)
    index = modelindex.load(str(root.index))
    assert index.check(silent=True) == []
    (model,) = index.models
    assert (model.name, model.config, model.weights) == (record.name, record.config, record.weights)
    assert model.metadata.parameters == record.parameters
    assert model.metadata.data["SHA256"] == record.sha256
    assert model.results[0].metrics == record.metrics
    assert model.full_model.paper["URL"].startswith("https://arxiv.org/abs/1705.06820")
