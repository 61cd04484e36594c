"""The code in the README and the docs runs as it stands there, and their commands are accepted."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docs_code
import numpy as np
import pytest
from docs_code import ROOT, Block
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from pixeldcl_plugin.apis.model_arguments import read_one_model
from pixeldcl_plugin.engine.runtime import load_config
from pixeldcl_plugin.zoo.models import create_model, list_models

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]

#: The one list of what is not run, with the reason: page, heading.
NOT_RUN: dict[tuple[str, str], str] = {}

#: Lines of a shell that are no tool of the repository. What they do is run elsewhere, or is not for a test.
OTHER_COMMANDS = {
    "make": "targets are checked by name; `make test` runs this",
    "pip": "tests/test_packaging.py installs",
    "tensorboard": "not ours",
    "torchrun": "tests/engine/test_distributed.py starts several processes",
    "for": "a loop around a command, which is checked",
    "done": "the same",
    "apt-get": "asks for root and a network",
    "mim": "asks for a network",
}

CONFIG_LIKE = re.compile(r"^(_base_|custom_imports|[a-z_]+ = (dict\(|\[))", re.MULTILINE)


def is_config(block: Block) -> bool:
    """Whether a block of Python is (a part of) a config, not a program."""
    return bool(CONFIG_LIKE.match(block.code)) and "import " not in block.code


def python_sections() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for heading, blocks in docs_code.sections(page).items():
            if not all(map(is_config, blocks)) and (page, heading) not in NOT_RUN:
                yield page, heading


def config_blocks() -> Iterator[Any]:
    for page in PAGES:
        for block in docs_code.blocks(page):
            if is_config(block) and (page, block.heading) not in NOT_RUN:
                yield pytest.param(block, id=f"{page}:{block.line}")


def commands() -> Iterator[Any]:
    """Every command line of the docs, in one piece."""
    for page in PAGES:
        for block in docs_code.blocks(page, "sh"):
            if (page, block.heading) in NOT_RUN:
                continue
            for line in re.sub(r"\\\n\s*|\n\s+(?=\[)", " ", block.code).splitlines():
                if line.partition("#")[0].strip():
                    yield pytest.param(line.strip(), id=f"{page}: {line.strip()[:70]}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the docs' names stand for something: pictures, a config and a checkpoint."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
    for name in ("street.jpg", "picture.jpg"):
        picture.save(tmp_path / name)
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "heading"), list(python_sections()), ids=str)
def test_section_runs(page: str, heading: str, folder: Path) -> None:
    blocks = docs_code.sections(page)[heading]
    released = list_models("*camvid*", pretrained=True)
    text = "".join(block.code for block in blocks)
    namespace: dict[str, Any] = {"__name__": "docs"}
    if re.search(r"NAME|CONFIG|config\.py|create_model", text):
        if not released:
            pytest.skip("no released model of CamVid")
        entry = read_one_model([released[0]])
        picture = np.zeros((96, 128, 3), np.uint8)
        model = create_model(released[0], pretrained=True)
        namespace |= dict(name=released[0], model=model, image=picture, other=picture)
    for block in blocks:
        if is_config(block):
            continue
        code = block.code
        if released:
            code = re.sub(r'"NAME"', repr(released[0]), code)
            if re.search(r"CONFIG|CHECKPOINT|config\.py|weights\.pth", code):
                code = re.sub(r'"(CONFIG|config\.py)"', repr(str(entry.config)), code)
                code = re.sub(r'"(CHECKPOINT|weights\.pth)"', repr(str(entry.checkpoint)), code)
        Block(block.path, block.heading, block.language, code, block.line).run(namespace)


@pytest.mark.parametrize("block", list(config_blocks()))
def test_config_is_built(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "page.py"
    path.write_text(block.code)
    cfg = load_config(str(path)) if "_base_" in block.code else Config.fromfile(path)
    if "_base_" not in block.code:  # a part to be put into a config: its types are known
        assert list(unknown_types(cfg.to_dict())) == []
        return
    init_default_scope(cfg.default_scope)
    cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = None
    assert revert_sync_batchnorm(MODELS.build(cfg.model))


def unknown_types(value: Any) -> Iterator[str]:
    """Yield the types in a config that no registry below mmengine's and mmseg's knows."""
    from mmseg import registry

    if isinstance(value, dict):
        name = value.get("type")
        kinds = [
            getattr(registry, kind) for kind in ("MODELS", "METRICS", "HOOKS", "VISBACKENDS", "DATASETS")
        ]
        init_default_scope("mmseg")
        if isinstance(name, str) and not any(kind.get(name) for kind in kinds):
            yield name
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from unknown_types(item)


@pytest.mark.parametrize("line", list(commands()))
def test_command_is_accepted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders stand for files, which are not looked at while a command line is read."""
    line = line.partition(" # ")[0].partition("    #")[0]
    line = re.sub(r"\s*\.\.\.", "", re.sub(r"\[([^\]]*)\]", r"\1", line.replace("[CHECKPOINT]", "")))
    words = [word.partition("|")[0] for word in shlex.split(line.replace("| tail", "; tail").split(";")[0])]
    while words and words[0] in ("python", ".venv/bin/python"):
        words.pop(0)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word and not word.startswith("-")} <= targets
        return
    if words[0].startswith("docs/examples/"):  # run by their own tests; here their flags are looked up
        source = (ROOT / words[0]).read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--")), line
        return
    if not words[0].startswith("tools/"):
        assert Path(words[0]).name in OTHER_COMMANDS, f"{words[0]}: no tool, and not in OTHER_COMMANDS"
        return
    replaced = {"N": "1", "D": "1"}
    words = [replaced.get(word, word) for word in words]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", [str((ROOT / words[0]).parent), *sys.path])
    parse = runpy.run_path(str(ROOT / words[0]))["parse_args"]
    try:
        parse(words[1:]) if parse.__code__.co_argcount else parse()
    except SystemExit as stop:
        pytest.fail(f"{shlex.join(words)} is refused: {stop}")


def test_blocks_know_their_section_and_their_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\na = 1\n```\n\n```sh\n# no heading\n```\n\n"
        "```python\nb = a + 1\n```\n\n## Next\n\n```python\nraise ValueError(3)\n```\n"
    )
    by_heading = docs_code.sections(page)
    assert {heading: len(blocks) for heading, blocks in by_heading.items()} == {"Title": 2, "Next": 1}
    assert docs_code.run_section(page, "Title")["b"] == 2
    assert [block.code for block in docs_code.blocks(page, "sh")] == ["# no heading\n"]
    with pytest.raises(ValueError, match="3") as error:
        docs_code.run_section(page, "Next")
    assert error.traceback[-1].path == page
    assert error.traceback[-1].lineno + 1 == 18


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_wrapped(page: str) -> None:
    """At 100 columns; tables, pictures, code and addresses that cannot be broken are as long as they are."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    long = [
        line for line in text.splitlines() if len(line) > 100 and not re.match(r"\s*(\||!?\[|    )", line)
    ]
    assert long == []
