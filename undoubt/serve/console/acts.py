"""What an operator may do here: end a whole transaction, and forget a heuristic outcome.

Both go through what ``undoubt tx resolve`` and ``undoubt indoubt forget`` call. Two conditions are added. The
id must have been typed. And what is recorded at every branch must have been shown: the request carries the
digest of what the page showed, and is refused if that has changed meanwhile."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec

from undoubt.coordinator.ledger.acting import acting_for
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Foreign, Gid, InvalidName, TxId
from undoubt.participants.redact import redact
from undoubt.participants.registry import Registry
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.transaction import Resolver
from undoubt.recovery.operator.whole_transaction import Whole, check, look
from undoubt.report import shapes
from undoubt.report.transactions import warnings
from undoubt.serve.console.readings import without_ages
from undoubt.serve.sidecar.problems import RequestRefused

Note = Annotated[str, msgspec.Meta(max_length=1000)]
Name = Annotated[str, msgspec.Meta(max_length=200)]


class ResolveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``typed``: the id as the operator typed it. ``shown``: the digest of what was shown before."""

    txid: Name
    typed: Name
    shown: Name
    direction: Literal["commit", "abort", "terminate"]
    heuristic: bool = False
    contradict: bool = False
    note: Note = ""


class ForgetRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``typed``: the id of the branch's transaction as the operator typed it."""

    gid: Name
    typed: Name
    shown: Name
    note: Note = ""


def digest(whole: Whole) -> str:
    """Of all that an operator decides by: what is recorded, and what each branch is now."""
    document = without_ages(shapes.whole(whole))
    return hashlib.sha256(msgspec.json.encode(document, order="deterministic")).hexdigest()[:32]


def choices(whole: Whole) -> list[dict[str, Any]]:
    """The ways to end it that are open to an operator, the safe one first. ``warnings`` are those that
    ``tx resolve`` shows before its question; ``refused`` says why a way without flags is none."""
    if whole.asks_protocol:
        rollback = [_choice(whole, Decision.ABORT)] if whole.may_be_fenced else []
        return [_choice(whole, "terminate"), *rollback]
    if not whole.prepared:
        return []
    ways = [_choice(whole, decision) for decision in (Decision.COMMIT, Decision.ABORT)]
    return sorted(ways, key=lambda one: not one["safe"])


def _choice(whole: Whole, way: Decision | Literal["terminate"]) -> dict[str, Any]:
    if way == "terminate":
        return {"direction": way, "safe": True, "needs": [], "warnings": [], "refused": None}
    needs: list[str] = []
    refused = None
    for flags in ([], ["heuristic"], ["heuristic", "contradict"]):
        try:
            check(whole, way, heuristic="heuristic" in flags, contradict="contradict" in flags)
        except Exception as error:  # noqa: BLE001 - only its text is shown; the act itself is checked again
            refused = refused or str(error)
        else:
            needs = flags
            break
    return {
        "direction": str(way),
        "safe": whole.direction is way,
        "needs": needs,
        "warnings": warnings(whole, way),
        "refused": refused,
    }


def transaction_id(text: str) -> TxId:
    """Raises :class:`RequestRefused`."""
    try:
        return TxId.parse(text)
    except InvalidName as error:
        raise RequestRefused(422, "UsageError", str(error)) from None


def gid_of(text: str) -> Gid:
    """Raises :class:`RequestRefused`."""
    gid = Gid.parse(text)
    if isinstance(gid, Foreign):
        raise RequestRefused(422, "UsageError", "that is not the name of a branch of undoubt")
    return gid


async def resolve(ledger: Ledger, participants: Registry, wanted: ResolveRequest, who: str) -> dict[str, Any]:
    """End the transaction as ``tx resolve`` does; returns the result of each branch, and the transaction as
    it is afterwards. Raises :class:`RequestRefused`, and what :class:`Resolver` raises."""
    txid = transaction_id(wanted.txid)
    await _check(ledger, participants, txid, wanted.typed, wanted.shown)
    resolver = Resolver(ledger, participants)
    with acting_for(who):
        if wanted.direction == "terminate":
            after = await resolver.terminate(txid, note=wanted.note)
            left = f"still in doubt: {after.why}" if after.prepared else "done"
            return {"results": [{"branch": None, "participant": "", "result": left}]}
        ended = await resolver.end(
            txid,
            Decision(wanted.direction),
            heuristic=wanted.heuristic,
            contradict=wanted.contradict,
            note=wanted.note,
        )
    return {
        "results": [
            {"branch": one.number, "participant": one.participant, "result": redact(said)}
            for one, said in ended
        ]
    }


async def forget(ledger: Ledger, participants: Registry, wanted: ForgetRequest, who: str) -> dict[str, Any]:
    """Forget the heuristic outcome of a branch. Raises :class:`RequestRefused`, ``LedgerError``."""
    gid = gid_of(wanted.gid)
    await _check(ledger, participants, gid.txid, wanted.typed, wanted.shown)
    with acting_for(who):
        if not await Operator(ledger, participants).forget(gid, note=wanted.note):
            raise RequestRefused(404, "NotFound", f"no heuristic outcome is open for {gid}")
    return {"results": [{"branch": gid.branch, "participant": gid.participant, "result": "forgotten"}]}


async def _check(ledger: Ledger, participants: Registry, txid: TxId, typed: str, shown: str) -> None:
    if typed.strip() != str(txid):
        raise RequestRefused(
            422, "NotTyped", f"type the id of the transaction to confirm: {txid}. Nothing was done"
        )
    if digest(await look(ledger, participants, txid)) != shown:
        raise RequestRefused(
            409, "Changed", "what is recorded has changed since it was shown. Nothing was done; look again"
        )
