"""The rows of last-agent commit: what the calls to the database that is the agent mean.

All branches but one are prepared; the agent's commits in one phase, and the decision's row is written in the
same transaction. A process that wants the transaction aborted writes a *tombstone* under the same primary
key, so that the table never has both. Without the tombstone the protocol is known as *logging last resource*
(Oracle WebLogic Server, "Developing JTA Applications").

Why a read alone decides nothing: the row of a COMMIT that is being executed is not visible yet. The tombstone
waits for such a COMMIT, because it has the same key, and only then the row is read, in another statement:
the statement that met the key does not see the row. ``tests/models/last_agent.py`` is the specification."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from undoubt.participants.contract import Decision, Participant
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid, TxId


class AgentPlace(NamedTuple):
    """The history of the agent's database to which a session is bound. In another history a row proves the
    same, but a missing row proves nothing. ``system`` is the system identifier, None if it is not
    reported."""

    system: int | None
    history: str


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """What identifies the row of one transaction at its agent. ``proof`` is
    :meth:`~undoubt.participants.ids.SessionKey.agent`."""

    ledger: str
    txid: TxId
    proof: bytes = field(repr=False)
    place: AgentPlace

    @property
    def key(self) -> bytes:
        """The primary key of the row, and of the tombstone."""
        return hashlib.sha256(self.proof).digest()


class AgentRow(NamedTuple):
    """The row of a transaction: COMMIT, with what :meth:`LastAgentBranch.commit_as_agent` was given, or
    ABORT, the tombstone."""

    decision: Decision
    branches: bytes


class StoredRow(NamedTuple):
    """A row as a list shows it. Every role can write one of a COMMIT: it counts only if ``key`` is that of an
    :class:`AgentEntry`, which needs the proof. ``txid`` is what the row says, and may be any text; ``age_s``
    is by the clock of the database."""

    key: bytes
    decision: Decision
    txid: str
    age_s: float


class Holder(NamedTuple):
    """The database session that a tombstone waits for. ``pid`` is 0 for a prepared transaction; the other
    fields are empty if this role may not see them. ``started`` is an opaque token of the session's start."""

    pid: int
    started: str = ""
    role: str = ""
    application: str = ""
    state: str = ""

    def __str__(self) -> str:
        if not self.pid:
            return "a prepared transaction"
        seen = ", ".join(filter(None, (self.role and f"role {self.role}", self.application, self.state)))
        return f"the session with pid {self.pid}" + (f" ({seen})" if seen else "")


class AgentBusy(ParticipantUnavailable):
    """A session holds the key: its COMMIT is being executed, and the end of that session alone decides.
    ``holder`` is None if it was not found in time."""

    def __init__(self, participant: str, holder: Holder | None) -> None:
        who = "a session" if holder is None else str(holder)
        super().__init__(
            participant,
            f"{who} is writing the row of this transaction, and whether it commits is not known before it"
            " ends",
        )
        self.holder = holder


class AgentUnanswered(Exception):
    """COMMIT was sent to the agent, and its answer did not come or does not count: it may have happened, or
    may still happen. ``cause`` is what users are shown.

    Control flow between a participant and a protocol, which finds out as recovery does
    (:meth:`LastAgent.conclude`)."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@runtime_checkable
class LastAgentBranch(Protocol):
    """A branch that can commit in one phase together with the decision's row."""

    @property
    def gid(self) -> Gid: ...

    async def check_as_agent(self, entry: AgentEntry) -> None:
        """Ends the application's use of the branch. Fails with ``BranchFailed`` if the branch cannot be the
        agent of ``entry``: it is in another history, its transaction is read only, or the application has
        ended it. May be repeated; not after a restart. Call it before the first PREPARE."""
        ...

    async def commit_as_agent(self, entry: AgentEntry, branches: bytes) -> None:
        """Write the row, with ``branches``, and COMMIT. Call it once only, after :meth:`check_as_agent` and
        after all other branches are prepared.

        Returns only if the branch and the row are committed, and every synchronous standby that has to
        confirm that has confirmed it. Raises ``BranchFailed`` if both are certainly rolled back, and
        :class:`AgentUnanswered` otherwise."""
        ...


class LastAgent(Protocol):
    """The table of rows in one database. All calls may be made after a restart, at any time, by several
    processes; they fail with ``ParticipantError``, and may be repeated."""

    async def place(self) -> AgentPlace:
        """The present history. Fails with ``ParticipantRefused`` if the database cannot be an agent: it has
        no table, or no history, or this role lacks a right."""
        ...

    async def prepares(self) -> bool:
        """Whether the database can prepare transactions. If it cannot, it can take part as the agent only."""
        ...

    async def conclude(self, entry: AgentEntry) -> AgentRow | None:
        """Write the tombstone, unless there is a row; return the row that is there then. No failover to a
        synchronous standby takes the answer back. None: there is no row, but the database is in another
        history than the entry, and the row may have been lost.

        Only for a transaction whose session is gone, or whose floor has passed it, or whose coordinator calls
        it for its own. Raises :class:`AgentBusy` if a COMMIT is being executed."""
        ...

    async def terminate(self, holder: Holder) -> bool:
        """End the database session ``holder``. False if it has ended, or cannot be identified. Fails with
        ``ParticipantRefused`` if this role may not do it."""
        ...

    async def find(self, keys: Sequence[bytes]) -> Mapping[bytes, AgentRow]:
        """The rows and tombstones of those ``keys`` that have one; writes nothing. No failover to a
        synchronous standby takes them back. A key without a row proves nothing: a COMMIT that is being
        executed has no row yet."""
        ...

    async def stored(self, ledger: str, *, after: bytes = b"", limit: int) -> Sequence[StoredRow]:
        """A page of the rows and tombstones under the ledger with id ``ledger``, in the order of their
        keys."""
        ...

    async def forget(self, keys: Sequence[bytes]) -> None:
        """Delete rows of COMMITs, which the ledger must hold by now: else a tombstone could be written in
        place of a row, and the transaction be taken for aborted. Tombstones are not deleted."""
        ...

    async def drop(self, keys: Sequence[bytes]) -> None:
        """Delete tombstones, of transactions whose session the ledger has dropped: no process can send their
        COMMIT any more. Rows of COMMITs are not deleted."""
        ...


def agent_of(participant: Participant | None) -> LastAgent | None:
    """The rows in the database of ``participant``; None if its database cannot be an agent."""
    agent: LastAgent | None = getattr(participant, "agent", None)
    return agent
