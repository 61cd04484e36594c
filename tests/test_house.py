"""The families of the package: imports run downwards, without circles, in small modules."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pixeldcl_plugin

PACKAGE = Path(pixeldcl_plugin.__file__).parent
#: Floors of the house, the lowest first. A module imports from its own family and from lower floors.
FLOORS = (
    ("utils", "registry"),
    ("layers",),
    ("models", "datasets"),
    ("evaluation",),
    ("engine",),
    ("visualization", "zoo"),
    ("apis",),
    ("analysis", "benchmark", "study"),
)
LONGEST = 300  # lines: a longer file is two ideas


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if ".mim" not in file.parts}


def imports_of(name: str, file: Path) -> set[str]:
    """The modules of the package that a module imports, wherever in it."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = package[: len(package) - node.level + 1] if name else []
        base = ".".join([*parts, *(node.module.split(".") if node.module else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}".lstrip(".")
            found.add(inner if inner in MODULES else base)
    return found - {"", name}


ARROWS = {name: imports_of(name, file) for name, file in MODULES.items() if name}


def floor(module: str) -> int:
    family = module.partition(".")[0]
    return next(i for i, families in enumerate(FLOORS) if family in families)


def test_imports_run_downwards() -> None:
    upwards = [
        f"{name} imports {other}"
        for name, others in ARROWS.items()
        for other in others
        if name.partition(".")[0] != other.partition(".")[0] and floor(other) >= floor(name)
    ]
    assert upwards == []
    assert sum(map(len, ARROWS.values())) > 100  # The reading above has not gone blind.


def test_there_is_no_circle() -> None:
    # A package is imported with every module in it, so its __init__ counts only as what it imports.
    list(TopologicalSorter(ARROWS).static_order())
    families = {}
    for name, others in ARROWS.items():
        own = name.partition(".")[0]
        families.setdefault(own, set()).update(o.partition(".")[0] for o in others)
    list(TopologicalSorter({own: others - {own} for own, others in families.items()}).static_order())


def test_the_layers_import_torch_only() -> None:
    assert all(
        other.startswith("layers") for name in ARROWS if name.startswith("layers") for other in ARROWS[name]
    )


def test_imports_inside_the_package_are_relative() -> None:
    absolute = [name for name, file in MODULES.items() if "from pixeldcl_plugin" in file.read_text()]
    assert absolute == []


def test_modules_are_small() -> None:
    lengths = {name: len(file.read_text().splitlines()) for name, file in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
