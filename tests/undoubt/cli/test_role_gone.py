"""A branch whose role was dropped: DROP ROLE does not look at prepared transactions, and PostgreSQL then lets
only a superuser end it. Everything that shows the branch has to say so, with the statement."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from tests.undoubt.cli.harness import Ran, undoubt
from undoubt import wiring
from undoubt.config import load
from undoubt.coordinator.ledger.contract import record_of
from undoubt.metrics import Metrics
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, SessionKey
from undoubt.recovery.service import RecoveryService
from undoubt.recovery.settings import RecoverySettings

SAID = "its role is gone; only a superuser can finish it"


def as_role(dsn: str, role: str, password: str) -> str:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{password}@{host}"))


@dataclass
class Orphan:
    """``statement`` is what ends ``gid``, by ``dsn``'s superuser."""

    gid: Gid
    config: Path
    dsn: str
    statement: str

    async def cli(self, *words: str) -> Ran:
        return await asyncio.to_thread(undoubt, *words, "--config", str(self.config))


@pytest.fixture(params=["commit", "abort"])
async def orphan(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> AsyncIterator[Orphan]:
    """Prepared by a role that was dropped; decided, or forgotten by the ledger, which then knows no
    transaction id of it. undoubt has another role."""
    gone, other = f"gone_{secrets.token_hex(4)}", f"other_{secrets.token_hex(4)}"
    root = await asyncpg.connect(database)
    for role in (gone, other):
        await root.execute(f"create role {role} login password 'secret'")
    await root.execute(f"grant {gone} to {other}; create table item (id int); grant all on item to public")
    ledger_url = f'[ledger]\nurl = "sqlite:///{tmp_path}/ledger.db"\n'
    configs = {}
    for role in (gone, other):
        dsn = as_role(database, role, "secret")
        configs[role] = tmp_path / f"{role}.toml"
        configs[role].write_text(f'{ledger_url}[participants.orders]\ndsn = "{dsn}"\n')
    assert (await asyncio.to_thread(undoubt, "ledger", "init", "--config", str(configs[gone]))).status == 0
    async with wiring.opened(load(str(configs[gone]))) as (ledger, participants):
        session = await ledger.open_session("shop", 60.0)
        key, txid = SessionKey(session.key), session.txid(1)
        gid = Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, 1, "orders").tagged(key)
        branch = await participants.get("orders").begin(gid, timeout_s=30.0, key=key)
        await branch.connection.execute("insert into item values (1)")
        evidence = (await branch.prepare()).evidence
        await branch.release()
        if request.param != "forgotten":
            decision = Decision.COMMIT if request.param == "commit" else Decision.ABORT
            await ledger.decide(txid, decision, [record_of(gid, evidence)])
            await ledger.close_session(session)
    if request.param == "forgotten":
        ran = await asyncio.to_thread(undoubt, "ledger", "restore", "--yes", "--config", str(configs[gone]))
        assert ran.status == 0, ran.err
    await root.execute(f"revoke {gone} from {other}; drop role {gone}")
    verb = "COMMIT" if request.param == "commit" else "ROLLBACK"
    try:
        yield Orphan(gid, configs[other], database, f"{verb} PREPARED '{gid}';")
    finally:
        for left in await root.fetch("select gid from pg_prepared_xacts where database = current_database()"):
            await root.execute(f"rollback prepared '{left['gid']}'")
        await root.execute(f"drop role {other}")
        await root.close()


def words(text: str) -> str:
    """Without the line breaks of a page."""
    return " ".join(text.split())


@pytest.mark.parametrize("orphan", ["forgotten"], indirect=True)
async def test_one_of_which_nothing_is_recorded_is_an_impostor(orphan: Orphan) -> None:
    """Broken if a branch of a dropped role, which whoever may make roles can have prepared under a name that
    was used before, counts as ours, raises alarms or is given a statement."""
    (branch,) = json.loads((await orphan.cli("indoubt", "list", "-o", "json")).out)["branches"]
    assert (branch["standing"], branch["fix"]) == ("impostor", None)
    assert "the role that prepared it has been dropped" in branch["why"]
    assert (await orphan.cli("indoubt", "check")).status == 0
    assert "GRANT" not in (await orphan.cli("doctor")).out


async def test_everything_that_shows_it_says_who_can_end_it(orphan: Orphan) -> None:
    """Broken if a person is sent to recovery, which cannot end it, or is not given the statement."""
    listed = await orphan.cli("indoubt", "list", "-o", "json")
    (branch,) = json.loads(listed.out)["branches"]
    assert branch["owner_gone"]
    assert branch["why"].endswith(SAID)
    assert branch["fix"] == orphan.statement
    pages = {
        command: words((ran := await orphan.cli(*command.split())).out + ran.err)
        for command in (
            "indoubt list",
            f"indoubt explain {orphan.gid}",
            f"indoubt explain {orphan.gid.txid}",
            "doctor",
        )
    }
    for command, page in pages.items():
        assert SAID in page, command
        assert orphan.statement in page, command
        assert "undoubt recover" not in page, command
    explained = json.loads((await orphan.cli("indoubt", "explain", str(orphan.gid), "-o", "json")).out)
    assert explained["branch"]["owner_gone"]
    assert explained["safe_action"]["command"] == orphan.statement


async def test_recovery_logs_it_once_and_counts_it(orphan: Orphan, caplog: pytest.LogCaptureFixture) -> None:
    """Broken if recovery tries for ever in silence, or fills the log; or does not note that it was ended."""
    ran = await orphan.cli("recover", "--once")
    assert ran.status == 1
    assert orphan.statement in words(ran.out)
    registry, passes, count = CollectorRegistry(), 0.0, None
    labels, branches = {"participant": "orders", "result": "done"}, {"participant": "orders"}
    metrics = Metrics(registry)
    async with wiring.opened(load(str(orphan.config))) as (ledger, participants):
        settings = RecoverySettings(interval_s=0.01)
        with caplog.at_level(logging.WARNING, "recovery"):
            async with RecoveryService(ledger, participants, settings, meter=metrics, always=True):
                async with asyncio.timeout(30):
                    while passes < 5:
                        passes = registry.get_sample_value("undoubt_recovery_passes_total", labels) or 0.0
                        count = registry.get_sample_value("undoubt_ownerless_branches", branches)
                        await asyncio.sleep(0.01)
    assert count == 1
    logged = [record.getMessage() for record in caplog.records if SAID in record.getMessage()]
    assert len(logged) == 1
    assert all(orphan.statement in line for line in logged)
    superuser = await asyncpg.connect(orphan.dsn)
    await superuser.execute(orphan.statement)
    await superuser.close()
    assert (await orphan.cli("recover", "--once")).status == 0
    assert (await orphan.cli("indoubt", "check")).status == 0
