"""The code in the docs runs as it stands there."""

from __future__ import annotations

from pathlib import Path

import docs_code
import pytest

#: Pages whose Python is run, section by section. It needs no data.
PAGES = ["docs/conversion.md"]
SECTIONS = [(page, heading) for page in PAGES for heading in docs_code.sections(page)]


@pytest.mark.parametrize(("page", "heading"), SECTIONS, ids=str)
def test_section_runs(page: str, heading: str) -> None:
    assert docs_code.run_section(page, heading)


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
