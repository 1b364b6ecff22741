"""Drives the consensus core: does what each :class:`~undoubt.coordinator.raft.Ready` contains, in order.

What enters: messages of peers, ticks, and what waits in :mod:`.proposals` and :mod:`.read_index`. What
leaves: messages, writes, applied entries. The duties are numbered in :mod:`undoubt.coordinator.raft`. The
driver works in turns of the event loop: the inputs of one turn are proposed as one entry, are in one
``Ready``, and are stored by one sync. The disk works in parallel with the event loop; a message that depends
on a sync is sent after the sync.

A field of each part says whether the part has something to do, so that a turn calls only those parts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

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

LEAST_S = 0.002
FACTOR = 3
SAMPLES = 15
"""The last waits whose median counts."""

HISTORY_RECORDS_MAX = 256
"""The number of finished transactions that wait to be stored with another write; at this number they are
written separately."""


class Turns:
    """Runs the driver, once in each turn of the event loop after :meth:`wake` was called, until :meth:`stop`
    or :meth:`fail`."""

    def __init__(self, node: int) -> None:
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Done with the reason once this node has stopped because of an error."""
        self.stopped = ""
        """Why the node has stopped; empty while it runs."""
        self.started = False
        self.work: Callable[[], None] = lambda: None
        """The work of one turn."""
        self.on_stop: list[Callable[[NodeStopped], None]] = []
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._awake = False

    def start(self) -> None:
        self.started = True
        self.wake()

    def wake(self) -> None:
        """Run the driver in the next turn of the event loop."""
        if not self._awake and not self.stopped:
            self._awake = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._awake = False
        if not self.stopped:
            self.guarded(self.work)

    def guarded(self, work: Callable[[], None]) -> None:
        """Call ``work``; an error in it stops this node. Only ``MessageRefused`` is raised; then nothing has
        changed."""
        try:
            work()
        except LogSetBack as error:
            self.set_back(str(error))
        except MessageRefused:
            raise  # it is raised before anything is changed
        except Exception as error:  # a bug, or a command of a newer version: the state may be wrong
            log.exception("this node stops")
            self.fail(error)

    def set_back(self, why: str) -> None:
        """Stop this node, which has acknowledged entries that its disk no longer has."""
        error = LedgerUnusable(
            f"the disk of node {self._node} was set back: {why}. What is missing may have been counted on, so"
            f" node {self._node} must not run on this disk again. Add it again under a new number:"
            f" `undoubt cluster remove {self._node}` and then `undoubt cluster add`, on an empty folder"
        )
        log.error("%s", error)
        self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Stop this node because of ``error``."""
        self.stop(f"node {self._node} has stopped: {error}")
        if not self.failed.done():
            self.failed.set_result(error)

    def stop(self, why: str) -> None:
        """Stop working, and answer all waiting callers with ``NodeStopped``. May be repeated."""
        if self.stopped:
            return
        self.stopped = why
        for call in self.on_stop:
            call(NodeStopped(why))


class Patience:
    """Measures how long a leader waits for the followers that get new entries at once, and calls for the
    others if these are late (:attr:`undoubt.coordinator.raft.RaftSettings.lazy`). ``wake`` is called after
    the core was told to hurry: if an entry is not committed within :data:`FACTOR`
    times the median of the last waits, and within :data:`LEAST_S` seconds at least. There is one timer for
    all entries."""

    def __init__(self, raft: Raft, wake: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        self._raft = raft
        self._wake = wake
        self._loop = loop
        self._waits_s: deque[float] = deque(maxlen=SAMPLES)
        self._limit_s = LEAST_S
        self._index = 0
        """The entry whose wait is measured; 0 if there is none."""
        self._since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Note what is committed, and what is waited for; to be called in each turn in which either may have
        changed."""
        raft = self._raft
        if self._index:
            if raft.leads and raft.commit_index < self._index:
                return
            if raft.leads:
                self._note(self._loop.time() - self._since_s)
            self._index = 0
        if raft.holds_back:
            self._index = raft.last_index
            self._since_s = self._loop.time()
            if self._timer is None:
                self._timer = self._loop.call_at(self._since_s + self._limit_s, self._due)

    def stop(self, _: object = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._index = 0

    def _note(self, wait_s: float) -> None:
        # One long wait, of a follower that was paused, must not make the next entries wait as long.
        self._waits_s.append(min(wait_s, FACTOR * self._limit_s))
        self._limit_s = max(LEAST_S, FACTOR * median(self._waits_s))

    def _due(self) -> None:
        self._timer = None
        if not self._index:
            return
        due_s = self._since_s + self._limit_s
        if self._loop.time() < due_s:
            self._timer = self._loop.call_at(due_s, self._due)
        elif self._raft.holds_back:
            self._raft.hurry(self._index)
            self._wake()


class Driver:
    """Does what each ``Ready`` contains. ``send`` sends messages to peers, and may lose them. ``on_change``
    is called when this node has begun or ceased to lead."""

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
        """Whether this node leads and has applied everything that was committed before its term."""
        self.refused = 0
        """The number of refused messages, which no correct member would send."""
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
        self._patience = Patience(raft, turns.wake, asyncio.get_running_loop())
        turns.work = self.work
        turns.on_stop.append(self._patience.stop)
        turns.on_stop.append(self._stopped)

    # Inputs.

    def step(self, message: Message) -> None:
        """Process a peer's message. Raises ``MessageRefused``; then nothing has changed."""
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
        """Check the parts of a message that the core does not read. Raises ``MessageRefused``."""
        try:
            if isinstance(message, Append):
                self._replicated.judge(message.entries)
            elif isinstance(message, SnapshotChunk) and message.done and self._raft.wants(message):
                chunks = [*self._raft.untaken_chunks, message]
                self._replicated.judge_image(self._snapshots.with_chunks(chunks))
        except ValueError as error:  # msgspec's are
            raise MessageRefused(
                f"node {message.sender} sent data that cannot be decoded: {error}"
            ) from error

    # One turn.

    def work(self) -> None:
        """Process all inputs since the last turn."""
        self._follow_role()
        self._proposals.propose_waiting()
        if self._reads.new:
            self._reads.begin(self._raft)
        while not (ready := self._raft.ready()).empty:
            self._do(ready)
            if not ready.committed_entries and not ready.chunks_wanted:
                break  # nothing that was done can have caused more work
        self._follow_role()
        self._patience.look()
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
        # With a new version an image is made immediately: an older release that reads it finds that it is too
        # old.
        if snapshots.log_bytes >= snapshots.log_bytes_max or replicated.version > version:
            snapshots.store()

    def _follow_role(self) -> None:
        """Report a change of this node's role, if there was one."""
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
