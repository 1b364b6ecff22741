"""The rows of last-agent commit in a simulated database: :class:`undoubt.participants.last_agent.LastAgent`
over its sessions, and the COMMIT of a branch that is the agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tests.simulation.database import SqlError
from undoubt.participants.contract import Decision
from undoubt.participants.errors import ParticipantError, ParticipantRefused, ParticipantUnavailable
from undoubt.participants.last_agent import (
    AgentBusy,
    AgentEntry,
    AgentPlace,
    AgentRow,
    AgentUnanswered,
    Holder,
    StoredRow,
)

if TYPE_CHECKING:
    from tests.simulation.participant import Link, SimulatedParticipant

UNCONFIRMED = "no standby confirmed it"


async def check(link: Link, entry: AgentEntry, failed: Callable[[object], ParticipantError]) -> None:
    """Raises an error that ``failed`` makes."""
    _, _, history, _ = await link.ask("whereabouts")
    if history != entry.place.history:
        raise failed("it is in another history")


async def commit(
    link: Link, name: str, entry: AgentEntry, branches: bytes, failed: Callable[[object], ParticipantError]
) -> None:
    """Write the row and COMMIT. Raises ``SqlError`` and ``NoAnswer`` of the session, ``AgentUnanswered``, and
    the errors that ``failed`` makes."""
    arguments = (name, entry.key, entry.ledger, str(entry.txid), branches)
    try:
        tag, confirmed = await link.ask("commit_as_agent", *arguments)
    except SqlError as error:
        if error.fatal:
            raise AgentUnanswered(failed(error)) from error
        raise
    if tag != "COMMIT":
        raise failed(f"COMMIT answered {tag}")
    if not confirmed:
        raise AgentUnanswered(failed(UNCONFIRMED))


class SimulatedAgent:
    """For one process."""

    def __init__(self, participant: SimulatedParticipant) -> None:
        self._participant = participant

    async def _ask(self, verb: str, *arguments: Any) -> Any:
        name = self._participant.name
        try:
            return await self._participant.manage(verb, *arguments)
        except SqlError as error:
            raise ParticipantRefused(name, str(error), sqlstate=error.sqlstate) from error

    def _confirm(self, confirmed: bool) -> None:
        if not confirmed:
            raise ParticipantUnavailable(self._participant.name, UNCONFIRMED)

    async def place(self) -> AgentPlace:
        system, _, history, _ = await self._ask("whereabouts")
        return AgentPlace(system, history)

    async def prepares(self) -> bool:
        return True

    async def conclude(self, entry: AgentEntry) -> AgentRow | None:
        arguments = (entry.key, entry.ledger, str(entry.txid), entry.place.history)
        busy, row, confirmed = await self._ask("bury", *arguments)
        if busy:
            raise AgentBusy(self._participant.name, None if row is None else Holder(*row))
        self._confirm(confirmed)
        return None if row is None else AgentRow(Decision(row[0]), row[1])

    async def terminate(self, holder: Holder) -> bool:
        return bool(await self._ask("terminate", holder.pid, holder.started))

    async def find(self, keys: Sequence[bytes]) -> Mapping[bytes, AgentRow]:
        rows, confirmed = await self._ask("agent_find", keys)
        self._confirm(confirmed)
        return {key: AgentRow(Decision(decision), branches) for key, decision, branches in rows}

    async def stored(self, ledger: str, *, after: bytes = b"", limit: int) -> Sequence[StoredRow]:
        rows = await self._ask("agent_stored", ledger, after, limit)
        return [StoredRow(key, Decision(decision), txid, age_s) for key, decision, txid, age_s in rows]

    async def forget(self, keys: Sequence[bytes]) -> None:
        await self._ask("agent_forget", keys, str(Decision.COMMIT))

    async def drop(self, keys: Sequence[bytes]) -> None:
        await self._ask("agent_forget", keys, str(Decision.ABORT))
