"""The code in the README and the docs runs as it stands there (their commands: test_docs_commands.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docs_code
import numpy as np
import pytest
from docs_code import PAGES, ROOT, Block
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from pixeldcl_plugin.apis.model_arguments import read_one_model
from pixeldcl_plugin.engine.runtime import load_config
from pixeldcl_plugin.zoo.models import create_model, list_models

#: The one list of what is not run, with the reason: page, heading.
NOT_RUN: dict[tuple[str, str], str] = {}

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


def test_commands_are_found_in_blocks_and_in_the_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`tools/a.py` and `python tools/a.py\n--b 1`\n\n"
        "```sh\n# first\npython tools/c.py \\\n    --d    # note\n"
        "for x in 1 2; do\n    python tools/e.py f_$x \\\n        --g\ndone\n"
        "python tools/h.py\n                  [--i]\n```\n"
    )
    options = ["c.py --d", "e.py f_1 --g", "e.py f_2 --g", "h.py [--i]", "a.py --b 1"]
    assert docs_code.commands(page) == [f"python tools/{option}" for option in options]


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_wrapped(page: str) -> None:
    """At 100 columns; tables, pictures, code and addresses that cannot be broken are as long as they are."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    long = [
        line for line in text.splitlines() if len(line) > 100 and not re.match(r"\s*(\||!?\[|    )", line)
    ]
    assert long == []
