"""The ledger's contract as messages, for callers in other processes.

One message per call of the contract, encoded as tagged msgpack arrays. ``perform`` carries a request out on a
ledger; ``REPLY_TYPES`` says what its reply decodes to. They travel in the envelope of
:mod:`undoubt.coordinator.rpc`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, assert_never

import msgspec

from undoubt.coordinator.ledger.commands import FIRST_VERSION, PAXOS_VERSION, TAGS_VERSION
from undoubt.coordinator.ledger.contract import (
    Act,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    LedgerInfo,
    RecordedDecision,
    Session,
    SessionInfo,
    TransactionInfo,
    Verdict,
)
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.rpc.envelope import Request
from undoubt.participants.contract import Claim, Decision
from undoubt.participants.ids import BRANCH_NUMBER_MAX, Gid, Protocol, TxId

IDS_MAX = 100_000
_Ids = Annotated[tuple[TxId, ...], msgspec.Meta(max_length=IDS_MAX)]
"""Bounded before any is decoded."""


_Branches = Annotated[tuple[BranchRecord, ...], msgspec.Meta(max_length=BRANCH_NUMBER_MAX)]


class _Call(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


class OpenSessionCall(_Call, frozen=True, tag="open"):
    name: str
    ttl_s: float
    nonce: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    """Drawn by the caller: asked again with the same one, the call opens no other session."""
    bind: bool = False
    """To the voters of now, as acceptors."""
    request: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""
    """What the nonce was made of. Whoever knows it is the opener, and gets the session's key; empty from a
    process of version 0.1.0, which knows no keys."""

    def __repr__(self) -> str:
        return (
            f"OpenSessionCall(name={self.name!r}, ttl_s={self.ttl_s}, nonce={self.nonce!r}, bind={self.bind})"
        )


class KeepAliveCall(_Call, frozen=True, tag="alive"):
    session: Session
    floor: int


class CloseSessionCall(_Call, frozen=True, tag="close"):
    session: Session


class SessionsCall(_Call, frozen=True, tag="sessions"):
    pass


class DecideCall(_Call, frozen=True, tag="decide"):
    txid: TxId
    decision: Decision
    branches: _Branches
    protocol: str
    cause: str = ""


class PrecommitCall(_Call, frozen=True, tag="precommit"):
    txid: TxId
    branches: _Branches
    protocol: str


class OutcomesCall(_Call, frozen=True, tag="outcomes"):
    """As version 0.1.0 asks: by transactions, whose names prove nothing."""

    txids: _Ids
    protocol: str


class VerdictsCall(_Call, frozen=True, tag="verdicts"):
    gids: Annotated[tuple[Gid, ...], msgspec.Meta(max_length=IDS_MAX)]


class BackendsCall(_Call, frozen=True, tag="backends"):
    claims: Annotated[tuple[Claim, ...], msgspec.Meta(max_length=IDS_MAX)]


class DoomCall(_Call, frozen=True, tag="doom"):
    txid: TxId
    cause: str


class DoomedCall(_Call, frozen=True, tag="doomed"):
    txid: TxId


class RecordsCall(_Call, frozen=True, tag="records"):
    txids: _Ids


class UnfinishedCall(_Call, frozen=True, tag="unfinished"):
    """``limit`` 0: all of them, as version 0.1.0 asks."""

    limit: int = 0
    after: TxId | None = None


class FinishCall(_Call, frozen=True, tag="finish"):
    txids: _Ids


class RecordHeuristicCall(_Call, frozen=True, tag="heuristic"):
    heuristic: Heuristic


class ForgetHeuristicCall(_Call, frozen=True, tag="forget"):
    gid: Gid
    request: str = ""


class HeuristicsCall(_Call, frozen=True, tag="heuristics"):
    include_forgotten: bool


class TransactionCall(_Call, frozen=True, tag="tx"):
    txid: TxId


class TransactionsCall(_Call, frozen=True, tag="txs"):
    limit: int
    before: TxId | None


class InfoCall(_Call, frozen=True, tag="info"):
    pass


class VotersCall(_Call, frozen=True, tag="voters"):
    """Whom a session is bound to, if it is opened now with ``bind``."""


class RecordActCall(_Call, frozen=True, tag="act"):
    """Who is asked says who is connected, as far as it knows."""

    act: Act


class ActsCall(_Call, frozen=True, tag="acts"):
    limit: int


class BackupFileCall(_Call, frozen=True, tag="backup file"):
    """A SQLite ledger's owner writes a backup to the file ``path``, absolute, on its own machine. Only
    processes of its user can ask (the socket refuses others); a node of a cluster refuses."""

    path: str


Call = (
    OpenSessionCall
    | KeepAliveCall
    | CloseSessionCall
    | SessionsCall
    | DecideCall
    | PrecommitCall
    | OutcomesCall
    | RecordsCall
    | UnfinishedCall
    | FinishCall
    | RecordHeuristicCall
    | ForgetHeuristicCall
    | HeuristicsCall
    | TransactionCall
    | TransactionsCall
    | InfoCall
    | VotersCall
    | VerdictsCall
    | BackendsCall
    | DoomCall
    | DoomedCall
    | BackupFileCall
    | RecordActCall
    | ActsCall
)

REPLY_TYPES: dict[type[_Call], Any] = {
    OpenSessionCall: Session,
    KeepAliveCall: None,
    CloseSessionCall: None,
    SessionsCall: list[SessionInfo],
    DecideCall: Decision,
    PrecommitCall: None,
    OutcomesCall: list[Verdict],
    RecordsCall: list[RecordedDecision],
    UnfinishedCall: list[DecisionRecord],
    FinishCall: None,
    RecordHeuristicCall: None,
    ForgetHeuristicCall: bool,
    HeuristicsCall: list[Heuristic],
    TransactionCall: TransactionInfo | None,
    TransactionsCall: list[TransactionInfo],
    InfoCall: LedgerInfo,
    VotersCall: list[int],
    VerdictsCall: list[Verdict],
    BackendsCall: list[TxId | None],
    DoomCall: None,
    DoomedCall: str | None,
    BackupFileCall: int,
    RecordActCall: None,
    ActsCall: list[Act],
}
"""What each call's reply decodes to; verdicts and records come in the order of the ids asked about."""


def since(call: Call) -> int:
    """The version that whoever is asked ``call``, as it is filled in, has to speak."""
    match call:
        case OpenSessionCall():
            return PAXOS_VERSION if call.bind else FIRST_VERSION
        case VotersCall():
            return PAXOS_VERSION
        case (
            VerdictsCall()
            | BackendsCall()
            | DoomCall()
            | DoomedCall()
            | BackupFileCall()
            | RecordActCall()
            | ActsCall()
        ):
            return TAGS_VERSION
        case DecideCall() | PrecommitCall() | OutcomesCall():
            return PAXOS_VERSION if call.protocol == Protocol.PAXOS else FIRST_VERSION
        case UnfinishedCall():
            return TAGS_VERSION if call.limit else FIRST_VERSION
        case (
            KeepAliveCall()
            | CloseSessionCall()
            | SessionsCall()
            | RecordsCall()
            | FinishCall()
            | RecordHeuristicCall()
            | ForgetHeuristicCall()
            | HeuristicsCall()
            | TransactionCall()
            | TransactionsCall()
            | InfoCall()
        ):
            return FIRST_VERSION
        case _:
            assert_never(call)


async def perform(ledger: StateMachineLedger, call: Call, *, remote: bool) -> object:  # noqa: PLR0911, PLR0912 - one line per call
    """Carry out ``call``; its result in the shape of ``REPLY_TYPES``. Raises what the contract raises.
    ``remote``: for another process, which may outlive this one."""
    match call:
        case OpenSessionCall():
            return await ledger.open_session(
                call.name,
                call.ttl_s,
                remote=remote,
                request=call.request,
                nonce=call.nonce,
                bind=call.bind,
            )
        case KeepAliveCall():
            await ledger.keep_alive(call.session, call.floor)
        case CloseSessionCall():
            await ledger.close_session(call.session)
        case SessionsCall():
            return await ledger.sessions()
        case DecideCall():
            return await ledger.decide(
                call.txid, call.decision, call.branches, protocol=call.protocol, cause=call.cause
            )
        case PrecommitCall():
            await ledger.precommit(call.txid, call.branches, protocol=call.protocol)
        case OutcomesCall():
            return await ledger.old_outcomes(call.txids, call.protocol)
        case VerdictsCall():
            verdicts = await ledger.outcomes(call.gids)
            return [verdicts[gid] for gid in call.gids]
        case BackendsCall():
            return await ledger.backends(call.claims)
        case DoomCall():
            await ledger.doom(call.txid, call.cause)
        case DoomedCall():
            return await ledger.doomed(call.txid)
        case RecordsCall():
            records = await ledger.records(call.txids)
            return [records[txid] for txid in call.txids]
        case UnfinishedCall():
            if not call.limit:
                return await ledger.old_unfinished()
            return await ledger.unfinished(after=call.after, limit=call.limit)
        case FinishCall():
            await ledger.finish(call.txids)
        case RecordHeuristicCall():
            await ledger.record_heuristic(call.heuristic)
        case ForgetHeuristicCall():
            return await ledger.forget_heuristic(call.gid, request=call.request)
        case HeuristicsCall():
            return await ledger.heuristics(include_forgotten=call.include_forgotten)
        case TransactionCall():
            return await ledger.transaction(call.txid)
        case TransactionsCall():
            return await ledger.transactions(limit=call.limit, before=call.before)
        case InfoCall():
            return await ledger.info()
        case VotersCall():
            return await ledger.voters()
        case RecordActCall():
            await ledger.record_act(call.act)
        case ActsCall():
            return await ledger.acts(limit=call.limit)
        case BackupFileCall():
            return await ledger.backup(Path(call.path))
    return None


decode_request: Callable[[bytes], Request[Call]] = msgspec.msgpack.Decoder(Request[Call]).decode
_DECODERS = {call: msgspec.msgpack.Decoder(type_) for call, type_ in REPLY_TYPES.items()}


def decode_result(call: Call, result: msgspec.Raw) -> Any:
    return _DECODERS[type(call)].decode(result)
