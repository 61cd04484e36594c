"""The code of the docs, taken out of their Markdown and run."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_HEADING = re.compile(r"^#+ (.+)$")
_FENCE = re.compile(r"^```(\w*)$")
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
# Of what stands in a text only whole commands, no names of tools.
_SPAN = re.compile(r"`((?:python (?:tools|docs)/|torchrun |make |pip |mim |tensorboard )[^`]*)`")
_LOOP = re.compile(r"^for (\w+) in (.+); do\n((?:.+\n)+?)done$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block, the heading it stands under and the line of its file at which it begins."""

    path: Path
    heading: str
    language: str
    code: str
    line: int

    def run(self, namespace: dict[str, Any]) -> None:
        """Execute it; a traceback shows the file and the line."""
        code = compile("\n" * (self.line - 1) + self.code, str(self.path), "exec")
        exec(code, namespace)


def blocks(path: str | Path, language: str = "python") -> list[Block]:
    """Every block of one language in a Markdown file of the repository, in order."""
    path = ROOT / path
    found = []
    heading, opened, lines = "", None, []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if opened is not None:
            if text == "```":
                found.append(Block(path, heading, opened, "\n".join(lines) + "\n", number - len(lines)))
                opened = None
            else:
                lines.append(text)
        elif fence := _FENCE.match(text):
            opened, lines = fence[1], []
        elif title := _HEADING.match(text):
            heading = title[1]
    return [block for block in found if block.language == language]


def sections(path: str | Path, language: str = "python") -> dict[str, list[Block]]:
    """The same by heading: the blocks under one heading go on from each other, those of another do not."""
    by_heading: dict[str, list[Block]] = {}
    for block in blocks(path, language):
        by_heading.setdefault(block.heading, []).append(block)
    return by_heading


def run_section(path: str | Path, heading: str) -> dict[str, Any]:
    """Execute the Python blocks under one heading at the root, in one namespace; return that."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    with contextlib.chdir(ROOT):
        for block in sections(path)[heading]:
            block.run(namespace)
    return namespace


def commands(path: str | Path) -> list[str]:
    """Every command line of a Markdown file, once each: those of its shell blocks, and in its text.

    A line that is continued is one, and a loop is one line a turn. Comments are left out.
    """
    text = (ROOT / path).read_text()
    script = "".join(block.code for block in blocks(path, "sh"))
    script = _LOOP.sub(_turns, re.sub(r"\\\n\s*|\n\s+(?=\[)", " ", script))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for line in script.splitlines()] + _SPAN.findall(prose)
    return list(dict.fromkeys(" ".join(line.split()) for line in lines if line.partition("#")[0].strip()))


def _turns(loop: re.Match[str]) -> str:
    name, values, body = loop.groups()
    return "\n".join(body.replace(f"${name}", value).strip() for value in values.split())
