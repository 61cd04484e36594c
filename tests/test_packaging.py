"""What the two distributions hold, and that a released model runs from them, far from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from released import MODEL, make_root, release

from pixeldcl_plugin.zoo.index import WEIGHTS, ZooRoot

ROOT = Path(__file__).parents[1]
SOURCES = ("README.md", "LICENSE", "MANIFEST.in", "setup.py", "pyproject.toml", "model-index.yml",
           "configs", "tools", "pixeldcl_plugin", "weights")  # fmt: skip

# Run in the new environment, in an empty folder.
CHECK = """
import json, runpy, sys
from pathlib import Path
import numpy as np
from mmengine.hub import get_config, get_model
from mmseg.apis import inference_model
from safetensors.torch import load_file
import modelindex
import pixeldcl_plugin
import pixeldcl_plugin_weights
from pixeldcl_plugin import create_model, list_models, model_info
from pixeldcl_plugin.utils.compat import resolve_config

name, environment = sys.argv[1:]
package = Path(pixeldcl_plugin.__file__).parent
assert package.is_relative_to(environment), package
assert list_models(pretrained=True) == [name]
(weights,) = Path(pixeldcl_plugin_weights.__file__).parent.glob("*.safetensors")
assert weights.is_relative_to(environment), weights
model = create_model(name, pretrained=True)
released = load_file(weights)
assert all(bool((tensor == released[key]).all()) for key, tensor in model.state_dict().items())
result = inference_model(model, np.full((32, 48, 3), 90, np.uint8))

# The index, configs and tools are where OpenMMLab's commands look for them.
(entry,) = modelindex.load(str(package / ".mim/model-index.yml")).models
assert entry.name == weights.stem
config = package / ".mim" / entry.config
assert model_info(name).config == config, model_info(name).config
assert resolve_config(f"pixeldcl_plugin::tiny/{name}") == config
assert get_config(f"pixeldcl_plugin::tiny/{name}.py").model.type == "EncoderDecoder"
hub = get_model(f"pixeldcl_plugin::tiny/{name}.py", pretrained=True).state_dict()
assert all(bool((tensor == released[key]).all()) for key, tensor in hub.items())
# What `mim test` runs.
runpy.run_path(str(package / ".mim/tools/test.py"))["main"]([str(config), str(weights), "--work-dir", "work"])
(scores,) = Path("work").glob("*/*.json")
assert "mIoU" in json.loads(scores.read_text())
print(tuple(result.pred_sem_seg.data.shape))
"""

# Likewise, without weights: everything else works.
WITHOUT = """
import sys
from mmseg.apis import init_model
from pixeldcl_plugin import create_model, list_models, model_info
name = sys.argv[1]
assert list_models(pretrained=True) == [name]
create_model(name)
for call in (lambda: create_model(name, pretrained=True),
             lambda: init_model(str(model_info(name).config), f"pixeldcl://{name}", device="cpu")):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""


def run(*command: object, cwd: Path) -> str:
    # Neither the repository nor a zoo of its own may be found by way of the environment.
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIXELDCL_ZOO")}
    env |= {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tiny_config_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which a tiny model is released."""
    folder = tmp_path_factory.mktemp("repository")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".mim", "*.safetensors", "metafile.yaml",
                                            "build", "*.egg-info")  # fmt: skip
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder)
    # Its bases are in the repository, as every config's are.
    make_root(folder, tiny_config_text.replace(f"{ROOT}/configs/_base_", "../_base_"))
    release(ZooRoot(folder, folder / "weights" / WEIGHTS))
    return folder.resolve()


@pytest.fixture(scope="module")
def wheels(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheels of the code and of the weights."""
    # What an earlier build left must not be shipped: files that have been removed since.
    for stale in ("build/lib/pixeldcl_plugin/checkpoints/stale.py",
                  f"weights/build/lib/{WEIGHTS}/stale.safetensors"):  # fmt: skip
        (source / stale).parent.mkdir(parents=True)
        (source / stale).touch()
    folder = tmp_path_factory.mktemp("wheels")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--no-index", "--wheel-dir", folder, source, source / "weights", cwd=folder)  # fmt: skip
    code, weights = sorted(folder.iterdir())
    assert weights.name.startswith(f"{WEIGHTS}-")
    return [code, weights]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment that borrows every package but this project from the current one."""
    folder = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=tmp_path)
    python = folder / "bin/python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path)
    # Files that end in .pth are read in an environment's own folder only: the editable install of
    # this project, which is one, is not borrowed.
    borrowed = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    Path(purelib.strip(), "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return folder


def install(environment: Path, *what: object, cwd: Path) -> None:
    python = environment / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", "--force-reinstall", *what, cwd=cwd)  # fmt: skip


@pytest.mark.slow
def test_the_wheel_ships_configs_tools_and_index(wheels: list[Path], source: Path) -> None:
    assert wheels[0].stat().st_size < 2_000_000
    names = set(zipfile.ZipFile(wheels[0]).namelist())
    for folder in ("configs", "tools"):
        wanted = {
            f"pixeldcl_plugin/.mim/{file.relative_to(source).as_posix()}"
            for file in (source / folder).rglob("*")
            if file.is_file()
        }
        assert wanted
        assert {name for name in names if name.startswith(f"pixeldcl_plugin/.mim/{folder}/")} == wanted
    assert "pixeldcl_plugin/.mim/model-index.yml" in names
    assert not any(WEIGHTS in name or "stale" in name or name.endswith(".safetensors") for name in names)
    packages = {
        f.parent.relative_to(source).as_posix() for f in (source / "pixeldcl_plugin").rglob("__init__.py")
    }
    assert all(f"{package}/__init__.py" in names for package in packages)
    assert not any(name.startswith(("tests/", "configs/", "tools/")) for name in names)


@pytest.mark.slow
def test_the_weights_are_a_wheel_with_a_licence_of_its_own(wheels: list[Path]) -> None:
    content = zipfile.ZipFile(wheels[1])
    files = [name for name in content.namelist() if name.startswith(f"{WEIGHTS}/")]
    assert sorted(Path(name).suffix for name in files) == [".py", ".safetensors"]
    assert any(Path(name).name.startswith(f"{MODEL}_") for name in files)
    (licence,) = (name for name in content.namelist() if name.endswith("/LICENSE"))
    assert "research only" in content.read(licence).decode()


@pytest.mark.slow
def test_the_wheels_run_a_released_model_by_name(
    wheels: list[Path], environment: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    install(environment, wheels[0], cwd=elsewhere)
    output = run(environment / "bin/python", "-c", WITHOUT, MODEL, cwd=elsewhere).splitlines()
    said = "released weights are not installed: pip install ./weights in a clone of the repository"
    refusals = [line for line in output if line.startswith(f"{MODEL}_")]
    assert len(refusals) == 2
    assert all(said in line for line in refusals)
    install(environment, wheels[1], cwd=elsewhere)
    output = run(environment / "bin/python", "-c", CHECK, MODEL, environment, cwd=elsewhere)
    assert output.endswith("(1, 32, 48)\n")


@pytest.mark.slow
def test_an_editable_install_follows_the_repository(source: Path, environment: Path, tmp_path: Path) -> None:
    install(environment, "--editable", source, "--editable", source / "weights", cwd=tmp_path)
    mim = source / "pixeldcl_plugin/.mim"
    for name in ("configs", "tools", "model-index.yml"):
        assert (mim / name).is_symlink()
        assert (mim / name).resolve() == source / name
    code = (
        "import pixeldcl_plugin as p; from pixeldcl_plugin.zoo.index import ZooRoot;"
        "root = ZooRoot.of_package().folder;"
        "print(p.list_models(pretrained=True), root, type(p.create_model(%r, pretrained=True)).__name__);"
        "import pixeldcl_plugin_weights as w; assert w.__file__.startswith(str(root / 'weights'));"
        "from mmengine.hub import get_config; print(get_config('pixeldcl_plugin::tiny/%s.py').model.type)"
    )
    output = run(environment / "bin/python", "-c", code % (MODEL, MODEL), cwd=tmp_path)
    assert output == f"{[MODEL]} {source} EncoderDecoder\nEncoderDecoder\n"
