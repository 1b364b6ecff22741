"""One node's consensus at work: it does what :class:`~undoubt.coordinator.raft.Ready` says, in the order it
says.

What enters: commands to propose, reads, messages of peers, time. What leaves: messages, writes, answers. The
duties are numbered in :mod:`undoubt.coordinator.raft`. All of it happens in the event loop, in turns: what
comes in during one turn is proposed as one entry, flows out in one ``Ready``, and is stored by one sync. The
storage works beside the loop; whatever depends on a sync waits for it in ``Disk``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random

import msgspec

from undoubt.coordinator.errors import ClusterRefused, LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger.commands import Command, since
from undoubt.coordinator.node.acceptors import NodeAcceptors
from undoubt.coordinator.node.errors import NodeStopped, NotLeading
from undoubt.coordinator.node.fsm import Agree, LogCommand, NodeStateMachine, encode_batch, encode_command
from undoubt.coordinator.node.hashes import StateHashes
from undoubt.coordinator.node.history import HistoryBuffer
from undoubt.coordinator.node.read_index import ReadQueue
from undoubt.coordinator.node.snapshots import Snapshots
from undoubt.coordinator.node.storage.contract import DiskWrite, Snapshot, Storage, Stored
from undoubt.coordinator.node.storage.group_commit import Disk
from undoubt.coordinator.node.versions import Agreement
from undoubt.coordinator.raft import (
    Append,
    ConfigChange,
    Entry,
    Kind,
    LogSetBack,
    Message,
    MessageRefused,
    NotLeader,
    ProposalRefused,
    Raft,
    RaftSettings,
    Ready,
    Refusal,
    RestoredState,
    SnapshotChunk,
)
from undoubt.coordinator.rpc.client import into
from undoubt.coordinator.wire import VERSIONS
from undoubt.participants.errors import UsageError

log = logging.getLogger(__name__)

BATCH_COMMANDS_MAX = 1_000
"""Commands in one entry."""
ENTRY_BYTES_MAX = 16 * 1024 * 1024
"""What they come to: an entry that fits into no frame would stop whoever leads, one node after the other."""
BATCH_BYTES = 5
"""What msgpack puts in front of a batch, at most."""
CLOSE_S = 10.0

ResultCallback = Callable[[object], None]
"""Told a command's result once it is durable on a majority and applied here; an error is a value too."""


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
        self.replicated = replicated
        self.hashes = StateHashes(replicated.machine.snapshot)
        replicated.learn(stored.entries)
        # The machine begins where its image does; what follows in the log is applied once it is known to be
        # committed.
        restored = RestoredState(
            stored.hard_state, stored.snapshot.meta, stored.entries, stored.snapshot.meta.index
        )
        self.raft = Raft(stored.identity.node, settings, random, restored)
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Why this node has stopped by itself, once it has."""
        self._stopped = ""
        """Why nothing is answered any more."""
        self.refused = 0
        """Messages of peers that no sound member would send."""
        self._loop = asyncio.get_running_loop()
        self._storage = storage
        self._disk = Disk(storage, self._full, self._fail)
        self.acceptors = NodeAcceptors(
            stored.identity.node, stored.acceptor, replicated.machine, self._disk, self.wake
        )
        self.agreement = Agreement(stored.identity.node, replicated, lambda: self.raft.configuration.nodes)
        self._snapshots = Snapshots(self.raft, replicated, stored.snapshot, log_bytes=snapshot_log_bytes)
        self.history = HistoryBuffer(replicated, history_ms)
        """Of what is finished."""
        self._reads = ReadQueue()
        self._tick_s = tick_s
        self._send = send
        self._on_change = on_change
        self._waiting: list[tuple[msgspec.Raw, ResultCallback]] = []
        self._imaging: list[ResultCallback] = []
        """Who waits for the next image to be stored."""
        self._settling: list[ResultCallback] = []
        """Who waits for the next change of the configuration to be applied, while this node leads."""
        self._proposed: dict[int, tuple[int, Sequence[ResultCallback]]] = {}
        """By index: the term in which it was proposed, and who waits. Only while this node leads."""
        self._acknowledged: dict[int, int] = {}
        """By node: see :meth:`acknowledged`. Kept when this node ceases to lead."""
        self._led_term = 0
        self._leads = False
        self._awake = False
        self._ticking: asyncio.TimerHandle | None = None

    # For those around it.

    @property
    def leads(self) -> bool:
        """Whether this node leads and has applied everything that was committed before it did."""
        return self._leads

    @property
    def voters(self) -> tuple[int, ...]:
        """Of the last configuration that is known to be committed."""
        return tuple(sorted(self.raft.committed_configuration.incoming))

    def start(self) -> None:
        self._ticking = self._loop.call_later(self._tick_s, self._tick)
        self.wake()

    async def stop(self) -> None:
        """Answer nothing more; let the storage go once it has done what it was given."""
        if self._ticking is not None:
            self._ticking.cancel()
        self._stop(f"node {self.raft.node} was stopped")
        self._disk.close()
        await asyncio.wait([self._storage.close()], timeout=CLOSE_S)  # a disk that hangs is not waited for

    def step(self, message: Message) -> None:
        """A peer's message has arrived. Raises ``MessageRefused``; nothing has changed then."""
        if self._stopped:
            return
        try:
            self._judge(message)
            self._guarded(lambda: self.raft.step(message))
        except MessageRefused:
            self.refused += 1
            raise
        self.wake()

    def _judge(self, message: Message) -> None:
        """As the core judges it; this is about what the core does not read."""
        try:
            if isinstance(message, Append):
                self.replicated.judge(message.entries)
            elif isinstance(message, SnapshotChunk) and message.done and self.raft.wants(message):
                chunks = [*self.raft.untaken_chunks, message]
                self.replicated.judge_image(self._snapshots.with_chunks(chunks))
        except ValueError as error:  # msgspec's are
            raise MessageRefused(f"node {message.sender} sent what cannot be read: {error}") from error

    def propose(self, command: Command, answer: ResultCallback) -> None:
        """Have ``command`` decided by the majority; with everything else that is proposed in this turn."""
        if self._stopped:
            answer(NodeStopped(self._stopped))
        elif self.replicated.version < VERSIONS.highest and since(command) > self.replicated.version:
            self._propose_if_known(command, answer)
        else:
            self._queue(command, answer)

    def _queue(self, command: LogCommand, answer: ResultCallback) -> None:
        """Encoded alone: what cannot be is refused to whoever proposed it, and touches nobody else."""
        try:
            encoded = encode_command(command)
        except UsageError as error:
            answer(error)
            return
        if len(encoded) > ENTRY_BYTES_MAX - BATCH_BYTES:
            answer(_too_large(len(encoded)))
            return
        self._waiting.append((encoded, answer))
        self.wake()

    def _propose_if_known(self, command: Command, answer: ResultCallback) -> None:
        """Only a leader that is sure to be one, and up to date, can say that a command is too new for the
        log."""

        def up_to_date(reading: asyncio.Future[None]) -> None:
            if reading.cancelled():  # the loop is ending
                return
            if (error := reading.exception()) is not None:
                answer(error)
            elif since(command) > self.replicated.version:
                answer(self.agreement.held_back(since(command)))
            else:
                self.propose(command, answer)

        self._reads.ask(self._loop).add_done_callback(up_to_date)
        self.wake()

    def keep_versions(self) -> None:
        """Now and then: have a newer version agreed on once all members speak it."""
        if self._leads and (version := self.agreement.due()):
            self._queue(Agree(version), self._heard_of_version)

    def _heard_of_version(self, result: object) -> None:
        if isinstance(result, Exception):
            self.agreement.proposed = 0  # else it never would be again, for as long as this node leads

    async def reconfigure(self, change: ConfigChange) -> None:
        """Return once ``change`` is committed and in force alone. Raises ``ConfigRefused``, ``NotLeading``,
        ``NodeStopped``."""
        if self._stopped:
            raise NodeStopped(self._stopped)
        try:
            entry = self.raft.propose_config(change)
        except NotLeader as error:
            raise NotLeading(error.leader) from None
        except ProposalRefused as error:
            raise self._takes_nothing(error) from None
        applied: asyncio.Future[None] = self._loop.create_future()
        self._proposed[entry.index] = (entry.term, [into(applied)])
        self.wake()
        await applied
        await self.settled()

    async def settled(self) -> None:
        """Return once no change of the configuration is under way. Raises ``NotLeading``, ``NodeStopped``."""
        while self.raft.leads and self.raft.changing:
            applied: asyncio.Future[None] = self._loop.create_future()
            self._settling.append(into(applied))
            await applied
        if not self.raft.leads:
            raise NotLeading(self.raft.leader)

    def snapshot(self) -> asyncio.Future[int]:
        """Store an image of what is applied now, or wait for the one that is being stored; the index up to
        which it goes. Raises ``NodeStopped``."""
        stored: asyncio.Future[int] = self._loop.create_future()
        if self._stopped:
            stored.set_exception(NodeStopped(self._stopped))
        elif self._snapshots.newest_index == self.raft.applied_index:
            stored.set_result(self._snapshots.newest_index)
        else:
            self._imaging.append(into(stored))
            if (image := self._snapshots.make()) is not None:
                self._store_image(image)
                self.wake()
        return stored

    def image(self) -> Snapshot:
        """What is applied now, for a backup; it is not stored."""
        return Snapshot(self.raft.snapshot_meta(self.raft.applied_index), self.replicated.image())

    async def read(self) -> None:
        """Return once everything that anybody was told before is applied here. Raises ``NotLeading``,
        ``NodeStopped``."""
        if self._stopped:
            raise NodeStopped(self._stopped)
        future = self._reads.ask(self._loop)
        self.wake()
        await future

    def remember(self, disks: dict[int, str]) -> None:
        """Store which disks other nodes were met with."""
        self._disk.give(DiskWrite(disks=disks), _nothing)
        self.wake()

    def wake(self) -> None:
        """There may be something to do: in the next turn of the loop it will be done."""
        if not self._awake and not self._stopped:
            self._awake = True
            self._loop.call_soon(self._turn)

    # One turn.

    def acknowledged(self, node: int) -> int:
        """The highest index that is committed, and that ``node`` has acknowledged to this one. It must hold
        that for ever."""
        self._note_acknowledged()
        return self._acknowledged.get(node, 0)

    def _note_acknowledged(self) -> None:
        if self.raft.leads:
            for node in self.raft.configuration.nodes:
                index = min(self.raft.match(node), self.raft.commit_index)
                self._acknowledged[node] = max(index, self._acknowledged.get(node, 0))

    def set_back(self, why: str) -> None:
        """This node has acknowledged what its disk does not hold any more: it stops."""
        number = self.raft.node
        error = LedgerUnusable(
            f"the disk of node {number} was set back: {why}. What is missing may have been counted on, so"
            f" node {number} must not run on this disk any more. Let it rejoin under a new number:"
            f" `undoubt cluster remove {number}` and then `undoubt cluster add`, on an empty folder"
        )
        log.error("%s", error)
        self._fail(error)

    def _tick(self) -> None:
        # One tick however late it is: time that this process slept through must not look like silence of
        # the others, whose messages wait to be read.
        self._ticking = self._loop.call_later(self._tick_s, self._tick)
        self._guarded(self.raft.tick)
        self._note_acknowledged()
        self._tell_stall()
        self.wake()

    def _turn(self) -> None:
        self._awake = False
        if not self._stopped:
            self._guarded(self._work)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except LogSetBack as error:
            self.set_back(str(error))
        except MessageRefused:
            raise  # it was judged before anything changed
        except Exception as error:  # a bug, or a command of a newer version: from here nothing can be trusted
            log.exception("this node stops")
            self._fail(error)

    def _work(self) -> None:
        self._follow_role()
        self._propose_waiting()
        self._reads.begin(self.raft)
        while not (ready := self.raft.ready()).empty:
            self._do(ready)
            if not ready.committed_entries and not ready.chunks_wanted:
                break  # nothing that was done can have made more to do
        self._follow_role()
        if self.history.due and not self._disk.full:
            self._store_history()
        self.acceptors.work()
        self._disk.flush()

    def _propose_waiting(self) -> None:
        most = BATCH_COMMANDS_MAX
        while self._waiting:
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            answers = [answer for _, answer in batch]
            data = encode_batch([command for command, _ in batch])
            if len(data) > ENTRY_BYTES_MAX:
                most = len(batch) // 2  # one alone fits: it was measured before it was queued
                self._waiting = [*batch, *self._waiting]
                continue
            try:
                entry = self.raft.propose(data)
            except NotLeader as error:
                _tell(answers, NotLeading(error.leader))
            except ProposalRefused as error:
                if error.reason is Refusal.DISK_FULL:
                    _tell(answers, self._takes_nothing(error))
                    continue
                # Soon there will be fewer uncommitted, or another leader: until then they wait here.
                self._waiting = [*batch, *self._waiting]
                return
            else:
                self._proposed[entry.index] = (entry.term, answers)

    def _takes_nothing(self, error: ProposalRefused) -> NotLeading:
        return NotLeading(0, f"node {self.raft.node} takes nothing now: {error}")

    def _do(self, ready: Ready) -> None:
        for message in ready.messages_now:
            self._send(message)
        self._snapshots.collect(ready.chunks)
        if ready.writes or ready.messages_after_sync:
            self._store(ready)
        if ready.committed_entries:
            self._apply(ready.committed_entries)
        self._reads.answered(ready.read_states, self.raft.applied_index)
        self._reads.lost(ready.reads_lost, self.raft.leader)
        for wanted in ready.chunks_wanted:
            self._snapshots.give(wanted)

    def _store(self, ready: Ready) -> None:
        snapshot = None if ready.snapshot is None else self._snapshots.received(ready.snapshot)
        self.replicated.learn(ready.entries)
        token = ready.token

        def stored() -> None:
            self._guarded(after)

        def after() -> None:
            if snapshot is not None:
                self._snapshots.install(snapshot)
                self._imaged(snapshot.meta.index)
            for message in self.raft.on_persisted(token):
                self._send(message)
            self.wake()

        write = DiskWrite(
            hard_state=ready.hard_state,
            snapshot=snapshot,
            replaces_log=snapshot is not None,
            entries=ready.entries,
        )
        self._disk.give(write, stored)

    def _apply(self, entries: Sequence[Entry]) -> None:
        version = self.replicated.version
        for entry in entries:
            results = self.replicated.apply(entry)
            self.hashes.applied(entry.index)
            term, answers = self._proposed.pop(entry.index, (0, ()))
            if term == entry.term:
                for answer, result in zip(answers, results, strict=True):
                    answer(result)
            elif answers:
                _tell(answers, NotLeading(self.raft.leader, "another leader's entry took its place"))
        self.raft.on_applied(entries[-1].index)
        if any(entry.kind is Kind.CONFIG for entry in entries):
            settling, self._settling = self._settling, []
            _tell(settling, None)
        self._reads.applied(entries[-1].index)
        image = self._snapshots.due(entries)
        if image is None and self.replicated.version > version:
            image = self._snapshots.make()  # by which an older release knows at once that it comes too late
        if image is not None:
            self._store_image(image)

    def _store_image(self, image: Snapshot) -> None:
        # History leaves with it: the entries that could tell it again are dropped.
        finished = self.history.begin()

        def stored() -> None:
            self.history.stored(finished)
            self._guarded(lambda: self._shorten(image))

        def no_room() -> None:
            self.history.not_stored(finished)
            self._snapshots.not_stored()
            self._imaged(LedgerUnavailable(f"node {self.raft.node} has no room on its disk for a snapshot"))

        self._disk.give(DiskWrite(finished=finished, snapshot=image), stored, no_room=no_room)

    def _store_history(self) -> None:
        finished = self.history.begin()
        self._disk.give(
            DiskWrite(finished=finished),
            lambda: self.history.stored(finished),
            no_room=lambda: self.history.not_stored(finished),
        )

    def _shorten(self, image: Snapshot) -> None:
        keep_from = self._snapshots.stored(image)
        self._imaged(image.meta.index)
        self._disk.give(DiskWrite(keep_from=keep_from), self.wake)
        self.wake()

    def _imaged(self, result: int | LedgerUnavailable) -> None:
        imaging, self._imaging = self._imaging, []
        _tell(imaging, result)

    def _follow_role(self) -> None:
        """Answer those who wait for what this node may never learn, once it does not lead any more."""
        raft = self.raft
        term = raft.term if raft.leads else 0
        if term != self._led_term:
            self._led_term = term
            proposed, self._proposed = self._proposed, {}
            settling, self._settling = self._settling, []
            for answers in [*(answers for _, answers in proposed.values()), settling]:
                _tell(answers, NotLeading(raft.leader, f"node {raft.node} ceased to lead"))
        leads = raft.caught_up
        if leads is not self._leads:
            self._leads = leads
            self.agreement.proposed = 0
            log.info("node %d %s in term %d", raft.node, "leads" if leads else "does not lead", raft.term)
            self._on_change(leads)

    # Trouble.

    def _tell_stall(self) -> None:
        stalled = self.raft.disk_stalled
        if stalled is self.acceptors.disk_stalled or self._stopped:
            return
        self.acceptors.disk_stalled = stalled
        if stalled:
            log.error(
                "node %d: its disk does not finish a write; it does not lead until it has", self.raft.node
            )
        else:
            log.warning("node %d: its disk has finished the write", self.raft.node)

    def _full(self, full: bool) -> None:
        if full:
            log.error("node %d: no room on its disk; nothing is recorded until there is some", self.raft.node)
        else:
            log.warning("node %d: there is room on its disk again", self.raft.node)
        self.raft.set_disk_full(full)
        self.acceptors.disk_full = full
        self.wake()

    def fail(self, error: BaseException) -> None:
        """This node must not go on."""
        log.error("this node stops: %s", error)
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._stop(f"node {self.raft.node} has stopped: {error}")
        if not self.failed.done():
            self.failed.set_result(error)

    def _stop(self, why: str) -> None:
        if self._stopped:
            return
        self._stopped = why
        error = NodeStopped(why)
        _tell([answer for _, answer in self._waiting], error)
        for answers in [*(answers for _, answers in self._proposed.values()), self._settling, self._imaging]:
            _tell(answers, error)
        self._settling, self._imaging = [], []
        self._waiting, self._proposed = [], {}
        self._reads.fail(error)
        self.acceptors.stop(why)
        if self._leads:
            self._leads = False
            self._on_change(False)


def _too_large(size: int) -> ClusterRefused:
    return ClusterRefused(
        f"a command of {size} bytes cannot be recorded, {ENTRY_BYTES_MAX} are the most: fewer branches, or"
        " shorter texts"
    )


def _tell(answers: Sequence[ResultCallback], result: object) -> None:
    for answer in answers:
        answer(result)


def _nothing() -> None:
    pass
