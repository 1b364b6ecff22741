"""The crash matrix: every victim at every named step, generated from the steps that the code lists."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from tests.prove.node_process import NodeStep
from tests.prove.trap import KILL, NO_TRAP, PAUSE, Trap
from undoubt.coordinator.protocols import steps as protocols
from undoubt.coordinator.protocols.steps import (
    STEPS,
    LastAgentStep,
    PaxosStep,
    TerminationStep,
    ThreePhaseStep,
    TwoPhaseStep,
)
from undoubt.participants.ids import Protocol
from undoubt.recovery import steps as recovery
from undoubt.recovery.steps import AgentStep, RecoveryStep

UNDER_LOAD = 5
"""A coordinator's trap springs the fifth time, when other transactions are at other steps."""


class Victim(enum.StrEnum):
    COORDINATOR = "coordinator"
    RECOVERY = "recovery"
    DATABASE = "database"
    """Started again at once."""
    DATABASE_DOWN = "database_down"
    """Started again only after the process that needed it has ended."""
    POOLER = "pooler"
    """The PgBouncer before a database; started again at once."""
    LEDGER = "ledger"
    """The ledger's server; started again at once."""
    LEDGER_DOWN = "ledger_down"
    """Started again while the process that needs it asks for it."""
    LEADER = "leader"
    """Of the ledger's nodes, by the role that each has when it dies. One that dies alone is started again
    only after the process that needed the ledger has ended: nobody may miss it."""
    FOLLOWER = "follower"
    OTHER_FOLLOWER = "other_follower"
    MAJORITY = "majority"
    """The leader and a follower; started again while the process that needs them asks for them."""
    FOLLOWERS = "followers"
    """Both at a step of their own, then the leader, which is missing until everything is over: what both had
    not on their disks was nowhere, and nobody may have been told of it."""
    STOPPED = "stopped"
    """The coordinator by SIGSTOP, until two recoveries at once have ended what it left; then it goes on."""
    SPARED = "spared"
    """The same, but while its session lives: the recoveries must leave alone what is not decided."""
    OVERTAKEN = "overtaken"
    """Stopped, but it goes on, to its end, while one recovery waits before it acts on what it has found."""
    OUTVOTED = "outvoted"
    """Stopped; only one acceptor has its votes, and is silent for as long as it is stopped itself."""
    HEARD = "heard"
    """The same, but that acceptor is one of the two that the recovery can ask."""
    UNCOPIED = "uncopied"
    """The coordinator, once every branch has committed and before it has told the ledger: nothing is prepared
    any more, and only the acceptors, or the agent's row, know."""
    AGENT = "agent"
    """The database that is the agent of last-agent commit; started again at once."""
    AGENT_DOWN = "agent_down"
    """Started again only after the process that needed it has ended."""
    IN_FLIGHT = "in_flight"
    """The coordinator, while the agent executes its COMMIT, with the row written. That session stays, and
    holds the row, until recovery terminates it."""
    ARRIVED = "arrived"
    """The same; but that session commits while recovery waits for it with the tombstone."""
    UNCONFIRMED = "unconfirmed"
    """The same; but the COMMIT has happened, and its session waits for a standby that is gone. So it stays
    committed when recovery terminates that session. Then there is no standby to wait for any more."""
    POWER = "power"
    """All at once: the coordinator, the databases, every node; then everything but the coordinator starts."""


IN_ITS_COMMIT = (Victim.IN_FLIGHT, Victim.ARRIVED, Victim.UNCONFIRMED)
"""The coordinator dies while the agent executes its COMMIT."""
NODES = (Victim.LEADER, Victim.FOLLOWER, Victim.OTHER_FOLLOWER)
CLUSTERED = frozenset(
    {
        *NODES,
        Victim.MAJORITY,
        Victim.FOLLOWERS,
        Victim.STOPPED,
        Victim.SPARED,
        Victim.OVERTAKEN,
        Victim.OUTVOTED,
        Victim.HEARD,
        Victim.UNCOPIED,
        Victim.POWER,
    }
)
"""Victims that only a ledger of nodes has."""

LEDGER_STEPS: frozenset[enum.StrEnum] = frozenset(
    {
        TwoPhaseStep.BEFORE_DECIDE,
        TwoPhaseStep.AFTER_DECIDE,
        TwoPhaseStep.BEFORE_FINISH,
        ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT,
        PaxosStep.BEFORE_VOTE,
        PaxosStep.AFTER_VOTE,
        RecoveryStep.AFTER_SCAN,
        RecoveryStep.BEFORE_FINISH,
        AgentStep.AFTER_CONCLUDE,
        AgentStep.AFTER_COPY,
    }
)
"""Before and after which the ledger is asked."""


@dataclass(frozen=True, slots=True)
class Case:
    """``in_recovery``: the step is one of recovery's, after a coordinator was killed, or stopped, with its
    trap ``before``; else ``trap`` is the coordinator's own. Or it is one of the victim's, which is a node."""

    victim: Victim
    in_recovery: bool
    trap: Trap
    before: Trap | None = None

    @property
    def of_node(self) -> bool:
        return self.trap.step in set(NodeStep)

    def __str__(self) -> str:
        what = f"branch {self.trap.branch}" if self.trap.branch else "transaction"
        where = " in recovery" if self.in_recovery else ""
        return f"{self.victim} at {self.trap.step} of {what}{where}"


def cases(
    protocol: Protocol = Protocol.TWO_PHASE,
    *,
    pooler: bool = False,
    ledger: bool = False,
    nodes: bool = False,
) -> list[Case]:
    """All of them, in a stable order; with ``pooler``, the one before a database dies as well, with
    ``ledger`` the ledger's server, and with ``nodes`` those of the ledger's cluster."""
    more: tuple[Victim, ...] = (Victim.POOLER,) if pooler else ()
    found: list[Case] = []
    recovers: list[enum.StrEnum] = list(RecoveryStep)
    if protocol is Protocol.THREE_PHASE:
        recovers += TerminationStep
    both: tuple[int, ...] = (1, 2)
    if protocol is Protocol.LAST:
        recovers += AgentStep
        more += (Victim.AGENT, Victim.AGENT_DOWN)
        both = (1,)  # the other one is the agent's, which passes no step of a branch
        found += [Case(victim, False, NO_TRAP) for victim in IN_ITS_COMMIT]
    for victim in (Victim.COORDINATOR, Victim.DATABASE, Victim.DATABASE_DOWN, *more):
        how = KILL if victim is Victim.COORDINATOR else PAUSE
        for step in STEPS[protocol]:
            branches = both if step in protocols.PER_BRANCH else (0,)
            found += [Case(victim, False, Trap(how, step, branch, UNDER_LOAD)) for branch in branches]
    for victim in (Victim.RECOVERY, Victim.DATABASE, Victim.DATABASE_DOWN, *more):
        how = KILL if victim is Victim.RECOVERY else PAUSE
        for step in recovers:
            branches = both if step in recovery.PER_BRANCH | protocols.PER_BRANCH else (0,)
            before = _before(step, protocol)
            found += [Case(victim, True, Trap(how, step, branch, 1), before) for branch in branches]
    for victim in (Victim.LEDGER, Victim.LEDGER_DOWN) if ledger else ():
        for step in (step for step in STEPS[protocol] if step in LEDGER_STEPS):
            found.append(Case(victim, False, Trap(PAUSE, step, 0, UNDER_LOAD)))
        for step in (step for step in recovers if step in LEDGER_STEPS):
            found.append(Case(victim, True, Trap(PAUSE, step, 0, 1), _before(step, protocol)))
    return found + (_of_nodes(protocol, recovers) if nodes else [])


def _of_nodes(protocol: Protocol, recovers: list[enum.StrEnum]) -> list[Case]:
    """What besides can happen where the ledger is a cluster."""
    found = [
        Case(victim, False, Trap(PAUSE, step, 0, UNDER_LOAD))
        for step in STEPS[protocol]
        for victim in (*NODES, Victim.STOPPED, Victim.POWER)
    ]
    found += [
        Case(victim, False, Trap(PAUSE, step, 0, UNDER_LOAD))
        for step in STEPS[protocol]
        if step in LEDGER_STEPS
        for victim in (Victim.MAJORITY, Victim.SPARED)
    ]
    found += [
        Case(victim, True, Trap(PAUSE, step, 0, 1), _before(step, protocol))
        for step in recovers
        if step in LEDGER_STEPS | RECOVERY_ASKS
        for victim in (*NODES, Victim.MAJORITY)
    ]
    for step in OWN_STEPS[protocol]:
        victims = (*NODES, Victim.FOLLOWERS) if step in BEFORE_SECOND_PHASE[protocol] else NODES
        found += [Case(victim, False, Trap(KILL, step, 0, UNDER_LOAD)) for victim in victims]
    for step in OWN_STEPS_IN_RECOVERY if protocol is Protocol.PAXOS else ():
        recovered = _before(RecoveryStep.BEFORE_ROLLBACK, protocol)
        found += [
            Case(victim, True, Trap(KILL, step, 0, 1), recovered) for victim in (*NODES, Victim.FOLLOWERS)
        ]
    for ending in (RecoveryStep.BEFORE_COMMIT, RecoveryStep.BEFORE_ROLLBACK):
        paused = replace(_before(ending, protocol), how=PAUSE)
        found.append(Case(Victim.OVERTAKEN, True, Trap(PAUSE, ending, 0, 1), paused))
    if protocol is Protocol.PAXOS:
        vote = Trap(PAUSE, PaxosStep.BEFORE_VOTE, 0, UNDER_LOAD)
        found += [Case(victim, False, vote) for victim in (Victim.OUTVOTED, Victim.HEARD)]
    if protocol in {Protocol.PAXOS, Protocol.LAST}:
        copy = Trap(PAUSE, TwoPhaseStep.BEFORE_DECIDE, 0, UNDER_LOAD)
        found.insert(0, Case(Victim.UNCOPIED, False, copy))
    return found


RECOVERY_ASKS: frozenset[enum.StrEnum] = frozenset(
    {RecoveryStep.AFTER_OUTCOMES, RecoveryStep.AFTER_FINISH, TerminationStep.AFTER_ATTEMPT}
)
"""Steps after which recovery asks the ledger, or its acceptors, or has just done so."""

_DECISION = (
    NodeStep.BEFORE_STORE_DECISION,
    NodeStep.AFTER_STORE_DECISION,
    NodeStep.BEFORE_APPLY_DECISION,
    NodeStep.AFTER_APPLY_DECISION,
)
BEFORE_SECOND_PHASE: dict[Protocol, tuple[NodeStep, ...]] = {
    Protocol.TWO_PHASE: _DECISION,
    Protocol.THREE_PHASE: (NodeStep.BEFORE_STORE_PRECOMMIT, NodeStep.AFTER_STORE_PRECOMMIT),
    Protocol.PAXOS: (NodeStep.BEFORE_STORE_VOTE, NodeStep.AFTER_STORE_VOTE),
    Protocol.LAST: (),
}
"""What nodes pass before any branch is told to commit."""
OWN_STEPS: dict[Protocol, tuple[NodeStep, ...]] = {
    protocol: tuple(dict.fromkeys((*steps, *_DECISION))) for protocol, steps in BEFORE_SECOND_PHASE.items()
}
"""What a node passes while transactions are committed. Where the decision is a copy, it may come late."""
OWN_STEPS_IN_RECOVERY = (
    NodeStep.BEFORE_STORE_PROMISE,
    NodeStep.AFTER_STORE_PROMISE,
    NodeStep.BEFORE_STORE_PROPOSAL,
    NodeStep.AFTER_STORE_PROPOSAL,
)
"""And while a recovery ends one that nobody has voted on."""


ROLLS_BACK: frozenset[enum.StrEnum] = frozenset(
    {
        RecoveryStep.BEFORE_ROLLBACK,
        RecoveryStep.AFTER_ROLLBACK,
        TerminationStep.BEFORE_BURY,
        TerminationStep.AFTER_BURY,
    }
)
"""Steps of recovery that only a transaction which it aborts passes."""


COPIES: frozenset[enum.StrEnum] = frozenset({AgentStep.BEFORE_COPY, AgentStep.AFTER_COPY})
"""Steps that recovery passes for every row that was left."""

CONCLUDES: frozenset[enum.StrEnum] = frozenset({AgentStep.BEFORE_CONCLUDE, AgentStep.AFTER_CONCLUDE})
"""Steps that recovery surely passes only for a transaction without a row. If a session ends between a pass
over the branches and one over the rows, a row of it is copied, and its transaction decided, without these."""


def _before(step: enum.StrEnum, protocol: Protocol) -> Trap:
    """Where the coordinator dies so that recovery passes ``step``: it must abort with everything prepared, or
    commit with nothing told."""
    dies_at: dict[tuple[Protocol, bool], enum.StrEnum] = {
        (Protocol.TWO_PHASE, True): TwoPhaseStep.BEFORE_DECIDE,
        (Protocol.TWO_PHASE, False): TwoPhaseStep.AFTER_DECIDE,
        (Protocol.THREE_PHASE, True): ThreePhaseStep.BEFORE_LEDGER_PRECOMMIT,
        (Protocol.THREE_PHASE, False): TwoPhaseStep.BEFORE_DECIDE,
        (Protocol.PAXOS, True): PaxosStep.BEFORE_VOTE,
        (Protocol.PAXOS, False): TwoPhaseStep.BEFORE_DECIDE,
        (Protocol.LAST, True): LastAgentStep.BEFORE_AGENT,
        (Protocol.LAST, False): LastAgentStep.AFTER_AGENT,
    }
    if step in COPIES:
        return Trap(KILL, LastAgentStep.BEFORE_FORGET, 0, UNDER_LOAD)
    return Trap(KILL, dies_at[protocol, step in ROLLS_BACK | CONCLUDES], 0, UNDER_LOAD)
