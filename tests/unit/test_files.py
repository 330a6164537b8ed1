"""Folders and files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mario.files import clear_unfinished, remove_folder, whole_folder, write_synced, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_and_readable_by_others(tmp_path: Path) -> None:
    target = tmp_path / "new" / "target"
    with whole_folder(target) as aside:
        write_synced(aside / "a", b"1")
        assert not target.exists()
    assert (target / "a").read_bytes() == b"1"
    assert target.stat().st_mode & 0o777 == 0o755
    with whole_folder(target) as aside:
        write_synced(aside / "b", b"2")
        assert names(target) == ["a"]
    assert names(target) == ["b"]
    assert names(target.parent) == ["target"]


def test_an_exception_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "target") as aside:
        write_synced(aside / "a", b"1")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "target") as aside:
        write_synced(aside / str(1 // 0), b"2")
    assert (tmp_path / "target" / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["target"]


def test_a_swap_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole_folder(tmp_path / "target") as aside:
        write_synced(aside / "a", b"1")
    original = Path.replace
    moves: list[str] = []

    def replace(self: Path, to: Any) -> Path:
        moves.append(self.name)
        if len(moves) == 2:  # the new folder into place, after the old one went aside
            raise OSError(errno.EIO, "Input/output error")
        return original(self, to)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="Input"), whole_folder(tmp_path / "target") as aside:
        write_synced(aside / "a", b"2")
    assert (tmp_path / "target" / "a").read_bytes() == b"1"


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # a process that dies in the middle of a block
        with whole_folder(tmp_path / "target") as aside:
            write_synced(aside / "a", b"1")
            os._exit(0)
    os.waitpid(pid, 0)
    assert len(names(tmp_path)) == 1
    assert not (tmp_path / "target").exists()
    clear_unfinished(tmp_path)
    assert names(tmp_path) == []


def test_the_file_that_a_killed_writer_left_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "config", b"old")
    pid = os.fork()
    if pid == 0:  # a process that dies before its file takes the place of the old one
        monkeypatch.setattr(Path, "replace", lambda *_: os._exit(0))
        write_whole(tmp_path / "config", b"new")
    os.waitpid(pid, 0)
    assert len(names(tmp_path)) == 2
    clear_unfinished(tmp_path)
    assert names(tmp_path) == ["config"]
    assert (tmp_path / "config").read_bytes() == b"old"


def test_removing(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "target") as aside:
        write_synced(aside / "a", b"1")
    remove_folder(tmp_path / "target")
    assert names(tmp_path) == []


def test_a_file_keeps_its_old_content_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "config", b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    write_whole(tmp_path / "config", b"old")  # nothing to write, so nothing fails
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "config", b"new")
    assert (tmp_path / "config").read_bytes() == b"old"
    assert names(tmp_path) == ["config"]
