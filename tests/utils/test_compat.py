"""Which distribution is installed, configs by name, and checkpoints read without running code."""

from __future__ import annotations

import importlib.metadata
import socket
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils

from pixeldcl_plugin.utils import compat

UNET = "unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"network call to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- distributions and configs -------------------------------------------------------------------


@pytest.mark.parametrize("installed", ["onedl-mmsegmentation", "mmsegmentation"])
def test_setup_names_the_installed_distribution(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == installed:
            return "1.2.3"
        if name in compat.DISTRIBUTIONS["mmseg"]:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(config_utils.MODULE2PACKAGE, "mmseg", "something else")
    compat.setup()
    assert compat.installed_distribution("mmseg") == (installed, "1.2.3")
    assert config_utils.MODULE2PACKAGE["mmseg"] == installed


def test_installed_distribution_refuses_other_modules() -> None:
    with pytest.raises(ValueError, match="'mmdet'"):
        compat.installed_distribution("mmdet")


@pytest.mark.parametrize("name", [f"mmseg::{UNET}", f"mmseg::{UNET.removesuffix('.py')}"])
def test_resolve_config_finds_what_mmseg_ships(name: str, no_network: None) -> None:
    assert compat.resolve_config(name).name == Path(UNET).name
    assert Config.fromfile(compat.resolve_config(name)).model.backbone.type == "UNet"


def test_config_inherits_from_mmseg(tmp_path: Path, no_network: None) -> None:
    compat.setup()
    leaf = tmp_path / "leaf.py"
    leaf.write_text(f"_base_ = ['mmseg::{UNET}']\nmodel = dict(backbone=dict(base_channels=8))")
    backbone = Config.fromfile(leaf).model.backbone
    assert (backbone.type, backbone.base_channels, backbone.num_stages) == ("UNet", 8, 5)


def test_resolve_config_takes_a_path(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.touch()
    assert compat.resolve_config(file) == file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such.py", "no config file 'no/such.py'"),
        ("mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x6.py", f"did you mean 'mmseg::{UNET}'"),
        ("mmseg::no_such_thing_at_all", "no config 'no_such_thing_at_all.py' in"),
        ("mmseg::../../__init__.py", "no config"),
        ("no_such_package::a.py", "module 'no_such_package'"),
        ("../x::a.py", "module '../x'"),
    ],
)
def test_resolve_config_says_what_is_missing(name: str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message.replace("'", ".")):
        compat.resolve_config(name)


# --- checkpoints ---------------------------------------------------------------------------------
