"""Drives the consensus core: does what :class:`~undoubt.coordinator.raft.Ready` says, in the order it says.

What enters: messages of peers, ticks, and what waits in :mod:`.proposals` and :mod:`.read_index`. What
leaves: messages, writes, applied entries. The duties are numbered in :mod:`undoubt.coordinator.raft`. All of
it happens in turns of the event loop: what comes in during one turn is proposed as one entry, flows out in
one ``Ready``, and is stored by one sync. The disk works beside the event loop; a message that depends on a
sync is sent after it.

Where a part has something to do is read from a field of that part, so that a turn calls only those that have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger.history import RecentHistory
from undoubt.coordinator.node.acceptors import NodeAcceptors
from undoubt.coordinator.node.errors import NodeStopped
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.proposals import Proposals
from undoubt.coordinator.node.read_index import ReadQueue
from undoubt.coordinator.node.snapshots import Snapshots
from undoubt.coordinator.node.storage.contract import NOTHING, Disk, DiskWrite
from undoubt.coordinator.raft import (
    Append,
    Entry,
    Kind,
    LogSetBack,
    Message,
    MessageRefused,
    Raft,
    Ready,
    SnapshotChunk,
)

log = logging.getLogger(__name__)

HISTORY_RECORDS_MAX = 256
"""Finished transactions that wait for a write to be stored with; more than that are a write of their own."""


class Turns:
    """When the driver works, and when it ends: once in a turn of the event loop in which something came in,
    from :meth:`start` until :meth:`stop` or :meth:`fail`."""

    def __init__(self, node: int) -> None:
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Why this node has stopped by itself, once it has."""
        self.stopped = ""
        """Why nothing is done or answered any more."""
        self.started = False
        self.work: Callable[[], None] = lambda: None
        """What one turn does."""
        self.on_stop: list[Callable[[NodeStopped], None]] = []
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._awake = False

    def start(self) -> None:
        self.started = True
        self.wake()

    def wake(self) -> None:
        """There may be something to do: work in the next turn of the event loop."""
        if not self._awake and not self.stopped:
            self._awake = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._awake = False
        if not self.stopped:
            self.guarded(self.work)

    def guarded(self, work: Callable[[], None]) -> None:
        """Do ``work``; an error in it stops this node. Raises ``MessageRefused``: nothing has changed
        then."""
        try:
            work()
        except LogSetBack as error:
            self.set_back(str(error))
        except MessageRefused:
            raise  # it was judged before anything changed
        except Exception as error:  # a bug, or a command of a newer version: from here nothing can be trusted
            log.exception("this node stops")
            self.fail(error)

    def set_back(self, why: str) -> None:
        """This node has acknowledged what its disk does not hold any more: it stops."""
        error = LedgerUnusable(
            f"the disk of node {self._node} was set back: {why}. What is missing may have been counted on, so"
            f" node {self._node} must not run on this disk any more. Let it rejoin under a new number:"
            f" `undoubt cluster remove {self._node}` and then `undoubt cluster add`, on an empty folder"
        )
        log.error("%s", error)
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """This node must not go on."""
        self.stop(f"node {self._node} has stopped: {error}")
        if not self.failed.done():
            self.failed.set_result(error)

    def stop(self, why: str) -> None:
        """Do nothing more, and answer everybody who waits. May be repeated."""
        if self.stopped:
            return
        self.stopped = why
        for tell in self.on_stop:
            tell(NodeStopped(why))


class Driver:
    """``send`` takes messages for peers, and may lose them. ``on_change`` is called when this node has begun
    or ceased to lead."""

    def __init__(
        self,
        raft: Raft,
        replicated: NodeStateMachine,
        turns: Turns,
        disk: Disk,
        *,
        proposals: Proposals,
        reads: ReadQueue,
        snapshots: Snapshots,
        history: RecentHistory,
        acceptors: NodeAcceptors,
        send: Callable[[Message], None],
        on_change: Callable[[bool], None],
    ) -> None:
        self.leads = False
        """Whether this node leads and has applied everything that was committed before it did."""
        self.refused = 0
        """Messages of peers that no correct member would send."""
        self.send = send
        self._raft = raft
        self._replicated = replicated
        self._turns = turns
        self._disk = disk
        self._proposals = proposals
        self._reads = reads
        self._snapshots = snapshots
        self._history = history
        self._acceptors = acceptors
        self._on_change = on_change
        turns.work = self.work
        turns.on_stop.append(self._stopped)

    # What comes in.

    def step(self, message: Message) -> None:
        """A peer's message has arrived. Raises ``MessageRefused``; nothing has changed then."""
        turns = self._turns
        if turns.stopped or not turns.started:
            return
        try:
            self._judge(message)
            turns.guarded(lambda: self._raft.step(message))
        except MessageRefused:
            self.refused += 1
            raise
        turns.wake()

    def _judge(self, message: Message) -> None:
        """As the core judges it; this is about what the core does not read."""
        try:
            if isinstance(message, Append):
                self._replicated.judge(message.entries)
            elif isinstance(message, SnapshotChunk) and message.done and self._raft.wants(message):
                chunks = [*self._raft.untaken_chunks, message]
                self._replicated.judge_image(self._snapshots.with_chunks(chunks))
        except ValueError as error:  # msgspec's are
            raise MessageRefused(f"node {message.sender} sent what cannot be read: {error}") from error

    # One turn.

    def work(self) -> None:
        """Do everything that came in since the last turn."""
        self._follow_role()
        self._proposals.propose_waiting()
        if self._reads.new:
            self._reads.begin(self._raft)
        while not (ready := self._raft.ready()).empty:
            self._do(ready)
            if not ready.committed_entries and not ready.chunks_wanted:
                break  # nothing that was done can have made more to do
        self._follow_role()
        waiting = self._replicated.machine.history_waiting + len(self._history.unwritten)
        if waiting >= HISTORY_RECORDS_MAX and not self._disk.full:
            self._snapshots.store_history()
        if self._acceptors.due:
            self._acceptors.work()
        self._disk.flush()

    def _do(self, ready: Ready) -> None:
        for message in ready.messages_now:
            self.send(message)
        if ready.chunks:
            self._snapshots.collect(ready.chunks)
        if ready.writes or ready.messages_after_sync:
            self._store(ready)
        if ready.committed_entries:
            self._apply(ready.committed_entries)
        if ready.read_states or self._reads.confirmed:
            self._reads.answered(ready.read_states, self._raft.applied_index)
        if ready.reads_lost:
            self._reads.lost(ready.reads_lost, self._raft.leader)
        for wanted in ready.chunks_wanted:
            self._snapshots.give(wanted)

    def _store(self, ready: Ready) -> None:
        snapshot = None if ready.snapshot is None else self._snapshots.received(ready.snapshot)
        self._replicated.learn(ready.entries)
        token = ready.token

        def stored() -> None:
            self._turns.guarded(after)

        def after() -> None:
            if snapshot is not None:
                self._snapshots.install(snapshot)
            for message in self._raft.on_persisted(token):
                self.send(message)
            self._turns.wake()

        write = DiskWrite(
            hard_state=ready.hard_state,
            snapshot=snapshot,
            replaces_log=snapshot is not None,
            entries=ready.entries,
        )
        self._disk.give(None if write == NOTHING else write, stored)

    def _apply(self, entries: Sequence[Entry]) -> None:
        replicated, snapshots = self._replicated, self._snapshots
        version = replicated.version
        for entry in entries:
            results = replicated.apply(entry)
            self._proposals.applied(entry, results)
            snapshots.log_bytes += entry.size
        self._raft.on_applied(entries[-1].index)
        if any(entry.kind is Kind.CONFIG for entry in entries):
            self._proposals.reconfigured()
        if self._reads.confirmed:
            self._reads.applied(entries[-1].index)
        # With a new version an image is made at once: an older release that reads it knows that it is too
        # old.
        if snapshots.log_bytes >= snapshots.log_bytes_max or replicated.version > version:
            snapshots.store()

    def _follow_role(self) -> None:
        """Whether this node leads may have changed."""
        raft = self._raft
        term = raft.term if raft.leads else 0
        if term != self._proposals.led_term:
            self._proposals.follow(term)
        leads = raft.caught_up
        if leads is not self.leads:
            self.leads = leads
            log.info("node %d %s in term %d", raft.node, "leads" if leads else "does not lead", raft.term)
            self._on_change(leads)

    def _stopped(self, _: NodeStopped) -> None:
        if self.leads:
            self.leads = False
            self._on_change(False)
