"""Models by name; and everything that can be wrong with a file of weights has its own error."""

from __future__ import annotations

import dataclasses
import http.server
import pickle
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmseg.apis import inference_model
from released import MODEL, UPSAMPLED, make_root, release, tiny_model
from safetensors.torch import load_file, save_file

import pixeldcl_plugin
from pixeldcl_plugin import create_model, list_models, load_weights, model_info
from pixeldcl_plugin.engine.weights import ClassCountError, WrongArchitectureError
from pixeldcl_plugin.utils import checkpoints
from pixeldcl_plugin.utils.checkpoints import CheckpointError, UnsafeCheckpointError
from pixeldcl_plugin.utils.files import file_sha256
from pixeldcl_plugin.zoo.download import (
    DownloadError,
    HashMismatchError,
    TruncatedDownloadError,
    download,
)
from pixeldcl_plugin.zoo.index import WEIGHTS, Release, ZooRoot, append_release, load_releases
from pixeldcl_plugin.zoo.models import NoWeightsError, UnknownModelError

REAL = ZooRoot.of_package()


@pytest.fixture(scope="module")
def template(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_root(tmp_path_factory.mktemp("template") / "zoo", tiny_config_text)
    release(root)
    release(root, UPSAMPLED)
    return root.folder


@pytest.fixture
def root(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ZooRoot:
    """A zoo with two released models, in use, and an empty cache."""
    shutil.copytree(template, tmp_path / "zoo")
    monkeypatch.setenv("PIXELDCL_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return ZooRoot.at(tmp_path / "zoo")


def replace_release(root: ZooRoot, model: str, **changes: object) -> Release:
    """Rewrites the record of a model, and its name where the hash changes."""
    entries = [r for r in load_releases(root) if r.model == model]
    new = dataclasses.replace(entries[0], **changes)  # type: ignore[arg-type]
    metafile = root.folder / "configs/tiny/metafile.yaml"
    content = yaml.safe_load(metafile.read_text())
    content["Models"] = [entry for entry in content["Models"] if entry["Name"] != entries[0].name]
    metafile.write_text(yaml.safe_dump(content))
    append_release(root, new)
    return new


# --- by name -------------------------------------------------------------------------------------


def test_models_are_listed(root: ZooRoot) -> None:
    assert list_models(pretrained=True) == [MODEL, UPSAMPLED]
    assert list_models("*tiny-pixel*", pretrained=True) == [MODEL]
    everything = list_models()
    assert everything == sorted(everything)
    assert MODEL in everything
    assert len(everything) > 12, "the package's own configs are there too"
    assert list_models("*pixeldcl*") == [name for name in everything if "pixeldcl" in name]
    assert list_models(["*-upsampled", "none"]) == [UPSAMPLED]
    assert list_models("none") == []


def test_names_of_configs_are_unique() -> None:
    stems = [f.stem for f in (REAL.folder / "configs").rglob("*.py") if "_base_" not in f.parts]
    assert len(stems) == len(set(stems))


def test_a_model_is_its_released_weights(root: ZooRoot) -> None:
    model = create_model(MODEL, pretrained=True)
    assert not model.training
    wanted = tiny_model(root).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    info = model_info(MODEL)
    assert (info.name, info.config) == (MODEL, root.config_files()[MODEL])
    assert info.release is not None
    assert info.releases == (info.release.name,)
    # mmseg's own inference takes it as it is.
    result = inference_model(model, np.zeros((32, 48, 3), np.uint8))
    assert result.pred_sem_seg.data.shape == (1, 32, 48)
    assert model.dataset_meta["classes"] == ("dark", "red", "blue")


def test_the_newest_release_is_meant_unless_one_is_named(root: ZooRoot) -> None:
    first = model_info(MODEL).release
    second = release(root, seed=1)
    assert first is not None
    assert model_info(MODEL).release == second, "of one day, the one that was published last"
    assert model_info(MODEL).releases == (second.name, first.name)
    name = "decode_head.conv_seg.weight"
    for asked, seed in ((MODEL, 1), (first.name, 0), (second.name, 1)):
        assert torch.equal(
            create_model(asked, pretrained=True).state_dict()[name],
            tiny_model(root, seed=seed).state_dict()[name],
        )
    # A later date counts more than a later publication.
    replace_release(root, MODEL, name=first.name.replace("_20260102-", "_20270102-"),
                    weights=first.weights.replace("_20260102-", "_20270102-"))  # fmt: skip
    assert model_info(MODEL).releases[0].endswith("_20270102-" + first.sha256[:8])


def test_unknown_names_and_models_without_weights(root: ZooRoot) -> None:
    with pytest.raises(UnknownModelError, match=f"no model 'unet-tiny-pixeldlc'; did you mean '{MODEL}'"):
        create_model("unet-tiny-pixeldlc")
    with pytest.raises(UnknownModelError, match=r"no model '///'$"):
        model_info("///")
    (name,) = list_models("unet-s5-d16-c16-pixeldcl_*camvid*")
    assert model_info(name).release is None
    assert not create_model(name).training, "without weights, unless they are asked for, as timm's"
    for call in (
        lambda name: create_model(name, pretrained=True),
        lambda name: load_weights(tiny_model(root), name),
    ):
        with pytest.raises(NoWeightsError, match=r"no weights of .* are released"):
            call(name)


def test_a_model_without_weights_reads_none(root: ZooRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of an ImageNet encoder either, whose file is not shipped; and says nothing of it."""
    pytest.importorskip("timm")
    (name,) = list_models("unethead_lite0-pixeldcl_*camvid*")
    monkeypatch.chdir(root.folder)
    model = create_model(name, pretrained=False, overrides={"decode_head.dropout_ratio": 0.25})
    assert model.decode_head.dropout.p == 0.25
    assert model.cfg.model.backbone.init_cfg is None


def test_initialisation_is_not_printed(root: ZooRoot, capfd: pytest.CaptureFixture[str]) -> None:
    create_model(MODEL, pretrained=True)
    output = capfd.readouterr()
    assert output.out + output.err == ""


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (MODEL, {"decode_head.conv_seg"}),
        # The upsampler works on the logits: its channels are the classes.
        (UPSAMPLED, {"decode_head.conv_seg", "auxiliary_head.conv_seg", "decode_head.upsample"}),
    ],
)
def test_other_classes_initialise_the_last_layer_only(root: ZooRoot, name: str, kept: set[str]) -> None:
    released = create_model(name, pretrained=True)
    model = create_model(name, num_classes=5, pretrained=True)
    own = released.state_dict()
    for key, tensor in model.state_dict().items():
        if any(key.startswith(prefix) for prefix in kept):
            assert not torch.equal(tensor.flatten()[:1], own[key].flatten()[:1]), key
        else:
            assert torch.equal(tensor, own[key]), key
    weight = model.decode_head.conv_seg.weight
    assert weight.shape[0] == 5
    assert 0 < weight.std() < 0.05, "mmseg's initialisation of the last layer, 0.01"
    assert model(torch.rand(1, 3, 32, 32), mode="tensor").shape[1] == 5
    assert not hasattr(model, "dataset_meta"), "the names of the classes are no longer these"
    same = create_model(name, num_classes=3, pretrained=True).state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in same.items())


def test_impossible_numbers_of_classes(root: ZooRoot) -> None:
    for wrong in (0, -1, 2.0, "5", True):
        with pytest.raises(ValueError, match=f"num_classes must be a positive integer, got {wrong!r}"):
            create_model(MODEL, num_classes=wrong)  # type: ignore[arg-type]
    (name,) = list_models("vae_pixeldcl*celeba64*")
    with pytest.raises(ValueError, match="num_classes=3: the model has no classes"):
        create_model(name, pretrained=False, num_classes=3)


# --- weights that do not fit ---------------------------------------------------------------------


def test_weights_are_loaded_whole_or_not_at_all(root: ZooRoot, tmp_path: Path) -> None:
    file = root.checkpoints / model_info(MODEL).release.file_name  # type: ignore[union-attr]
    state = load_file(file)
    wider = create_model(MODEL, pretrained=False, overrides={"decode_head.channels": 8})
    classes = create_model(MODEL, pretrained=False, num_classes=5)
    fewer = {name: tensor for name, tensor in state.items() if "upsample" not in name}
    more = {**state, "neck.weight": torch.ones(1)}
    same = create_model(MODEL, pretrained=False)
    cases = [
        (
            wider,
            state,
            WrongArchitectureError,
            r"differ in shape, first 'decode_head.conv_seg.weight', \(3, 4",
        ),
        (classes, state, ClassCountError, r"for 3 classes and the model has 5: .*num_classes=5\)"),
        (same, fewer, WrongArchitectureError, "the file lacks 'backbone.decoder.0.upsample"),
        (same, more, WrongArchitectureError, "the model has no 'neck.weight'"),
    ]
    for index, (model, weights, error, message) in enumerate(cases):
        path = tmp_path / f"{index}.safetensors"
        save_file(weights, path)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(error, match=message):
            load_weights(model, path)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    load_weights(same, str(file))
    assert torch.equal(same.state_dict()["decode_head.conv_seg.bias"], state["decode_head.conv_seg.bias"])
    load_weights(create_model(MODEL, pretrained=False), MODEL)


def test_a_changed_config_is_noticed(root: ZooRoot) -> None:
    config = root.config_files()[MODEL]
    config.write_text(config.read_text() + 'model["decode_head"]["num_classes"] = 4\n')
    with pytest.raises(ClassCountError, match="for 3 classes and the model has 4"):
        create_model(MODEL, pretrained=True)
    config.write_text(config.read_text() + 'model["backbone"]["base_channels"] = 8\n')
    with pytest.raises(CheckpointError):
        create_model(MODEL, pretrained=True)


class _Evil:
    """Leaves a file when unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


def test_an_unsafe_pickle_is_refused_even_if_the_index_vouches_for_it(root: ZooRoot, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"state_dict": _Evil(witness)}, tmp_path / "evil.pth")
    digest = file_sha256(tmp_path / "evil.pth")
    name = f"{MODEL}_20260102-{digest[:8]}"
    shutil.copy(tmp_path / "evil.pth", root.checkpoints / f"{name}.pth")
    replace_release(root, MODEL, name=name, sha256=digest, weights=f"checkpoints/{name}.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"refused checkpoint .* could run code"):
        create_model(MODEL, pretrained=True)
    # Under the name of a safe format it is not opened as a pickle.
    disguised = tmp_path / "disguised.safetensors"
    disguised.write_bytes(pickle.dumps(_Evil(witness)))
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*disguised"):
        load_weights(tiny_model(root), disguised)
    torch.save({"state_dict": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_weights(tiny_model(root), tmp_path / "list.pth")
    assert not witness.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert witness.exists(), "the file of this test is harmless: it shows nothing"


def test_a_tampered_file_is_not_opened(root: ZooRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root.checkpoints / model_info(MODEL).release.file_name  # type: ignore[union-attr]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(checkpoints, "load_checkpoint", lambda path: pytest.fail("the file was opened"))
    with pytest.raises(HashMismatchError, match="not the released file and was not opened"):
        create_model(MODEL, pretrained=True)
    file.unlink()
    with pytest.raises(CheckpointError, match="its weights are missing: no file"):
        create_model(MODEL, pretrained=True)


# --- downloads -----------------------------------------------------------------------------------


class Server:
    """Serves the files of a folder, and says what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop_after: int | None = None  # Bytes of the file after which the connection is cut.
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                file = server.folder / self.path.lstrip("/")
                if not file.is_file():
                    self.send_error(404)
                    return
                content = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: server.stop_after])

            def log_message(self, *args: object) -> None:
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.httpd.shutdown()
    server.httpd.server_close()
    thread.join()


@pytest.fixture
def served(root: ZooRoot, server: Server) -> Path:
    """The file of a release that is not shipped but served; returns where the cache will have it."""
    found = model_info(MODEL).release
    assert found is not None
    shutil.move(root.checkpoints / found.file_name, server.folder)
    replace_release(root, MODEL, weights=f"{server.url}/{found.file_name}")
    return Path(torch.hub.get_dir()) / "checkpoints" / found.file_name


def leftovers(target: Path) -> set[str]:
    return {file.name for file in target.parent.iterdir() if not file.name.endswith(".lock")}


def test_a_file_is_downloaded_once(served: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    create_model(MODEL, progress=True, pretrained=True)
    bar = capsys.readouterr().err
    assert served.stem in bar.replace("\n", "")
    assert "100%" in bar or "kB" in bar or "MB" in bar
    assert leftovers(served) == {served.name}
    create_model(MODEL, pretrained=True)
    assert len(server.requests) == 1
    assert capsys.readouterr().err == "", "no bar where stderr is no terminal"


def test_who_wants_the_same_file_waits_for_the_first(server: Server, tmp_path: Path) -> None:
    source = server.folder / "file"
    source.write_bytes(bytes(10_000_000))
    record = dict(sha256=file_sha256(source), size=10_000_000)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(download, f"{server.url}/file", tmp_path / "f", **record) for _ in range(4)]
        assert {call.result() for call in calls} == {tmp_path / "f"}
    assert server.requests == ["/file"]


def test_a_truncated_download_leaves_nothing(served: Path, server: Server) -> None:
    server.stop_after = 10_000
    with pytest.raises(TruncatedDownloadError, match=r"ended after 10000 of \d+ bytes.*call again"):
        create_model(MODEL, pretrained=True)
    assert leftovers(served) == set()
    server.stop_after = None
    create_model(MODEL, pretrained=True)
    assert leftovers(served) == {served.name}
    assert served.read_bytes() == (server.folder / served.name).read_bytes()


def test_what_a_killed_process_left_is_cleared(served: Path, server: Server) -> None:
    served.parent.mkdir(parents=True)
    for name in (f".partial-{served.name}", f".partial-{served.name}.0123.partial"):
        served.with_name(name).write_bytes(bytes(100))
    create_model(MODEL, pretrained=True)
    assert len(server.requests) == 1
    assert leftovers(served) == {served.name}


def test_a_server_with_other_files(served: Path, server: Server) -> None:
    source = server.folder / served.name
    content = source.read_bytes()
    source.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(HashMismatchError, match="does not serve the released file; what came was deleted"):
        create_model(MODEL, pretrained=True)
    assert leftovers(served) == set()
    source.write_bytes(content + bytes(1000))
    with pytest.raises(HashMismatchError, match="does not serve the released file"):
        create_model(MODEL, pretrained=True)
    assert leftovers(served) == set()
    source.unlink()
    with pytest.raises(DownloadError, match="404"):
        create_model(MODEL, pretrained=True)
    served.write_bytes(content[:-1])
    with pytest.raises(HashMismatchError, match=f"{served.name}' is not the released file"):
        create_model(MODEL, pretrained=True)


def test_addresses_that_cannot_be_reached(tmp_path: Path) -> None:
    target = tmp_path / "file.safetensors"
    for url, message in (
        ("http://127.0.0.1:9/file", "cannot download 'http://127.0.0.1:9/file'"),
        ("ftp://example.org/file", "only http, https and file"),
    ):
        with pytest.raises(DownloadError, match=message):
            download(url, target, sha256="0" * 64, size=1)
    source = tmp_path / "source"
    source.write_bytes(b"content")
    download(source.as_uri(), target, sha256=file_sha256(source), size=7)
    assert target.read_bytes() == b"content"


# --- what is released ----------------------------------------------------------------------------

RELEASED = load_releases(REAL)


NONE = pytest.param(None, marks=pytest.mark.skip(reason="nothing is released yet"), id="none")


@pytest.mark.parametrize("record", [pytest.param(r, id=r.name) for r in RELEASED] or [NONE])
def test_every_release_is_there_and_loads(record: Release) -> None:
    file = REAL.checkpoints / record.file_name
    if record.url is None:
        assert file.stat().st_size == record.size <= 20_000_000
        assert file_sha256(file) == record.sha256
    assert (REAL.folder / record.config).is_file()
    assert record.metrics
    model = create_model(record.name, pretrained=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters


def test_the_index_lists_every_metafile() -> None:
    index = yaml.safe_load(REAL.index.read_text())
    metafiles = {f.relative_to(REAL.folder).as_posix() for f in REAL.folder.glob("configs/*/metafile.yaml")}
    assert set(index["Import"]) == metafiles
    shipped = {file.name for file in REAL.checkpoints.glob("*.safetensors")}
    assert shipped == {r.file_name for r in RELEASED if r.url is None}


def test_the_shipped_weights_stay_small() -> None:
    assert sum(file.stat().st_size for file in REAL.checkpoints.iterdir()) < 60_000_000


def test_weights_that_are_not_installed_say_what_to_install(
    root: ZooRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZooRoot, "current", lambda: ZooRoot(root.folder, tmp_path / WEIGHTS))
    with pytest.raises(CheckpointError) as absent:
        create_model(MODEL, pretrained=True)
    (tmp_path / WEIGHTS).mkdir()
    with pytest.raises(CheckpointError) as other:
        load_weights(create_model(MODEL), MODEL)
    for said, what in ((absent, "are not installed"), (other, "another version of the weights")):
        assert str(said.value).startswith(f"{model_info(MODEL).release.name}: ")
        assert what in str(said.value)
        assert "pip install ./weights" in str(said.value)
        assert "\n" not in str(said.value)


def test_the_functions_are_public() -> None:
    for name in ("create_model", "list_models", "load_weights", "model_info"):
        assert name in pixeldcl_plugin.__all__
