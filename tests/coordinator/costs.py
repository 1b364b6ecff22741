"""What a protocol costs: messages and durable writes of one committed transaction, counted while it runs.

A message is one request or one answer between the coordinator and a participant or the ledger. A durable
write is one that is waited for: of a participant (a vote, a row, the end of a prepared branch) or of the
ledger (one command, however many disks that is), or of the acceptors (one vote, however many store it at
once). What nobody waits for is not counted: ``finish`` and its rows, and the copy of an outcome that the
acceptors have chosen or the last agent has committed.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.coordinator.voting_ledger import VotingLedger
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.commands import Decide, Precommit
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import Script, ScriptedParticipant

DURABLE = frozenset({"enlist", "prepare", "attempt", "commit", "commit_as_agent", "one_phase", "bury"})
"""Calls of a participant that wait for its disk."""
LOCAL = frozenset({"check_as_agent"})
"""Calls without a message, except behind a pooler."""


class Cost(NamedTuple):
    messages: int
    durable_writes: int


async def cost(protocol: str, participants: int, *, acceptors: int = 3) -> Cost:
    """Of one transaction that writes in so many participants and commits."""
    registry = Registry()
    ledger = VotingLedger(acceptors) if protocol == "paxos" else MemoryLedger()
    everyone = [
        ScriptedParticipant(f"p{number}", Script(surely_writes=True)) for number in range(participants)
    ]
    for participant in everyone:
        registry.add(participant)
    agent = everyone[-1].name if protocol == "last" else ""
    coordinator = Coordinator(ledger, registry, CoordinatorSettings(protocol=protocol, agent=agent))
    async with coordinator, coordinator.transaction() as tx:
        for participant in everyone:
            await tx.branch(participant.name)
            participant.calls.clear()  # what the application does is not the protocol's
        ledger.commands.clear()
        await tx.commit()
        calls = [call for participant in everyone for call in participant.trace() if call not in LOCAL]
        commands = [command for command in ledger.commands if isinstance(command, Decide | Precommit)]
    if agent:
        commands.clear()  # copies
    if isinstance(ledger, VotingLedger):
        votes = ledger.writes // acceptors
        messages, writes = 2 * len(calls) + ledger.messages, sum(call in DURABLE for call in calls) + votes
        return Cost(messages, writes)
    return Cost(2 * (len(calls) + len(commands)), sum(call in DURABLE for call in calls) + len(commands))
