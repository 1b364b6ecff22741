"""One member's consensus: puts core, driver, disk and those who wait together, and is what the rest of the
node asks.

The parts: :mod:`undoubt.coordinator.raft` computes, :mod:`.driver` does what it says, :mod:`.proposals` and
:mod:`.read_index` keep who waits, :mod:`.snapshots` makes and takes images, :mod:`.acceptors` votes in Paxos
Commit, and all of them store through one :class:`Disk`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

from undoubt.coordinator.ledger.history import RecentHistory
from undoubt.coordinator.node.acceptors import NodeAcceptors
from undoubt.coordinator.node.driver import Driver, Turns
from undoubt.coordinator.node.errors import NodeStopped
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.proposals import Proposals
from undoubt.coordinator.node.read_index import ReadQueue
from undoubt.coordinator.node.snapshots import Snapshots
from undoubt.coordinator.node.storage.contract import Disk, DiskWrite, Storage, Stored
from undoubt.coordinator.node.versions import Agreement
from undoubt.coordinator.raft import Message, Raft, RaftSettings, RestoredState

log = logging.getLogger(__name__)

CLOSE_S = 10.0


class Replica:
    """``send`` takes messages for peers, and may lose them. ``on_change`` is called when this node has begun
    or ceased to lead. ``tick_s`` is a tick's length in seconds."""

    def __init__(
        self,
        stored: Stored,
        storage: Storage,
        replicated: NodeStateMachine,
        settings: RaftSettings,
        random: Random,
        *,
        tick_s: float,
        history_ms: int,
        snapshot_log_bytes: int,
        send: Callable[[Message], None],
        on_change: Callable[[bool], None],
    ) -> None:
        node = stored.identity.node
        self.replicated = replicated
        replicated.learn(stored.entries)
        # The machine begins where its image does; what follows in the log is applied once it is known to be
        # committed.
        restored = RestoredState(
            stored.hard_state, stored.snapshot.meta, stored.entries, stored.snapshot.meta.index
        )
        self.raft = Raft(node, settings, random, restored)
        self.turns = turns = Turns(node)
        self.disk = Disk(storage, self.note_full, turns.fail)
        self.history = RecentHistory(replicated.machine)
        self.snapshots = Snapshots(
            self.raft,
            replicated,
            self.history,
            self.disk,
            stored.snapshot,
            log_bytes=snapshot_log_bytes,
            history_ms=history_ms,
            wake=turns.wake,
            guarded=turns.guarded,
        )
        self.acceptors = NodeAcceptors(node, stored.acceptor, replicated.machine, self.disk, turns.wake)
        self.agreement = Agreement(node, replicated, lambda: self.raft.configuration.nodes)
        self.reads = ReadQueue()
        self.proposals = Proposals(self.raft, replicated, self.agreement, self.reads, turns.wake)
        turns.on_stop += [
            self.proposals.stop,
            self.snapshots.stop,
            self.reads.fail,
            self.acceptors.stop,
        ]
        self.driver = Driver(
            self.raft,
            replicated,
            turns,
            self.disk,
            proposals=self.proposals,
            reads=self.reads,
            snapshots=self.snapshots,
            history=self.history,
            acceptors=self.acceptors,
            send=send,
            on_change=self._changed,
        )
        self._on_change = on_change
        self._storage = storage
        self._tick_s = tick_s
        self._ticking: asyncio.TimerHandle | None = None
        self._acknowledged: dict[int, int] = {}
        """By node: see :meth:`acknowledged`. Kept when this node ceases to lead."""

    @property
    def leads(self) -> bool:
        """Whether this node leads and has applied everything that was committed before it did."""
        return self.driver.leads

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Why this node has stopped by itself, once it has."""
        return self.turns.failed

    @property
    def voters(self) -> tuple[int, ...]:
        """Of the last configuration that is known to be committed."""
        return tuple(sorted(self.raft.committed_configuration.incoming))

    def start(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        self.turns.start()

    async def stop(self) -> None:
        """Answer nothing more; let the storage go once it has done what it was given."""
        if self._ticking is not None:
            self._ticking.cancel()
        self.turns.stop(f"node {self.raft.node} was stopped")
        self.disk.close()
        await asyncio.wait([self._storage.close()], timeout=CLOSE_S)  # a disk that hangs is not waited for

    async def read(self) -> None:
        """Return once everything that any caller was told before is applied here. Raises ``NotLeading``,
        ``NodeStopped``."""
        if self.turns.stopped:
            raise NodeStopped(self.turns.stopped)
        future = self.reads.ask(asyncio.get_running_loop())
        self.turns.wake()
        await future

    def snapshot(self) -> asyncio.Future[int]:
        """Store an image of what is applied now, or wait for the one that is being stored; the index up to
        which it goes. Raises ``NodeStopped``."""
        if self.turns.stopped:
            stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            stored.set_exception(NodeStopped(self.turns.stopped))
            return stored
        return self.snapshots.ask()

    def keep_versions(self) -> None:
        """Now and then: have a newer version agreed on once all members speak it."""
        if self.leads and (version := self.agreement.due()):
            self.proposals.agree_on(version)

    def remember(self, disks: dict[int, str]) -> None:
        """Store which disks other nodes were met with."""
        self.disk.give(DiskWrite(disks=disks), lambda: None)
        self.turns.wake()

    def acknowledged(self, node: int) -> int:
        """The highest index that is committed, and that ``node`` has acknowledged to this one. It must hold
        that for ever."""
        self.note_acknowledged()
        return self._acknowledged.get(node, 0)

    def note_acknowledged(self) -> None:
        if self.raft.leads:
            for node in self.raft.configuration.nodes:
                index = min(self.raft.match(node), self.raft.commit_index)
                self._acknowledged[node] = max(index, self._acknowledged.get(node, 0))

    def fail(self, error: BaseException) -> None:
        """This node must not go on."""
        log.error("this node stops: %s", error)
        self.turns.fail(error)

    def _tick(self) -> None:
        # One tick however late it is: time that this process slept through must not look like silence of
        # the other nodes, whose messages wait to be read.
        self._ticking = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        self.turns.guarded(self.raft.tick)
        self.note_acknowledged()
        self._tell_stall()
        self.turns.wake()

    def _changed(self, leads: bool) -> None:
        self.agreement.proposed = 0
        self._on_change(leads)

    # Trouble with the disk.

    def _tell_stall(self) -> None:
        stalled = self.raft.disk_stalled
        if stalled is self.acceptors.disk_stalled or self.turns.stopped:
            return
        self.acceptors.disk_stalled = stalled
        if stalled:
            log.error(
                "node %d: its disk does not finish a write; it does not lead until it has", self.raft.node
            )
        else:
            log.warning("node %d: its disk has finished the write", self.raft.node)

    def note_full(self, full: bool) -> None:
        """The disk has no room any more, or has some again."""
        if full:
            log.error("node %d: no room on its disk; nothing is recorded until there is some", self.raft.node)
        else:
            log.warning("node %d: there is room on its disk again", self.raft.node)
        self.raft.set_disk_full(full)
        self.acceptors.disk_full = full
        self.turns.wake()
