"""The use of an idempotency key by one transaction: claiming the key, waiting for it, and its result.

A transaction claims its key in the ledger before it has a branch. If another transaction has the key and is
undecided, it waits. If another one has committed, nothing is done again. If a transaction that has claimed a
key aborts, its coordinator frees the key, which records ABORT; if the coordinator dies, the key is free once
its session is stored as closed or expired.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from undoubt.coordinator.errors import (
    AlreadyCommitted,
    KeyInUse,
    LedgerError,
    OutcomeUnknown,
    SessionLost,
    VersionHeldBack,
)
from undoubt.coordinator.ledger.contract import Lease, Ledger
from undoubt.coordinator.ledger.keys import KeyHolder, KeyState, wrong_key
from undoubt.coordinator.protocols.context import GivenKey, repeat_until_answered
from undoubt.coordinator.results import decode_result, encode_result
from undoubt.participants.backoff import pauses
from undoubt.participants.bounds import OutOfBounds
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId

PAUSE_S = (0.01, 0.25)
"""The pauses between two questions whether a key is still in use, in seconds: the first and the longest."""

Began = tuple[TxId, Lease]


def check_key(key: object) -> str:
    """``key`` if it can be a key. Raises ``OutOfBounds``."""
    if not isinstance(key, str):
        raise OutOfBounds("key", f"must be text, not of type {type(key).__name__}")
    if why := wrong_key(key):
        raise OutOfBounds("key", f"is not accepted: {why}")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise OutOfBounds("key", f"is not valid Unicode: {error}") from error
    return key


class KeyUse:
    """The key of one transaction. ``first``: the transaction that has committed with this key before; None if
    there is none, or it is not known yet. ``entered_in``: the task or thread that is in the block of the
    transaction; None for a transaction without a block."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.first: TxId | None = None
        self.entered_in: object = None
        self._proof = ""
        self._result = b""
        self._set: list[object] = []
        """The object that was set as the result, until it is stored: it may be changed until then."""

    @property
    def value(self) -> Any:
        """The object that was set as the result; once it is stored, a new object each time."""
        return self._set[0] if self._set else decode_result(self._result)

    def set(self, value: object) -> None:
        """Set the result. Raises ``OutOfBounds`` for one that cannot be stored."""
        encode_result(value)
        self._set = [value]

    def keep(self) -> OutOfBounds | None:
        """Take the result as it is now, to be stored. Returns why that is impossible, if it is: the object
        may have been changed since it was set."""
        try:
            if self._set:
                self._result = encode_result(self._set.pop())
        except OutOfBounds as error:
            return error
        return None

    @property
    def given(self) -> GivenKey:
        """What the commit records."""
        return GivenKey(self.key, self._proof, self._result)

    def check(self) -> None:
        """Raise ``AlreadyCommitted`` if another transaction has committed with this key."""
        if self.first is not None:
            raise AlreadyCommitted(self.key, self.first, self.value)

    async def claim(
        self,
        ledger: Ledger,
        begin: Callable[[], Awaitable[Began]],
        give_up: Callable[[TxId, Lease], None],
        timeout_s: float,
        waits_for_itself: Callable[[TxId], bool],
    ) -> Began | None:
        """Claim the key for a transaction that ``begin`` begins; None if another transaction has committed,
        which is :attr:`first` then. ``give_up`` ends a transaction that may have claimed the key and will not
        run. ``waits_for_itself``: whether a transaction cannot end as long as the caller waits for it. Raises
        ``KeyInUse``, ``UsageError`` for a wait that could not end, ``OutcomeUnknown``, ``VersionHeldBack``
        and the errors of the ledger."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        waits = pauses(*PAUSE_S)
        while True:
            txid, lease = await begin()
            holder = None
            try:
                holder = await self._claimed(ledger, txid, lease)
            except SessionLost:
                if loop.time() >= end:
                    raise
            finally:
                if holder is None:
                    give_up(txid, lease)
                elif holder.txid != txid:
                    lease.end(txid)
            if holder is not None and holder.txid == txid:
                return txid, lease
            while holder is not None and holder.state is KeyState.RUNNING:
                if waits_for_itself(holder.txid):
                    raise UsageError(
                        f"the key {self.key!r} is that of transaction {holder.txid}, in whose block this"
                        " transaction begins: it would wait for itself. Do its work in that transaction, or"
                        " give it a key of its own"
                    )
                if loop.time() >= end:
                    raise KeyInUse(self.key, holder.txid, timeout_s)
                await asyncio.sleep(min(next(waits), max(end - loop.time(), 0)))
                holder = await ledger.key_holder(self.key)
            if holder is not None:
                self._repeat(holder)
                return None
            await asyncio.sleep(0)

    async def _claimed(self, ledger: Ledger, txid: TxId, lease: Lease) -> KeyHolder:
        self._proof = lease.key.key_proof(txid, self.key)
        if not self._proof:
            raise VersionHeldBack(
                "the ledger session of this coordinator was opened while a member of the cluster was of a"
                " version without keys; open the coordinator again"
            )
        return await ledger.claim_key(txid, self.key, self._proof)

    def _repeat(self, holder: KeyHolder) -> None:
        if holder.state is KeyState.LOST:
            raise OutcomeUnknown(
                holder.txid,
                f"it has the key {self.key!r}, and was undecided when the ledger was restored or set back",
            )
        self.first, self._result = holder.txid, holder.result


async def free_key(ledger: Ledger, given: GivenKey, txid: TxId) -> None:
    """Abort ``txid``, which has no prepared branch, and free its key; repeated until the ledger answers."""
    with contextlib.suppress(LedgerError, OutcomeUnknown):  # its session has ended: the key is free
        await repeat_until_answered(lambda: ledger.free_key(txid, given.key, given.proof))
