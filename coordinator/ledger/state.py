"""The state that the ledger's machine keeps, and its encoding."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from undoubt.coordinator.ledger.contract import (
    Act,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    Session,
    SessionInfo,
    SessionState,
)
from undoubt.coordinator.ledger.fingerprints import Fingerprints
from undoubt.coordinator.ledger.ranges import Ranges
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

SNAPSHOT_FORMAT = 1


@dataclass(slots=True)
class SessionBook:
    """One session and everything that was finished under it.

    ``committed`` and ``aborted`` are disjoint. ``prints`` has a fingerprint of the branch list of each.
    """

    id: int
    nonce: str
    name: str
    ttl_ms: int
    owner: str = ""
    state: SessionState = SessionState.OPEN
    floor: int = 1
    closed_ms: int | None = None
    committed: Ranges = field(default_factory=Ranges)
    aborted: Ranges = field(default_factory=Ranges)
    prints: Fingerprints = field(default_factory=Fingerprints)
    acceptors: tuple[int, ...] = ()
    tagged: bool = False
    """Its gids carry tags."""

    def finish(self, seq: int, decision: Decision, fingerprint: int) -> None:
        (self.committed if decision is Decision.COMMIT else self.aborted).add(seq)
        self.prints[seq] = fingerprint

    def finished(self, seq: int) -> Decision | None:
        if seq in self.committed:
            return Decision.COMMIT
        return Decision.ABORT if seq in self.aborted else None

    def fingerprint(self, seq: int) -> int:
        return self.prints[seq]

    def info(self) -> SessionInfo:
        ttl_s = self.ttl_ms / 1000
        return SessionInfo(self.id, self.nonce, self.name, self.state, self.floor, ttl_s, self.acceptors)

    def session(self) -> Session:
        return Session(self.id, self.nonce, self.name, self.ttl_ms / 1000, self.acceptors)


class PrecommitRecord(msgspec.Struct, frozen=True):
    """An undecided transaction of three-phase commit all of whose branches have voted PREPARED."""

    txid: TxId
    protocol: str
    branches: tuple[BranchRecord, ...]
    at: float
    coordinator: str


class _StoredSession(msgspec.Struct, array_like=True):
    id: int
    nonce: str
    name: str
    ttl_ms: int
    owner: str
    state: SessionState
    floor: int
    closed_ms: int | None
    committed: list[tuple[int, int]]
    aborted: list[tuple[int, int]]
    prints: bytes
    acceptors: tuple[int, ...] = ()
    tagged: bool = False
    sparse_prints: list[tuple[int, bytes]] = []


class _StoredState(msgspec.Struct, array_like=True):
    format: int
    ledger_id: str
    incarnation: int
    next_session: int
    time_ms: int
    sessions: list[_StoredSession]
    unfinished: list[DecisionRecord]
    heuristics: list[Heuristic]
    precommitted: list[PrecommitRecord] = []
    secret: bytes = b""
    doomed: list[tuple[TxId, str]] = []
    acts: list[Act] = []
    rules: int = 0


@dataclass(slots=True)
class LedgerState:
    """All of it. Invariants: the session of every unfinished or precommitted transaction is in ``sessions``;
    no transaction is both; a doomed one is neither decided nor below the floor of its session, which is
    open."""

    ledger_id: str
    incarnation: int = 1
    next_session: int = 1
    time_ms: int = 0
    sessions: dict[int, SessionBook] = field(default_factory=dict)
    unfinished: dict[TxId, DecisionRecord] = field(default_factory=dict)
    heuristics: dict[str, Heuristic] = field(default_factory=dict)
    precommitted: dict[TxId, PrecommitRecord] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    doomed: dict[TxId, str] = field(default_factory=dict)
    acts: dict[str, Act] = field(default_factory=dict)
    """By id, in the order in which they were begun."""
    rules: int = 0
    """Commands are judged by these; 0: by none, as version 0.1.0 did."""

    def encode(self) -> bytes:
        """Equal states give equal bytes."""
        stored = _StoredState(
            SNAPSHOT_FORMAT,
            self.ledger_id,
            self.incarnation,
            self.next_session,
            self.time_ms,
            [_stored(self.sessions[number]) for number in sorted(self.sessions)],
            [self.unfinished[txid] for txid in sorted(self.unfinished)],
            [self.heuristics[key] for key in sorted(self.heuristics)],
            [self.precommitted[txid] for txid in sorted(self.precommitted)],
            self.secret,
            sorted(self.doomed.items()),
            list(self.acts.values()),
            self.rules,
        )
        return msgspec.msgpack.encode(stored)

    @classmethod
    def decode(cls, data: bytes) -> LedgerState:
        """Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` on what is no encoded state."""
        stored = msgspec.msgpack.decode(data, type=_StoredState)
        if stored.format != SNAPSHOT_FORMAT:
            raise msgspec.ValidationError(f"snapshot format {stored.format}, known is {SNAPSHOT_FORMAT}")
        return cls(
            stored.ledger_id,
            stored.incarnation,
            stored.next_session,
            stored.time_ms,
            {session.id: _loaded(session) for session in stored.sessions},
            {record.txid: record for record in stored.unfinished},
            {str(heuristic.gid): heuristic for heuristic in stored.heuristics},
            {record.txid: record for record in stored.precommitted},
            stored.secret,
            dict(stored.doomed),
            {act.id: act for act in stored.acts},
            stored.rules,
        )


def _stored(book: SessionBook) -> _StoredSession:
    return _StoredSession(
        book.id,
        book.nonce,
        book.name,
        book.ttl_ms,
        book.owner,
        book.state,
        book.floor,
        book.closed_ms,
        book.committed.pairs(),
        book.aborted.pairs(),
        book.prints.dense(),
        book.acceptors,
        book.tagged,
        book.prints.sparse(),
    )


def _loaded(stored: _StoredSession) -> SessionBook:
    return SessionBook(
        stored.id,
        stored.nonce,
        stored.name,
        stored.ttl_ms,
        stored.owner,
        stored.state,
        stored.floor,
        stored.closed_ms,
        Ranges(stored.committed),
        Ranges(stored.aborted),
        Fingerprints.of(stored.prints, stored.sparse_prints),
        stored.acceptors,
        stored.tagged,
    )
