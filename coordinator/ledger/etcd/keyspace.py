"""The names of all keys of a ledger, behind the prefix of its URL, and the forms of their values.

==================  ===============================  ======================================================
key                 value                            meaning
==================  ===============================  ======================================================
era                 :class:`Era`                     the ledger's id and incarnation; every change compares it
secret              bytes                            the ledger's secret: readable by its own user alone
next-session        a number                         the number of the next session
next-token          :class:`Tokens`                  the next token of a lock
clock               :class:`LedgerClock`             ledger time, and the process that advances it
session/S/NONCE     :class:`SessionRecord`           a session that is kept
lease/S/NONCE       a number, counting renewals      present while the session is open: attached to its lease
opened/NONCE        a number                         the session that was opened with that nonce: attached
                                                     to its lease
floor/S             a number                         the session's floor, if it is not 1
dropped/S/NONCE     :class:`SessionRecord`           a session that was dropped, and has history
decision/S/N        :class:`DecisionValue`           the decision of transaction N of session S, written once
unfinished/S/N      empty                            the transaction is not finished
summary/S/C         :class:`SummaryValue`            of the transactions from C * 512 + 1 on, of which the
                                                     details were deleted
decided/T/S/N       empty                            decisions by time; numbers are subtracted from the
                                                     highest one, so that the newest is the first
precommit/S/N       :class:`PrecommitValue`          all branches have voted PREPARED
doomed/S/N          text                             why another process aborts the transaction
key/KEY             :class:`KeyValueRecord`          the transaction that has an idempotency key
key-of/S/N          text                             the idempotency key of the transaction
key-age/T/KEY       empty                            committed idempotency keys by ledger time
heuristic/S/GID     :class:`~..contract.Heuristic`   an open heuristic outcome
forgotten/S/GID     :class:`~..contract.Heuristic`   a heuristic outcome that was forgotten
act/ID              :class:`~..contract.Act`         an act of an operator
lock/NAME           :class:`LockRecord`              the queue of a lock
lock-of/S/NAME      a number                         how many requests for the lock the session has
contended/NAME      empty                            a request waits for the lock
==================  ===============================  ======================================================

Numbers in keys, and numbers that are compared by their value, are 16 hexadecimal digits: their order as bytes
is their order as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import BranchRecord, SessionState
from undoubt.coordinator.ledger.locks import LockEntry
from undoubt.coordinator.ledger.move_mark import MoveMark
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, TxId

FORMAT = 1
UNSIGNED_MAX = 2**64 - 1
SUMMARIZED = 512
"""The transactions of one summary."""


class Era(msgspec.Struct, frozen=True):
    """``cluster_id`` is that of the etcd cluster on which the incarnation began; ``move`` the mark of the
    last move of the ledger to or from here."""

    format: int
    ledger_id: str
    incarnation: int
    cluster_id: int
    move: MoveMark | None = None


class Tokens(msgspec.Struct, frozen=True, array_like=True):
    """``incarnation``: the one in which ``next_token`` was computed."""

    next_token: int = 1
    incarnation: int = 1


class LedgerClock(msgspec.Struct, frozen=True):
    """``beat`` counts the writes. ``leader`` is empty if no process leads."""

    time_ms: int = 0
    leader: str = ""
    beat: int = 0


class SessionRecord(msgspec.Struct, frozen=True):
    """``closed_ms`` is the ledger time at which the end was noted; None while none was. ``agent``: the one to
    which the session is bound, if it is."""

    name: str
    ttl_ms: int
    lease: int
    incarnation: int
    state: SessionState = SessionState.OPEN
    closed_ms: int | None = None
    agent: AgentBinding | None = None


class DecisionValue(msgspec.Struct, frozen=True, array_like=True):
    nonce: str
    protocol: Protocol
    decision: Decision
    branches: tuple[BranchRecord, ...]
    decided_at: float
    cause: str = ""


class SummaryValue(msgspec.Struct, frozen=True, array_like=True):
    """Finished transactions with consecutive numbers. ``prints``: of each the fingerprint of its branches, in
    four bytes, or zeros; ``aborted``: the places of those that were aborted."""

    nonce: str
    prints: bytes = bytes(4 * SUMMARIZED)
    aborted: frozenset[int] = frozenset()

    def of(self, seq: int) -> tuple[Decision, int] | None:
        """The decision on transaction ``seq``, and the fingerprint of its branches."""
        place = (seq - 1) % SUMMARIZED
        fingerprint = int.from_bytes(self.prints[4 * place : 4 * place + 4], "little")
        if not fingerprint:
            return None
        return Decision.ABORT if place in self.aborted else Decision.COMMIT, fingerprint

    def including(self, added: Iterable[tuple[int, Decision, int]]) -> SummaryValue:
        """With further transactions: number, decision, fingerprint."""
        prints, aborted = bytearray(self.prints), set(self.aborted)
        for seq, decision, fingerprint in added:
            place = (seq - 1) % SUMMARIZED
            prints[4 * place : 4 * place + 4] = fingerprint.to_bytes(4, "little")
            if decision is Decision.ABORT:
                aborted.add(place)
        return SummaryValue(self.nonce, bytes(prints), frozenset(aborted))


class PrecommitValue(msgspec.Struct, frozen=True, array_like=True):
    nonce: str
    protocol: Protocol
    branches: tuple[BranchRecord, ...]


class KeyValueRecord(msgspec.Struct, frozen=True, array_like=True):
    """``result`` and ``kept_ms`` are None until the key is committed."""

    txid: TxId
    result: bytes | None = None
    kept_ms: int | None = None


class LockRecord(msgspec.Struct, frozen=True, array_like=True):
    """A queue. ``incarnation``: the one in which it was written; requests of an earlier one have ended."""

    incarnation: int
    entries: tuple[LockEntry, ...]


def number(value: int) -> bytes:
    return b"%016x" % value


def value_of(data: bytes) -> int:
    return int(data, 16)


def above_all(prefix: bytes) -> bytes:
    """The first key behind all keys that begin with ``prefix``, whose last byte is not 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class Keyspace:
    """The keys of one ledger."""

    def __init__(self, prefix: str) -> None:
        self.root = f"{prefix}/".encode()
        self.era = self.root + b"era"
        self.secret = self.root + b"secret"
        self.next_session = self.root + b"next-session"
        self.next_token = self.root + b"next-token"
        self.clock = self.root + b"clock"

    def all(self, kind: str, session: int | None = None) -> bytes:
        """What all keys of one kind begin with, or all of one session."""
        return self.root + kind.encode() + b"/" + (b"" if session is None else number(session) + b"/")

    def session(self, session: int, nonce: str) -> bytes:
        return self.all("session", session) + nonce.encode()

    def lease(self, session: int, nonce: str) -> bytes:
        return self.all("lease", session) + nonce.encode()

    def opened(self, nonce: str) -> bytes:
        return self.all("opened") + nonce.encode()

    def dropped(self, session: int, nonce: str) -> bytes:
        return self.all("dropped", session) + nonce.encode()

    def floor(self, session: int) -> bytes:
        return self.all("floor") + number(session)

    def of_transaction(self, kind: str, txid: TxId) -> bytes:
        return self.all(kind, txid.session) + number(txid.seq)

    def decision(self, txid: TxId) -> bytes:
        return self.of_transaction("decision", txid)

    def unfinished(self, txid: TxId) -> bytes:
        return self.of_transaction("unfinished", txid)

    def summary(self, txid: TxId) -> bytes:
        """The summary that ``txid`` would be in."""
        return self.all("summary", txid.session) + number((txid.seq - 1) // SUMMARIZED)

    def precommit(self, txid: TxId) -> bytes:
        return self.of_transaction("precommit", txid)

    def doomed(self, txid: TxId) -> bytes:
        return self.of_transaction("doomed", txid)

    def key_of(self, txid: TxId) -> bytes:
        return self.of_transaction("key-of", txid)

    def decided(self, decided_at: float, txid: TxId) -> bytes:
        parts = (_micros(decided_at), txid.session, txid.seq)
        return self.all("decided") + b"/".join(number(UNSIGNED_MAX - part) for part in parts)

    def decided_numbers(self, key: bytes) -> tuple[int, int]:
        """The numbers of session and transaction in a key of :meth:`decided`."""
        _, session, seq = key.removeprefix(self.all("decided")).split(b"/")
        return UNSIGNED_MAX - value_of(session), UNSIGNED_MAX - value_of(seq)

    def key(self, key: str) -> bytes:
        return self.all("key") + _bytes(key)

    def key_age(self, kept_ms: int, key: str) -> bytes:
        return self.all("key-age") + number(kept_ms) + b"/" + _bytes(key)

    def heuristic(self, session: int, gid: str) -> bytes:
        return self.all("heuristic", session) + gid.encode()

    def forgotten(self, session: int, gid: str) -> bytes:
        return self.all("forgotten", session) + gid.encode()

    def act(self, ident: str) -> bytes:
        return self.all("act") + ident.encode()

    def lock(self, name: str) -> bytes:
        return self.all("lock") + _bytes(name)

    def lock_of(self, session: int, name: str) -> bytes:
        return self.all("lock-of", session) + name.encode()


def _bytes(text: str) -> bytes:
    """Also of text that is not valid Unicode, which no key of a ledger has."""
    return text.encode(errors="surrogatepass")


def _micros(at: float) -> int:
    """A wall clock in microseconds, within what 16 digits hold; for the order of history only."""
    return min(max(round(at * 1_000_000), 0), 2**63)


V = TypeVar("V")


def decode(data: bytes, kind: type[V]) -> V:
    """A value. Raises ``msgspec.MsgspecError`` for what no version has written."""
    return msgspec.json.decode(data, type=kind)


encode = msgspec.json.Encoder().encode
