"""The disk of a SQLite ledger is full: what is there can be read, and what cannot be done for want of room is
told as that, never as damage."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.undoubt.cli.harness import Ran
from undoubt.cli import main
from undoubt.coordinator.ledger import disk

Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in a folder with a ledger."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "undoubt.toml").write_text('[ledger]\nurl = "sqlite:///l.db"\n')

    def run(*words: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        shown = capsys.readouterr()
        return Ran(int(ended.value.code or 0), shown.out, shown.err)

    assert run("ledger", "init").status == 0
    return run


def says(code: int, message: str = "disk I/O error") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


def test_a_ledger_is_read_where_there_is_no_room_for_the_index_of_its_wal(run: Run, tmp_path: Path) -> None:
    """SQLite makes a ``-shm`` of 32 KiB for it, unless it has the file for itself."""
    (tmp_path / "l.db-shm").symlink_to("nowhere/at-all")
    for words in (("ledger", "check"), ("tx", "list"), ("audit",), ("ledger", "backup", "BACKUP")):
        ran = run(*words)
        assert ran.status == 0, ran.err


@pytest.mark.parametrize("code", sorted(disk._MAYBE_NO_ROOM | {sqlite3.SQLITE_FULL}))
def test_what_cannot_be_done_for_want_of_room_is_told_as_that(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """By every command, also where SQLite calls it an error of the disk; and doctor says how much is free."""
    assert run("ledger", "backup", "BACKUP").status == 0
    monkeypatch.setattr(disk, "_spent", lambda _folder: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(4096, 4096, 0))

    def full(*_args: Any, **_named: Any) -> sqlite3.Connection:
        raise says(code)

    monkeypatch.setattr("undoubt.coordinator.ledger.sqlite.store.sqlite3.connect", full)
    for words in (
        ("ledger", "init"),
        ("ledger", "check"),
        ("ledger", "migrate"),
        ("ledger", "backup", "AGAIN"),
        ("ledger", "restore", "-y"),
        ("ledger", "restore", "BACKUP", "-y"),
        ("tx", "list"),
        ("audit",),
        ("indoubt", "list"),
        ("recover", "--once"),
    ):
        ran = run(*words)
        assert ran.status == 4, (words, ran)
        assert "no room for " in ran.err + ran.out, words
        assert "undoubt ledger restore" not in ran.err + ran.out, words
    assert not list(tmp_path.glob("l.db.restored*")), "what was begun takes no room"
    found = {one["check"]: one for one in run("doctor", "-o", "json").json["findings"]}
    assert found["ledger_disk"]["severity"] == "problem"
    assert "no room for" in found["ledger"]["what"]


def test_an_error_of_a_disk_with_room_is_no_want_of_room(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would free space in vain."""

    def broken(*_args: Any, **_named: Any) -> sqlite3.Connection:
        raise says(sqlite3.SQLITE_IOERR_WRITE)

    monkeypatch.setattr("undoubt.coordinator.ledger.sqlite.store.sqlite3.connect", broken)
    ran = run("tx", "list")
    assert ran.status == 1
    assert "disk I/O error" in ran.err
