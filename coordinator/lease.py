"""One ledger session with the transactions of this process that run under it."""

from __future__ import annotations

import asyncio

from undoubt.coordinator.ledger.contract import Session
from undoubt.participants.ids import SessionKey, TxId
from undoubt.participants.invariant import invariant


class Lease:
    """One ledger session with the transactions that run under it in this process. The floor does not pass a
    transaction before the transaction has ended in this process."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.key = SessionKey(session.key) if session.key else SessionKey.drawn()
        self._last_seq = 0
        self._active: dict[int, None] = {}  # insertion order is ascending: the first key is the floor
        self._when_idle: asyncio.Event | None = None

    @property
    def begun(self) -> int:
        return self._last_seq

    @property
    def floor(self) -> int:
        return next(iter(self._active), self._last_seq + 1)

    @property
    def idle(self) -> bool:
        return not self._active

    def begin(self) -> TxId:
        self._last_seq += 1
        self._active[self._last_seq] = None
        return self.session.txid(self._last_seq)

    def end(self, txid: TxId) -> None:
        """Remove ``txid``, which has ended in this process."""
        invariant(txid.session == self.session.id, f"{txid} was not begun under session {self.session.id}")
        self._active.pop(txid.seq, None)
        if self._when_idle is not None and not self._active:
            self._when_idle.set()

    def retire(self, when_idle: asyncio.Event) -> None:
        """Mark the lease as replaced. ``when_idle`` is set once none of its transactions is left."""
        self._when_idle = when_idle
        if self.idle:
            when_idle.set()
