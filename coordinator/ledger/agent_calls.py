"""The call about agents as a message for other processes, and the contract for agents implemented by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar

import msgspec

from undoubt.coordinator.ledger.agents import AgentKey
from undoubt.coordinator.ledger.commands import TAGS_VERSION
from undoubt.coordinator.ledger.ledger_call import IDS_MAX, CallCarrier, LedgerCall
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.wire.rights import Right
from undoubt.participants.ids import TxId


class AgentKeysCall(LedgerCall[Sequence[AgentKey | None]], frozen=True, tag="agent keys"):
    txids: Annotated[tuple[TxId, ...], msgspec.Meta(max_length=IDS_MAX)]
    right: ClassVar[Right] = Right.TRANSACT
    """A key lets its owner end the transaction."""
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[AgentKey | None]:
        return await ledger.agent_keys(self.txids)


class CallingAgents(CallCarrier):
    """The part of :class:`~undoubt.coordinator.ledger.calls.CallingLedger` that is about agents."""

    async def agent_keys(self, txids: Iterable[TxId]) -> Sequence[AgentKey | None]:
        return await self._call(AgentKeysCall(tuple(txids)))
