"""Holds the table of operations, from which the routes and the description are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from undoubt.serve.sidecar import handlers, locks, messages
from undoubt.serve.sidecar.handlers import JudgedRequest, Sidecar
from undoubt.serve.sidecar.idempotency import Answer
from undoubt.serve.sidecar.types import (
    AcquireRequest,
    AgentBegun,
    AgentOrder,
    AgentRequest,
    AgentVote,
    Announced,
    BeginRequest,
    BegunTransaction,
    BranchRequest,
    CommitRequest,
    Committed,
    GuardedBranch,
    GuardRequest,
    Health,
    Leading,
    LockList,
    LockReleased,
    LockShown,
    NotKnownYet,
    ParticipantList,
    Published,
    PublishRequest,
    RepeatedTransaction,
    RolledBack,
    Rows,
    StatementRequest,
    TransactionList,
    TransactionShown,
    Withdrawn,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. ``takes`` is the type of the body of its request, ``gives`` the types of the
    bodies of its answers, by status."""

    name: str
    method: str
    path: str
    handle: Callable[[Sidecar, JudgedRequest], Awaitable[Answer]]
    summary: str
    gives: dict[int, type | None]
    takes: type | None = None
    may_be_empty: bool = False
    """Whether a request without a body is accepted."""
    guarded: bool = True
    """Whether the request needs a known client."""
    waits: bool = False
    """Whether ``Prefer: wait`` is obeyed."""
    joins: bool = False
    """Whether clients that join a transaction with ``Undoubt-Transaction`` may make the request."""
    adds: bool = False
    """Whether the request changes what will be committed."""
    orders: bool = False
    """The owner orders it of an agent: it is never sent to the owner."""
    query: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def keyed(self) -> bool:
        """Whether ``Idempotency-Key`` is obeyed."""
        return self.method == "POST"


_TRANSACTION = "/v1/transactions/{id}"
_STATES = ("active", "committing", "committed", "aborted", "unknown", "heuristic", "in_doubt")

OPERATIONS = (
    Operation(
        "begin",
        "POST",
        "/v1/transactions",
        handlers.begin,
        "Begin a transaction; 200: one has committed with that key before.",
        {201: BegunTransaction, 200: RepeatedTransaction},
        takes=BeginRequest,
        may_be_empty=True,
        waits=True,
    ),
    Operation(
        "listTransactions",
        "GET",
        "/v1/transactions",
        handlers.list_transactions,
        "Transactions that were begun here; in_doubt: those that are not finished.",
        {200: TransactionList},
        query={"state": {"type": "string", "enum": list(_STATES)}},
    ),
    Operation(
        "show",
        "GET",
        _TRANSACTION,
        handlers.show,
        "The state of a transaction.",
        {200: TransactionShown},
        waits=True,
        joins=True,
    ),
    Operation(
        "announce",
        "POST",
        f"{_TRANSACTION}/branches",
        handlers.announce,
        "Announce a branch that you run and prepare yourself.",
        {201: Announced},
        takes=BranchRequest,
        joins=True,
        adds=True,
    ),
    Operation(
        "withdraw",
        "DELETE",
        f"{_TRANSACTION}/branches/{{n}}",
        handlers.withdraw,
        "Withdraw an announced branch, which is rolled back.",
        {200: Withdrawn},
        joins=True,
        adds=True,
    ),
    Operation(
        "execute",
        "POST",
        f"{_TRANSACTION}/statements",
        handlers.execute,
        "Run a statement in a branch that the sidecar runs.",
        {200: Rows},
        takes=StatementRequest,
        joins=True,
        adds=True,
    ),
    Operation(
        "publish",
        "POST",
        f"{_TRANSACTION}/messages",
        messages.publish,
        "Put a message into the outbox of a branch.",
        {201: Published},
        takes=PublishRequest,
        joins=True,
        adds=True,
    ),
    Operation(
        "runAsAgent",
        "POST",
        f"{_TRANSACTION}/agents",
        handlers.run_as_agent,
        "Of another sidecar: add a branch that it runs.",
        {201: AgentBegun},
        takes=AgentRequest,
        joins=True,
        adds=True,
    ),
    Operation(
        "prepareForOwner",
        "POST",
        f"{_TRANSACTION}/agents/{{n}}/prepare",
        handlers.prepare_for_owner,
        "Of the sidecar that began the transaction: prepare the branch that runs here.",
        {200: AgentVote},
        takes=AgentOrder,
        orders=True,
    ),
    Operation(
        "undoForOwner",
        "POST",
        f"{_TRANSACTION}/agents/{{n}}/rollback",
        handlers.undo_for_owner,
        "Of the sidecar that began the transaction: roll back the branch that runs here.",
        {200: AgentVote},
        takes=AgentOrder,
        orders=True,
    ),
    Operation(
        "commit",
        "POST",
        f"{_TRANSACTION}/commit",
        handlers.commit,
        "Commit everywhere or nowhere.",
        {200: Committed, 202: NotKnownYet},
        takes=CommitRequest,
        may_be_empty=True,
    ),
    Operation(
        "rollBack",
        "POST",
        f"{_TRANSACTION}/rollback",
        handlers.roll_back,
        "Undo everything.",
        {200: RolledBack},
    ),
    Operation(
        "acquireLock",
        "POST",
        "/v1/locks",
        locks.acquire,
        "Take a lock for a transaction of yours; 409 LockHeld: it is not free.",
        {201: LockShown},
        takes=AcquireRequest,
        waits=True,
    ),
    Operation(
        "listLocks",
        "GET",
        "/v1/locks",
        locks.list_locks,
        "The locks that are held here for transactions that you may see.",
        {200: LockList},
    ),
    Operation(
        "releaseLock",
        "DELETE",
        "/v1/locks/{token}",
        locks.release,
        "Give a lock back before its transaction ends.",
        {200: LockReleased},
    ),
    Operation(
        "guardBranch",
        "POST",
        "/v1/locks/{token}/guard",
        locks.guard,
        "Begin a branch that the sidecar runs with the guard of a lock.",
        {200: GuardedBranch},
        takes=GuardRequest,
    ),
    Operation(
        "listParticipants",
        "GET",
        "/v1/participants",
        handlers.list_participants,
        "The participants that you may use.",
        {200: ParticipantList},
    ),
    Operation("live", "GET", "/livez", handlers.live, "It lives.", {200: Health}, guarded=False),
    Operation(
        "ready",
        "GET",
        "/readyz",
        handlers.ready,
        "Whether transactions can begin; verbose reports every check.",
        {200: Health, 503: Health},
        guarded=False,
        query={"verbose": {"type": "string", "maxLength": 10}},
    ),
    Operation(
        "leader",
        "GET",
        "/leader",
        handlers.leader,
        "Whether recovery runs in this process.",
        {200: Leading, 503: Leading},
    ),
    Operation("metrics", "GET", "/metrics", handlers.metrics, "Metrics for Prometheus.", {200: None}),
    Operation("description", "GET", "/openapi.json", handlers.description, "This document.", {200: None}),
)
