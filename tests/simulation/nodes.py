"""The nodes of a simulated cluster: shipped nodes with recovery on them, over simulated disks.

After every turn of a node the invariants of :mod:`tests.coordinator.raft.invariants` are checked on it: on
what the core says, on what its disk holds, on every message as it leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

from tests.coordinator.raft.invariants import Invariants
from tests.simulation.applications import recovery_settings, registry
from tests.simulation.drive import Drive, Writer
from tests.simulation.judge import Violation
from tests.simulation.recorded import RecordedLedger
from undoubt.coordinator.ledger.contract import DecisionRecord
from undoubt.coordinator.ledger.history import newest
from undoubt.coordinator.node.bootstrap import beginning, joining
from undoubt.coordinator.node.node import Node
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.storage.contract import DiskIdentity, DiskWrite, Snapshot, Stored
from undoubt.coordinator.paxos import AcceptorRecord, Marks, Outgoing, RestoredAcceptor
from undoubt.coordinator.raft import Entry, HardState, Message, Raft, SnapshotMeta
from undoubt.coordinator.wire import Address, WireSettings
from undoubt.participants.ids import TxId
from undoubt.recovery.service import RecoveryService

if TYPE_CHECKING:
    from tests.simulation.promises import Promises
    from tests.simulation.scheduler import Process
    from tests.simulation.world import World

CLUSTER = "simulated0"
PORT = 7400
LOG_MATCHING_EVERY = 40
"""Comparing all logs with each other is done after so many changes only."""


class NodeDisk:
    """What is durable of one node; looks to the invariants like the disks of their own cluster."""

    def __init__(
        self, identity: DiskIdentity, hard_state: HardState, image: Snapshot, judge: Promises
    ) -> None:
        self.identity = identity
        self.judge = judge
        self.hard_state = hard_state
        self.image = image
        self.entries: dict[int, Entry] = {}
        self.history: dict[TxId, DecisionRecord] = {}
        self.staged = b""
        self.disks: dict[int, str] = {}
        self.promises: dict[TxId, AcceptorRecord] = {}
        self.marks = Marks()

    @property
    def snapshot(self) -> SnapshotMeta:
        return self.image.meta

    @property
    def applied(self) -> int:
        """The machine is made anew from the snapshot."""
        return self.image.meta.index

    def carry_out(self, writes: Sequence[DiskWrite]) -> None:
        for write in writes:
            if write.hard_state is not None:
                self.hard_state = write.hard_state
            if write.finished is not None:
                self.history |= {record.txid: record for record in write.finished.records}
            if write.snapshot is not None:
                self.image = write.snapshot
            if write.replaces_log:
                self.entries = {}
            if write.keep_from:
                self.entries = {i: entry for i, entry in self.entries.items() if i >= write.keep_from}
            if write.entries:
                first = write.entries[0].index
                self.entries = {i: entry for i, entry in self.entries.items() if i < first}
                self.entries |= {entry.index: entry for entry in write.entries}
            self.disks |= write.disks
            if write.promises is not None:
                for record in write.promises.records:
                    self.promises[record.txid] = record
                    self.judge.stored(self.identity.node, record)
                for txid in write.promises.dropped:
                    self.promises.pop(txid, None)
                if write.promises.marks is not None:
                    self.marks = write.promises.marks
                    self.judge.forgot(self.identity.node, self.marks)

    def stored(self) -> Stored:
        entries = tuple(self.entries[index] for index in sorted(self.entries))
        acceptor = RestoredAcceptor(self.marks, tuple(self.promises.values()))
        return Stored(self.identity, self.hard_state, self.image, entries, dict(self.disks), acceptor)


class SimulatedStorage:
    """Implements :class:`undoubt.coordinator.node.storage.contract.Storage`."""

    def __init__(self, disk: NodeDisk, drive: Drive) -> None:
        self._disk = disk
        self._drive = drive
        self._submit = Writer(drive).do

    def write(self, writes: Sequence[DiskWrite]) -> asyncio.Future[bool]:
        kept = tuple(writes)

        def job() -> bool:
            if kept:
                self._drive.before_write(lambda: self._disk.carry_out(kept))
            self._disk.carry_out(kept)
            return not self._drive.full

        return self._submit(job)

    def history_of(self, txid: TxId) -> asyncio.Future[DecisionRecord | None]:
        return self._submit(lambda: self._disk.history.get(txid))

    def history(self, limit: int, before: DecisionRecord | None) -> asyncio.Future[Sequence[DecisionRecord]]:
        def job() -> Sequence[DecisionRecord]:
            found = sorted(self._disk.history.values(), key=newest)
            return [one for one in found if before is None or newest(before) < newest(one)][:limit]

        return self._submit(job)

    def close(self) -> asyncio.Future[None]:
        return self._submit(lambda: None)


class SimulatedNode:
    """One member. ``running`` is its node while its process lives."""

    def __init__(self, cluster: SimulatedCluster, number: int, disk: NodeDisk) -> None:
        self.cluster, self.number, self.disk = cluster, number, disk
        self.world = cluster.world
        self.drive = Drive(self.world.scheduler, Random(self.world.random.getrandbits(64)))
        self.process: Process | None = None
        self.running: Node | None = None
        self.retired = False
        """It is never started again."""
        self._seen: object = None

    @property
    def up(self) -> Raft:
        """As the invariants call the core."""
        assert self.running is not None
        return self.running.replica.raft

    def start(self) -> None:
        world = self.world
        if self.retired:
            return
        process = self.process = world.process(f"node{self.number}", f"node{self.number}")
        process.on_kill.append(self._died)
        self.drive.on_broken = world.killed_soon
        world.born(process, self.main, self.start)

    def retire(self) -> None:
        self.retired = True
        self.cluster.gone.add(self.number)
        if self.process is not None:
            self.world.kill(self.process)

    def lose(self, *, again: bool) -> None:
        """Everything on its disk. ``again``: somebody starts it under its old number all the same."""
        self.retired = not again
        self.cluster.gone.add(self.number)
        # What the others count on now was there when it was acknowledged, and they may hear of it later.
        ghost = SimulatedNode(self.cluster, self.number, self.disk)
        self.cluster.ghosts.append(ghost)
        self.disk = self.cluster.empty_disk(self.number, f"{self.number:08x}deadbeef")
        if self.process is not None:
            self.world.kill(self.process)

    def _died(self) -> None:
        self.running = None

    async def main(self) -> None:
        world, process = self.world, self.process
        assert process is not None
        random = Random(world.random.getrandbits(64))
        storage = SimulatedStorage(self.disk, self.drive)
        node = Node(
            storage,
            self.disk.stored(),
            self.cluster.settings,
            world.settings,
            WireSettings(handshake_s=2.0),
            random=random,
        )
        self.running, self._seen = node, None
        process.after_turn = self.look
        self.cluster.watch(self, node)
        await node.start(self.cluster.addresses[self.number])
        node.failed.add_done_callback(lambda failed: self._failed(process, failed.result()))
        ledger = RecordedLedger(node.ledger, process.name, world.judge, world.history)
        node.orphaned_votes._ledger = ledger  # type: ignore[assignment]
        while not node.leads:
            await asyncio.sleep(0.2)
        service = RecoveryService(
            ledger,
            registry(world, CLUSTER),
            recovery_settings(world.random),
            observe=world.observer(process),
            rng=random,
        )
        async with service:
            await asyncio.get_running_loop().create_future()

    def _failed(self, process: Process, error: BaseException) -> None:
        if type(error).__name__ != "StoreBroken":
            raise Violation(f"{process.name} has stopped by itself: {error!r}") from error

    async def hand_over(self) -> None:
        """A graceful stop, in the node's own process."""
        node, process = self.running, self.process
        if node is not None and process is not None:
            await node.hand_over(3.0)
            await node.stop()
            self.world.kill(process)

    def look(self) -> None:
        """After each of its turns: check this node, if anything of it has changed."""
        if self.running is None:
            return
        if self.running.replica.driver.refused:
            raise Violation(f"node {self.number} was sent what no sound member would send")
        raft = self.running.replica.raft
        seen = (raft.term, raft.role, raft.commit_index, raft.last_index, raft.applied_index)
        if seen != self._seen:
            self._seen = seen
            self.cluster.changed(self)


class SimulatedCluster:
    """All nodes; what the invariants look at."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        random = world.random
        heartbeat_s, election_timeout_s = random.choice([(0.02, 0.1), (0.05, 0.25), (0.1, 1.0)])
        self.settings = NodeSettings(
            heartbeat_s=heartbeat_s,
            election_timeout_s=election_timeout_s,
            snapshot_log_bytes=random.choice([1_500, 8_000, 8 * 1024 * 1024]),
            trailing_entries=random.choice([0, 3, 1_000]),
        )
        self.addresses = {number: Address(f"node{number}", PORT) for number in range(1, count + 1)}
        hard_state, image = beginning(
            CLUSTER, {number: str(address) for number, address in self.addresses.items()}
        )
        self.nodes = {
            number: SimulatedNode(
                self,
                number,
                NodeDisk(
                    DiskIdentity(CLUSTER, number, f"{number:016x}"), hard_state, image, world.judge.promises
                ),
            )
            for number in self.addresses
        }
        self.first = frozenset(self.nodes)
        """Those that clients know by the ledger's URL; one of them stays."""
        self.lost: set[int] = set()
        """Members whose disk is gone."""
        self.gone: set[int] = set()
        """Whoever will never again tell what it had accepted: its disk is lost, or it was let go."""
        self.tidy = True
        self.ghosts: list[SimulatedNode] = []
        self.invariants = Invariants(_Seen(self))  # type: ignore[arg-type]
        self.leaders: set[tuple[int, int]] = set()
        self._changes = 0

    @property
    def url(self) -> str:
        return "raft://" + ",".join(map(str, self.addresses.values()))

    @property
    def running(self) -> list[SimulatedNode]:
        return [node for node in self.nodes.values() if node.running is not None]

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def empty_disk(self, number: int, name: str) -> NodeDisk:
        """Of a node that joins."""
        return NodeDisk(DiskIdentity(CLUSTER, number, name), *joining(), self.world.judge.promises)

    def join(self, member: SimulatedNode) -> Address:
        """Its address."""
        self.nodes[member.number] = member
        address = self.addresses[member.number] = Address(f"node{member.number}", PORT)
        return address

    def watch(self, member: SimulatedNode, node: Node) -> None:
        """Look at every message before it leaves."""
        send = node.replica.driver.send

        def checked(message: Message) -> None:
            member.disk.staged = b"".join(node.replica.snapshots.arrived)
            self._checking(lambda: self.invariants.sent(member, message))  # type: ignore[arg-type]
            send(message)

        answer = node.replica.acceptors._send

        def answered(outgoing: tuple[Outgoing, ...]) -> None:
            for each in outgoing:
                self.world.judge.promises.answers(member.number, each.message)
            answer(outgoing)

        node.replica.driver.send = checked
        node.replica.acceptors._send = answered  # type: ignore[method-assign]
        self.invariants.restarted(member)  # type: ignore[arg-type]

    def changed(self, member: SimulatedNode) -> None:
        raft = member.up
        if raft.leads and (raft.term, member.number) not in self.leaders:
            self.leaders.add((raft.term, member.number))
            self.world.trace(f"node{member.number}", f"leads in term {raft.term}")
            self.world.counts["leaders"] += 1
        self._checking(lambda: self.invariants.check_node(member))  # type: ignore[arg-type]
        self._changes += 1
        if self._changes % LOG_MATCHING_EVERY == 0:
            self._checking(self.invariants.log_matching)

    def _checking(self, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError as error:
            raise Violation(f"an invariant of the consensus is broken: {error}") from error

    def can_lose(self, number: int) -> bool:
        """Whether every transaction keeps a majority of its acceptors without that one: to survive more is
        promised by nobody."""
        bound = {
            frozenset(book.acceptors)
            for machine in self.world.machines()
            for book in machine.state.sessions.values()
        }
        return all(2 * len(each - self.gone - {number}) > len(each) for each in bound if each)

    def by_process(self, process: Process) -> SimulatedNode | None:
        return next((node for node in self.nodes.values() if node.process is process), None)

    def agreed(self) -> bool:
        """One leads, and all members have the same log, committed and applied."""
        leading = [node for node in self.running if node.running is not None and node.running.leads]
        if len(leading) != 1 or self.lost or not self.tidy:
            return False
        configuration = leading[0].up.configuration
        members = [self.nodes[number] for number in sorted(configuration.nodes)]
        if configuration.joint or any(member.running is None for member in members):
            return False
        last = {member.up.last_index for member in members}
        return last == {member.up.applied_index for member in members} and len(last) == 1


class _Seen:
    """The cluster as the invariants look at it: the disks that were lost count as well."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    @property
    def running(self) -> list[SimulatedNode]:
        return self._cluster.running

    @property
    def nodes(self) -> dict[object, SimulatedNode]:
        found: dict[object, SimulatedNode] = dict(self._cluster.nodes.items())
        found.update((id(ghost), ghost) for ghost in self._cluster.ghosts)
        return found
