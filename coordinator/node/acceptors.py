"""Drives the :class:`~undoubt.coordinator.paxos.Acceptor` of this node, which takes part in Paxos Commit.

What enters: requests of leaders, which are coordinators and recoveries, also of this node. What leaves:
answers, each sent only once the state on which it depends is on the disk. The writes go to the same disk
queue as the log's and share their syncs; they do not depend on the log, its leader or its elections.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from heapq import nsmallest

from undoubt.coordinator.errors import Impostor, LedgerError, LedgerUnavailable
from undoubt.coordinator.ledger.cluster.acceptors import record_of
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.rules import Names
from undoubt.coordinator.node.errors import NodeStopped
from undoubt.coordinator.node.storage.contract import Disk, DiskWrite, Promises
from undoubt.coordinator.paxos import (
    Acceptor,
    AcceptorReply,
    AcceptorRequest,
    Marks,
    Outgoing,
    PeerMisbehaved,
    Phase2a,
    RestoredAcceptor,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.ids import NUMBER_MAX, Protocol, TxId

log = logging.getLogger(__name__)

HELD_MAX = 1_000
"""The limit for the transactions in one answer of :meth:`NodeAcceptors.held`."""

ReplyCallback = Callable[[AcceptorReply | LedgerError], None]
"""Called once: with a reply that may be sent, or with the reason why there is none."""


class NodeAcceptors:
    """Drives this node's acceptor. ``wake`` makes the driver call :meth:`work` in the next turn of the loop
    if :attr:`due`, before the disk is flushed."""

    def __init__(
        self, node: int, stored: RestoredAcceptor, machine: Machine, disk: Disk, wake: Callable[[], None]
    ) -> None:
        self.acceptor = Acceptor(node, stored)
        self.due = False
        """Whether there was an input since the last :meth:`work`."""
        self._machine = machine
        self._names = Names(machine.state.ledger_id, machine.state.secret)
        self.disk_full = False
        self.disk_stalled = False
        """True while the disk does not finish a write: requests would be kept in memory without a limit, so
        they are refused."""
        self._disk = disk
        self._wake = wake
        self._waiting: dict[int, ReplyCallback] = {}
        self._number = 0
        self._stopped: NodeStopped | None = None

    def ask(self, request: AcceptorRequest, answer: ReplyCallback) -> None:
        """Process a leader's request. If the result could not be stored, the request is refused immediately;
        for the leader that means the same as no answer."""
        if self._stopped is not None:
            answer(self._stopped)
            return
        if self.disk_full:
            answer(LedgerUnavailable(f"node {self.acceptor.node} has no room on its disk"))
            return
        if self.disk_stalled:
            answer(LedgerUnavailable(f"the disk of node {self.acceptor.node} does not answer"))
            return
        if (why := self._why_not(request)) is not None:
            answer(why)
            return
        self._number += 1
        try:
            self.acceptor.step(self._number, request)
        except PeerMisbehaved as error:
            log.warning("a leader broke the protocol, its request was ignored: %s", error)
            answer(LedgerError(str(error)))
            return
        self._waiting[self._number] = answer
        self.due = True
        self._wake()

    def _why_not(self, request: AcceptorRequest) -> LedgerError | None:
        """Return why ``request`` is refused; None if the ledger, as far as it is applied on this node, has
        the session with these acceptors. A session that was dropped, or that lost its acceptors in a restore,
        has none.

        A request about a session that is not applied on this node yet is refused: this may be a node whose
        disk was lost, and that was started again, empty, under its old number. Such a node never applies a
        session.
        """
        txid, state = request.txid, self._machine.state
        book = state.sessions.get(txid.session)
        if book is None and txid.session >= state.next_session:
            return LedgerUnavailable(f"node {self.acceptor.node} does not have session {txid.session} yet")
        bound = book is not None and book.nonce == txid.nonce
        if book is None or not bound or request.acceptors != Joint(frozenset(book.acceptors)):
            return LedgerError(f"the session of {txid} is not bound to these acceptors")
        if book.tagged and isinstance(request, Phase2a) and not self._named(request):
            return Impostor(f"the vote of a branch of {txid} has a name that this ledger never gave")
        return None

    def _named(self, request: Phase2a) -> bool:
        """Whether every vote for *prepared* has the tag of its branch. Otherwise a name could be chosen that
        cannot be verified later, so that no COMMIT could be recorded for it."""
        state = self._machine.state
        if (self._names.ledger_id, self._names.secret) != (state.ledger_id, state.secret):
            self._names = Names(state.ledger_id, state.secret)
        for branch, value in zip(request.branches, request.values, strict=False):
            if value is not None and value.prepared:
                record = record_of(branch, value)
                if not self._names.gave(record.gid(state.ledger_id, Protocol.PAXOS, request.txid)):
                    return False
        return True

    def work(self) -> None:
        """Do the numbered duties of an acceptor's driver (:mod:`undoubt.coordinator.paxos`)."""
        self.due = False
        ready = self.acceptor.ready()
        self._send(ready.replies_now)
        if ready.writes or ready.replies_after_sync:
            promises = Promises(ready.records, ready.dropped, ready.marks)
            write = DiskWrite(promises=promises) if ready.writes else None
            self._disk.give(write, lambda: self._stored(ready.token))

    def _stored(self, token: int) -> None:
        self._send(self.acceptor.on_persisted(token))

    def _send(self, outgoing: tuple[Outgoing, ...]) -> None:
        for each in outgoing:
            answer = self._waiting.pop(each.to, None)
            if answer is not None:
                answer(each.message)

    def held(self, sessions: Iterable[int], after: TxId | None = None) -> list[TxId]:
        """Return the transactions of these sessions that this acceptor has and the ledger has no decision
        for, in ascending order: the first after ``after``; empty if there are no more."""
        kept = self.acceptor.below(dict.fromkeys(sessions, NUMBER_MAX))
        unrecorded = (
            txid
            for txid in kept
            if (after is None or after < txid) and self._machine.record(txid) is RecordedDecision.NOT_RECORDED
        )
        return nsmallest(HELD_MAX, unrecorded)

    def forget(self) -> None:
        """Forget the transactions whose outcome the ledger has. A session's floor passes a transaction only
        once its outcome is recorded, or if it had no vote; the mark nevertheless stays below a transaction
        that this acceptor has and the ledger has not recorded."""
        if not self.acceptor.count:
            return
        machine = self._machine
        floors = {number: book.floor for number, book in machine.state.sessions.items()}
        for txid in self.acceptor.below(floors):
            if machine.record(txid) is RecordedDecision.NOT_RECORDED:
                floors[txid.session] = min(floors[txid.session], txid.seq)
        self.acceptor.forget(Marks(machine.state.next_session, tuple(sorted(floors.items()))))
        self.due = True
        self._wake()

    def stop(self, error: NodeStopped) -> None:
        """Answer all requests, also later ones, with ``error``."""
        self._stopped = error
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer(error)
