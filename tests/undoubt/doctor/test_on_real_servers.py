"""``undoubt doctor`` and ``participants check`` as an operator runs them, on real servers in a bad state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.undoubt.cli.harness import Ran, undoubt
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import record_of
from undoubt.coordinator.ledger.sqlite.lock import FileLock
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Vote
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId, new_ledger_id
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

NAMES = ("orders", "payments")
WRITE = "update account set balance = balance - 10 where id = 1"


@dataclass
class Shop:
    """Two durable databases. The application's role is ``app``, the operator's ``rescue``; none of them is a
    superuser, only ``admin`` is."""

    folder: Path
    servers: dict[str, EmbeddedServer]
    admin: dict[str, asyncpg.Connection[asyncpg.Record]]

    def configure(self, dsns: dict[str, str], more: Mapping[str, str] | None = None) -> None:
        lines = more or {}
        tables = (
            f'[participants.{name}]\ndsn = "{dsn}"\n{lines.get(name, "")}\n' for name, dsn in dsns.items()
        )
        (self.folder / "undoubt.toml").write_text("".join(tables))
        (self.folder / "undoubt.toml").chmod(0o600)  # there are passwords in it

    async def run(self, *args: str) -> Ran:
        return await asyncio.to_thread(undoubt, *args, cwd=self.folder)

    async def findings(self, *args: str) -> list[dict[str, Any]]:
        """Those that are not ok."""
        ran = await self.run("doctor", "-o", "json", *args)
        told = ran.json
        assert told["healthy"] == (ran.status == 0), ran.err
        assert {frozenset(one) for one in told["findings"]} == {
            frozenset({"participant", "check", "severity", "what", "why", "fix"})
        }
        return [one for one in told["findings"] if one["severity"] != "ok"]

    async def left_behind(self) -> list[Gid]:
        """A transaction of ``app`` with COMMIT recorded and its coordinator gone."""
        ledger = await open_ledger(LedgerSettings(url=f"sqlite:///{self.folder}/undoubt.db"), create=True)
        session = await ledger.open_session("shop", 10.0)
        key = SessionKey(session.key)
        gids, records = [], []
        for number, name in enumerate(NAMES, 1):
            gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, session.txid(1), number, name).tagged(key)
            evidence = await prepare(self.servers[name].dsn("shop", user="app"), gid)
            records.append(record_of(gid, evidence))
            gids.append(gid)
        await ledger.decide(session.txid(1), Decision.COMMIT, records)
        await ledger.close_session(session)
        await ledger.close()
        return gids


async def prepare(dsn: str, gid: Gid) -> Any:
    participant = PostgresParticipant(gid.participant, ParticipantSettings(dsn=dsn), ledger_id=gid.ledger)
    branch = await participant.begin(gid, timeout_s=30)
    await branch.connection.execute(WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.PREPARED
    await branch.release()
    await participant.close()
    return result.evidence


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, EmbeddedServer]]:
    """Durable ones, since one that is not is a finding."""
    made = {name: EmbeddedServer() for name in NAMES}
    for server in made.values():
        asyncio.run(server.start())
    yield made
    for server in made.values():
        asyncio.run(server.close())


@pytest_asyncio.fixture
async def shop(tmp_path: Path, servers: dict[str, EmbeddedServer]) -> AsyncIterator[Shop]:
    made = Shop(tmp_path, servers, {})
    for name, server in servers.items():
        made.admin[name] = await asyncpg.connect(await server.create_database("shop"))
        await made.admin[name].execute(
            "create role app login; create role rescue login;"
            "create table account (id int primary key, balance int); insert into account values (1, 100);"
            "grant all on account to app"
        )
        await migrate(name, ParticipantSettings(dsn=server.dsn("shop")))
        await made.admin[name].execute("grant execute on function undoubt.history() to app, rescue")
    made.configure({name: server.dsn("shop", user="rescue") for name, server in servers.items()})
    ran = await made.run("ledger", "init")
    assert ran.status == 0, ran.err
    yield made
    for name, server in servers.items():
        await made.admin[name].close()
        control = await asyncpg.connect(server.dsn())
        await control.execute("drop database shop with (force)")
        await control.execute("drop role app, rescue")
        await control.close()


async def test_all_is_well(shop: Shop) -> None:
    """Broken if two well databases and a ledger cannot be told from ailing ones."""
    ran = await shop.run("doctor")
    assert (ran.status, ran.err) == (0, "all is well\n")
    assert "problem" not in ran.out
    assert "warning" not in ran.out
    for heading in ("undoubt", *NAMES):
        assert heading in ran.out.splitlines()


async def test_the_grants_that_doctor_prints_let_recovery_finish(shop: Shop) -> None:
    """Broken if an operator who is no superuser is left with branches that nobody may finish."""
    gids = await shop.left_behind()
    ran = await shop.run("recover", "--once")
    assert "waits for orders, payments" in ran.out, "without the grants it may not"
    found = await shop.findings("--older-than", "0s")
    grants = {one["participant"]: one["fix"] for one in found if one["check"] == "roles"}
    assert set(grants) == set(NAMES)
    stuck = [one for one in found if one["check"] == "prepared"]
    assert {one["what"].split(" ")[0] for one in stuck} == {str(gid) for gid in gids}
    assert {one["participant"]: one["fix"] for one in stuck} == grants, "both say what is missing"
    for gid in gids:
        told = await shop.run("indoubt", "explain", str(gid), "-o", "json")
        assert grants[gid.participant] in told.json["proof"][-1]
        assert grants[gid.participant] in (await shop.run("indoubt", "list")).out
    for name, grant in grants.items():
        await shop.admin[name].execute(grant)
    ran = await shop.run("recover", "--once")
    assert ran.status == 0, ran.err
    assert await shop.findings("--older-than", "0s") == []
    for connection in shop.admin.values():
        assert await connection.fetchval("select balance from account") == 90


async def test_the_owners_that_doctor_prints_let_recovery_finish(shop: Shop) -> None:
    """Broken if a superuser is not told which line of the configuration is missing."""
    dsns = {name: server.dsn("shop") for name, server in shop.servers.items()}
    shop.configure(dsns)
    gids = await shop.left_behind()
    ran = await shop.run("recover", "--once")
    assert "waits for orders, payments" in ran.out, "being superuser makes nobody's branches ours"
    found = await shop.findings("--older-than", "0s")
    assert {one["participant"] for one in found if one["check"] == "owners"} == set(NAMES)
    lines = {one["participant"]: one["fix"] for one in found if one["check"] == "prepared"}
    assert lines == dict.fromkeys(NAMES, 'owners = ["app"]')
    told = await shop.run("indoubt", "explain", str(gids[0]), "-o", "json")
    assert told.json["branch"]["fix"] == lines["orders"]
    assert "configure that in [participants.orders]" in told.json["proof"][-1]
    shop.configure(dsns, more=lines)
    ran = await shop.run("recover", "--once")
    assert ran.status == 0, ran.err
    assert await shop.findings("--older-than", "0s") == []


async def test_a_forged_name_gets_no_line_that_would_make_it_ours(shop: Shop) -> None:
    """Broken if whoever may connect can have an operator grant his role to undoubt's: only a name that the
    ledger gave is worth it."""
    gid, other = await shop.left_behind()
    await shop.admin["orders"].execute(f"commit prepared '{gid}'")
    await shop.admin["payments"].execute(f"rollback prepared '{other}'")
    forged = replace(gid, tag="0" * len(gid.tag))
    await prepare(shop.servers["orders"].dsn("shop", user="app"), forged)
    told = await shop.run("indoubt", "explain", str(forged), "-o", "json")
    assert told.json["branch"]["fix"] is None
    assert "its tag is wrong" in told.json["branch"]["why"]
    [stuck] = [one for one in await shop.findings("--older-than", "0s") if one["check"] == "prepared"]
    assert "undoubt indoubt explain" in stuck["fix"]
    await shop.admin["orders"].execute(f"rollback prepared '{forged}'")


async def test_names_that_anybody_may_take_get_no_line_either(shop: Shop) -> None:
    """Broken if such a line is printed for the role of a session that calls itself one of this ledger's, or
    of what is prepared under a name that is made up."""
    gid, other = await shop.left_behind()
    await shop.admin["orders"].execute(f"commit prepared '{gid}'")
    await shop.admin["payments"].execute(f"rollback prepared '{other}'")
    forged = replace(gid, tag="0" * len(gid.tag))
    dsn = shop.servers["orders"].dsn("shop", user="app")
    await prepare(dsn, forged)
    named = await asyncpg.connect(dsn, server_settings={"application_name": f"undoubt:{gid.ledger}"})
    for where in ("doctor", "participants check"):
        told = (await shop.run(*where.split(), "-o", "json")).json["findings"]
        [roles] = [one for one in told if one["check"] == "roles" and one["severity"] != "ok"]
        assert "role app, which prepared 1" in roles["what"]
        assert "has 1 sessions" in roles["what"]
        assert roles["fix"] is None
        assert "no line is printed" in roles["why"]
    await named.close()
    await shop.admin["orders"].execute(f"rollback prepared '{forged}'")


async def test_a_foreign_orphan_and_whom_it_blocks(shop: Shop) -> None:
    """Broken if the transaction that stops a whole shop is not named, with who waits and since when."""
    admin = shop.admin["orders"]
    await admin.execute(f"begin; {WRITE}; prepare transaction 'it''s old'")
    waiter = await asyncpg.connect(shop.servers["orders"].dsn("shop"))
    waiting = asyncio.create_task(waiter.execute(WRITE))
    while not await admin.fetchval("select exists (select from pg_locks where not granted)"):
        await asyncio.sleep(0.01)
    assert await shop.findings() == [], "it is young yet"
    [found] = await shop.findings("--older-than", "0s")
    assert (found["participant"], found["check"], found["severity"]) == ("orders", "prepared", "problem")
    assert found["what"].startswith("it's old has been prepared for ")
    assert found["what"].endswith("by role postgres: it is not a branch of undoubt")
    assert f"(backend {waiter.get_server_pid()})" in found["why"]
    assert "vacuum held back for" in found["why"]
    shown = await shop.run("indoubt", "explain", "it's old", "-o", "json")
    assert shown.json["blocks"]["sessions"] == [
        {"waiter": f"orders/{waiter.get_server_pid()}", "pid": waiter.get_server_pid()}
    ], "explain says the same"
    assert shown.json["vacuum"]["held_back_xids"] >= 1
    await admin.execute("rollback prepared 'it''s old'")
    await waiting
    await waiter.close()


async def test_another_ledgers_orphan(shop: Shop) -> None:
    """Broken if one of two installations that share a database is given a line that ends the other's."""
    gid = Gid(new_ledger_id(), Protocol.TWO_PHASE, TxId(1, "0123456789abcdef", 1), 1, "orders")
    await prepare(shop.servers["orders"].dsn("shop", user="app"), gid)
    lines = {"orders": f'owners = ["app"]\nother_ledgers = ["{gid.ledger}"]'}
    dsns = {name: server.dsn("shop", user="rescue") for name, server in shop.servers.items()}
    shop.configure(dsns, lines)
    [found] = [one for one in await shop.findings("--older-than", "0s") if one["check"] == "prepared"]
    assert found["what"].endswith("it belongs to another ledger")
    assert found["fix"] == f"undoubt indoubt explain {gid}"
    await shop.admin["orders"].execute(f"rollback prepared '{gid}'")


async def test_one_that_does_not_answer_hides_no_other(shop: Shop) -> None:
    """Exit status 4 if nothing but that is wrong; the others are looked at all the same."""
    await shop.servers["payments"].stop()
    [found] = await shop.findings()
    assert (found["participant"], found["check"], found["severity"]) == ("payments", "reach", "unreachable")
    ran = await shop.run("doctor")
    assert ran.status == 4
    await shop.admin["orders"].execute(f"begin; {WRITE}; prepare transaction 'x'")
    ran = await shop.run("doctor", "--older-than", "0s")
    assert ran.status == 1, "a problem weighs more"
    await shop.admin["orders"].execute("rollback prepared 'x'")
    await shop.servers["payments"].start()


async def test_participants_check_tells_of_those_that_are_named(shop: Shop) -> None:
    ran = await shop.run("participants", "check", "orders", "-o", "json")
    assert ran.status == 0, ran.err
    assert {one["participant"] for one in ran.json["findings"]} == {"orders"}
    ran = await shop.run("participants", "check", "-o", "json")
    assert {one["participant"] for one in ran.json["findings"]} == set(NAMES)
    ran = await shop.run("participants", "check", "stock")
    assert ran.status == 3
    assert "'stock'" in ran.err


async def test_without_a_ledger_the_databases_are_looked_at(shop: Shop) -> None:
    """Broken if doctor makes an empty ledger: every branch in doubt would be another's then."""
    (shop.folder / "undoubt.db").unlink()
    for fix in ("undoubt ledger restore BACKUP", "undoubt ledger init"):
        found = await shop.findings()
        told = [(one["check"], one["severity"], one["fix"]) for one in found]
        assert told == [("ledger", "problem", fix)]
        (shop.folder / "undoubt.db.anchor").unlink(missing_ok=True)
    assert not (shop.folder / "undoubt.db").exists()
    ran = await shop.run("participants", "check", "orders")
    assert ran.status == 1
    assert "no ledger at" in ran.out


async def test_a_ledger_that_is_none(shop: Shop) -> None:
    (shop.folder / "undoubt.db").write_bytes(b"not a ledger" * 1000)
    [found] = await shop.findings()
    assert (found["check"], found["severity"]) == ("ledger", "problem")


async def test_a_ledger_whose_owner_does_not_answer(shop: Shop) -> None:
    lock = FileLock.take(shop.folder / "undoubt.db")
    assert lock is not None
    [found] = await shop.findings()
    assert (found["check"], found["severity"]) == ("ledger", "unreachable")
    lock.release()
