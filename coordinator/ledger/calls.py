"""The ledger's contract as messages for other processes, and the contract implemented by these messages.

There is one message for each call of the contract, encoded as a tagged msgpack array. Each class declares the
arguments, the reply, the version that introduced the call, the right that the caller needs, and how a ledger
serves the call. The messages are sent in the envelope of :mod:`undoubt.coordinator.rpc`.
:class:`CallingLedger` implements each call of the contract by one of these messages; a backend defines how a
message is carried out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from undoubt.coordinator.errors import VersionHeldBack
from undoubt.coordinator.ledger.agent_calls import CallingAgents
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.commands import (
    FIRST_VERSION,
    PAXOS_VERSION,
    TAGS_VERSION,
    check_page,
    since_protocol,
)
from undoubt.coordinator.ledger.contract import (
    UNFINISHED_MAX,
    Acceptors,
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
from undoubt.coordinator.ledger.key_calls import CallingKeys
from undoubt.coordinator.ledger.ledger_call import IDS_MAX, Branches, LedgerCall, carried
from undoubt.coordinator.ledger.lock_calls import CallingLocks
from undoubt.coordinator.ledger.pages import behind
from undoubt.coordinator.ledger.rules import new_request, nonce_of
from undoubt.coordinator.ledger.state_machine_ledger import StateMachineLedger
from undoubt.coordinator.rpc.calls import any_of, reply_decoders
from undoubt.coordinator.rpc.envelope import Request, requests_of
from undoubt.coordinator.wire.rights import Right
from undoubt.participants.contract import Claim, Decision
from undoubt.participants.ids import Gid, Protocol, TxId, new_nonce

_Ids = Annotated[tuple[TxId, ...], msgspec.Meta(max_length=IDS_MAX)]
"""The decoder refuses a longer tuple before it decodes the ids."""


class OpenSessionCall(LedgerCall[Session], frozen=True, tag="open"):
    name: str
    ttl_s: float
    nonce: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    """Drawn by the caller. A repeated call with the same nonce opens no second session."""
    bind: bool = False
    """Whether the session is bound to the present voters, as acceptors."""
    request: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""
    """The random text from which the nonce is derived. A caller that knows it is the opener, and gets the
    session's key; empty from a process of version 0.1.0, which has no keys."""
    agent: AgentBinding | None = None

    def __repr__(self) -> str:
        return (
            f"OpenSessionCall(name={self.name!r}, ttl_s={self.ttl_s}, nonce={self.nonce!r}, bind={self.bind})"
        )

    right: ClassVar[Right] = Right.TRANSACT

    def since(self) -> int:
        if self.agent is not None:
            return TAGS_VERSION
        return PAXOS_VERSION if self.bind else FIRST_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Session:
        return await ledger.open_session(
            self.name,
            self.ttl_s,
            remote=remote,
            request=self.request,
            nonce=self.nonce,
            bind=self.bind,
            agent=self.agent,
        )


class KeepAliveCall(LedgerCall[None], frozen=True, tag="alive"):
    session: Session
    floor: int
    right: ClassVar[Right] = Right.TRANSACT

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> None:
        await ledger.keep_alive(self.session, self.floor)


class CloseSessionCall(LedgerCall[None], frozen=True, tag="close"):
    session: Session
    right: ClassVar[Right] = Right.TRANSACT

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> None:
        await ledger.close_session(self.session)


class SessionsCall(LedgerCall[Sequence[SessionInfo]], frozen=True, tag="sessions"):
    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[SessionInfo]:
        return await ledger.sessions()


class DecideCall(LedgerCall[Decision], frozen=True, tag="decide"):
    txid: TxId
    decision: Decision
    branches: Branches
    protocol: Protocol
    cause: str = ""
    right: ClassVar[Right] = Right.TRANSACT

    def since(self) -> int:
        return since_protocol(self.protocol)

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Decision:
        return await ledger.decide(
            self.txid, self.decision, self.branches, protocol=self.protocol, cause=self.cause
        )


class PrecommitCall(LedgerCall[None], frozen=True, tag="precommit"):
    txid: TxId
    branches: Branches
    protocol: Protocol
    right: ClassVar[Right] = Right.TRANSACT

    def since(self) -> int:
        return since_protocol(self.protocol)

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> None:
        await ledger.precommit(self.txid, self.branches, protocol=self.protocol)


class OutcomesCall(LedgerCall[Sequence[Verdict]], frozen=True, tag="outcomes"):
    """The call of version 0.1.0 for outcomes, by transaction; without tags, so names are not proved."""

    txids: _Ids
    protocol: Protocol

    def since(self) -> int:
        return since_protocol(self.protocol)

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[Verdict]:
        return await ledger.old_outcomes(self.txids, self.protocol)


class VerdictsCall(LedgerCall[Sequence[Verdict]], frozen=True, tag="verdicts"):
    gids: Annotated[tuple[Gid, ...], msgspec.Meta(max_length=IDS_MAX)]
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[Verdict]:
        verdicts = await ledger.outcomes(self.gids)
        return [verdicts[gid] for gid in self.gids]


class BackendsCall(LedgerCall[Sequence[TxId | None]], frozen=True, tag="backends"):
    claims: Annotated[tuple[Claim, ...], msgspec.Meta(max_length=IDS_MAX)]
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[TxId | None]:
        return await ledger.backends(self.claims)


class DoomCall(LedgerCall[None], frozen=True, tag="doom"):
    txid: TxId
    cause: str
    right: ClassVar[Right] = Right.TRANSACT
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> None:
        await ledger.doom(self.txid, self.cause)


class DoomedCall(LedgerCall[str | None], frozen=True, tag="doomed"):
    txid: TxId
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> str | None:
        return await ledger.doomed(self.txid)


class RecordsCall(LedgerCall[Sequence[RecordedDecision]], frozen=True, tag="records"):
    txids: _Ids

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[RecordedDecision]:
        records = await ledger.records(self.txids)
        return [records[txid] for txid in self.txids]


class UnfinishedCall(LedgerCall[Sequence[DecisionRecord]], frozen=True, tag="unfinished"):
    """A page of unfinished decisions. ``limit`` 0: all of them, as version 0.1.0 asks."""

    limit: int = 0
    after: TxId | None = None

    def since(self) -> int:
        return TAGS_VERSION if self.limit else FIRST_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[DecisionRecord]:
        if not self.limit:
            return await ledger.old_unfinished()
        return await ledger.unfinished(after=self.after, limit=self.limit)


class FinishCall(LedgerCall[None], frozen=True, tag="finish"):
    txids: _Ids
    right: ClassVar[Right] = Right.TRANSACT

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> None:
        await ledger.finish(self.txids)


class RecordHeuristicCall(LedgerCall[None], frozen=True, tag="heuristic"):
    heuristic: Heuristic
    right: ClassVar[Right] = Right.TRANSACT

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> None:
        await ledger.record_heuristic(self.heuristic)


class ForgetHeuristicCall(LedgerCall[bool], frozen=True, tag="forget"):
    gid: Gid
    request: str = ""
    right: ClassVar[Right] = Right.OPERATE

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> bool:
        return await ledger.forget_heuristic(self.gid, request=self.request)


class HeuristicsCall(LedgerCall[Sequence[Heuristic]], frozen=True, tag="heuristics"):
    include_forgotten: bool

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[Heuristic]:
        return await ledger.heuristics(include_forgotten=self.include_forgotten)


class TransactionCall(LedgerCall[TransactionInfo | None], frozen=True, tag="tx"):
    txid: TxId

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> TransactionInfo | None:
        return await ledger.transaction(self.txid)


class TransactionsCall(LedgerCall[Sequence[TransactionInfo]], frozen=True, tag="txs"):
    limit: int
    before: TxId | None

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[TransactionInfo]:
        return await ledger.transactions(limit=self.limit, before=self.before)


class InfoCall(LedgerCall[LedgerInfo], frozen=True, tag="info"):
    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> LedgerInfo:
        return await ledger.info()


class VotersCall(LedgerCall[Sequence[int]], frozen=True, tag="voters"):
    """The nodes to which a session is bound if it is opened now with ``bind``."""

    version: ClassVar[int] = PAXOS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[int]:
        return await ledger.voters()


class RecordActCall(LedgerCall[None], frozen=True, tag="act"):
    """Record an act. The server sets what it knows from the connection: the owner of a SQLite ledger sets
    ``who``, a node of a cluster ``certificate``."""

    act: Act
    right: ClassVar[Right] = Right.OPERATE
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> None:
        await ledger.record_act(self.act)


class ActsCall(LedgerCall[Sequence[Act]], frozen=True, tag="acts"):
    limit: int
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> Sequence[Act]:
        return await ledger.acts(limit=self.limit)


class BackupFileCall(LedgerCall[int], frozen=True, tag="backup file"):
    """A SQLite ledger's owner writes a backup to the file ``path``, absolute, on its own machine. Only
    processes of the owner's user, or of root, can send it (the socket refuses others); a node of a cluster
    refuses it."""

    path: str
    right: ClassVar[Right] = Right.OPERATE
    version: ClassVar[int] = TAGS_VERSION

    async def serve(self, ledger: StateMachineLedger, *, remote: bool) -> int:
        return await ledger.backup(Path(self.path))


AnyLedgerCall = LedgerCall[Any]
ALL_CALLS: type[AnyLedgerCall] = LedgerCall
"""The base of all calls, for those who need the union of all: it is complete once this module is imported."""
_ANY = any_of(ALL_CALLS)

decode_call: Callable[[bytes], LedgerCall[Any]] = msgspec.msgpack.Decoder(_ANY).decode
decode_request: Callable[[bytes], Request[LedgerCall[Any]]] = msgspec.msgpack.Decoder(
    requests_of(_ANY)
).decode
DECODE_REPLY = reply_decoders(ALL_CALLS)
"""The decoders of replies, by the class of the call."""


class CallingLedger(CallingKeys, CallingLocks, CallingAgents):
    """The contract in terms of one function, which carries out a call in this process or in another.
    Implements all of :class:`~undoubt.coordinator.ledger.contract.Ledger` except its properties and
    ``close``."""

    acceptors: Acceptors | None = None

    sessions = carried(SessionsCall)
    record_heuristic = carried(RecordHeuristicCall)
    acts = carried(ActsCall)
    transaction = carried(TransactionCall)
    info = carried(InfoCall)

    def _request(self) -> str:
        return new_request()

    def _nonce(self) -> str:
        return new_nonce()

    async def open_session(self, name: str, ttl_s: float, *, agent: AgentBinding | None = None) -> Session:
        return await self._open_session(name, ttl_s, agent=agent)

    async def _open_session(
        self, name: str, ttl_s: float, *, bind: bool = False, agent: AgentBinding | None = None
    ) -> Session:
        request = self._request()
        call = OpenSessionCall(name, ttl_s, nonce_of(request), bind, request, agent)
        session: Session = await self._call(call)
        return session

    async def keep_alive(self, session: Session, floor: int) -> None:
        await self._call(KeepAliveCall(session.public, floor))

    async def close_session(self, session: Session) -> None:
        await self._call(CloseSessionCall(session.public))

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        call = DecideCall(txid, decision, tuple(branches), protocol, cause)
        decided: Decision = await self._call(call)
        return decided

    async def precommit(
        self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: Protocol = Protocol.THREE_PHASE
    ) -> None:
        await self._call(PrecommitCall(txid, tuple(branches), protocol))

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        asked = tuple(gids)
        try:
            verdicts = await self._call(VerdictsCall(asked))
        except VersionHeldBack:  # a cluster with a member of version 0.1.0 gives no tags
            return await self._old_outcomes(asked)
        return dict(zip(asked, verdicts, strict=True))

    async def _old_outcomes(self, asked: Sequence[Gid]) -> dict[Gid, Verdict]:
        # A ledger that gives no tags binds no session to an agent: it has given no name of last-agent commit.
        strange = {gid for gid in asked if gid.tag or gid.protocol is Protocol.LAST}
        verdicts: dict[Gid, Verdict] = dict.fromkeys(strange, Verdict.IMPOSTOR)
        for protocol in sorted({gid.protocol for gid in asked if gid not in strange}):
            named = [gid for gid in asked if gid.protocol is protocol and gid not in strange]
            txids = tuple(sorted({gid.txid for gid in named}))
            found = await self._call(OutcomesCall(txids, protocol))
            by_txid: dict[TxId, Verdict] = dict(zip(txids, found, strict=True))
            verdicts |= {gid: by_txid[gid.txid] for gid in named}
        return verdicts

    async def backends(self, claims: Iterable[Claim]) -> Sequence[TxId | None]:
        asked = tuple(claims)
        try:
            proved: Sequence[TxId | None] = await self._call(BackendsCall(asked))
        except VersionHeldBack:
            return [None] * len(asked)
        return proved

    async def doom(self, txid: TxId, cause: str) -> None:
        with contextlib.suppress(VersionHeldBack):
            await self._call(DoomCall(txid, cause))

    async def doomed(self, txid: TxId) -> str | None:
        cause: str | None = None
        with contextlib.suppress(VersionHeldBack):
            cause = await self._call(DoomedCall(txid))
        return cause

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        asked = tuple(txids)
        return dict(zip(asked, await self._call(RecordsCall(asked)), strict=True))

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        check_page(limit, after)
        try:
            records: Sequence[DecisionRecord] = await self._call(UnfinishedCall(limit, after))
        except VersionHeldBack:  # version 0.1.0 returns all records in one answer, in no order
            return behind(await self._call(UnfinishedCall()), after)
        return records

    async def finish(self, txids: Iterable[TxId]) -> None:
        await self._call(FinishCall(tuple(txids)))

    async def forget_heuristic(self, gid: Gid) -> bool:
        return bool(await self._call(ForgetHeuristicCall(gid, self._nonce())))

    async def record_act(self, act: Act) -> None:
        await self._call(RecordActCall(act.clipped()))

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        heuristics: Sequence[Heuristic] = await self._call(HeuristicsCall(include_forgotten))
        return heuristics

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        infos: Sequence[TransactionInfo] = await self._call(TransactionsCall(limit, before))
        return infos
