"""Files that appear only when they are complete."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pixeldcl_plugin.utils.files import claimed, part_of, writing_to, written_whole


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


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with pytest.raises(OSError, match=r"No space .*result\.json") as full, written_whole(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(file)
    with pytest.raises(FileNotFoundError) as absent, written_whole(tmp_path / "none/x.json") as part:
        part.touch()
    assert absent.value.filename == str(tmp_path / "none/x.json")
    with pytest.raises(OSError, match="too long") as long, written_whole(tmp_path / ("x" * 300)) as part:
        part.touch()
    assert long.value.filename == str(tmp_path / ("x" * 300))
    with pytest.raises(OSError) as folder, writing_to(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert folder.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="other") as other, writing_to(tmp_path):
        raise OSError(errno.EACCES, "Permission denied", "other")
    assert other.value.filename == "other"
    with pytest.raises(OSError, match="truncated") as plain, writing_to(tmp_path):
        raise OSError("truncated")  # such as Pillow's
    assert plain.value.filename is None


def test_a_claimed_folder_is_one_process_s_and_keeps_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with claimed(folder):
        assert (folder / ".lock").exists()
        with pytest.raises(OSError, match="another process") as busy, claimed(folder):
            pass
        assert busy.value.errno == errno.EBUSY
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]
    with claimed(folder):  # what a killed process left is no obstacle, and goes too
        pass
    (folder / ".lock").touch()
    with claimed(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["result"]
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix", reason="other systems remove no open file")
def test_a_lock_that_lost_its_name_is_no_lock(tmp_path: Path) -> None:
    """Another process may open the file of a lock just before its holder removes it."""
    file = tmp_path / ".lock"
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock

    def removed_first(descriptor: int, operation: int) -> None:
        file.unlink(missing_ok=True)
        flock(descriptor, operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", removed_first)
        with pytest.raises(OSError, match="another process"), claimed(tmp_path):
            pass
    with claimed(tmp_path):
        assert file.exists()
