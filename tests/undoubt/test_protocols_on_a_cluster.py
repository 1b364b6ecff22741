"""Each commit protocol on a ledger of three node processes and two real databases, by its name: wherever a
transaction is shown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

import undoubt
from tests.coordinator.node.processes import Processes, processes
from tests.undoubt.cli.harness import undoubt as command
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.metrics import Metrics
from undoubt.participants.postgres.schema import script

PROTOCOLS = ["2pc", "3pc", "paxos"]


@pytest.fixture
async def nodes(tmp_path: Path, databases: dict[str, str]) -> AsyncIterator[Processes]:
    for dsn in databases.values():
        connection = await asyncpg.connect(dsn)
        await connection.execute(script() + "create table item (id int primary key);")
        await connection.close()
    more = "".join(f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in databases.items())
    async with processes(tmp_path, more) as found:
        yield found


class Held:
    """Stops whoever has prepared a branch, while it is asked to."""

    def __init__(self) -> None:
        self.arrived, self.go_on = asyncio.Event(), asyncio.Event()
        self.gid = ""

    async def observe(self, step: Any, subject: str) -> None:
        if step == TwoPhaseStep.AFTER_PREPARE and not self.go_on.is_set():
            self.gid = subject
            self.arrived.set()
            await self.go_on.wait()


@pytest.mark.parametrize(
    ("protocol", "chosen"),
    [("2pc", "for one"), ("3pc", "for one"), ("3pc", "for all"), ("paxos", "for one"), ("paxos", "for all")],
)
async def test_a_transaction_is_shown_with_its_protocol(
    nodes: Processes, databases: dict[str, str], protocol: str, chosen: str
) -> None:
    """Broken if a protocol that is chosen, by the configuration or for one transaction, is not the one that
    it is committed by, or if it is not told by explain, tx show, tx list, history and metrics."""
    other = PROTOCOLS[PROTOCOLS.index(protocol) - 1]
    source = {
        "ledger": {"url": nodes.settings.url, "request_timeout_s": 60.0},
        "coordinator": {"protocol": protocol if chosen == "for all" else other},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }
    config = str(nodes.config(1))

    async def cli(*arguments: str) -> Any:
        ran = await asyncio.to_thread(command, *arguments, "--config", config, "-o", "json")
        assert ran.status == 0, ran.err
        return ran.json

    held, registry = Held(), CollectorRegistry()
    async with undoubt.connect(source, observe=held.observe, metrics=Metrics(registry)) as coordinator:

        async def insert() -> undoubt.CommitResult:
            async with coordinator.transaction(
                timeout=120, protocol=None if chosen == "for all" else protocol
            ) as tx:
                for name in databases:
                    await (await tx.branch(name)).execute("insert into item values (1)")
                return await tx.commit()

        committing = asyncio.create_task(insert())
        await held.arrived.wait()
        explained = await cli("indoubt", "explain", held.gid)
        assert explained["branch"]["protocol"] == protocol
        shown = await asyncio.to_thread(command, "indoubt", "explain", held.gid, "--config", config)
        assert f"protocol {protocol}" in " ".join(shown.out.split())
        assert {one["protocol"] for one in (await cli("indoubt", "list"))["branches"]} == {protocol}
        held.go_on.set()
        txid = str((await committing).txid)
        while not (told := await cli("tx", "show", txid))["finished"]:
            await asyncio.sleep(0.05)
        assert (told["decision"], told["protocol"], len(told["branches"])) == ("commit", protocol, 2)
        assert all(f":{told['branches'][0]['gid'].split(':')[2]}:" in one["gid"] for one in told["branches"])
        assert [(one["txid"], one["protocol"]) for one in await cli("tx", "list")] == [(txid, protocol)]
        listed = await asyncio.to_thread(command, "tx", "list", "--config", config)
        assert protocol in listed.out
    labels = {"protocol": protocol, "outcome": "committed"}
    assert registry.get_sample_value("undoubt_transactions_total", labels) == 1
    for phase in ("vote", "decide", "apply"):
        counted = {"protocol": protocol, "phase": phase}
        assert registry.get_sample_value("undoubt_transaction_phase_seconds_count", counted) == 1


async def test_only_three_phase_commit_is_ended_without_its_ledger(
    nodes: Processes, databases: dict[str, str]
) -> None:
    """Broken if a branch of another protocol were ended by a guess, or left alone without the reason."""
    source = {
        "ledger": {"url": nodes.settings.url, "request_timeout_s": 60.0},
        "participants": {name: {"dsn": dsn} for name, dsn in databases.items()},
    }
    held = Held()
    async with undoubt.connect(source, observe=held.observe) as coordinator:

        async def insert(number: int, protocol: str) -> None:
            async with coordinator.transaction(timeout=120, protocol=protocol) as tx:
                for name in databases:
                    await (await tx.branch(name)).execute("insert into item values ($1)", number)

        inserting = [asyncio.create_task(insert(*each)) for each in enumerate(PROTOCOLS)]
        await held.arrived.wait()
        while True:
            ran = await asyncio.to_thread(
                command,
                "recover",
                "--without-ledger",
                "--dry-run",
                "--config",
                str(nodes.config(1)),
                "-o",
                "json",
            )
            lines = {line["gid"].split(":")[2]: line for line in ran.json["lines"]}
            if lines.keys() == {"2", "3", "p"}:
                break
        assert (lines["2"]["action"], lines["p"]["action"]) == ("report", "report")
        assert "two-phase commit keeps its decision only in the ledger" in lines["2"]["why"]
        assert "Paxos Commit keeps its votes only with the ledger's nodes" in lines["p"]["why"]
        assert lines["3"]["result"] == "would_do"
        held.go_on.set()
        await asyncio.gather(*inserting)
