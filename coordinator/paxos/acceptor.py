"""The acceptor of one node, which takes part in the decisions of many transactions."""

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
    """Everything that an acceptor has stored; empty for a new node. Equal contents have equal encodings."""

    marks: Marks = Marks()
    records: tuple[AcceptorRecord, ...] = ()


class Acceptor:
    """Takes requests for many transactions, and returns its outputs from :meth:`ready`. Only one thread at a
    time may use it."""

    def __init__(self, node: int, restored: RestoredAcceptor) -> None:
        """``node`` is the number under which the promises in ``restored`` were made. A node whose disk was
        lost must get another number, and never use the old one again."""
        invariant(node > 0, "an acceptor's number is positive")
        self.node = node
        self._marks = restored.marks
        self._floors = restored.marks.below()
        self._records: dict[TxId, AcceptorRecord] = {}
        self._of_session: dict[int, dict[TxId, None]] = {}
        """The keys of ``_records`` by session, so that forgetting a few does not search all."""
        for record in restored.records:
            self._put(record)
        self._changed: dict[TxId, None] = {}
        self._dropped: dict[TxId, None] = {}
        self._marks_changed = False
        self._replies: list[Outgoing] = []
        self._writes = PaxosWrites()

    # Properties for callers.

    @property
    def count(self) -> int:
        """The number of transactions that have a record."""
        return len(self._records)

    def record(self, txid: TxId) -> AcceptorRecord | None:
        return self._records.get(txid)

    def below(self, floors: Mapping[int, int]) -> list[TxId]:
        """Return the transactions that have a record, of the sessions in ``floors``, below the sequence
        number that is given there."""
        return [
            txid
            for session, floor in floors.items()
            for txid in self._of_session.get(session, ())
            if txid.seq < floor
        ]

    def kept(self) -> RestoredAcceptor:
        """Return the whole contents, including what is not stored yet: for a copy of the acceptor, and for
        tests."""
        return RestoredAcceptor(self._marks, tuple(self._records[txid] for txid in sorted(self._records)))

    # Inputs.

    def step(self, sender: int, request: AcceptorRequest) -> None:
        """Process a received request; the answer is in a later ``ready``, with ``sender``. Requests may be
        late, repeated or reordered. Raises PeerMisbehaved; then there is no answer."""
        if self.node not in request.acceptors.voters:
            raise PeerMisbehaved(
                f"node {self.node} is not an acceptor of {request.txid}: {request.acceptors}"
            )
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
        """Forget the transactions below ``marks``: the ledger has their outcomes, or no acceptor can ever
        have accepted anything for them. May be repeated, and called in any order.

        Without a record below ``marks`` nothing is deleted and no mark is stored. That is safe: every
        acceptor of a quorum that has chosen a value has a record, or a mark in its place, and any other
        quorum contains one of these acceptors.
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
        """Report that the ``PaxosReady`` of ``token``, and all earlier ones, are durable. Returns the replies
        that may be sent now."""
        return tuple(self._writes.done(token))

    # Output.

    def ready(self) -> PaxosReady:
        """Return everything that has to be done since the last call. The package's docstring lists the
        driver's duties."""
        if not (self._replies or self._changed or self._dropped or self._marks_changed):
            return NOTHING
        token = self._writes.next_token()
        records = tuple(self._records[txid] for txid in self._changed)
        dropped = tuple(self._dropped)
        marks = self._marks if self._marks_changed else None
        replies = tuple(self._replies)
        # A repeated request changes nothing, but the write that the first one caused may be unfinished.
        waits = bool(records or dropped or marks is not None or not self._writes.idle)
        if waits:
            self._writes.begin(token, replies)
        self._changed, self._dropped, self._marks_changed, self._replies = {}, {}, False, []
        return PaxosReady(token, records, dropped, marks, () if waits else replies, replies if waits else ())
