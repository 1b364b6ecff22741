"""Translates an image into the keys of a whole ledger in etcd, and back. The names and values of keys are
those of :mod:`undoubt.coordinator.ledger.etcd.keyspace`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from undoubt.coordinator.ledger.contract import Act, DecisionRecord, Heuristic, SessionState
from undoubt.coordinator.ledger.etcd.keyspace import (
    SUMMARIZED,
    DecisionValue,
    Era,
    Keyspace,
    KeyValueRecord,
    LedgerClock,
    PrecommitValue,
    SessionRecord,
    SummaryValue,
    Tokens,
    decode,
    encode,
    number,
    value_of,
)
from undoubt.coordinator.ledger.etcd.sessions import state_of
from undoubt.coordinator.ledger.keys import KeptKey, Keys, StoredKeys
from undoubt.coordinator.ledger.lock_queue import LockTable
from undoubt.coordinator.ledger.machine import fingerprint
from undoubt.coordinator.ledger.moving.image import LedgerImage, canonical
from undoubt.coordinator.ledger.state import LedgerState, PrecommitRecord, SessionBook
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

V = TypeVar("V")
Found = Mapping[bytes, bytes]


def keys_of(keys: Keyspace, image: LedgerImage) -> Iterator[tuple[bytes, bytes]]:
    """All keys but the era, with their values."""
    state = image.state
    yield keys.secret, state.secret
    yield keys.next_session, number(state.next_session)
    yield keys.next_token, encode(Tokens(state.locks.next_token, state.locks.incarnation))
    yield keys.clock, encode(LedgerClock(state.time_ms))
    for act in state.acts.values():
        yield keys.act(act.id), encode(act)
    for book in state.sessions.values():
        yield from _session(keys, book, image)
    yield from _dropped(keys, image)
    for record in (*state.unfinished.values(), *image.finished.values()):
        txid = record.txid
        value = DecisionValue(
            txid.nonce, record.protocol, record.decision, record.branches, record.decided_at, record.cause
        )
        yield keys.decision(txid), encode(value)
        yield keys.decided(record.decided_at, txid), b""
    for txid in state.unfinished:
        yield keys.unfinished(txid), b""
    for noted in state.precommitted.values():
        value_noted = PrecommitValue(noted.txid.nonce, noted.protocol, noted.branches)
        yield keys.precommit(noted.txid), encode(value_noted)
    for heuristic in state.heuristics.values():
        place = keys.forgotten if heuristic.forgotten else keys.heuristic
        yield place(heuristic.gid.txid.session, str(heuristic.gid)), encode(heuristic)
    for key, txid in state.keys.claimed.items():
        yield keys.key(key), encode(KeyValueRecord(txid))
        yield keys.key_of(txid), key.encode()
    for kept in state.keys.kept.values():
        yield keys.key(kept.key), encode(KeyValueRecord(kept.txid, kept.result, kept.kept_ms))
        yield keys.key_of(kept.txid), kept.key.encode()
        yield keys.key_age(kept.kept_ms, kept.key), b""


def _session(keys: Keyspace, book: SessionBook, image: LedgerImage) -> Iterator[tuple[bytes, bytes]]:
    record = SessionRecord(book.name, book.ttl_ms, 0, 0, book.state, book.closed_ms, book.agent)
    yield keys.session(book.id, book.nonce), encode(record)
    if book.floor > 1:
        yield keys.floor(book.id), number(book.floor)
    chunks: dict[int, list[tuple[int, Decision, int]]] = {}
    for decision, ranges in ((Decision.COMMIT, book.committed), (Decision.ABORT, book.aborted)):
        for first, last in ranges.pairs():
            for seq in range(first, last + 1):
                if TxId(book.id, book.nonce, seq) not in image.finished:
                    found = (seq, decision, book.fingerprint(seq))
                    chunks.setdefault((seq - 1) // SUMMARIZED, []).append(found)
    for chunk, some in chunks.items():
        summary = SummaryValue(book.nonce).including(some)
        yield keys.summary(TxId(book.id, book.nonce, chunk * SUMMARIZED + 1)), encode(summary)


def _dropped(keys: Keyspace, image: LedgerImage) -> Iterator[tuple[bytes, bytes]]:
    """The records of sessions of which there is only history."""
    state = image.state
    gone = {
        (record.txid.session, record.txid.nonce): record.coordinator
        for record in image.finished.values()
        if record.txid.session not in state.sessions
    }
    for (session, nonce), name in sorted(gone.items()):
        record = SessionRecord(name, 0, 0, 0, SessionState.CLOSED, state.time_ms)
        yield keys.dropped(session, nonce), encode(record)


class _Reader:
    """The keys that were found, by kind."""

    def __init__(self, keys: Keyspace, found: Found) -> None:
        self.keys = keys
        self.found = found

    def one(self, key: bytes, kind: type[V], default: V) -> V:
        value = self.found.get(key)
        return default if value is None else decode(value, kind)

    def every(self, kind: str) -> Iterator[tuple[list[bytes], bytes]]:
        """The parts of each key of ``kind`` behind the kind, and its value."""
        prefix = self.keys.all(kind)
        for key in sorted(self.found):
            if key.startswith(prefix):
                yield key.removeprefix(prefix).split(b"/", 1), self.found[key]


def image_of(keys: Keyspace, found: Found) -> LedgerImage:
    """The image of the ledger with the keys ``found``. Raises ``msgspec.MsgspecError`` if one cannot be
    read."""
    reader = _Reader(keys, found)
    era = decode(found[keys.era], Era)
    tokens = reader.one(keys.next_token, Tokens, Tokens())
    time_ms = reader.one(keys.clock, LedgerClock, LedgerClock()).time_ms
    sessions = _sessions(reader, era, time_ms)
    state = LedgerState(
        era.ledger_id,
        era.incarnation,
        value_of(found.get(keys.next_session, number(1))),
        time_ms,
        sessions,
        secret=found.get(keys.secret, b""),
        locks=LockTable(tokens.next_token, tokens.incarnation),
        move=era.move,
    )
    image = LedgerImage(state)
    _decisions(reader, image)
    _keys(reader, state)
    for parts, value in reader.every("precommit"):
        noted = decode(value, PrecommitValue)
        txid = TxId(value_of(parts[0]), noted.nonce, value_of(parts[1]))
        undecided = txid not in state.unfinished and txid not in image.finished
        if undecided and txid.session in sessions:
            record = PrecommitRecord(txid, noted.protocol, noted.branches, 0.0, sessions[txid.session].name)
            state.precommitted[txid] = record
    for kind in ("heuristic", "forgotten"):
        for _, value in reader.every(kind):
            heuristic = decode(value, Heuristic)
            state.heuristics[str(heuristic.gid)] = heuristic
    for _, value in reader.every("act"):
        act = decode(value, Act)
        state.acts[act.id] = act
    image.state = canonical(state)
    return image


def _sessions(reader: _Reader, era: Era, time_ms: int) -> dict[int, SessionBook]:
    leased = {b"/".join(parts) for parts, _ in reader.every("lease")}
    books = {}
    for parts, value in reader.every("session"):
        record = decode(value, SessionRecord)
        session = value_of(parts[0])
        books[session] = SessionBook(
            session,
            parts[1].decode(),
            record.name,
            record.ttl_ms,
            state=state_of(record, b"/".join(parts) in leased, era),
            floor=value_of(reader.found.get(reader.keys.floor(session), number(1))),
            closed_ms=time_ms if record.closed_ms is None else record.closed_ms,
            tagged=True,
            agent=record.agent,
        )
    return books


def _decisions(reader: _Reader, image: LedgerImage) -> None:
    books = image.state.sessions
    open_ = {tuple(parts) for parts, _ in reader.every("unfinished")}
    names = {
        (value_of(parts[0]), parts[1].decode()): decode(value, SessionRecord).name
        for kind in ("dropped", "session")
        for parts, value in reader.every(kind)
    }
    for parts, value in reader.every("summary"):
        summary, book = decode(value, SummaryValue), books.get(value_of(parts[0]))
        if book is None or book.nonce != summary.nonce:
            continue
        first = value_of(parts[1]) * SUMMARIZED + 1
        for seq in range(first, first + SUMMARIZED):
            if (known := summary.of(seq)) is not None:
                book.finish(seq, *known)
    for parts, value in reader.every("decision"):
        decided = decode(value, DecisionValue)
        txid = TxId(value_of(parts[0]), decided.nonce, value_of(parts[1]))
        name = names.get((txid.session, txid.nonce), "")
        record = DecisionRecord(
            txid,
            decided.protocol,
            decided.decision,
            decided.branches,
            decided.decided_at,
            name,
            decided.cause,
        )
        book = books.get(txid.session)
        if tuple(parts) in open_:
            image.state.unfinished[txid] = record
            continue
        image.finished[txid] = record
        if book is not None and book.nonce == txid.nonce:
            book.finish(txid.seq, record.decision, fingerprint(record.branches))


def _keys(reader: _Reader, state: LedgerState) -> None:
    """Committed keys, and those whose transaction may still have committed: it is undecided in a session that
    was closed by a restore."""
    claimed, kept = [], []
    prefix = reader.keys.all("key")
    for name in sorted(reader.found):
        if not name.startswith(prefix):
            continue
        key = name.removeprefix(prefix).decode()
        record = decode(reader.found[name], KeyValueRecord)
        book = state.sessions.get(record.txid.session)
        decision = _decision(state, book, record.txid)
        if record.kept_ms is not None or decision is Decision.COMMIT:
            at = state.time_ms if record.kept_ms is None else record.kept_ms
            kept.append(KeptKey(key, record.txid, record.result or b"", at))
        elif decision is None and book is not None and book.may_have_committed(record.txid.seq):
            claimed.append((key, record.txid))
    kept.sort(key=lambda each: (each.kept_ms, each.key))
    state.keys = Keys.loaded(StoredKeys(claimed, kept))


def _decision(state: LedgerState, book: SessionBook | None, txid: TxId) -> Decision | None:
    if (record := state.unfinished.get(txid)) is not None:
        return record.decision
    return None if book is None or book.nonce != txid.nonce else book.finished(txid.seq)
