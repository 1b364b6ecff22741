"""The calls for locks as messages for other processes, and the contract for locks implemented by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from undoubt.coordinator.ledger.commands import TAGS_VERSION
from undoubt.coordinator.ledger.ledger_call import CallCarrier, LedgerCall, carried
from undoubt.coordinator.ledger.locks import LOCKS_PAGE_MAX, LockEntry, LockInfo, LockRequest
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire.rights import Right
from undoubt.participants.bounds import count


class LockCall(LedgerCall[LockEntry | None], frozen=True, tag="lock"):
    request: LockRequest
    wait: bool
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> LockEntry | None:
        return await ledger.lock(self.request, wait=self.wait)


class LockEntryCall(LedgerCall[LockEntry | None], frozen=True, tag="lock entry"):
    request: LockRequest
    wait_s: float
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> LockEntry | None:
        return await ledger.lock_entry(self.request, wait_s=self.wait_s)


class UnlockCall(LedgerCall[bool], frozen=True, tag="unlock"):
    request: LockRequest
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> bool:
        return await ledger.unlock(self.request)


class SessionLocksCall(LedgerCall[Sequence[LockEntry]], frozen=True, tag="session locks"):
    session: int
    nonce: str
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[LockEntry]:
        return await ledger.session_locks(self.session, self.nonce)


class LocksCall(LedgerCall[Sequence[LockInfo]], frozen=True, tag="locks"):
    after: str
    limit: int
    only: str = ""
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[LockInfo]:
        return await ledger.locks(after=self.after, limit=self.limit, only=self.only)


class RevokeLockCall(LedgerCall[bool], frozen=True, tag="revoke lock"):
    name: str
    token: int
    right: ClassVar[Right] = Right.OPERATE
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> bool:
        return await ledger.revoke_lock(self.name, self.token)


class CallingLocks(CallCarrier):
    """Implements :class:`~undoubt.coordinator.ledger.locks.LockLedger` by the messages above."""

    settings: LedgerSettings

    lock = carried(LockCall)
    unlock = carried(UnlockCall)
    session_locks = carried(SessionLocksCall)
    revoke_lock = carried(RevokeLockCall)

    async def lock_entry(self, request: LockRequest, *, wait_s: float = 0.0) -> LockEntry | None:
        wait_s = min(wait_s, self.settings.request_timeout_s / 2)
        entry: LockEntry | None = await self._call(LockEntryCall(request, wait_s))
        return entry

    async def locks(
        self, *, after: str = "", limit: int = LOCKS_PAGE_MAX, only: str = ""
    ) -> Sequence[LockInfo]:
        count("limit", limit, least=1, most=LOCKS_PAGE_MAX)
        infos: Sequence[LockInfo] = await self._call(LocksCall(after, limit, only))
        return infos

    async def contended_locks(self) -> Sequence[LockInfo]:
        found: list[LockInfo] = []
        after = ""
        while page := await self.locks(after=after):
            found += [info for info in page if info.waiters]
            after = page[-1].name
        return found
