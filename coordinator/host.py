"""The protocols of the objects that a transaction calls: its coordinator, and an opener of branches."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from undoubt.participants.contract import Branch, Participant
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import NO_KEY, Gid, SessionKey, TxId
from undoubt.participants.ids import Protocol as GidProtocol
from undoubt.participants.tasks import all_of

if TYPE_CHECKING:
    from undoubt.coordinator.key_use import KeyUse
    from undoubt.coordinator.ledger.contract import Lease
    from undoubt.coordinator.protocols.context import CommitContext, GivenKey
    from undoubt.coordinator.transaction import Transaction
    from undoubt.participants.tasks import Uncancellable


class Opener(Protocol):
    """Opens a branch of participant ``name``; :class:`~undoubt.participants.contract.Participant` has more
    methods than this."""

    @property
    def name(self) -> str: ...
    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch: ...


class Host(Protocol):
    """The methods of the coordinator that a transaction calls."""

    ledger_id: str

    async def new_txid(
        self, protocol: GidProtocol, timeout_s: float, agent: str = ""
    ) -> tuple[TxId, Lease]: ...
    async def claim_key(
        self, use: KeyUse, timeout_s: float, wait_s: float | None
    ) -> tuple[TxId, Lease] | None: ...
    def check_here(self) -> None: ...
    def participant(self, name: str) -> Participant: ...
    def begun(self, transaction: Transaction) -> None: ...
    def rolled_back(self, transaction: Transaction) -> None: ...
    def start_commit(self, transaction: Transaction, context: CommitContext) -> Uncancellable[None]: ...
    def new_context(
        self,
        txid: TxId,
        branches: tuple[Branch, ...],
        deadline: float,
        protocol: GidProtocol,
        lease: Lease,
        *,
        prepares_all: bool,
        key_use: GivenKey | None,
    ) -> CommitContext: ...
    async def roll_back(self, context: CommitContext, cause: BaseException) -> None: ...
    def in_background(self, task: Uncancellable[None]) -> None: ...
    async def why_doomed(self, txid: TxId) -> BaseException | None: ...


async def begin(opener: Opener, gid: Gid, key: SessionKey, remaining_s: float) -> Branch:
    """Open the branch ``gid``. Raises ``TimeoutError`` if nothing remains of its transaction's timeout."""
    if remaining_s <= 0:
        raise TimeoutError("the transaction's timeout has passed")
    return await opener.begin(gid, timeout_s=remaining_s, key=key)


async def join_agent(transaction: Transaction) -> None:
    """Open the branch of ``transaction`` in its agent, which commits last, if the application has not. An
    error dooms the transaction."""
    if not transaction.active or transaction.doomed or transaction.lease.agent is None:
        return
    names, agent = transaction.participants, transaction.lease.agent.participant
    if agent not in names and len(names) > (0 if transaction.prepares_all else 1):
        with contextlib.suppress(UndoubtError):
            await transaction.branch(agent)


async def discard(branch: Branch) -> None:
    """End a branch that was opened too late for its transaction."""
    await all_of([branch.rollback()])
    await branch.release()
