"""Requests that come with the header ``Undoubt-Transaction``: carried out here if the transaction was begun
here, else sent to the sidecar that began it.

A request that the owner did not answer is told from the ledger where it only asked for the outcome; one that
changes something is answered 503, and may have been carried out: it changes an undecided transaction, which
its owner alone can commit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest

from undoubt.participants.errors import UsageError
from undoubt.serve.sidecar.capability import SealedCapability, check_current, expired, parse
from undoubt.serve.sidecar.handlers import JudgedRequest, Sidecar, check_participant
from undoubt.serve.sidecar.idempotency import Answer, key_of
from undoubt.serve.sidecar.operations import Operation
from undoubt.serve.sidecar.peers import FORWARDED, OwnerUnreachable, key_at_owner, unreachable
from undoubt.serve.sidecar.problems import RequestRefused
from undoubt.serve.sidecar.types import BranchRequest, StatementRequest

_PASSED_ON = ("content-type", "prefer", "traceparent", "tracestate")


@dataclass(frozen=True, slots=True)
class Shown:
    """What came over HTTP with a capability."""

    sealed: SealedCapability
    body: bytes
    headers: dict[str, str]
    key: str | None
    forwarded: bool

    @classmethod
    def of(cls, http: HttpRequest, header: str, body: bytes) -> Shown:
        """Raises :class:`RequestRefused`."""
        headers = {name: http.headers[name] for name in _PASSED_ON if name in http.headers}
        key = key_of(http.headers.get("idempotency-key"))
        return cls(parse(header), body, headers, key, FORWARDED in http.headers)


async def work(sidecar: Sidecar, operation: Operation, request: JudgedRequest, shown: Shown) -> Answer:
    """Raises :class:`RequestRefused`, ``LedgerError``, and what the operation raises."""
    capability = shown.sealed.capability
    if not operation.joins:
        raise RequestRefused(
            403, "CapabilityCannot", "an Undoubt-Transaction adds branches: who began the transaction ends it"
        )
    check_current(capability, sidecar.ledger.ledger_id, request.path["id"])
    reads = operation.method == "GET"
    if capability.owner == sidecar.settings.url:
        entry = sidecar.book.find(request.path["id"])
        if entry is None:
            return await operation.handle(sidecar, request)  # begun before this process, or long over
        sidecar.sealer.check(shown.sealed)
        _check_expiry(shown, reads=reads)
        return await operation.handle(sidecar, dataclasses.replace(request, capability=capability))
    _check_expiry(shown, reads=reads)
    request.client.needs("transact")
    if isinstance(request.body, BranchRequest | StatementRequest):
        check_participant(request.client, capability, request.body.participant)
    if shown.forwarded:
        raise RequestRefused(421, "WrongOwner", "this sidecar did not begin that transaction")
    return await _forwarded(sidecar, operation, request, shown)


async def _forwarded(sidecar: Sidecar, operation: Operation, request: JudgedRequest, shown: Shown) -> Answer:
    if sidecar.peers is None:
        raise UsageError("this sidecar reaches no others")
    capability = shown.sealed.capability
    owner = await sidecar.peers.owner_of(sidecar.ledger, capability.txid, capability.owner)
    if not owner:
        return await operation.handle(sidecar, request)  # its session has ended: the ledger tells what became
    path = operation.path.format_map({name: _plain(value) for name, value in request.path.items()})
    headers = dict(shown.headers)
    if shown.key is not None:
        headers["idempotency-key"] = key_at_owner(request.client.name, shown.key)
    try:
        return await sidecar.peers.ask(operation.method, owner + path, shown.sealed, shown.body, headers)
    except OwnerUnreachable:
        if operation.method == "GET":
            return await operation.handle(sidecar, request)
        raise unreachable() from None


def _check_expiry(shown: Shown, *, reads: bool) -> None:
    """A client that joined may ask for the outcome afterwards."""
    if not reads and expired(shown.sealed.capability):
        raise RequestRefused(403, "CapabilityExpired", "that Undoubt-Transaction has expired")


def _plain(value: str) -> str:
    """Of a path: an id that was checked, or a branch's number. Raises :class:`RequestRefused`."""
    if not all(each.isascii() and (each.isalnum() or each in "-.") for each in value):
        raise RequestRefused(404, "NoSuchBranch", "there is no such branch")
    return value
