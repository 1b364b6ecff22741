"""Connects the consensus core of one member with its driver, its disk and the waiting callers; the rest of
the node uses it.

The parts: :mod:`undoubt.coordinator.raft` computes, :mod:`.driver` does what the core requires,
:mod:`.proposals` and :mod:`.read_index` keep the waiting callers, :mod:`.snapshots` makes and installs
images, :mod:`.acceptors` takes part in Paxos Commit, and all of them store through one :class:`Disk`.
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
    """The consensus of one member. ``send`` sends messages to peers, and may lose them. ``on_change`` is
    called when this node has begun or ceased to lead. ``tick_s`` is the length of a tick in seconds."""

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
        # The machine begins at the index of its image; later entries are applied once they are known to be
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
        """Indexes by node: see :meth:`acknowledged`. Kept when this node ceases to lead."""

    @property
    def leads(self) -> bool:
        """Whether this node leads and has applied everything that was committed before its term."""
        return self.driver.leads

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Done with the reason once this node has stopped because of an error."""
        return self.turns.failed

    @property
    def voters(self) -> tuple[int, ...]:
        """The voters of the last configuration that is known to be committed."""
        return tuple(sorted(self.raft.committed_configuration.incoming))

    def start(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        self.turns.start()

    async def stop(self) -> None:
        """Answer no further call, and close the storage once it has done its writes."""
        if self._ticking is not None:
            self._ticking.cancel()
        self.turns.stop(f"node {self.raft.node} was stopped")
        self.disk.close()
        await asyncio.wait([self._storage.close()], timeout=CLOSE_S)  # no longer for a disk that hangs

    async def read(self) -> None:
        """Return once this node has applied everything that was answered to any caller before this call.
        Raises ``NotLeading``, ``NodeStopped``."""
        if self.turns.stopped:
            raise NodeStopped(self.turns.stopped)
        future = self.reads.ask(asyncio.get_running_loop())
        self.turns.wake()
        await future

    def snapshot(self) -> asyncio.Future[int]:
        """Store an image of the present state, or wait for the image that is being stored. The result is the
        index of the image, or ``NodeStopped``."""
        if self.turns.stopped:
            stored: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            stored.set_exception(NodeStopped(self.turns.stopped))
            return stored
        return self.snapshots.ask()

    def keep_versions(self) -> None:
        """Propose a newer version once all members support it. Has to be called regularly."""
        if self.leads and (version := self.agreement.due()):
            self.proposals.agree_on(version)

    def remember(self, disks: dict[int, str]) -> None:
        """Store the disks of other nodes, by number, as they were at the first connection."""
        self.disk.give(DiskWrite(disks=disks), lambda: None)
        self.turns.wake()

    def acknowledged(self, node: int) -> int:
        """The highest committed index that ``node`` has acknowledged to this node. The log of ``node`` must
        never end before it."""
        self.note_acknowledged()
        return self._acknowledged.get(node, 0)

    def note_acknowledged(self) -> None:
        if self.raft.leads:
            for node in self.raft.configuration.nodes:
                index = min(self.raft.match(node), self.raft.commit_index)
                self._acknowledged[node] = max(index, self._acknowledged.get(node, 0))

    def fail(self, error: BaseException) -> None:
        """Stop this node because of ``error``."""
        log.error("this node stops: %s", error)
        self.turns.fail(error)

    def _tick(self) -> None:
        # One tick however late it is: time in which this process was stopped must not count as silence of the
        # other nodes, whose messages are still to be read.
        self._ticking = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        self.turns.guarded(self.raft.tick)
        self.note_acknowledged()
        self._note_stall()
        self.turns.wake()

    def _changed(self, leads: bool) -> None:
        self.agreement.proposed = 0
        self._on_change(leads)

    # Faults of the disk.

    def _note_stall(self) -> None:
        stalled = self.raft.disk_stalled
        if stalled is self.acceptors.disk_stalled or self.turns.stopped:
            return
        self.acceptors.disk_stalled = stalled
        if stalled:
            log.error(
                "node %d: its disk does not finish a write; the node does not lead until it has",
                self.raft.node,
            )
        else:
            log.warning("node %d: its disk has finished the write", self.raft.node)

    def note_full(self, full: bool) -> None:
        """Note that the disk has become full, or has room again."""
        if full:
            log.error("node %d: no room on its disk; nothing is recorded until there is room", self.raft.node)
        else:
            log.warning("node %d: there is room on its disk again", self.raft.node)
        self.raft.set_disk_full(full)
        self.acceptors.disk_full = full
        self.turns.wake()
