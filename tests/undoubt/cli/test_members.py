"""``undoubt cluster status|add|promote|remove|transfer|snapshot|backup|restore`` on real processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.coordinator.ledger.signing import Signing
from tests.ports import free_ports
from tests.prove.nodes import CommandFailed, Nodes
from tests.undoubt.cli.harness import undoubt
from undoubt.coordinator.ledger.acting import DONE, system_user
from undoubt.coordinator.ledger.backup import NOT_IN_BACKUP
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.cluster.messages import NodeStatus
from undoubt.coordinator.ledger.cluster.status import Seen, survey
from undoubt.coordinator.ledger.contract import Act, BranchRecord, RecordedDecision, Verdict
from undoubt.coordinator.node.storage.node_storage import lives_in
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision

BRANCHES = (BranchRecord(1, "orders"), BranchRecord(2, "payments"))


@contextlib.asynccontextmanager
async def cluster(folder: Path, count: int) -> AsyncIterator[Nodes]:
    folder.mkdir(exist_ok=True)
    nodes = Nodes(folder, count)
    await nodes.begin()
    await nodes.start(*list(nodes.addresses))
    try:
        await nodes.leader()
        yield nodes
    finally:
        await nodes.close()


@contextlib.asynccontextmanager
async def client(nodes: Nodes) -> AsyncIterator[Signing]:
    ledger = await ClusterLedger.open(LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=30.0))
    try:
        yield Signing(ledger)
    finally:
        await ledger.close()


async def refused(nodes: Nodes, number: int, *arguments: str) -> tuple[int, str]:
    with pytest.raises(CommandFailed) as failed:
        await nodes.run(number, *arguments)
    return failed.value.status, str(failed.value)


async def recorded(ledger: Signing, verb: str, count: int) -> list[Act]:
    """Acts of that verb, once there are so many: a node tells of its own when there is a leader."""
    async with asyncio.timeout(30.0):
        while True:
            found = [act for act in await ledger.acts(limit=100) if act.verb == verb]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)


async def test_a_cluster_grows_hands_over_and_shrinks(tmp_path: Path) -> None:
    """One node becomes two, the second one leads, the first one leaves: what was decided stays."""
    async with cluster(tmp_path, 1) as nodes, client(nodes) as ledger:
        session = await ledger.open_session("test", 600.0)
        await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES)
        joined = await nodes.run(2, "cluster", "add")
        assert (joined["node"], joined["address"]) == (2, nodes.addresses[2])
        assert await nodes.run(2, "cluster", "add") == joined, "an answer may have been lost"
        await nodes.start(2)
        grown = await nodes.run(0, "cluster", "promote", "2")
        assert (grown["voters"], grown["learners"]) == ([1, 2], [])
        await nodes.run(0, "cluster", "transfer", "2")
        assert await nodes.leader() == 2
        taken = await nodes.run(0, "cluster", "snapshot", "--note", "before the move")
        (act,) = await recorded(ledger, "cluster snapshot", 1)
        assert (act.subject, act.note, act.result) == ("node 1 2", "before the move", "done")
        assert [(each["node"], each["error"]) for each in taken["snapshots"]] == [(1, ""), (2, "")]
        status, told = await refused(nodes, 0, "cluster", "remove", "1")
        assert status == 2
        assert "--yes" in told
        shrunk = await nodes.run(2, "cluster", "remove", "1", "--yes")
        assert shrunk["nodes"] == {"2": nodes.addresses[2]}
        seen = (await nodes.run(0, "cluster", "status"))["nodes"]
        assert {one["node"]: one["member"] for one in seen} == {1: False, 2: True}
        page = await asyncio.to_thread(undoubt, "cluster", "status", "--config", nodes.configuration(0))
        assert "it is no member any more, and can be stopped" in page.out
        doctor = await asyncio.to_thread(undoubt, "doctor", "--config", nodes.configuration(0))
        assert "of 1 voter 1 answers, and none may fail" in doctor.out
        nodes.url = nodes.addresses[2]
        async with client(nodes) as other:
            assert (await other.records([session.txid(1)]))[session.txid(1)] is RecordedDecision.COMMIT


async def test_status_waits_until_the_members_are_level(tmp_path: Path) -> None:
    """Broken if an operator who upgrades node after node is told to go on while a second node is down, or
    waits for an address that is no member's."""
    async with cluster(tmp_path, 3) as nodes:
        nodes.url += f",127.0.0.1:{free_ports(1)[0]}"
        await nodes.run(0, "cluster", "status", "--wait", "1m")
        leader = await nodes.leader()
        down, other = {1, 2, 3} - {leader}
        await nodes.end(down)
        assert (await nodes.run(0, "cluster", "status"))["leader"] == leader
        status, told = await refused(nodes, 0, "cluster", "status", "--wait", "0s")
        assert (status, f"after 0.0s: node {down} does not answer" in told) == (6, True)
        waiting = asyncio.create_task(nodes.run(0, "cluster", "status", "--wait", "1m"))
        await nodes.start(down)
        assert {one.get("node") for one in (await waiting)["nodes"]} == {1, 2, 3, None}
        await nodes.end(down, other)
        status, told = await refused(nodes, 0, "cluster", "status", "--wait", "0s")
        while "no node leads" not in told:  # a leader notices after an election timeout that it is alone
            assert status == 6
            status, told = await refused(nodes, 0, "cluster", "status", "--wait", "0s")
        assert (await refused(nodes, 0, "cluster", "status"))[0] == 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"applied_index": 6}, "node 2 has applied 6 of 7"),
        ({"disk_full": True}, "the disk of node 2 is full"),
        ({"disk_stalled": True}, "the disk of node 2 does not finish a write"),
    ],
)
async def test_what_the_members_lack(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    """Broken if a node that is behind, or cannot write, counts as one that may replace another."""
    async with cluster(tmp_path, 2) as nodes:
        found = await survey(LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=30.0))
    level = {"applied_index": 7, "nodes": nodes.addresses}
    statuses = [msgspec.structs.replace(seen.status, **level) for seen in found.nodes if seen.status]

    def lacking(second: NodeStatus) -> list[str]:
        seen = tuple(Seen("", one) for one in (statuses[0], second))
        return msgspec.structs.replace(found, leader=1, nodes=seen).lacking(7)

    assert lacking(statuses[1]) == []
    assert lacking(msgspec.structs.replace(statuses[1], **change)) == [reason]


async def test_refusals(tmp_path: Path) -> None:
    """Each with its reason, and nothing is left behind."""
    async with cluster(tmp_path, 1) as nodes:
        nodes.addresses[7] = "0.0.0.0:7400"
        status, told = await refused(nodes, 7, "cluster", "add")
        assert status == 2
        assert "--address" in told
        await nodes.run(7, "cluster", "add", "--address", "127.0.0.1:7")
        await nodes.run(0, "cluster", "remove", "7", "--yes")
        status, told = await refused(nodes, 6, "cluster", "add")
        assert status == 1
        assert "the next is 8" in told
        assert not lives_in(tmp_path / "node-6")
        await nodes.run(0, "cluster", "remove", "7", "--yes")  # an answer may have been lost
        for words in (("promote", "9"), ("remove", "9", "--yes"), ("transfer", "9"), ("snapshot", "9")):
            status, told = await refused(nodes, 0, "cluster", *words)
            assert (status, "node 9 is not a member" in told) == (3, True)
        status, told = await refused(nodes, 1, "cluster", "restore", str(tmp_path / "none"), "--yes")
        assert status == 1
        await nodes.end(1)
        status, told = await refused(nodes, 8, "cluster", "add")
        assert status == 4
        assert not lives_in(tmp_path / "node-8")


async def test_backup_and_restore(tmp_path: Path) -> None:
    """From one node to three others. What was decided before is there; what came later nobody presumes. Who
    made the nodes, and who took the backup, is recorded."""
    file = str(tmp_path / "ledger.backup")
    async with cluster(tmp_path / "old", 1) as nodes, client(nodes) as ledger:
        session = await ledger.open_session("test", 600.0)
        await ledger.decide(session.txid(1), Decision.COMMIT, BRANCHES)
        assert [act.who for act in await recorded(ledger, "cluster init", 1)] == [system_user()]
        made = await nodes.run(0, "cluster", "backup", file)
        assert made["ledger_id"] == ledger.ledger_id
        assert [act.result for act in await recorded(ledger, "cluster backup", 1)] == [DONE]
        status, told = await refused(nodes, 0, "cluster", "backup", file)
        assert (status, "exists already" in told) == (2, True)
        await ledger.decide(session.txid(2), Decision.COMMIT, BRANCHES)
        (tmp_path / "new").mkdir()
        other = Nodes(tmp_path / "new", 3)
        other.url = nodes.url
        status, told = await refused(other, 1, "cluster", "restore", file, "--yes")
        assert (status, "end all of its nodes first" in told) == (1, True)
    other.url = ",".join(other.addresses.values())
    await other.begin("cluster", "restore", file, "--yes")
    await other.start(1, 2, 3)
    try:
        async with client(other) as ledger:
            assert ledger.ledger_id == made["ledger_id"]
            verdicts = await ledger.outcomes([session.txid(1), session.txid(2)])
            assert list(verdicts.values()) == [Verdict.COMMITTED, Verdict.FORGOTTEN]
            assert (await ledger.info()).incarnation == 2
            assert len(await recorded(ledger, "cluster restore", 3)) == 3
            [backup] = await recorded(ledger, "cluster backup", 1)
            assert backup.result == NOT_IN_BACKUP, "no act of before the backup seems to be under way"
    finally:
        await other.close()
