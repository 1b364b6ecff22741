"""The state that the ledger's machine keeps, and its encoding."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

import msgspec

from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import (
    Act,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    Session,
    SessionInfo,
    SessionState,
)
from undoubt.coordinator.ledger.keys import Keys, StoredKeys
from undoubt.coordinator.ledger.lock_queue import LockTable
from undoubt.coordinator.ledger.locks import LockInfo
from undoubt.coordinator.ledger.move_mark import MoveMark
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

SNAPSHOT_FORMAT = 1

CHUNK = 1024
"""The sequence numbers in one array. A number is a key, not a size: finishing number 9e18 makes one array."""

DENSE_CHUNKS = 4096
"""Chunks below this number are stored one after another. Version 0.1.0 reads only this form."""


class Ranges:
    """A set of positive integers, mostly consecutive, as sorted, disjoint, non-adjacent closed intervals.

    Invariant: ``starts`` and ``ends`` have one length, ``starts[i] <= ends[i] < starts[i + 1] - 1``.
    """

    __slots__ = ("ends", "starts")

    def __init__(self, pairs: list[tuple[int, int]] | None = None) -> None:
        self.starts = [start for start, _ in pairs or []]
        self.ends = [end for _, end in pairs or []]

    def __contains__(self, number: int) -> bool:
        position = bisect_right(self.starts, number) - 1
        return position >= 0 and number <= self.ends[position]

    def __len__(self) -> int:
        return sum(end - start + 1 for start, end in zip(self.starts, self.ends, strict=True))

    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, self.ends, strict=True))

    def add(self, number: int) -> None:
        """Add one number; amortised constant time at the upper end."""
        position = bisect_right(self.starts, number) - 1
        if position >= 0 and number <= self.ends[position]:
            return
        joins_left = position >= 0 and self.ends[position] == number - 1
        joins_right = position + 1 < len(self.starts) and self.starts[position + 1] == number + 1
        if joins_left and joins_right:
            self.ends[position] = self.ends[position + 1]
            del self.starts[position + 1], self.ends[position + 1]
        elif joins_left:
            self.ends[position] = number
        elif joins_right:
            self.starts[position + 1] = number
        else:
            self.starts.insert(position + 1, number)
            self.ends.insert(position + 1, number)


class Fingerprints:
    """One 32-bit fingerprint for each finished transaction of a session, by sequence number. Sequence numbers
    count from 1; a fingerprint is never 0."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}

    def __setitem__(self, seq: int, fingerprint: int) -> None:
        number, place = divmod(seq - 1, CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = array("I", bytes(4 * CHUNK))
        chunk[place] = fingerprint

    def __getitem__(self, seq: int) -> int:
        """The fingerprint of ``seq``, 0 if none was set."""
        number, place = divmod(seq - 1, CHUNK)
        chunk = self._chunks.get(number)
        return 0 if chunk is None else chunk[place]

    def dense(self) -> bytes:
        """The fingerprints of the chunks below :data:`DENSE_CHUNKS`, four bytes each, little endian, up to
        the last one that is set."""
        last = max((number for number in self._chunks if number < DENSE_CHUNKS), default=-1)
        empty = bytes(4 * CHUNK)
        found = b"".join(
            _bytes(self._chunks[number]) if number in self._chunks else empty for number in range(last + 1)
        ).rstrip(b"\0")
        return found + bytes(-len(found) % 4)

    def sparse(self) -> list[tuple[int, bytes]]:
        """The other chunks, by number."""
        return [
            (number, _bytes(self._chunks[number]))
            for number in sorted(self._chunks)
            if number >= DENSE_CHUNKS
        ]

    @classmethod
    def of(cls, dense: bytes, sparse: list[tuple[int, bytes]]) -> Fingerprints:
        """The inverse of :meth:`dense` and :meth:`sparse`."""
        made = cls()
        size = 4 * CHUNK
        chunks = [(at // size, dense[at : at + size]) for at in range(0, len(dense), size)]
        for number, data in [*chunks, *sparse]:
            made._chunks[number] = _array(data + bytes(size - len(data)))
        return made


def _bytes(chunk: array[int]) -> bytes:
    return _swapped(chunk).tobytes()


def _array(data: bytes) -> array[int]:
    chunk = array("I")
    chunk.frombytes(data)
    return _swapped(chunk)


def _swapped(chunk: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return chunk
    copied = array("I", chunk)
    copied.byteswap()
    return copied


@dataclass(slots=True)
class SessionBook:
    """One session and its finished transactions.

    ``committed`` and ``aborted`` are disjoint. ``prints`` has the fingerprint of the branch list of each
    number in them."""

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
    """Whether the gids of the session have tags."""
    agent: AgentBinding | None = None

    def finish(self, seq: int, decision: Decision, fingerprint: int) -> None:
        (self.committed if decision is Decision.COMMIT else self.aborted).add(seq)
        self.prints[seq] = fingerprint

    def finished(self, seq: int) -> Decision | None:
        if seq in self.committed:
            return Decision.COMMIT
        return Decision.ABORT if seq in self.aborted else None

    def fingerprint(self, seq: int) -> int:
        return self.prints[seq]

    def may_have_committed(self, seq: int) -> bool:
        """Whether nothing says that the undecided transaction ``seq`` of this session, which has ended, is
        aborted: the session was closed by a restore."""
        return self.state is SessionState.RESTORED and seq >= self.floor

    def info(self) -> SessionInfo:
        ttl_s = self.ttl_ms / 1000
        return SessionInfo(self.id, self.nonce, self.name, self.state, self.floor, ttl_s, self.acceptors)

    def session(self) -> Session:
        return Session(self.id, self.nonce, self.name, self.ttl_ms / 1000, self.acceptors)


class PrecommitRecord(msgspec.Struct, frozen=True):
    """An undecided transaction of three-phase commit all of whose branches have voted PREPARED."""

    txid: TxId
    protocol: Protocol
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
    agent: AgentBinding | None = None


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
    keys: StoredKeys = StoredKeys()
    next_token: int = 1
    token_incarnation: int = 1
    locks: list[LockInfo] = []
    move: MoveMark | None = None
    incoming: list[bytes] = []


@dataclass(slots=True)
class LedgerState:
    """The whole state of a ledger. Invariants: the session of each unfinished or precommitted transaction is
    in ``sessions``; no transaction is both; a doomed transaction is neither decided nor below the floor of
    its session, and its session is open; the session of each request for a lock is open. If ``move`` says
    that the ledger does not live here, no session is open."""

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
    """The acts by id, in the order in which they were begun."""
    rules: int = 0
    """The version of the rules by which commands are checked; 0: commands are not checked, as in version
    0.1.0."""
    keys: Keys = field(default_factory=Keys)
    locks: LockTable = field(default_factory=LockTable)
    move: MoveMark | None = None
    """The last move of the ledger to or from this place."""
    incoming: list[bytes] = field(default_factory=list, repr=False)
    """The pieces of another ledger's state that is being moved here."""

    def encode(self) -> bytes:
        """The state as msgpack. Equal states give equal bytes."""
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
            self.keys.stored(),
            self.locks.next_token,
            self.locks.incarnation,
            list(self.locks.infos()),
            self.move,
            self.incoming,
        )
        return msgspec.msgpack.encode(stored)

    @classmethod
    def decode(cls, data: bytes) -> LedgerState:
        """The state in ``data``. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError`` if there is
        none."""
        stored = msgspec.msgpack.decode(data, type=_StoredState)
        if stored.format != SNAPSHOT_FORMAT:
            raise msgspec.ValidationError(
                f"snapshot format {stored.format}; this version reads {SNAPSHOT_FORMAT}"
            )
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
            Keys.loaded(stored.keys),
            LockTable.of(stored.next_token, stored.token_incarnation, stored.locks),
            stored.move,
            stored.incoming,
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
        book.agent,
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
        stored.agent,
    )
