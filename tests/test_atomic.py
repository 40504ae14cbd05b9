"""Writing whole files and folders: what a failure or a kill leaves behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from colorjax import atomic


def _half_a_file(path: Path) -> None:
    with atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")


def _half_a_folder(path: Path) -> None:
    with atomic.new_folder(path) as partial:
        (partial / "half").touch()
        assert not path.exists()
        raise RuntimeError("stop")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError, match="stop"):
        _half_a_file(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    atomic.write_bytes(path, b"1")
    assert path.read_bytes() == b"1"
    folder = tmp_path / ("y" * 255)
    with atomic.new_folder(folder) as partial:
        (partial / "a").touch()
    assert [p.name for p in folder.iterdir()] == ["a"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    with pytest.raises(RuntimeError, match="stop"):
        _half_a_folder(folder)
    assert list(folder.parent.iterdir()) == []
    with atomic.new_folder(folder) as partial:
        (partial / "whole").touch()
    assert [p.name for p in folder.iterdir()] == ["whole"]
    with pytest.raises(FileExistsError, match="holds something already"):
        _half_a_folder(folder)


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from colorjax import atomic
with atomic.new_folder(sys.argv[1] + "/folder") as partial, atomic.replacing(sys.argv[1] + "/file") as temporary:
    (partial / "half").touch()
    temporary.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with atomic.new_folder(tmp_path / "folder") as partial:
        assert not any(partial.iterdir())
    (tmp_path / "mine").touch()
    atomic.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "mine"]
