"""Files that appear only when they are complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixeldcl_plugin.utils.files import part_of, written_whole


def test_a_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with written_whole(file) as part:
        part.write_text("new")
        assert part == part_of(file)
        assert (part.suffix, part.name[0]) == (".json", ".")
        assert not file.exists()
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_what_stood_there(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text("old")
    with pytest.raises(TypeError, match="must be str"), written_whole(file) as part:
        part.write_text(b"ne")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    part_of(file).write_text("half of something longer")
    with written_whole(file) as part:
        part.write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]
