"""Implements each operation in one function, which takes a checked request and returns an answer.

Each raises :class:`~undoubt.serve.sidecar.problems.RequestRefused`, or an error of undoubt that becomes one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from undoubt.coordinator.errors import OutcomeUnknown
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.coordinator.ledger.session_mark import is_mark
from undoubt.coordinator.transaction import CommitResult, Transaction
from undoubt.participants.contract import Settled
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import InvalidName, TxId
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.announced import AnnouncedBranch
from undoubt.participants.postgres.psycopg.connection import AsyncBranchConnection
from undoubt.serve.console.console import Console
from undoubt.serve.sidecar import health, statements
from undoubt.serve.sidecar.agency import NO_AGENT, Agency
from undoubt.serve.sidecar.agent_branch import Agent, AgentOpener
from undoubt.serve.sidecar.book import Book, OpenTransaction, instant
from undoubt.serve.sidecar.capability import Capability, Sealer
from undoubt.serve.sidecar.health import METRICS_TYPE, SidecarHealth
from undoubt.serve.sidecar.idempotency import Answer
from undoubt.serve.sidecar.lookup import look_up
from undoubt.serve.sidecar.peers import OtherSidecars
from undoubt.serve.sidecar.problems import RETRY_AFTER_S, RequestRefused
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.shares import may_take
from undoubt.serve.sidecar.sql_values import Parameter, parameter
from undoubt.serve.sidecar.tokens import Client
from undoubt.serve.sidecar.types import (
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
    Health,
    Leading,
    NotKnownYet,
    ParticipantInfo,
    ParticipantList,
    RepeatedTransaction,
    RolledBack,
    StatementRequest,
    TransactionList,
    TransactionShown,
    Withdrawn,
)

JSON = "application/json"
LISTED_MAX = 1000

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class JudgedRequest:
    """A request within its bounds, of a known client, with its body decoded."""

    client: Client
    path: dict[str, str]
    query: dict[str, str]
    body: msgspec.Struct | None
    raw: tuple[msgspec.Raw, ...] = ()
    """As the client has sent them: the parameters of a statement, or the payload of a message if it has
    one."""
    wait_s: float = 0.0
    """The seconds in ``Prefer: wait``."""
    trace: str = ""
    capability: Capability | None = None
    """The verified capability with which the request joins the transaction of its path, which was begun
    here."""

    def given(self, kind: type[T]) -> T:
        """The body, which is of type ``kind``."""
        if not isinstance(self.body, kind):
            raise TypeError(type(self.body))
        return self.body


@dataclass(slots=True)
class Sidecar:
    """The objects that all requests share."""

    settings: SidecarSettings
    book: Book
    health: SidecarHealth
    description: bytes = b""
    """The OpenAPI document."""
    own_sql: frozenset[str] = field(default_factory=frozenset)
    """The participants in which the sidecar runs statements."""
    sealer: Sealer = field(default_factory=Sealer)
    peers: OtherSidecars | None = None
    agency: Agency | None = None
    console: Console | None = None
    waiting: Counter[str] = field(default_factory=Counter)
    """The number of requests that wait for the end of a transaction, by client. It is limited, so that
    requests that end transactions can still be served."""

    @property
    def ledger(self) -> Any:
        return self.book.coordinator.ledger

    def agents(self) -> Agency:
        """Raises :class:`RequestRefused`."""
        if self.agency is None:
            raise RequestRefused(404, "NoSuchBranch", "this sidecar runs no branches of others")
        return self.agency

    async def agents_address(self, session: str) -> str:
        """Of the sidecar of ``session``, as the ledger has it; empty if it is not to be called. Raises
        ``LedgerError``."""
        try:
            first = TxId.parse(f"{session}.1")
        except InvalidName:
            return ""
        if self.peers is None:
            return ""
        try:
            return await self.peers.owner_of(self.ledger, first)
        except RequestRefused:  # an address without TLS
            return ""

    @contextlib.contextmanager
    def waits(self, request: JudgedRequest) -> Iterator[float]:
        """For how long it may wait for an end; 0 where half of all requests wait: they leave room for those
        that bring an end about."""
        name, most = request.client.name, self.settings.requests_max // 2
        if not request.wait_s or not may_take(self.waiting[name], self.waiting.total(), most):
            yield 0.0
            return
        self.waiting[name] += 1
        try:
            yield request.wait_s
        finally:
            self.waiting[name] -= 1

    def participant(self, request: JudgedRequest, name: str) -> PostgresParticipant:
        """The participant ``name``, if the client and its capability allow it. Raises ``UnknownParticipant``,
        :class:`RequestRefused`."""
        check_participant(request.client, request.capability, name)
        found = self.book.coordinator.participants.get(name)
        if not isinstance(found, PostgresParticipant):
            raise TypeError(type(found))
        return found

    def own(self, request: JudgedRequest, id_: str = "") -> OpenTransaction:
        """The transaction ``id_``, or that of the path, which the client has begun or joins. Raises
        :class:`RequestRefused`."""
        id_ = id_ or request.path.get("id", "")
        entry = self.book.find(id_)
        if entry is not None and request.capability is not None:
            return entry
        if entry is None or entry.owner != request.client.name:
            # Other clients do not learn whether the transaction exists.
            raise _no_such(id_)
        return entry


def check_participant(client: Client, capability: Capability | None, name: str) -> None:
    """Raise :class:`RequestRefused` unless the client and its capability allow the participant ``name``."""
    if not client.may_use(name):
        raise RequestRefused(403, "NotAllowed", f"client {client.name!r} may not use participant {name!r}")
    if capability is not None and not capability.may_use(name):
        raise RequestRefused(403, "NotAllowed", f"that Undoubt-Transaction is not for participant {name!r}")


RUN_HERE = frozenset({"3pc", "last"})
"""Protocols for which no other sidecar runs a branch."""


def answer(body: msgspec.Struct, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, msgspec.json.encode(body), {"content-type": JSON, **named})


def _no_such(id_: str) -> RequestRefused:
    return RequestRefused(404, "NoSuchTransaction", f"you have no transaction {id_[:200]!r} here")


async def begin(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    wanted = request.given(BeginRequest)
    timeout_s = None if wanted.timeout_ms is None else wanted.timeout_ms / 1000
    name = request.client.name
    if wanted.key is None:
        entry = await sidecar.book.begin(name, timeout_s, wanted.protocol, request.trace, agent=wanted.agent)
    else:
        with sidecar.waits(request) as wait_s:
            key = f"{name}:{wanted.key}"  # another client must not read the result
            entry = await sidecar.book.begin(
                name,
                timeout_s,
                wanted.protocol,
                request.trace,
                key=key,
                key_wait_s=wait_s,
                agent=wanted.agent,
            )
    if not isinstance(entry, OpenTransaction):
        return _repeated(entry)
    join = ""
    if sidecar.settings.url:
        expires = entry.expires_at.timestamp()
        join = sidecar.sealer.issue(
            sidecar.ledger.ledger_id,
            entry.transaction.id,
            sidecar.settings.url,
            request.client.participants,
            expires,
        )
    begun = BegunTransaction(entry.id, instant(entry.expires_at), entry.protocol, join)
    return answer(begun, 201, location=f"/v1/transactions/{entry.id}")


def _repeated(first: Transaction) -> Answer:
    result = first.result
    if isinstance(result, bytes):
        return answer(RepeatedTransaction(str(first.id), result_base64=base64.b64encode(result).decode()))
    return answer(RepeatedTransaction(str(first.id), result=result))


async def announce(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    entry = sidecar.own(request)
    entry.check_active()
    participant = sidecar.participant(request, request.given(BranchRequest).participant)
    branch = await sidecar.book.announce(entry, participant)
    if request.capability is not None:
        entry.joined[branch.gid.branch] = request.client.name
    scripts = branch.scripts
    body = Announced(
        branch.gid.branch,
        str(branch.gid),
        "; ".join(scripts.begin),
        "; ".join(scripts.prepare),
        scripts.begin,
        scripts.prepare,
    )
    return answer(body, 201, location=f"/v1/transactions/{entry.id}/branches/{branch.gid.branch}")


async def withdraw(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """Withdraw an announced branch. Refused while a session is in the branch: its application would not learn
    that its statements have no effect."""
    request.client.needs("transact")
    entry = sidecar.own(request)
    entry.check_active()
    branch = announced_branch(request, entry, request.path["n"])
    number = branch.gid.branch
    if await branch.has_session():
        raise RequestRefused(
            409,
            "BranchInUse",
            f"a session of participant {branch.gid.participant!r} is still in it: roll it back there first",
            participant=branch.gid.participant,
        )
    settled = await entry.transaction.withdraw(branch.gid)
    if settled not in {Settled.APPLIED, Settled.ABSENT}:
        raise RequestRefused(
            409, "BranchBusy", "it is being prepared or ended: ask again", transaction=entry.id
        )
    del entry.announced[number], entry.branches[number]
    entry.joined.pop(number, None)
    return answer(Withdrawn(number, settled is Settled.APPLIED))


def announced_branch(request: JudgedRequest, entry: OpenTransaction, written: str) -> AnnouncedBranch:
    """The branch with the number ``written``, which the client has announced. Raises
    :class:`RequestRefused`."""
    number = _number(written)
    branch = entry.announced.get(number)
    others = request.capability is not None and entry.joined.get(number) != request.client.name
    if branch is None or others:
        raise RequestRefused(404, "NoSuchBranch", f"you have announced no branch {written[:20]!r}")
    return branch


def check_sql(sidecar: Sidecar, name: str) -> None:
    """Raise :class:`RequestRefused` unless the sidecar runs statements in participant ``name``."""
    if name not in sidecar.own_sql:
        raise RequestRefused(
            403, "NoSqlHere", f"participants.{name}.sidecar.sql is not set: run the branch yourself"
        )


async def execute(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    entry = sidecar.own(request)
    entry.check_active()
    wanted = request.given(StatementRequest)
    name = sidecar.participant(request, wanted.participant).name
    check_sql(sidecar, name)
    values = parameters(request)
    try:
        async with used_branch(sidecar, entry, name) as connection:
            return answer(await statements.run(connection, name, wanted.sql, values, sidecar.settings))
    except statements.UnreadableAnswer as error:
        entry.transaction.doom(statements.without_frames(error))
        entry.check_active()
        raise


@contextlib.asynccontextmanager
async def used_branch(
    sidecar: Sidecar, entry: OpenTransaction, name: str
) -> AsyncIterator[AsyncBranchConnection]:
    """For one call, the connection of the branch in participant ``name``. If the call fails because the
    transaction has ended meanwhile, what ended it is raised: the database says only that a statement was
    cancelled, or a connection closed."""
    async with entry.running.setdefault(name, asyncio.Lock()):
        entry.check_active()
        connection = await sidecar.book.connection(entry, name)
        try:
            yield connection
        except (statements.StatementFailed, UndoubtError) as failed:
            told = failed.__cause__ if isinstance(failed, statements.StatementFailed) else failed
            await entry.transaction.find_out(told)
            entry.check_active()
            raise


def parameters(request: JudgedRequest) -> list[Parameter]:
    """Of a statement. Raises ``UsageError``."""
    return [parameter(bytes(raw), f"params[{place}]") for place, raw in enumerate(request.raw)]


async def run_as_agent(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """Another sidecar runs the statements of a service that joins, unless they run here already: two branches
    of one transaction in one database would wait for one another."""
    request.client.needs("transact")
    entry = sidecar.own(request)
    entry.check_active()
    wanted = request.given(AgentRequest)
    participant = sidecar.participant(request, wanted.participant)
    address = ""
    elsewhere = participant.name not in entry.run_here and entry.protocol not in RUN_HERE
    if request.capability is not None and elsewhere:
        address = await sidecar.agents_address(wanted.session)
    if not address or sidecar.peers is None:
        raise RequestRefused(409, NO_AGENT, "its statements run at the sidecar that began the transaction")
    opener = AgentOpener(participant, Agent(sidecar.peers, address, wanted.secret))
    gid = await sidecar.book.add_agent(entry, opener)
    left_s = entry.transaction.deadline - asyncio.get_running_loop().time()
    return answer(AgentBegun(gid.branch, str(gid), max(int(left_s * 1000), 1)), 201)


async def prepare_for_owner(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    number = _number(request.path["n"])
    await sidecar.agents().prepare(request.path["id"], number, request.given(AgentOrder).secret)
    return answer(AgentVote(number, "prepared"))


async def undo_for_owner(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    number = _number(request.path["n"])
    await sidecar.agents().undo(request.path["id"], number, request.given(AgentOrder).secret)
    return answer(AgentVote(number, "ended"))


def _number(written: str) -> int:
    """The number of a branch; 0, which none has, if it is none."""
    return int(written) if written.isascii() and written.isdecimal() and len(written) < 5 else 0


async def commit(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact")
    entry = sidecar.book.find(request.path["id"])
    if entry is None or entry.owner != request.client.name:
        return await _commit_of_others(sidecar, request)
    if entry.active and not entry.branches:
        raise RequestRefused(422, "NothingToCommit", "the transaction has no branch: roll it back")
    result = request.given(CommitRequest).result
    if result is not None and entry.active:
        entry.transaction.result = result
    outcome = await sidecar.book.commit(entry)
    if isinstance(outcome, CommitResult):
        return answer(Committed(entry.id, pending=tuple(map(str, outcome.pending))))
    if isinstance(outcome, OutcomeUnknown):
        return _not_known_yet(entry.id, outcome.why)
    raise outcome


async def _commit_of_others(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """The answer to a commit of a transaction that this client has not begun here: the outcome in the
    ledger."""
    recorded = await _recorded(sidecar, request)
    match recorded.state:
        case "committed":
            return answer(Committed(recorded.id))
        case "unknown":
            return _not_known_yet(recorded.id, recorded.reason)
        case _:
            raise RequestRefused(
                409,
                "TransactionAborted" if recorded.state == "aborted" else "HeuristicOutcome",
                recorded.reason,
                outcome=recorded.state,
                reason=recorded.reason,
                transaction=recorded.id,
                branches=recorded.heuristics,
            )


def _not_known_yet(id_: str, why: str) -> Answer:
    body = NotKnownYet(id_, reason=why)
    return answer(body, 202, location=f"/v1/transactions/{id_}", retry_after=str(RETRY_AFTER_S))


async def roll_back(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("transact", "operate")
    entry = sidecar.book.find(request.path["id"])
    if entry is None or (entry.owner != request.client.name and "operate" not in request.client.roles):
        recorded = await _recorded(sidecar, request)
        if recorded.state == "aborted":
            return answer(RolledBack(recorded.id))
        if recorded.state == "unknown":
            raise OutcomeUnknown(TxId.parse(recorded.id), recorded.reason)
        raise RequestRefused(
            409, "TransactionEnded", recorded.reason, outcome=recorded.state, transaction=recorded.id
        )
    if not (entry.final and entry.info().state == "aborted"):
        await sidecar.book.roll_back(entry, request.client.name)
    return answer(RolledBack(entry.id))


async def show(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    entry = sidecar.book.find(request.path["id"])
    if entry is None:
        return answer(await _recorded(sidecar, request))
    if request.capability is None and not request.client.sees(entry.owner):
        raise _no_such(request.path["id"])
    with sidecar.waits(request) as wait_s:
        if wait_s:
            await sidecar.book.wait_for_end(entry, wait_s)
    shown = answer(entry.info())
    if wait_s:
        shown.headers["preference-applied"] = f"wait={wait_s:g}"
    return shown


async def _recorded(sidecar: Sidecar, request: JudgedRequest) -> TransactionShown:
    """The outcome in the ledger. Raises :class:`RequestRefused`, also if the transaction is in the book and
    belongs to another client."""
    entry = sidecar.book.find(request.path["id"])
    if entry is not None and not request.client.sees(entry.owner):
        raise _no_such(request.path["id"])
    try:
        txid = TxId.parse(request.path["id"])
    except InvalidName:
        raise _no_such(request.path["id"]) from None
    with sidecar.waits(request) as wait_s:
        end_s = asyncio.get_running_loop().time() + wait_s
        while True:
            found = await look_up(sidecar.ledger, txid)
            if found is None:
                raise _no_such(request.path["id"])
            if found.state != "unknown" or asyncio.get_running_loop().time() >= end_s:
                return found
            await asyncio.sleep(0.1)


async def list_transactions(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """List the transactions of this sidecar that the client may see; with ``in_doubt`` also the unfinished
    transactions of the ledger."""
    request.client.needs("transact", "observe", "operate")
    wanted = request.query.get("state", "")
    if wanted not in {"", "active", "committing", "committed", "aborted", "unknown", "heuristic", "in_doubt"}:
        raise RequestRefused(422, "UsageError", "state is not one of those that a transaction can have")
    found: dict[str, TransactionShown] = {}
    for entry in sidecar.book:
        info = entry.info()
        in_doubt = info.state in {"committing", "unknown"} or bool(info.pending)
        if request.client.sees(entry.owner) and (
            in_doubt if wanted == "in_doubt" else wanted in {"", info.state}
        ):
            found[info.id] = info
    if wanted == "in_doubt" and not request.client.roles.isdisjoint({"observe", "operate"}):
        async for record in every_unfinished(sidecar.ledger):
            if len(found) >= LISTED_MAX:
                break
            if is_mark(record.txid):
                continue
            found.setdefault(str(record.txid), TransactionShown(str(record.txid), _state_of(record.decision)))
    return answer(TransactionList(tuple(found.values())[:LISTED_MAX]))


def _state_of(decision: str) -> Any:
    return "committed" if decision == "commit" else "aborted"


async def list_participants(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    names = [name for name in sidecar.book.coordinator.participants.names() if request.client.may_use(name)]
    return answer(ParticipantList(tuple(ParticipantInfo(name, name in sidecar.own_sql) for name in names)))


async def live(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    return answer(Health(ok=True))


async def ready(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    """Report whether the sidecar is ready. ``verbose`` needs a known client: it lists participants."""
    if "verbose" in request.query:
        request.client.needs("transact", "observe", "operate")
    checks = await health.ready(sidecar.book, verbose="verbose" in request.query)
    return answer(checks, 200 if checks.ok else 503)


async def leader(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    leads = bool(sidecar.ledger.leads)
    return answer(Leading(leads), 200 if leads else 503)


async def metrics(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    request.client.needs("observe", "operate")
    return Answer(200, sidecar.health.text(), {"content-type": METRICS_TYPE})


async def description(sidecar: Sidecar, request: JudgedRequest) -> Answer:
    return Answer(200, sidecar.description, {"content-type": JSON})
