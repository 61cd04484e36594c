"""classes.txt: every form of a line, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixeldcl_plugin.datasets.class_list import ClassList, read_class_list
from pixeldcl_plugin.utils.cli import UsageError
from pixeldcl_plugin.utils.label_maps import voc_palette


def read(folder: Path, text: str | bytes) -> ClassList:
    file = folder / "classes.txt"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_class_list(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sky\ntraffic light\nclass 1\n", ClassList(("sky", "traffic light", "class 1"), (0, 1, 2))),
        ("\ufeffsky\r\nroad\r\n\r\n", ClassList(("sky", "road"), (0, 1))),
        ("# of a camera\nsky\n\nroad", ClassList(("sky", "road"), (0, 1))),
        ("a, 0, 0, 0    # 87.50 % of the pixels\nb #0405ff # blue",
         ClassList(("a", "b"), (0, 1), ((0, 0, 0), (4, 5, 255)))),
        ("road, 7\nsky, 23\n", ClassList(("road", "sky"), (7, 23))),
        ("a, 1, 2, 3\nb b,4,5,6", ClassList(("a", "b b"), (0, 1), ((1, 2, 3), (4, 5, 6)))),
        ("a 1 2 3\nb b #0405ff", ClassList(("a", "b b"), (0, 1), ((1, 2, 3), (4, 5, 255)))),
        ("a; 9; 1; 2; 3\nb\t8\t#040506", ClassList(("a", "b"), (9, 8), ((1, 2, 3), (4, 5, 6)))),
        ("a\nb\nignore, 11", ClassList(("a", "b"), (0, 1), None, (11,))),
        ("a, 0, 0, 0\nb, 9, 9, 9\nIgnore, 224, 224, 192\nignore, 7",
         ClassList(("a", "b"), (0, 1), ((0, 0, 0), (9, 9, 9)), (7,), ((224, 224, 192),))),
        ("off, 0\non, 255", ClassList(("off", "on"), (0, 255))),
    ],
)  # fmt: skip
def test_reads(tmp_path: Path, text: str, expected: ClassList) -> None:
    assert read(tmp_path, text) == expected


def test_colors_are_those_of_voc_where_none_are_given(tmp_path: Path) -> None:
    assert read(tmp_path, "a\nb").metainfo == dict(classes=("a", "b"), palette=voc_palette(2).tolist())
    assert read(tmp_path, "a 1 2 3\nb 4 5 6").metainfo["palette"] == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ["it has no class; expected at least 2, the background is a class too"]),
        ("crack", ["it has one class, 'crack'; expected at least 2, the background is a class too"]),
        ("a\nb\na\nb\na", ["the name 'a' stands 3 times", "the name 'b' stands 2 times"]),
        ("a, 300, 0, 0\nb, x\nc, 1, 2\n, 3\nd, 70000\nignore", [
            "line 1, 'a, 300, 0, 0': a color has three numbers of 0 to 255",
            "line 2, 'b, x': 'x' is no color and no value",
            "line 3, 'c, 1, 2': '1, 2' is no color and no value",
            "line 4, ', 3': no name",
            "line 5, 'd, 70000': the value 70000 is above 65535",
            "line 6, 'ignore': needs the value or the color to ignore",
        ]),
        ("a, 1\nb", ["1 of 2 classes have a value; give one to all or to none"]),
        ("a, 1, 2, 3\nb\nc", ["1 of 3 classes have a color; give one to all or to none"]),
        ("a, 1\nb, 1", ["the value 1 is that of 2 classes"]),
        ("a 1 2 3\nb 1 2 3", ["the color (1, 2, 3) is that of 2 classes"]),
        ("a\nb\nignore, 1", ["the value 1 is ignored and a class"]),
        ("a 1 2 3\nb 4 5 6\nignore 4 5 6", ["the color (4, 5, 6) is ignored and a class"]),
        ("\n".join(f"c{i}" for i in range(256)), ["it has 256 classes; expected at most 255"]),
    ],
)  # fmt: skip
def test_lists_all_that_is_wrong(tmp_path: Path, text: str, faults: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{(tmp_path / 'classes.txt').as_posix()}: a line is NAME, or NAME, R, G, B")
    assert lines == [f"  {fault}" for fault in faults]


def test_refuses_what_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"classes\.txt' is no text file in UTF-8; a line is NAME"):
        read(tmp_path, b"\x89PNG\xff")
