"""``undoubt tx resolve`` of three-phase commit and Paxos Commit: three nodes, two databases, a coordinator
that died. The nodes know no participant, so that no recovery of theirs is quicker."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.coordinator.node.processes import Processes, processes
from tests.servers import prepared
from tests.undoubt.cli.harness import Ran, environment
from tests.undoubt.cli.harness import undoubt as command
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.schema import script

CHILD = """
import asyncio, json, os, sys
import undoubt

source, protocol, last, count = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
passed = []

async def observe(step, subject):
    if str(step) == "after_prepare":
        print(subject, flush=True)
    if str(step) == last:
        passed.append(step)
        if len(passed) == count:
            os._exit(0)

async def main():
    async with undoubt.connect(source, observe=observe) as coordinator:
        async with coordinator.transaction(timeout=120, protocol=protocol) as tx:
            for name in source["participants"]:
                await (await tx.branch(name)).execute("insert into item values (1)")

asyncio.run(main())
"""

Cli = Callable[..., Awaitable[Ran]]


@pytest.fixture
async def nodes(tmp_path: Path, databases: dict[str, str]) -> AsyncIterator[Processes]:
    for dsn in databases.values():
        connection = await asyncpg.connect(dsn)
        await connection.execute(script() + "create table item (id int primary key);")
        await connection.close()
    async with processes(tmp_path) as found:
        yield found


@pytest.fixture
def source(nodes: Processes, databases: dict[str, str]) -> dict[str, Any]:
    return {
        "ledger": {"url": nodes.settings.url, "request_timeout_s": 60.0},
        "coordinator": {"session_ttl_s": 1.0},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }


@pytest.fixture
def cli(source: dict[str, Any], tmp_path: Path) -> Cli:
    path = tmp_path / "operator.toml"
    found = source["participants"].items()
    tables = "".join(f'[participants.{name}]\ndsn = "{one["dsn"]}"\n' for name, one in found)
    path.write_text(f'[ledger]\nurl = "{source["ledger"]["url"]}"\nrequest_timeout_s = 60.0\n{tables}')

    async def run(*words: str) -> Ran:
        return await asyncio.to_thread(command, *words, "--config", str(path))

    return run


async def left(source: dict[str, Any], protocol: str, last: str, count: int) -> list[Gid]:
    """The branches of a transaction whose coordinator died at the ``count``-th step ``last``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, json.dumps(source), protocol, last, str(count),
        stdout=asyncio.subprocess.PIPE, env=environment(),
    )  # fmt: skip
    told, _ = await process.communicate()
    assert process.returncode == 0
    gids = [gid for line in told.decode().split() if isinstance(gid := Gid.parse(line), Gid)]
    assert len(gids) == 2
    return gids


async def rows(databases: dict[str, str]) -> list[int]:
    counts = []
    for dsn in databases.values():
        connection = await asyncpg.connect(dsn)
        counts.append(await connection.fetchval("select count(*) from item"))
        await connection.close()
    return counts


@pytest.mark.parametrize(
    ("protocol", "last", "count", "outcome"),
    [
        ("3pc", "after_prepare", 2, "abort"),
        ("3pc", "after_precommit", 2, "commit"),
        ("paxos", "after_prepare", 2, "abort"),
        ("paxos", "after_vote", 1, "commit"),
    ],
)
async def test_its_own_termination_decides(  # noqa: PLR0917 - the cases
    source: dict[str, Any],
    databases: dict[str, str],
    cli: Cli,
    protocol: str,
    last: str,
    count: int,
    outcome: str,
) -> None:
    """Broken if presumption, or the operator, decides what participants or acceptors know; if somebody who
    asks for the other direction is told that all is well; or if it is done unasked or unrecorded."""
    gids = await left(source, protocol, last, count)
    txid = str(gids[0].txid)
    asked = await cli("tx", "resolve", txid)
    assert asked.status == 2
    assert "Let the termination of its protocol decide" in asked.err or "Commit 2 branches" in asked.err
    async with asyncio.timeout(60):
        while (ran := await cli("tx", "resolve", txid, "--yes", "--note", "why")).status != 0:
            assert ran.status == 5, ran.err
            assert "leave it alone" in ran.err or "has not ended yet" in ran.err
    assert await rows(databases) == ([1, 1] if outcome == "commit" else [0, 0])
    assert [await prepared(dsn) for dsn in databases.values()] == [[], []]
    acts = json.loads((await cli("audit", "-o", "json")).out)
    # Once the outcome is known, by this or by the nodes of Paxos Commit, what is recorded is carried out.
    verbs = {"tx resolve (termination)", f"tx resolve --{'commit' if outcome == 'commit' else 'rollback'}"}
    assert any(
        act["verb"] in verbs and (act["subject"], act["note"], act["result"]) == (txid, "why", "done")
        for act in acts
    )
    other = "--rollback" if outcome == "commit" else "--commit"
    assert (await cli("tx", "resolve", txid, other, "--yes")).status == 5


@pytest.mark.parametrize("protocol", ["3pc", "paxos"])
async def test_a_person_decides_only_by_a_heuristic(
    source: dict[str, Any], databases: dict[str, str], cli: Cli, protocol: str
) -> None:
    """Broken if ABORT is recorded, or a branch rolled back, where acceptors or rows may know of a COMMIT."""
    source["coordinator"]["session_ttl_s"] = 3_600.0
    gids = await left(source, protocol, "after_prepare", 2)
    txid = str(gids[0].txid)
    for words in ([], ["--commit"], ["--rollback"]):
        assert (await cli("tx", "resolve", txid, *words, "--yes")).status == 5
        assert [len(await prepared(dsn)) for dsn in databases.values()] == [1, 1]
    ran = await cli("tx", "resolve", txid, "--rollback", "--heuristic", "--yes", "--note", "why")
    assert ran.status == 0, ran.err
    assert await rows(databases) == [0, 0]
    assert [await prepared(dsn) for dsn in databases.values()] == [[], []]
    listed = json.loads((await cli("indoubt", "list", "-o", "json")).out)
    assert {one["kind"] for one in listed["heuristics"]} == {"heuristic_rollback"}
