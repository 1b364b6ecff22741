"""Forwards requests about a transaction that another sidecar has begun to that sidecar, the owner.

With the header ``Undoubt-Transaction`` a service joins the transaction: the owner gets this sidecar's token
or certificate. Without the header, a client asks about a transaction that it has begun at the other sidecar:
the owner gets the client's token, and decides as if the client had sent the request to it. A client without a
token (at the unix socket, or with a certificate) gets the outcome in the ledger.

If the owner does not answer a request for the outcome, or for the end of the transaction, the answer is read
from the ledger. If the owner does not answer a request that adds to the transaction, the answer is 503 and
the request may have been carried out: it changes an undecided transaction, which only its owner can
commit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from undoubt.participants.errors import UsageError
from undoubt.participants.ids import InvalidName, TxId
from undoubt.serve.sidecar.agency import OwnerAnswered
from undoubt.serve.sidecar.capability import SealedCapability, check_current, expired
from undoubt.serve.sidecar.handlers import JudgedRequest, Sidecar, answer, check_participant, parameters
from undoubt.serve.sidecar.idempotency import Answer, key_of
from undoubt.serve.sidecar.messages import message_of
from undoubt.serve.sidecar.operations import Operation
from undoubt.serve.sidecar.peers import (
    FORWARDED,
    OtherSidecars,
    OwnerRefuses,
    OwnerUnreachable,
    key_at_owner,
    unreachable,
)
from undoubt.serve.sidecar.problems import RequestRefused
from undoubt.serve.sidecar.types import (
    AgentRequest,
    BranchRequest,
    Published,
    PublishRequest,
    StatementRequest,
)

_PASSED_ON = ("content-type", "prefer", "traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Sent:
    """The parts of an HTTP request that are forwarded."""

    body: bytes
    headers: dict[str, str]
    key: str | None
    authorization: str = dataclasses.field(repr=False)
    forwarded: bool

    @classmethod
    def of(cls, http: HttpRequest, body: bytes) -> Sent:
        """Raises :class:`RequestRefused`."""
        headers = {name: http.headers[name] for name in _PASSED_ON if name in http.headers}
        return cls(
            body,
            headers,
            key_of(http.headers.get("idempotency-key")),
            http.headers.get("authorization", ""),
            FORWARDED in http.headers,
        )


async def work(
    sidecar: Sidecar, operation: Operation, request: JudgedRequest, shown: SealedCapability, sent: Sent
) -> Answer:
    """Carry out a request with a capability. Raises :class:`RequestRefused`, ``LedgerError``, and the errors
    of the operation."""
    capability = shown.capability
    if not operation.joins:
        raise RequestRefused(
            403,
            "CapabilityCannot",
            "a client that joins runs branches: all else is for the client that began the transaction",
        )
    check_current(capability, sidecar.ledger.ledger_id, request.path["id"])
    reads = operation.method == "GET"
    if capability.owner == sidecar.settings.url:
        entry = sidecar.book.find(request.path["id"])
        if entry is None:
            return await operation.handle(sidecar, request)  # begun before this process, or long over
        sidecar.sealer.check(shown)
        _check_expiry(shown, reads=reads)
        return await operation.handle(sidecar, dataclasses.replace(request, capability=capability))
    _check_expiry(shown, reads=reads)
    request.client.needs("transact")
    if isinstance(request.body, BranchRequest | PublishRequest | StatementRequest):
        check_participant(request.client, capability, request.body.participant)
    if sent.forwarded or isinstance(request.body, AgentRequest):  # an agent speaks for itself
        raise RequestRefused(421, "WrongOwner", "this sidecar did not begin that transaction")
    return await _joined(sidecar, operation, request, shown, sent)


async def _joined(
    sidecar: Sidecar, operation: Operation, request: JudgedRequest, shown: SealedCapability, sent: Sent
) -> Answer:
    peers = _peers(sidecar)
    owner = await peers.owner_of(sidecar.ledger, shown.capability.txid, shown.capability.owner)
    if not owner:
        return await operation.handle(sidecar, request)  # its session has ended: the ledger has the outcome
    try:
        if (told := await _as_agent(sidecar, request, shown, owner)) is not None:
            return told
    except OwnerUnreachable:
        raise unreachable() from None
    except OwnerAnswered as answered:
        return answered.answer
    headers = dict(sent.headers)
    if sent.key is not None:
        headers["idempotency-key"] = key_at_owner(request.client.name, sent.key)
    try:
        url = owner + _path(operation, request)
        asking = peers.join(operation.method, url, shown, sent.body, headers)
        return await peers.while_open(sidecar.ledger, shown.capability.txid, asking)
    except OwnerUnreachable:
        if operation.method == "GET":
            return await operation.handle(sidecar, request)
        raise unreachable() from None


async def _as_agent(
    sidecar: Sidecar, request: JudgedRequest, shown: SealedCapability, owner: str
) -> Answer | None:
    """A statement or message of a branch that this sidecar runs for the owner; None if the owner runs the
    branch, or if the request is another one."""
    wanted = request.body
    if sidecar.agency is None or not sidecar.settings.url:
        return None
    if not isinstance(wanted, PublishRequest | StatementRequest) or wanted.participant not in sidecar.own_sql:
        return None
    participant = sidecar.participant(request, wanted.participant)
    if isinstance(wanted, StatementRequest):
        rows = await sidecar.agency.execute(shown, owner, participant, wanted.sql, parameters(request))
        return None if rows is None else answer(rows)
    if wanted.branch is not None:
        return None
    published = await sidecar.agency.publish(shown, owner, participant, message_of(request))
    return None if published is None else answer(Published(published, participant.name), 201)


async def work_elsewhere(
    sidecar: Sidecar, operation: Operation, request: JudgedRequest, sent: Sent
) -> Answer:
    """Carry out a request without a capability about a transaction that is not in the book. Raises the same
    errors as :func:`work`."""
    owner = await _owner(sidecar, request, sent)
    if not owner:
        return await operation.handle(sidecar, request)
    headers = sent.headers | {"authorization": sent.authorization}
    if sent.key is not None:
        headers["idempotency-key"] = sent.key
    peers, id_ = _peers(sidecar), request.path["id"]
    try:
        asking = peers.ask(operation.method, owner + _path(operation, request), sent.body, headers, id_)
        return await peers.while_open(sidecar.ledger, TxId.parse(id_), asking)
    except OwnerRefuses:
        return await operation.handle(sidecar, request)
    except OwnerUnreachable:
        if operation.adds:
            raise unreachable() from None
        return await operation.handle(sidecar, request)


async def _owner(sidecar: Sidecar, request: JudgedRequest, sent: Sent) -> str:
    """The address of the other sidecar that began the transaction of the path; empty if there is none, or if
    the client has no token that could be forwarded."""
    if sent.forwarded or not sent.authorization:
        return ""
    try:
        txid = TxId.parse(request.path["id"])
    except InvalidName:
        return ""
    owner = await _peers(sidecar).owner_of(sidecar.ledger, txid)
    return "" if owner == sidecar.settings.url else owner


def _peers(sidecar: Sidecar) -> OtherSidecars:
    if sidecar.peers is None:
        raise UsageError("this sidecar cannot call other sidecars")
    return sidecar.peers


def _path(operation: Operation, request: JudgedRequest) -> str:
    return operation.path.format_map({name: _plain(value) for name, value in request.path.items()})


def _check_expiry(shown: SealedCapability, *, reads: bool) -> None:
    """Raise :class:`RequestRefused` if the capability has expired. A request that reads the outcome is
    allowed afterwards too."""
    if not reads and expired(shown.capability):
        raise RequestRefused(403, "CapabilityExpired", "that Undoubt-Transaction has expired")


def _plain(value: str) -> str:
    """``value`` if it can be a part of a path: a checked id, or the number of a branch. Raises
    :class:`RequestRefused`."""
    if not all(each.isascii() and (each.isalnum() or each in "-.") for each in value):
        raise RequestRefused(404, "NoSuchBranch", "there is no such branch")
    return value
