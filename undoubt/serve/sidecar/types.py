"""Defines the bodies of requests and answers, from which :mod:`undoubt.serve.sidecar.openapi` is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from undoubt.coordinator.settings import ProtocolName

Name = Annotated[
    str,
    Meta(min_length=1, max_length=63, pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*$", description="A participant."),
]
Secret = Annotated[str, Meta(min_length=20, max_length=100)]
TransactionId = Annotated[str, Meta(description="<session>-<nonce>.<seq>", examples=["1-0123456789abcdef.7"])]


class BeginRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All fields are optional."""

    timeout_ms: Annotated[int, Meta(ge=1, le=2_073_600_000)] | None = None
    """The transaction is aborted if it is not decided after this time; the default is
    coordinator.timeout_s."""
    protocol: ProtocolName | None = None
    """The default is coordinator.protocol."""
    key: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    """Of all transactions of this client with one key, at all sidecars of the ledger, one commits; a
    repetition gets its result. Only with 2pc."""
    agent: Name | None = None
    """With last: the participant that commits last, whose statements the sidecar runs; the default is
    coordinator.agent."""


class CommitRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All fields are optional."""

    result: Any = None
    """For a transaction with a key: JSON that a repetition of the key gets."""


class BranchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    participant: Name


class StatementRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One statement; ``$1`` and so on stand for ``params``."""

    participant: Name
    sql: Annotated[str, Meta(min_length=1)]
    params: tuple[Any, ...] = ()
    """null, true, numbers, strings, lists (arrays), or {"type": …, "value": …}."""


class PublishRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message, which is in the outbox of the participant exactly if the transaction has committed."""

    participant: Name
    payload: Any = None
    """JSON, which is sent as it is here; a string is sent as text."""
    payload_base64: str | None = None
    """Instead of ``payload``: bytes."""
    topic: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    """The default is the participant's name."""
    key: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    """Messages of one topic and key are delivered in the order in which their transactions commit."""
    headers: dict[str, str] | None = None
    branch: Annotated[int, Meta(ge=1, le=9999)] | None = None
    """The number of a branch that you have announced: the answer has a statement, which you run in it."""


class AgentRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of another sidecar, which will run a branch of this transaction."""

    participant: Name
    session: Annotated[str, Meta(max_length=100, examples=["2-0123456789abcdef"])]
    """Its session in the ledger, which has its address: <session>-<nonce>."""
    secret: Secret


class AgentOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """To the sidecar that runs a branch; ``secret`` is the one of its :class:`AgentRequest`."""

    secret: Secret


class AgentBegun(msgspec.Struct, frozen=True):
    """The branch to be run by the sidecar that asked."""

    n: int
    gid: str
    timeout_ms: int
    """Not prepared by then, it is rolled back."""


class AgentVote(msgspec.Struct, frozen=True):
    n: int
    state: Literal["prepared", "ended"]
    """``ended``: it is rolled back, unless it was prepared before."""


class BegunTransaction(msgspec.Struct, frozen=True):
    id: TransactionId
    expires_at: str
    """RFC 3339, in UTC."""
    protocol: ProtocolName
    join: str = ""
    """The value of the header Undoubt-Transaction, with which other services join the transaction through
    their sidecars; empty if sidecar.url is not set. A secret."""


class RepeatedTransaction(msgspec.Struct, frozen=True):
    """A transaction of this client has committed with that key before: nothing was begun."""

    id: TransactionId
    """Of that transaction."""
    outcome: Literal["committed"] = "committed"
    repeated: bool = True
    result: Any = None
    """As in the :class:`CommitRequest` of that transaction."""
    result_base64: str = ""
    """Instead of ``result``, if a Python application has stored bytes."""


class Announced(msgspec.Struct, frozen=True):
    """Run ``begin``, your own statements, and ``prepare``, in one session of the participant's database."""

    n: int
    gid: str
    begin: str
    prepare: str
    begin_statements: tuple[str, ...]
    """The statements of ``begin``, for drivers that send one statement at a time."""
    prepare_statements: tuple[str, ...]


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str


class Rows(msgspec.Struct, frozen=True):
    columns: tuple[Column, ...]
    rows: list[list[Any]]
    tag: str
    """The command tag of PostgreSQL: "UPDATE 3"."""


class Published(msgspec.Struct, frozen=True):
    dedupe_id: str
    """The same in each delivery of the message, and of no other message."""
    participant: str
    statement: str = ""
    """Of a branch that you run: run it once, between ``begin`` and ``prepare``. Empty otherwise."""


class Committed(msgspec.Struct, frozen=True):
    id: TransactionId
    outcome: Literal["committed"] = "committed"
    pending: tuple[str, ...] = ()
    """The gids of branches that have not confirmed yet; recovery commits them."""


class RolledBack(msgspec.Struct, frozen=True):
    id: TransactionId
    outcome: Literal["aborted"] = "aborted"


class NotKnownYet(msgspec.Struct, frozen=True):
    """The outcome is committed or aborted, and is not known yet. Repeat the request; do not treat the
    transaction as aborted."""

    id: TransactionId
    outcome: Literal["unknown"] = "unknown"
    reason: str = ""


class Withdrawn(msgspec.Struct, frozen=True):
    n: int
    was_prepared: bool


class BranchInfo(msgspec.Struct, frozen=True):
    n: int
    participant: str
    gid: str
    run_by: Literal["caller", "sidecar", "agent"]
    """``agent``: another service's sidecar."""


State = Literal["active", "committing", "committed", "aborted", "unknown", "heuristic"]


class TransactionShown(msgspec.Struct, frozen=True, omit_defaults=True):
    """``unknown``: the outcome is not known yet. ``heuristic``: a participant has not done what was
    decided."""

    id: TransactionId
    state: State
    protocol: str = ""
    expires_at: str = ""
    branches: tuple[BranchInfo, ...] = ()
    reason: str = ""
    pending: tuple[str, ...] = ()
    heuristics: dict[str, str] = {}


class TransactionList(msgspec.Struct, frozen=True):
    transactions: tuple[TransactionShown, ...]


class ParticipantInfo(msgspec.Struct, frozen=True):
    name: str
    sql: bool
    """Whether the sidecar runs statements in this participant."""


class ParticipantList(msgspec.Struct, frozen=True):
    participants: tuple[ParticipantInfo, ...]


LockMode = Literal["exclusive", "shared"]
Token = Annotated[int, Meta(ge=1, description="Higher than those of all earlier holders of any lock.")]


class AcquireRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The lock is given back when the transaction ends, at the latest."""

    transaction: TransactionId
    """One that you have begun here."""
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    mode: LockMode = "exclusive"


class LockShown(msgspec.Struct, frozen=True):
    token: Token
    name: str
    mode: LockMode
    transaction: TransactionId
    held: bool
    """Whether it is certain that no other holder has been granted the lock."""
    guard: str
    """The statement with which a branch that you run begins, so that its database refuses a stale holder. A
    savepoint that is rolled back undoes it."""


class LockList(msgspec.Struct, frozen=True):
    locks: tuple[LockShown, ...]


class LockReleased(msgspec.Struct, frozen=True):
    token: Token
    held: bool
    """Whether it is certain that no other holder had been granted the lock before."""


class GuardRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    participant: Name


class GuardedBranch(msgspec.Struct, frozen=True):
    token: Token
    participant: Name


class Check(msgspec.Struct, frozen=True):
    name: str
    ok: bool
    why: str = ""


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    ok: bool
    checks: tuple[Check, ...] = ()


class Leading(msgspec.Struct, frozen=True):
    leads: bool
    """Whether recovery runs in this process."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A problem document of RFC 9457. ``name`` is the name of an error of undoubt or of the sidecar."""

    type: str
    title: str
    status: int
    name: str
    detail: str = ""
    outcome: str = ""
    """The outcome of the transaction that the request should have ended."""
    reason: str = ""
    transaction: str = ""
    participant: str = ""
    sqlstate: str = ""
    votes: dict[str, str] = {}
    branches: dict[str, str] = {}
