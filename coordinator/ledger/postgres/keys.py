"""The calls of the contract about idempotency keys, over the table ``key``. Comments in ``queries.sql`` say
why each statement is safe."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from typing import Any

from undoubt.coordinator.errors import Impostor, OutcomeUnknown, SessionLost
from undoubt.coordinator.ledger.commands import (
    ClaimKey,
    CommandRefused,
    CommitKey,
    Decide,
    FreeKey,
    check_given,
    check_key,
)
from undoubt.coordinator.ledger.contract import BranchRecord, SessionState
from undoubt.coordinator.ledger.keys import KeyHolder, KeyState
from undoubt.coordinator.ledger.postgres.decisions import Decisions, encode_branches
from undoubt.coordinator.ledger.rules import Names
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import Protocol, TxId


class KeyTable(abc.ABC):
    """The part of :class:`~undoubt.coordinator.ledger.postgres.ledger.PostgresLedger` that is about keys."""

    _names: Names
    _decisions: Decisions

    @abc.abstractmethod
    async def _ask(self, statement: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement."""

    async def claim_key(self, txid: TxId, key: str, proof: str) -> KeyHolder:
        check_given(ClaimKey(txid, key))
        self._check_proof(txid, key, proof)
        while True:
            ((lease, other, claimed),) = await self._ask("claim_key", **_key(txid), key=key)
            if claimed is not None:
                return KeyHolder(txid, KeyState.RUNNING)
            if (holder := await self.key_holder(key)) is not None:
                return holder
            if lease is None:
                raise SessionLost(f"transaction {txid} has ended, or its session {txid.session} has")
            if other is not None:
                raise CommandRefused(f"transaction {txid} has another key, {other!r}")

    async def key_holder(self, key: str) -> KeyHolder | None:
        check_key(key)
        ((session, nonce, seq, result, committed, running),) = await self._ask("key_holder", key=key)
        if session is None:
            return None
        txid = TxId(session, nonce, seq)
        if committed:
            return KeyHolder(txid, KeyState.COMMITTED, bytes(result))
        return KeyHolder(txid, KeyState.RUNNING if running else KeyState.LOST)

    async def commit_key(
        self, txid: TxId, key: str, proof: str, result: bytes, branches: Sequence[BranchRecord]
    ) -> Decision:
        command = CommitKey(txid, key, result, tuple(branches), time.time())
        check_given(command)
        self._check_proof(txid, key, proof)
        self._names.check(txid, Protocol.TWO_PHASE, Decision.COMMIT, branches, tagged=bool(branches))
        ((state, decision),) = await self._ask(
            "commit_key",
            **_key(txid),
            key=key,
            result=result,
            branches=encode_branches(branches),
            decided_at=command.at,
        )
        decide = Decide(txid, Protocol.TWO_PHASE, Decision.COMMIT, command.branches, command.at)
        return await self._answer(decide, state, decision)

    async def free_key(self, txid: TxId, key: str, proof: str) -> Decision:
        check_given(FreeKey(txid, key))
        self._check_proof(txid, key, proof)
        now = time.time()
        ((state, decision),) = await self._ask("free_key", **_key(txid), key=key, decided_at=now)
        if state is not None and decision is None and state != SessionState.RESTORED:
            ((decision, *_),) = await self._ask("recorded", **_key(txid))
            return Decision.ABORT if decision is None else Decision(decision)
        decide = Decide(txid, Protocol.TWO_PHASE, Decision.ABORT, (), now)
        return await self._answer(decide, state, decision)

    async def _answer(self, decide: Decide, state: str | None, decision: str | None) -> Decision:
        if state is None:
            raise OutcomeUnknown(decide.txid, "the ledger does not know its session, or has dropped it")
        if decision is not None:
            return Decision(decision)
        found = await self._decisions.recorded(decide, SessionState(state))
        if isinstance(found, UndoubtError):
            raise found
        return found

    def _check_proof(self, txid: TxId, key: str, proof: str) -> None:
        if not self._names.proves_key(txid, key, proof):
            raise Impostor(f"nothing proves that transaction {txid} may use a key: its proof is wrong")


def _key(txid: TxId) -> dict[str, Any]:
    return {"session": txid.session, "nonce": txid.nonce, "seq": txid.seq}
