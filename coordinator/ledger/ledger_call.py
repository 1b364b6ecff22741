"""The base of the messages for the ledger's contract."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

import msgspec

from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.rpc.calls import Call
from undoubt.participants.ids import BRANCH_NUMBER_MAX

R_co = TypeVar("R_co", covariant=True)

Branches = Annotated[tuple[BranchRecord, ...], msgspec.Meta(max_length=BRANCH_NUMBER_MAX)]


class LedgerCall(Call[R_co], Generic[R_co], frozen=True):
    """Base of all calls of the ledger."""

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> R_co:
        """Carry out this call on ``ledger``. Raises what the contract raises. ``remote``: the caller is
        another process, which may outlive this one."""
        raise NotImplementedError
