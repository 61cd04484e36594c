"""Checkpoints are read without running what they hold."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import pickle
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint

from pixeldcl_plugin.utils import checkpoints


@pytest.fixture
def safe_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Safe loading switched on for one test only."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", OrderedDict(CheckpointLoader._schemes))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "")
    checkpoints.enable_safe_loading()


def mmengine_checkpoint() -> dict:
    """The kinds of objects that MMEngine's own checkpoints hold."""
    return {
        "state_dict": OrderedDict(weight=torch.arange(6.0).reshape(2, 3)),
        "meta": {"iter": 4, "score": np.float64(0.5), "best": np.float32(2), "seed": np.int64(3)},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer([1.0, 2.0], [1, 1])}},
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "mask": np.array([True, False])},
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_load_reads_checkpoints_of_mmengine(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "stock.pth"
    torch.save(mmengine_checkpoint(), path, _use_new_zipfile_serialization=not legacy)
    loaded = checkpoints.load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["weight"], torch.arange(6.0).reshape(2, 3))
    assert loaded["meta"] == {"iter": 4, "score": 0.5, "best": 2.0, "seed": 3}
    history = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert (history.mean(), history.statistics("max")) == (1.5, 2.0)
    assert loaded["optimizer"]["mask"].tolist() == [True, False]


def test_load_reads_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    loaded = checkpoints.load_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(2))
    assert loaded["meta"] == {}


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple:
        return self.call


class Method(Call):
    """Pickles as ``getattr(owner, name)`` and can stand for a function in another pickle."""

    def __init__(self, owner: object, name: str) -> None:
        super().__init__(getattr, owner, name)

    def __call__(self) -> None:
        """Needed for pickling only."""


def payloads(marker: Path) -> dict[str, object]:
    """Objects that create ``marker`` when unpickled, or reach for more than was allowed."""
    touch = f"touch {marker}"
    return {
        "system": Call(os.system, touch),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Method(HistoryBuffer, "__init__"),
        "getattr_other": Method(np.ndarray, "tofile"),
        "call_of_getattr": Call(Method(HistoryBuffer, "min"), HistoryBuffer([1.0], [1])),
        "partial": functools.partial(os.system, touch),
        "objects": np.array([Call(os.system, touch)], dtype=object),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", list(payloads(Path())))
def test_load_refuses_code_and_does_not_run_it(tmp_path: Path, kind: str, legacy: bool) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    checkpoint = {"state_dict": {}, "meta": payloads(marker)[kind]}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(checkpoints.CheckpointError) as refusal:
        checkpoints.load_checkpoint(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "weights_only" not in str(refusal.value)  # No advice to load it unsafely.
    assert not marker.exists()


def test_refusal_names_what_was_refused(tmp_path: Path) -> None:
    torch.save({"a": Call(os.system, "true")}, tmp_path / "evil.pth")
    with pytest.raises(checkpoints.CheckpointError, match=r"refused .*evil\.pth.*'(posix|os|nt)\.?\w*'"):
        checkpoints.load_checkpoint(tmp_path / "evil.pth")


@pytest.mark.parametrize("content", ["truncated", "empty", "text", "missing", "folder"])
def test_load_reports_broken_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.pth"
    torch.save(mmengine_checkpoint(), path)
    whole = path.read_bytes()
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content != "missing":
        path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hi"}[content])
    with pytest.raises(checkpoints.CheckpointError, match=r"broken\.pth") as report:
        checkpoints.load_checkpoint(path)
    assert "\n" not in str(report.value)


def test_every_prefix_of_a_checkpoint_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save(mmengine_checkpoint(), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoints.CheckpointError):
            checkpoints.load_checkpoint(path)


def test_safe_loading_replaces_mmengines_loaders(tmp_path: Path, safe_loading: None) -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    torch.save(mmengine_checkpoint(), tmp_path / "stock.pth")
    load_checkpoint(model, str(tmp_path / "stock.pth"))
    assert torch.equal(model.weight, torch.arange(6.0).reshape(2, 3))

    marker, evil = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"state_dict": {}, "meta": Call(os.system, f"touch {marker}")}, evil)
    with pytest.raises(checkpoints.CheckpointError):
        load_checkpoint(model, str(evil))
    with pytest.raises(pickle.UnpicklingError):  # Whoever asks for it in this process.
        torch.load(evil, weights_only=False)
    assert not marker.exists()


def test_urls_are_loaded_safely_and_checked_by_their_hash(
    tmp_path: Path, safe_loading: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    served = tmp_path / "served"
    served.mkdir()
    torch.save({"state_dict": {"weight": torch.ones(1)}}, served / "model.pth")
    digest = hashlib.sha256((served / "model.pth").read_bytes()).hexdigest()[:8]
    (served / f"good-{digest}.pth").write_bytes((served / "model.pth").read_bytes())
    (served / "bad-00000000.pth").write_bytes((served / "model.pth").read_bytes())
    torch.save({"a": Call(os.system, f"touch {tmp_path / 'executed'}")}, served / "evil.pth")

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        loaded = CheckpointLoader.load_checkpoint(f"{url}/good-{digest}.pth?download=1")
        assert torch.equal(loaded["state_dict"]["weight"], torch.ones(1))
        for name in ("bad-00000000.pth", "missing.pth", "evil.pth"):
            with pytest.raises(checkpoints.CheckpointError, match=name.removesuffix(".pth")):
                CheckpointLoader.load_checkpoint(f"{url}/{name}")
        server.shutdown()
    assert not (tmp_path / "executed").exists()


def test_the_prefix_of_a_parallel_wrapper_is_dropped() -> None:
    from pixeldcl_plugin.utils.checkpoints import state_of

    assert list(state_of({"state_dict": {"module.a.weight": torch.ones(1)}}, "file.pth")) == ["a.weight"]
