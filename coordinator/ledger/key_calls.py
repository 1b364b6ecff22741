"""The ledger's contract about idempotency keys as messages, and the contract implemented by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from undoubt.coordinator.ledger.commands import TAGS_VERSION
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.ledger.keys import KEY_CHARACTERS_MAX, RESULT_BYTES_MAX, KeyHolder
from undoubt.coordinator.ledger.ledger_call import Branches, CallCarrier, LedgerCall, carried
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.wire.rights import Right
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

_Key = Annotated[str, msgspec.Meta(max_length=KEY_CHARACTERS_MAX)]
_Result = Annotated[bytes, msgspec.Meta(max_length=RESULT_BYTES_MAX)]


class ClaimKeyCall(LedgerCall[KeyHolder], frozen=True, tag="claim key"):
    txid: TxId
    key: _Key
    proof: str
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> KeyHolder:
        return await ledger.claim_key(self.txid, self.key, self.proof)


class KeyHolderCall(LedgerCall[KeyHolder | None], frozen=True, tag="key holder"):
    key: _Key
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> KeyHolder | None:
        return await ledger.key_holder(self.key)


class CommitKeyCall(LedgerCall[Decision], frozen=True, tag="commit key"):
    txid: TxId
    key: _Key
    proof: str
    result: _Result
    branches: Branches
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Decision:
        return await ledger.commit_key(self.txid, self.key, self.proof, self.result, self.branches)


class FreeKeyCall(LedgerCall[Decision], frozen=True, tag="free key"):
    txid: TxId
    key: _Key
    proof: str
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Decision:
        return await ledger.free_key(self.txid, self.key, self.proof)


class CallingKeys(CallCarrier):
    """The part of :class:`~undoubt.coordinator.ledger.calls.CallingLedger` that is about keys."""

    claim_key = carried(ClaimKeyCall)
    key_holder = carried(KeyHolderCall)
    free_key = carried(FreeKeyCall)

    async def commit_key(
        self, txid: TxId, key: str, proof: str, result: bytes, branches: Sequence[BranchRecord]
    ) -> Decision:
        call = CommitKeyCall(txid, key, proof, result, tuple(branches))
        decision: Decision = await self._call(call)
        return decision
