"""The agents of last-agent commit: what the ledger records of them, and the calls about them.

A session may be bound to one agent when it is opened, and stays bound to it: so recovery finds the agent of a
transaction from any of its gids, without its coordinator. What the row of the transaction is at the agent, is
described in :mod:`undoubt.participants.last_agent`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from undoubt.participants.ids import TxId


class AgentBinding(msgspec.Struct, frozen=True, array_like=True):
    """The agent of a session: a participant, and the history of its database at that time, in which a missing
    row proves that the transaction has not committed. ``system`` is the system identifier, None if it is not
    reported."""

    participant: str
    system: int | None
    history: str


class AgentKey(msgspec.Struct, frozen=True, array_like=True):
    """What recovery needs to find the row of a transaction: ``proof`` is
    :meth:`~undoubt.participants.ids.SessionKey.agent`."""

    binding: AgentBinding
    proof: bytes

    def __repr__(self) -> str:
        return f"AgentKey(binding={self.binding!r}, proof=…)"


class AgentLedger(Protocol):
    """The calls of the ledger's contract about agents; may be made after a restart, and repeated."""

    async def agent_keys(self, txids: Iterable[TxId]) -> Sequence[AgentKey | None]:
        """For each transaction the key of its row; None if its session is not bound to an agent, is unknown,
        or was dropped. A process that has the key can write the row or the tombstone."""
        ...
