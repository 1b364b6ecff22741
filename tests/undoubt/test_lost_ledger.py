"""A ledger that is gone is not made anew without a word, and what it has left is shown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import undoubt
import undoubt.sync
from tests.servers import column
from tests.undoubt.cli.harness import Ran
from tests.undoubt.cli.harness import undoubt as command
from undoubt.coordinator.errors import LedgerMissing
from undoubt.participants.ids import Gid, Protocol, TxId, new_ledger_id

TABLE = "create table if not exists note (id int primary key)"
LOST = new_ledger_id()


def source(folder: Path, dsns: dict[str, str], **more: Any) -> dict[str, Any]:
    return {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "participants": {name: {"dsn": dsn, "connect_timeout_s": 3, **more} for name, dsn in dsns.items()},
    }


def configured(folder: Path, dsns: dict[str, str], more: str = "") -> Path:
    file = folder / "undoubt.toml"
    file.write_text(
        f'[ledger]\nurl = "sqlite:///{folder}/ledger.db"\n'
        + "".join(f'[participants.{name}]\ndsn = "{dsn}"\n{more}' for name, dsn in dsns.items())
    )
    file.chmod(0o600)
    return folder


async def run(folder: Path, *arguments: str) -> Ran:
    return await asyncio.to_thread(command, *arguments, cwd=folder)


def gid(name: str, number: int = 1) -> Gid:
    return Gid(LOST, Protocol.TWO_PHASE, TxId(1, "00112233445566ff", 1), number, name, "0123456789" * 2)


async def left(dsns: dict[str, str], name: str = "orders") -> Gid:
    """A branch of a ledger that is nowhere."""
    found = gid(name)
    await column(dsns[name], TABLE)
    await column(dsns[name], f"begin; insert into note values (1); prepare transaction '{found}'")
    return found


async def end(dsns: dict[str, str], found: Gid) -> None:
    await column(dsns[found.participant], f"rollback prepared '{found}'")


async def test_connect_makes_a_ledger_where_nothing_was_left(
    tmp_path: Path, databases: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with undoubt.connect(source(tmp_path, databases)):
        assert "a new one was made" in caplog.text
    (tmp_path / "ledger.db").unlink()
    with pytest.raises(LedgerMissing, match=r"anchor beside it shows that there was one"):
        async with undoubt.connect(source(tmp_path, databases), create=True):
            pytest.fail("it was made")


async def test_connect_makes_none_where_branches_were_left(tmp_path: Path, databases: dict[str, str]) -> None:
    """Broken if a ledger that was lost with its folder is made anew, and nobody is told."""
    found = await left(databases)
    with pytest.raises(LedgerMissing, match=rf"1 branch is prepared in orders for ledger {LOST}.*--adopt"):
        async with undoubt.connect(source(tmp_path, databases)):
            pytest.fail("it was made")
    assert not (tmp_path / "ledger.db").exists()
    with pytest.raises(LedgerMissing):
        await asyncio.to_thread(lambda: undoubt.sync.connect(source(tmp_path, databases)).close())
    async with undoubt.connect(source(tmp_path, databases, other_ledgers=[LOST])):
        pass
    await end(databases, found)


async def test_connect_makes_one_if_it_is_told_to(tmp_path: Path, databases: dict[str, str]) -> None:
    found = await left(databases)
    async with undoubt.connect(source(tmp_path, databases), create=True):
        pass
    await end(databases, found)


async def test_connect_makes_none_while_a_database_is_silent(
    tmp_path: Path, databases: dict[str, str]
) -> None:
    """Its branches would be those that nobody has seen."""
    dsns = {**databases, "stock": "postgresql://nobody@127.0.0.1:1/stock"}
    with pytest.raises(LedgerMissing, match=r"stock does not answer.*undoubt ledger init"):
        async with undoubt.connect(source(tmp_path, dsns)):
            pytest.fail("it was made")


async def test_an_operator_sees_what_a_lost_ledger_has_left(
    tmp_path: Path, databases: dict[str, str]
) -> None:
    """Broken if doctor, ``indoubt list`` or ``indoubt check`` are content, before or after a new ledger was
    made in its place."""
    found = await left(databases)
    folder = configured(tmp_path, databases)
    for new in (False, True):
        if new:
            asked = await run(folder, "ledger", "init")
            assert asked.status == 2
            assert f"1 branch is prepared in orders for ledger {LOST}" in asked.err
            assert (await run(folder, "ledger", "init", "--yes")).status == 0
        listed = await run(folder, "indoubt", "list", "-o", "json")
        assert listed.status == (0 if new else 4)
        told = {one["gid"]: (one["standing"], one["action"]) for one in listed.json["branches"]}
        assert told[str(found)] == ("lost_ledger", "decide")
        doctor = await run(folder, "doctor", "-o", "json")
        assert doctor.status == 1
        fixes = [one["fix"] for one in doctor.json["findings"] if one["check"] == "prepared"]
        assert f"undoubt recover --adopt {LOST}" in fixes
    assert (await run(folder, "indoubt", "check", "--older-than", "0s")).status == 7
    explained = await run(folder, "indoubt", "explain", str(found), "-o", "json")
    assert explained.json["safe_action"] == {
        "action": "decide",
        "command": f"undoubt recover --adopt {LOST}",
    }
    refused = await run(folder, "indoubt", "rollback", "--heuristic", "--yes", str(found))
    assert refused.status == 5
    assert f"recover --adopt {LOST}" in refused.err
    configured(tmp_path, databases, f'other_ledgers = ["{LOST}"]\n')
    listed = await run(folder, "indoubt", "list", "-o", "json")
    assert listed.json["branches"][0]["standing"] == "other_ledger"
    await end(databases, found)


async def test_a_cluster_is_not_made_over_a_lost_one_without_a_word(
    tmp_path: Path, databases: dict[str, str]
) -> None:
    """``cluster init`` on new disks gives the ledger another id."""
    found = await left(databases, "payments")
    folder = configured(tmp_path, databases)
    file = folder / "undoubt.toml"
    file.write_text(
        file.read_text().replace(f"sqlite:///{tmp_path}/ledger.db", "raft://127.0.0.1:7400")
        + '[node]\nnumber = 1\ndata = "data-1"\n'
    )
    asked = await run(folder, "cluster", "init")
    assert asked.status == 2
    assert f"1 branch is prepared in payments for ledger {LOST}" in asked.err
    assert not (folder / "data-1").exists()
    assert (await run(folder, "cluster", "init", "--yes")).status == 0
    await end(databases, found)
