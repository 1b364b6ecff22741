"""Files of a SQLite ledger that the system does not give, under every command that looks at them: told with
the file and the cause in one line, never as a bug."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.undoubt.cli.harness import Ran
from undoubt.cli import main
from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.settings import LedgerSettings

COMMANDS = (
    ("doctor",),
    ("ledger", "check"),
    ("ledger", "init", "--yes"),
    ("ledger", "migrate"),
    ("ledger", "backup", "backup-2"),
    ("ledger", "restore", "--yes"),
    ("tx", "list"),
    ("audit",),
    ("recover", "--once"),
    ("indoubt", "list"),
    ("indoubt", "check"),
    ("participants", "prune"),
)


@pytest.fixture
async def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger that was used, and the configuration for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "undoubt.toml").write_text('[ledger]\nurl = "sqlite:///l.db"\n')
    settings = LedgerSettings(url=f"sqlite:///{tmp_path}/l.db")
    await maintenance.init(settings)
    ledger = await SqliteLedger.open(tmp_path / "l.db", settings)
    await ledger.open_session("shop", 60.0)
    await ledger.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Ran:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    shown = capsys.readouterr()
    return Ran(int(caught.value.code or 0), shown.out, shown.err)


def _directory(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def _needs(words: tuple[str, ...], name: str) -> bool:
    """Whether a command needs that file: the tables do not need the anchor, and what is done to participants
    may be done before there is a ledger."""
    return words != ("participants", "prune") and (words != ("ledger", "migrate") or name != "l.db.anchor")


def _circle(folder: Path) -> None:
    (folder / "l.db").unlink()
    (folder / "l.db").symlink_to("l.db")


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (_directory("l.db"), "l.db"),
        (_directory("l.db-wal"), "l.db-wal"),
        (_directory("l.db.anchor"), "l.db.anchor"),
        (_directory("l.db.lock"), "l.db.lock"),
        (_circle, "l.db"),
    ],
    ids=["file", "wal", "anchor", "lock", "circle"],
)
def test_a_directory_in_place_of_a_file_is_told(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], None],
    named: str,
) -> None:
    break_it(folder)
    for words in COMMANDS:
        ran = run(capsys, *words)
        told = ran.out + ran.err
        assert "bug of undoubt" not in told, (words, told)
        if _needs(words, named):
            assert named in told, (words, told)
            assert ran.status in ({1, 2} if (folder / "l.db").is_dir() else {1, 3, 4}), (words, told)


@pytest.mark.parametrize("name", ["l.db-wal", "l.db.anchor", "l.db", ""])
def test_a_file_that_may_not_be_read_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of another user, as far as this process can tell: it may be root, whom nothing is denied."""
    (folder / "l.db-wal").touch()
    denied = os.path.realpath(folder / name) if name else str(folder) + "/"

    def refuse(work: Callable[..., object]) -> Callable[..., object]:
        def asked(path: object, *rest: object, **more: object) -> object:
            there = os.path.abspath(os.fspath(path)) if isinstance(path, str | Path) else ""  # noqa: PTH100
            if there == denied or (not name and there.startswith(denied) and "l.db" in there):
                raise PermissionError(13, "Permission denied", there)
            return work(path, *rest, **more)

        return asked

    def no_file(path: Any, *rest: Any, **more: Any) -> sqlite3.Connection:
        if name in {"", "l.db"}:
            raise sqlite3.OperationalError("unable to open database file")
        return connected(path, *rest, **more)

    connected: Callable[..., sqlite3.Connection] = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", no_file)
    monkeypatch.setattr(os, "open", refuse(os.open))
    monkeypatch.setattr("io.open", refuse(open))
    if not name:
        monkeypatch.setattr(os, "stat", refuse(os.stat))
    for words in COMMANDS:
        ran = run(capsys, *words)
        told = ran.out + ran.err
        assert "bug of undoubt" not in told, (words, told)
        if _needs(words, name) and (words[1:2] != ("restore",) or name != "l.db.anchor"):
            assert ran.status in {1, 3, 4}, (words, told)
            assert "ermission denied" in told or "unable to open" in told, (words, told)


def test_the_library_raises_an_error_of_the_ledgers(folder: Path) -> None:
    """Broken if an application meets an ``OSError`` that names no ledger."""
    (folder / "l.db-wal").mkdir()

    async def opened() -> None:
        await (await SqliteLedger.open(folder / "l.db", LedgerSettings(url="sqlite:///l.db"))).close()

    with pytest.raises(LedgerUnusable, match=r"l\.db-wal: Is a directory"):
        asyncio.run(opened())


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDOUBT_CONFIG", raising=False)
