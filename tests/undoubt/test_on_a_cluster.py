"""``undoubt.connect`` on a ledger of three node processes, over two real databases."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import undoubt
from tests.coordinator.node.processes import Processes, processes
from tests.servers import prepared
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import record_of
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Gid, Protocol, SessionKey

TABLE = "create table note (id int primary key)"


async def run(dsn: str, *statements: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetch(statements[-1])
    finally:
        await connection.close()


@pytest.fixture
async def nodes(tmp_path: Path, databases: dict[str, str]) -> AsyncIterator[Processes]:
    """Each of them resolves what is in doubt in both databases while it leads."""
    for dsn in databases.values():
        await run(dsn, TABLE)
    more = "[recovery]\ninterval_s = 0.1\n" + "".join(
        f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in databases.items()
    )
    async with processes(tmp_path, more) as found:
        yield found


@pytest.mark.parametrize("protocol", ["2pc", "paxos"])
async def test_transactions_commit_while_leaders_are_killed(
    nodes: Processes, databases: dict[str, str], protocol: str
) -> None:
    """All or nothing, and all that was acknowledged, with the ledger's leader dying in the middle."""
    source = {
        "ledger": {"url": nodes.settings.url, "request_timeout_s": 60.0},
        "coordinator": {"protocol": protocol},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }
    committed: set[int] = set()
    ended = asyncio.Event()

    async def transfer(coordinator: undoubt.Coordinator, number: int) -> None:
        while not ended.is_set():
            async with coordinator.transaction(timeout=60) as tx:
                for name in databases:
                    branch = await tx.branch(name)
                    await branch.execute("insert into note (id) values ($1)", number)
            committed.add(number)
            number += 8

    async with undoubt.connect(source) as coordinator:
        workers = [asyncio.create_task(transfer(coordinator, first)) for first in range(1, 9)]
        for _ in range(2):
            wanted = len(committed) + 30
            while len(committed) < wanted:
                await asyncio.sleep(0.01)
            leader = await nodes.leader()
            await nodes.end(leader, signal.SIGKILL)
            await nodes.leader(but=leader)
            await nodes.start(leader)
        ended.set()
        await asyncio.gather(*workers)
    for dsn in databases.values():
        assert {row["id"] for row in await run(dsn, "select id from note")} == committed
        assert await prepared(dsn) == []


async def test_the_node_that_leads_resolves_what_is_in_doubt(
    nodes: Processes, databases: dict[str, str]
) -> None:
    """A coordinator that died after its decision leaves locks behind until somebody finishes for it; and so
    it does after the leader has gone."""
    ledger = await ClusterLedger.open(nodes.settings)
    try:
        for number in (1, 2):
            session = await ledger.open_session("dead", 300.0)
            txid, key = session.txid(1), SessionKey(session.key)
            gids = {
                name: Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, at, name).tagged(key)
                for at, name in enumerate(databases, 1)
            }
            for name, dsn in databases.items():
                await run(
                    dsn, "begin", f"insert into note values ({number})", f"prepare transaction '{gids[name]}'"
                )
            branches = [record_of(gid) for gid in gids.values()]
            assert await ledger.decide(txid, Decision.COMMIT, branches) is Decision.COMMIT
            for dsn in databases.values():
                while await prepared(dsn):
                    await asyncio.sleep(0.05)
                rows = await run(dsn, "select id from note order by id")
                assert [row["id"] for row in rows] == list(range(1, number + 1))
            while await ledger.unfinished():
                await asyncio.sleep(0.05)
            await nodes.end(await nodes.leader(), signal.SIGKILL)
            if number == 1:
                await nodes.leader()
    finally:
        await ledger.close()
