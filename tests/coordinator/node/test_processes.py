"""Three real processes, real signals, real disks."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coordinator.ledger.signing import Signing
from tests.coordinator.node.processes import Processes, processes, why_no_mounts
from tests.undoubt.cli.harness import Ran, undoubt
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import BranchRecord, Session
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.coordinator.node.storage import segment
from undoubt.participants.contract import Decision

COMMIT, ABORT = Decision.COMMIT, Decision.ABORT
BRANCHES = (
    BranchRecord(1, "orders", 77, 2**62, "00000001"),
    BranchRecord(2, "payments", 78, 2**62, "00000001"),
)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path) as found:
        yield found


class Load:
    """Sixteen callers of one client that decide without end. ``answered``: by seq, what each was told."""

    def __init__(self, ledger: Signing, session: Session) -> None:
        self.ledger = ledger
        self.session = session
        self.answered: dict[int, Decision] = {}
        self._ended = False
        self._workers = [asyncio.create_task(self._decide(worker)) for worker in range(1, 17)]

    async def _decide(self, seq: int) -> None:
        while not self._ended:
            order = ABORT if seq % 5 == 0 else COMMIT
            self.answered[seq] = await self.ledger.decide(self.session.txid(seq), order, BRANCHES)
            seq += 16

    async def more(self, count: int = 100) -> None:
        """Once so many more were answered."""
        wanted = len(self.answered) + count
        while len(self.answered) < wanted:
            await asyncio.sleep(0.005)
            for worker in self._workers:
                if worker.done():
                    worker.result()

    async def cancel(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def end(self) -> None:
        """Nothing that was answered is lost, nothing is there twice, nothing is another decision."""
        self._ended = True
        await asyncio.gather(*self._workers)
        for seq, decision in self.answered.items():
            assert decision is (ABORT if seq % 5 == 0 else COMMIT), seq
        kept = {each.txid.seq: each.decision async for each in every_unfinished(self.ledger.ledger)}
        assert kept == self.answered


@contextlib.asynccontextmanager
async def load(nodes: Processes) -> AsyncIterator[Load]:
    ledger = Signing(await ClusterLedger.open(nodes.settings))
    made = Load(ledger, await ledger.open_session("load", 300.0))
    try:
        await made.more()
        yield made
        await made.end()
    finally:
        await made.cancel()
        await ledger.close()


async def test_leaders_are_killed_during_decides(nodes: Processes) -> None:
    """kill -9 at any moment: what was answered stays, what was not is answered by the next leader."""
    async with load(nodes) as decides:
        for _ in range(3):
            leader = await nodes.leader()
            await nodes.end(leader, signal.SIGKILL)
            await decides.more()
            await nodes.start(leader)
            await decides.more()
    await nodes.applied()


@pytest.mark.slow
async def test_all_are_killed_at_once(nodes: Processes) -> None:
    """The power of the whole room fails during decides."""
    async with load(nodes) as decides:
        for number in list(nodes.running):
            await nodes.end(number, signal.SIGKILL)
        await nodes.start()
        await decides.more()
    await nodes.applied()


@pytest.mark.slow
async def test_a_stopped_leader_is_replaced_and_wakes_up_harmless(nodes: Processes) -> None:
    """SIGSTOP: its connections stay open, so only silence tells. Woken up, it must not answer from the
    past."""
    async with load(nodes) as decides:
        leader = await nodes.leader()
        nodes.signal(leader, signal.SIGSTOP)
        await nodes.leader(but=leader)
        await decides.more()
        nodes.signal(leader, signal.SIGCONT)
        await decides.more()
        await nodes.applied()


@pytest.mark.slow
async def test_a_rolling_restart(nodes: Processes) -> None:
    """SIGTERM one after the other: each ends by itself with status 0, and callers notice nothing."""
    async with load(nodes) as decides:
        for number in nodes.numbers:
            assert await nodes.end(number, signal.SIGTERM) == 0, nodes.log(number)
            await decides.more()
            await nodes.start(number)
            await nodes.applied()


async def test_a_damaged_node_refuses_to_start(nodes: Processes) -> None:
    """It says where, and how it can rejoin; the others go on without it."""
    async with load(nodes):
        leader = await nodes.leader()
        follower = next(number for number in nodes.numbers if number != leader)
        await nodes.end(follower, signal.SIGKILL)
        path = segment.path_of(nodes.data(follower), 1)
        data = bytearray(path.read_bytes())
        data[segment.HEADER_BYTES + 100] ^= 1
        path.write_bytes(data)
        ran = await asyncio.to_thread(undoubt, "node", "--config", str(nodes.config(follower)))
        assert ran.status == 1
        assert "log-0000000001.segment is damaged at byte" in ran.err
        assert f"undoubt cluster remove {follower}" in ran.err


async def test_a_disk_that_is_lost_is_not_begun_anew(nodes: Processes, tmp_path: Path) -> None:
    """An empty folder under the old number would vote without knowing what it had promised."""
    await nodes.leader()
    await nodes.end(2, signal.SIGKILL)
    nodes.data(2).rename(tmp_path / "lost")
    ran = await asyncio.to_thread(undoubt, "node", "--config", str(nodes.config(2)))
    assert ran.status == 1
    assert "never started again under its number" in ran.err


async def test_status_tells_who_leads_and_who_is_away(nodes: Processes) -> None:
    """What an operator looks at first; scripts read its JSON and its exit status."""
    leader = await nodes.leader()
    away = next(number for number in nodes.numbers if number != leader)
    await nodes.end(away, signal.SIGKILL)
    ran = await asyncio.to_thread(
        undoubt, "cluster", "status", "-o", "json", "--config", str(nodes.config(leader))
    )
    assert ran.status == 0, ran.err
    assert ran.json["leader"] == leader
    by_address = {one["address"]: one for one in ran.json["nodes"]}
    assert len(by_address) == 3
    gone = by_address[f"127.0.0.1:{nodes.ports[away - 1]}"]
    assert "node" not in gone
    assert "Connect call failed" in gone["error"]
    told = by_address[f"127.0.0.1:{nodes.ports[leader - 1]}"]
    assert (told["node"], told["role"], told["voters"]) == (leader, "leader", [1, 2, 3])
    for number in list(nodes.running):
        if number != leader:
            await nodes.end(number, signal.SIGKILL)
    while ran.status != 4:
        ran = await asyncio.to_thread(undoubt, "cluster", "status", "--config", str(nodes.config(leader)))
    assert "no node leads" in ran.err


async def test_first_nodes_must_agree_who_they_are(tmp_path: Path) -> None:
    """Nodes that begin with different members could form two majorities."""
    config = tmp_path / "a.toml"
    config.write_text('[ledger]\nurl = "raft://h1:1,h2:2,h3:3"\n[node]\nnumber = 1\n')
    ticket = undoubt("cluster", "init", "--config", str(config)).out.strip()
    other = tmp_path / "b.toml"
    other.write_text('[ledger]\nurl = "raft://h1:1,h2:2"\n[node]\nnumber = 2\ndata = "b"\n')
    ran = undoubt("cluster", "init", "--config", str(other), "--id", ticket)
    assert ran.status == 2
    assert "was made for other nodes" in ran.err
    ran = undoubt("cluster", "init", "--config", str(other), "--id", ticket.partition("-")[0])
    assert (ran.status, "is incomplete" in ran.err) == (2, True)
    assert not (tmp_path / "b").exists()


async def test_other_machines_are_not_served_without_tls(tmp_path: Path) -> None:
    """Whoever reaches the port could decide transactions."""
    config = tmp_path / "a.toml"
    config.write_text('[ledger]\nurl = "raft://127.0.0.1:1"\n[node]\nnumber = 1\nlisten = "0.0.0.0:0"\n')
    assert undoubt("cluster", "init", "--config", str(config)).status == 0
    ran = undoubt("node", "--config", str(config))
    assert ran.status == 2
    assert "--insecure" in ran.err


@pytest.mark.slow
@pytest.mark.skipif(why_no_mounts() is not None, reason=str(why_no_mounts()))
async def test_a_full_disk_on_the_leader(nodes: Processes) -> None:
    """A real one: the kernel says ENOSPC. Another node leads, nothing is lost, the full one neither wins
    leadership nor is given it, and comes back by itself once there is room."""
    leader = await nodes.leader()
    assert await nodes.end(leader, signal.SIGTERM) == 0
    place = nodes.data(leader)
    small = (
        "unshare", "-m", "sh", "-c",
        f'cp -a "{place}" "{place}.whole" && mount -t tmpfs -o size=80m tmpfs "{place}"'
        f' && cp -a "{place}.whole/." "{place}" && exec "$@"',
        "small",
    )  # fmt: skip
    await nodes.start(leader, prefix=small)
    pid = nodes.running[leader].pid
    inside = ("nsenter", "-t", str(pid), "-m", "sh", "-c")
    async with load(nodes) as decides:
        await _led_by(nodes, leader)
        fill = await asyncio.create_subprocess_exec(
            *inside, f'dd if=/dev/zero of="{place}/fill" bs=64k', stderr=asyncio.subprocess.DEVNULL
        )
        assert await fill.wait() != 0  # no space left on device
        while "no room on its disk" not in nodes.log(leader):
            await decides.more(20)
        successor = await nodes.leader(but=leader)
        await decides.more()
        ran = await _transfer(nodes, leader)
        assert ran.status != 0
        assert f"the disk of node {leader} is full" in ran.err
        await nodes.end(successor, signal.SIGKILL)
        assert await nodes.leader(but=successor) != leader
        await nodes.start(successor)
        await decides.more()
        empty = await asyncio.create_subprocess_exec(*inside, f'rm "{place}/fill"')
        await empty.wait()
        while "room on its disk again" not in nodes.log(leader):
            await decides.more(20)
        while (ran := await _transfer(nodes, leader)).status != 0:
            assert "is full" in ran.err, "until the leader has heard of it"
        assert await nodes.leader() == leader
        await decides.more()
    await nodes.applied()


async def _transfer(nodes: Processes, to: int) -> Ran:
    config = str(nodes.config(to))
    return await asyncio.to_thread(undoubt, "cluster", "transfer", str(to), "--config", config)


async def _led_by(nodes: Processes, wanted: int) -> None:
    """Kill whoever else leads, gently, until ``wanted`` does."""
    while (leader := await nodes.leader()) != wanted:
        await nodes.end(leader, signal.SIGTERM)
        await nodes.leader(but=leader)
        await nodes.start(leader)


async def test_every_decision_is_there_for_a_client_of_another_process(nodes: Processes) -> None:
    """The command line sees what an application decided."""
    async with load(nodes) as decides:
        await decides.more()
        txid = decides.session.txid(1)
        ran = await asyncio.to_thread(
            undoubt, "tx", "show", str(txid), "-o", "json", "--config", str(nodes.config(1))
        )
        assert ran.status == 0, ran.err
        assert ran.json["decision"] == "commit"
