"""Idempotency keys: which transaction has a key, and what the key's transaction has returned.

A key is claimed for a transaction before the transaction begins its work. It is *running* until the
transaction is decided. COMMIT, the key and the result are one command; from then on the key is *committed*
until the ledger's retention has passed. A key is free again only after its transaction is aborted: ABORT is
recorded, its session is stored as closed or expired, or the session's floor has passed it. What is undecided
in a session that a restore from a backup has closed may have committed: its key is *lost* until the session
is dropped.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import msgspec

from undoubt.participants.ids import TxId

KEY_CHARACTERS_MAX = 200
RESULT_BYTES_MAX = 16_384
"""The bound of an encoded result (:mod:`undoubt.coordinator.results`), in bytes."""


class KeyState(enum.StrEnum):
    RUNNING = "running"
    """The transaction that has the key is undecided."""
    COMMITTED = "committed"
    LOST = "lost"
    """The transaction that has the key was undecided when the ledger was set back: it may have committed."""


class KeyHolder(msgspec.Struct, frozen=True, array_like=True):
    """The transaction that has a key. ``result`` is empty unless that transaction has committed."""

    txid: TxId
    state: KeyState
    result: bytes = b""


class KeptKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A committed key. ``kept_ms`` is the ledger time of the COMMIT."""

    key: str
    txid: TxId
    result: bytes
    kept_ms: int


class StoredKeys(msgspec.Struct, frozen=True, array_like=True):
    """The keys of a ledger in a snapshot."""

    claimed: list[tuple[str, TxId]] = []
    kept: list[KeptKey] = []


@dataclass(slots=True)
class Keys:
    """The keys of one ledger. Invariants: no key is both claimed and kept; a transaction has one key at most;
    the transaction of a claimed key is undecided, and its session is open, or closed by a restore; ``kept``
    is in the order of ``kept_ms``."""

    claimed: dict[str, TxId] = field(default_factory=dict)
    kept: dict[str, KeptKey] = field(default_factory=dict)
    _by_txid: dict[TxId, str] = field(default_factory=dict)
    """The claimed keys."""
    _committed: dict[TxId, str] = field(default_factory=dict)
    """The kept keys."""

    def key_of(self, txid: TxId) -> str | None:
        """The key that is claimed for ``txid``."""
        return self._by_txid.get(txid)

    def kept_of(self, txid: TxId) -> str | None:
        """The key with which ``txid`` has committed."""
        return self._committed.get(txid)

    def claim(self, key: str, txid: TxId) -> None:
        self.claimed[key] = txid
        self._by_txid[txid] = key

    def committed(self, txid: TxId, result: bytes, now_ms: int) -> None:
        """COMMIT of ``txid`` is recorded: keep its key, if it has one."""
        key = self._by_txid.get(txid)
        if key is not None:
            self.free(txid)
            self.kept[key] = KeptKey(key, txid, result, now_ms)
            self._committed[txid] = key

    def free(self, txid: TxId) -> None:
        """``txid`` is aborted: another transaction can claim its key."""
        key = self._by_txid.pop(txid, None)
        if key is not None:
            del self.claimed[key]

    def free_below(self, session: int, floor: int | None) -> None:
        """Free the keys of the transactions of ``session`` below ``floor``; None: of all of them."""
        for txid in [txid for txid in self._by_txid if txid.session == session]:
            if floor is None or txid.seq < floor:
                self.free(txid)

    def drop(self, before_ms: int) -> None:
        """Drop the keys that were committed at or before ledger time ``before_ms``."""
        while self.kept:
            oldest = next(iter(self.kept.values()))
            if oldest.kept_ms > before_ms:
                return
            del self.kept[oldest.key], self._committed[oldest.txid]

    def stored(self) -> StoredKeys:
        return StoredKeys(sorted(self.claimed.items()), list(self.kept.values()))

    @classmethod
    def loaded(cls, stored: StoredKeys) -> Keys:
        return cls(
            dict(stored.claimed),
            {kept.key: kept for kept in stored.kept},
            {txid: key for key, txid in stored.claimed},
            {kept.txid: kept.key for kept in stored.kept},
        )


def wrong_key(key: str) -> str:
    """Why ``key`` is no key; empty if it is one."""
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
        return f"a key has 1 to {KEY_CHARACTERS_MAX} characters, and this has {len(key)}"
    if any(character < " " or character == "\x7f" for character in key):
        return "a key must not contain control characters"
    return ""


def wrong_result(result: bytes) -> str:
    """Why ``result`` cannot be stored; empty if it can."""
    if len(result) <= RESULT_BYTES_MAX:
        return ""
    return f"an encoded result has {RESULT_BYTES_MAX} bytes at most, and this has {len(result)}"
