"""The base of the messages for the ledger's contract, and the methods that are one message and nothing
more."""

from __future__ import annotations

import abc
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Concatenate, Generic, ParamSpec, TypeVar

import msgspec

from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.rpc.calls import Call
from undoubt.participants.ids import BRANCH_NUMBER_MAX

IDS_MAX = 100_000
"""The most ids in one call. The decoder refuses a longer tuple before it decodes the ids."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")

Branches = Annotated[tuple[BranchRecord, ...], msgspec.Meta(max_length=BRANCH_NUMBER_MAX)]


class LedgerCall(Call[R_co], Generic[R_co], frozen=True):
    """Base of all calls of the ledger."""

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> R_co:
        """Carry out this call on ``ledger``. Raises what the contract raises. ``remote``: the caller is
        another process, which may outlive this one."""
        raise NotImplementedError  # each call has its own; a Struct cannot be an abstract class


class CallCarrier(abc.ABC):
    """Carries calls of the ledger out, in this process or in another."""

    @abc.abstractmethod
    async def _call(self, call: LedgerCall[R]) -> R:
        """The result of ``call``. Raises what the contract raises."""


def carried(call: Callable[P, LedgerCall[R]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    """The method of a :class:`CallCarrier` that is ``call``: its arguments are the fields of the message, and
    its result is the reply."""

    async def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = await self._call(call(*args, **kwargs))
        return result

    return method
