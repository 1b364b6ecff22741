"""An acceptor: one node's part in the decisions of many transactions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import msgspec

from undoubt.coordinator.paxos.errors import PeerMisbehaved
from undoubt.coordinator.paxos.marks import Marks, forgotten
from undoubt.coordinator.paxos.messages import (
    AcceptorReply,
    AcceptorRequest,
    Ask,
    Forgotten,
    Phase1a,
    Phase1b,
    Phase2a,
    Phase2b,
    Refused,
)
from undoubt.coordinator.paxos.ready import Outgoing, PaxosReady, PaxosWrites
from undoubt.coordinator.paxos.record import AcceptorRecord
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import invariant

NOTHING = PaxosReady(0)


class RestoredAcceptor(msgspec.Struct, frozen=True, array_like=True):
    """All that an acceptor has stored, or of a new node nothing. Equal contents have equal encodings."""

    marks: Marks = Marks()
    records: tuple[AcceptorRecord, ...] = ()


class Acceptor:
    """Not for use by several threads at once."""

    def __init__(self, node: int, restored: RestoredAcceptor) -> None:
        """``node`` is the number under which it promised whatever is in ``restored``; one whose disk was lost
        comes back under another number, never under the old one."""
        invariant(node > 0, "0 is nobody")
        self.node = node
        self._marks = restored.marks
        self._floors = restored.marks.below()
        self._records: dict[TxId, AcceptorRecord] = {}
        self._of_session: dict[int, dict[TxId, None]] = {}
        """The keys of ``_records``, so that forgetting a few does not look at all."""
        for record in restored.records:
            self._put(record)
        self._changed: dict[TxId, None] = {}
        self._dropped: dict[TxId, None] = {}
        self._marks_changed = False
        self._replies: list[Outgoing] = []
        self._writes = PaxosWrites()

    # What one may look at.

    @property
    def count(self) -> int:
        """Transactions of which something is kept."""
        return len(self._records)

    def record(self, txid: TxId) -> AcceptorRecord | None:
        return self._records.get(txid)

    def below(self, floors: Mapping[int, int]) -> list[TxId]:
        """What is kept of the sessions in ``floors``, below the sequence number that is given there."""
        return [
            txid
            for session, floor in floors.items()
            for txid in self._of_session.get(session, ())
            if txid.seq < floor
        ]

    def kept(self) -> RestoredAcceptor:
        """Everything, with what has not been stored yet: for a copy of the whole, and for tests."""
        return RestoredAcceptor(self._marks, tuple(self._records[txid] for txid in sorted(self._records)))

    # What goes in.

    def step(self, sender: int, request: AcceptorRequest) -> None:
        """A request has arrived; its answer waits in a later ``ready``. Late, repeated and reordered ones are
        expected. ``sender`` comes back with the answer. Raises PeerMisbehaved; nothing is answered then."""
        if self.node not in request.acceptors.voters:
            raise PeerMisbehaved(f"node {self.node} is no acceptor of {request.txid}: {request.acceptors}")
        self._replies.append(Outgoing(sender, self._answer(request)))

    def _answer(self, request: AcceptorRequest) -> AcceptorReply:
        txid, node = request.txid, self.node
        if forgotten(txid, self._marks.next_session, self._floors):
            return Forgotten(txid, node)
        record = self._records.get(txid) or AcceptorRecord(txid, request.acceptors)
        if record.acceptors != request.acceptors:
            raise PeerMisbehaved(f"{txid} has acceptors {record.acceptors}, not {request.acceptors}")
        match request:
            case Phase1a():
                after = record.on_1a(request)
                if after is not None:
                    self._keep(after)
                    return Phase1b(txid, node, after.promised, after.known)
            case Phase2a():
                after = record.on_2a(request)
                if after is not None:
                    self._keep(after)
                    return Phase2b(txid, node, after.known)
            case Ask():
                return Phase2b(txid, node, record.known)
            case _:
                assert_never(request)
        return Refused(txid, node, record.promised, record.known)

    def _keep(self, record: AcceptorRecord) -> None:
        if self._records.get(record.txid) != record:
            self._put(record)
            self._changed[record.txid] = None

    def _put(self, record: AcceptorRecord) -> None:
        self._records[record.txid] = record
        self._of_session.setdefault(record.txid.session, {})[record.txid] = None

    def forget(self, marks: Marks) -> None:
        """The ledger holds the outcome of everything below ``marks``, or nothing below can ever have been
        accepted anywhere: let it go. May be repeated, and reported in any order.

        Without a record of it there is nothing to let go, and no mark to be stored: a quorum that chose
        anything has records, and marks where these were, in every other quorum's way.
        """
        joined = self._marks.joined(marks)
        floors = joined.below()
        dropped = [
            txid
            for session, txids in self._of_session.items()
            if floors.get(session, 0) != self._floors.get(session)
            for txid in txids
            if forgotten(txid, joined.next_session, floors)
        ]
        if not dropped:
            return
        self._marks, self._floors, self._marks_changed = joined, floors, True
        for txid in dropped:
            self._drop(txid)

    def _drop(self, txid: TxId) -> None:
        del self._records[txid]
        of_session = self._of_session[txid.session]
        del of_session[txid]
        if not of_session:
            del self._of_session[txid.session]
        self._changed.pop(txid, None)
        self._dropped[txid] = None

    def on_persisted(self, token: int) -> tuple[Outgoing, ...]:
        """All of the ``PaxosReady`` of ``token``, and of those before it, is durable. What may be sent
        now."""
        return tuple(self._writes.done(token))

    # What comes out.

    def ready(self) -> PaxosReady:
        """Everything to be done since the last call. The driver's duties: see the package."""
        if not (self._replies or self._changed or self._dropped or self._marks_changed):
            return NOTHING
        token = self._writes.next_token()
        records = tuple(self._records[txid] for txid in self._changed)
        dropped = tuple(self._dropped)
        marks = self._marks if self._marks_changed else None
        replies = tuple(self._replies)
        # A repetition changes nothing, but what it is about may still be on its way to the disk.
        waits = bool(records or dropped or marks is not None or not self._writes.idle)
        if waits:
            self._writes.begin(token, replies)
        self._changed, self._dropped, self._marks_changed, self._replies = {}, {}, False, []
        return PaxosReady(token, records, dropped, marks, () if waits else replies, replies if waits else ())
