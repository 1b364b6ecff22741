"""What is left of a SQLite ledger whose file is gone or empty: none is made over it, nothing of it is mixed
into a new one, and each advice that is printed works as it is printed."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.coordinator.ledger.signing import Signing
from tests.undoubt.cli.harness import Ran
from undoubt import connect
from undoubt.cli import main
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.contract import Act, BranchRecord
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

PARTS = ("", "-wal", ".anchor")
BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


class Killed:
    """The folder of a ledger whose owner was killed: its WAL is there, with what was decided after the backup
    among it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.ledger_id = ""
        self.before: TxId
        (folder / "undoubt.toml").write_text('[ledger]\nurl = "sqlite:///l.db"\n')

    async def live(self) -> None:
        settings = LedgerSettings(url=f"sqlite:///{self.part('')}", request_timeout_s=3.0)
        ledger = Signing(await open_ledger(settings, create=True))
        session = await ledger.open_session("application", 600)
        self.ledger_id, self.before = ledger.ledger_id, session.txid(1)
        await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES)
        await ledger.backup(self.folder / "BACKUP")
        for seq in range(2, 12):
            await ledger.decide(session.txid(seq), Decision.COMMIT, BRANCHES)
        kept = self.folder / "kept"
        kept.mkdir()
        for part in PARTS:
            shutil.copy(self.part(part), kept)
        await ledger.close()
        for each in kept.iterdir():
            shutil.copy(each, self.folder)

    def part(self, suffix: str) -> Path:
        return self.folder / f"l.db{suffix}"

    def kept(self, suffix: str) -> bytes:
        return (self.folder / "kept" / f"l.db{suffix}").read_bytes()

    def run(self, *words: str) -> Ran:
        """In this folder, in this process."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        shown = self.capsys.readouterr()
        return Ran(int(ended.value.code or 0), shown.out, shown.err)

    def healthy(self, incarnation: int) -> bool:
        looked = self.run("ledger", "check")
        assert looked.status == 0, looked.err
        return bool(self.run("ledger", "init", "-o", "json").json["incarnation"] == incarnation)


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Killed:
    monkeypatch.chdir(tmp_path)
    made = Killed(tmp_path, capsys)
    asyncio.run(made.live())
    assert made.part("-wal").stat().st_size > 10_000
    return made


def advised(ran: Ran) -> list[list[str]]:
    """The commands in what was printed, in order, as a person would type them."""
    return [shlex.split(each)[1:] for each in re.findall(r"`(undoubt [^`]+)`", ran.err + ran.out)]


@pytest.mark.parametrize("gone", [("",), ("", ".anchor"), ("", "-wal"), ("-wal",), (".anchor",), PARTS])
def test_a_backup_is_brought_back_whatever_is_left_of_the_former_ledger(
    killed: Killed, gone: tuple[str, ...]
) -> None:
    """SQLite replays a ``-wal`` that stays into the restored file: a mix of two ledgers."""
    for part in gone:
        killed.part(part).unlink()
    ran = killed.run("ledger", "restore", "BACKUP", "-y", "-o", "json")
    assert ran.status == 0, ran.err
    assert not killed.part("-wal").exists()
    for part in set(PARTS) - set(gone):
        (kept,) = killed.folder.glob(f"l.db.replaced-*Z{part}")
        assert kept.read_bytes() == killed.kept(part)
    told = ran.json["kept_as"]
    assert told is None if gone == PARTS else (killed.folder / told).exists()
    assert killed.healthy(2)
    assert killed.run("tx", "show", str(killed.before), "-o", "json").json["decision"] == "commit"


@pytest.mark.parametrize("gone", [("",), ("", "-wal"), ("", ".anchor")])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_lost_ledger_without_a_backup_has_a_way_out(
    killed: Killed, gone: tuple[str, ...], emptied: bool
) -> None:
    """As it is printed, and not before it is asked for: nobody makes a new ledger over what is left."""
    for part in gone:
        killed.part(part).unlink()
    if emptied:
        killed.part("").touch()
    left = {part: killed.part(part).read_bytes() for part in PARTS if killed.part(part).exists()}
    for words in (
        ("ledger", "init", "-y"),
        ("ledger", "check"),
        ("ledger", "migrate"),
        ("ledger", "restore", "-y"),
        ("doctor",),
        ("recover", "--once"),
        ("tx", "list"),
        ("indoubt", "list"),
    ):
        refused = killed.run(*words)
        assert refused.status != 0, words
        assert "newer version" not in refused.err + refused.out, words
        assert "undoubt ledger init --former-lost" in refused.err + refused.out, words
        for part, data in left.items():
            assert killed.part(part).read_bytes() == data, words
    connected = connecting_says(killed)
    assert "beside it show" in connected
    assert {part for part in PARTS if killed.part(part).exists()} == set(left)
    commands = advised(killed.run("tx", "list"))
    assert commands[0] == ["ledger", "restore", "BACKUP"]
    assert commands[1] == ["ledger", "init", "--former-lost"]
    assert commands[2][:2] == ["recover", "--adopt"]
    made = killed.run(*commands[1], "-y", "-o", "json")
    assert made.status == 0, made.err
    assert made.json["ledger_id"] != killed.ledger_id
    for part, data in left.items():
        (kept,) = killed.folder.glob(f"l.db.replaced-*Z{part}")
        assert kept.read_bytes() == data
    assert killed.healthy(1)
    if ".anchor" not in gone:
        assert commands[2][2] == killed.ledger_id
        assert killed.run(*commands[2], "-y").status == 0
    assert killed.run("audit", "-o", "json").json[-1]["verb"] == "ledger init --former-lost"
    again = killed.run("ledger", "init", "--former-lost", "-y")
    assert again.status == 2, "there is one now"
    assert killed.healthy(1)


def connecting_says(killed: Killed) -> str:
    """What an application is told that connects."""

    async def told() -> str:
        try:
            async with connect(str(killed.folder / "undoubt.toml")):
                return ""
        except LedgerError as error:
            return str(error)

    return asyncio.run(told())


def test_believing_the_file_keeps_a_copy_of_what_is_cut(killed: Killed) -> None:
    """One bit in the header of the WAL: SQLite removes all of it, with what was decided."""
    damaged = bytearray(killed.kept("-wal"))
    damaged[17] ^= 1
    killed.part("-wal").write_bytes(damaged)
    refused = killed.run("tx", "list")
    assert refused.status == 1
    assert ["ledger", "restore"] in advised(refused)
    ran = killed.run("ledger", "restore", "-y", "-o", "json")
    assert ran.status == 0, ran.err
    assert ran.json["lacks_entry"] > 0
    kept = killed.folder / ran.json["kept_as"]
    assert kept.read_bytes() == killed.kept("")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.with_name(kept.name + "-wal").read_bytes() == damaged
    assert kept.with_name(kept.name + ".anchor").read_bytes() == killed.kept(".anchor")
    assert killed.healthy(2)


def test_a_backup_of_another_ledger_is_refused_unless_that_is_asked_for(killed: Killed) -> None:
    """Broken if a wrong path makes the decisions and the audit of this ledger vanish without a word."""
    other = killed.folder / "other"
    other.mkdir()
    settings = LedgerSettings(url=f"sqlite:///{other}/l.db")
    about = asyncio.run(maintenance.init(settings))
    asyncio.run(maintenance.backup(settings, other / "BACKUP"))
    before = {part: killed.part(part).read_bytes() for part in PARTS}
    refused = killed.run("ledger", "restore", str(other / "BACKUP"), "--yes")
    assert refused.status == 5
    assert killed.ledger_id in refused.err
    assert about.ledger_id in refused.err
    assert {part: killed.part(part).read_bytes() for part in PARTS} == before
    asked = killed.run("ledger", "restore", str(other / "BACKUP"), "--other-ledger")
    assert asked.status == 2, "stdin is no terminal"
    assert killed.ledger_id in asked.err
    assert about.ledger_id in asked.err
    done = killed.run("ledger", "restore", str(other / "BACKUP"), "--other-ledger", "--yes")
    assert done.status == 0, done.err
    assert f"ledger {killed.ledger_id} is given up" in done.err
    assert re.search(r"backup at +20\d\d-", done.out)
    assert f"instead of ledger {killed.ledger_id}" in killed.run("audit").out


def test_the_audit_is_in_the_order_of_time(killed: Killed) -> None:
    """Broken if an act that is recorded only when it has ended stands above acts that began after it."""

    async def record() -> None:
        ledger = await open_ledger(LedgerSettings(url=f"sqlite:///{killed.part('')}"))
        for id_, at in (("a", 30.0), ("b", 10.0), ("c", 40.0), ("d", 20.0)):
            await ledger.record_act(Act(id_, "forget", id_, at, "someone"))
        await ledger.close()

    asyncio.run(record())
    subjects = [act["subject"] for act in killed.run("audit", "-o", "json").json]
    assert subjects[-4:] == ["c", "a", "d", "b"]
    assert killed.run("audit", "-n", "1", "-o", "json").json[0]["subject"] == subjects[0]
