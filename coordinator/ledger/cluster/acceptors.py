"""Leads Paxos Commit: it asks the acceptors to which a transaction's session is bound, and asks again, until
the outcome is known.

The rules are in :mod:`undoubt.coordinator.paxos`; this module adds only the repetition and its time limit.
The end of the time limit decides nothing: the outcome is then unknown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from random import Random

import msgspec

from undoubt.coordinator.errors import LedgerError, LedgerUnavailable, OutcomeUnknown
from undoubt.coordinator.ledger.contract import (
    BranchRecord,
    RecordedDecision,
    Session,
    SessionInfo,
    Settlement,
    is_newer,
)
from undoubt.coordinator.paxos import (
    AcceptorReply,
    AcceptorRequest,
    BranchInstance,
    FirstBallot,
    Forgotten,
    PeerMisbehaved,
    Phase1b,
    Recovery,
    Value,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.backoff import pauses_around
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId
from undoubt.participants.tasks import all_done

log = logging.getLogger(__name__)

PAUSE_S = (0.1, 1.0)
"""The pauses before acceptors without an answer are asked again, in seconds: the first and the longest."""
SESSIONS_MAX = 1_000
"""Most sessions whose acceptors are cached."""

Requests = Iterable[tuple[int, AcceptorRequest]]
SendRequest = Callable[[int, AcceptorRequest, Callable[[AcceptorReply | Exception], None]], None]
"""Sends a request to the acceptor with a number; the callback is called once, with the reply or the error."""


class _Evidence(msgspec.Struct, frozen=True, array_like=True):
    """The evidence of a branch in a vote, as in
    :class:`~undoubt.coordinator.ledger.contract.BranchRecord`."""

    xid: int | None
    system: int | None
    timeline: str | None
    tag: str = ""
    history: str | None = None
    position: int | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Evidence).decode


class ClusterAcceptors:
    """Implements :class:`~undoubt.coordinator.ledger.contract.Acceptors`. ``open_session`` opens a session
    that is bound to the present ``voters``; ``session_of`` and ``record`` ask the ledger; ``random`` draws
    the ballots of recoveries and the pauses."""

    def __init__(
        self,
        ask: SendRequest,
        open_session: Callable[[str, float], Awaitable[Session]],
        session_of: Callable[[TxId], Awaitable[SessionInfo | None]],
        record: Callable[[TxId], Awaitable[RecordedDecision]],
        random: Random,
        *,
        voters: Callable[[], Awaitable[Sequence[int]]],
        timeout_s: float,
    ) -> None:
        self._ask = ask
        self._open_session = open_session
        self._session_of = session_of
        self._record = record
        self._voters = voters
        self._random = random
        self._timeout_s = timeout_s
        self._bound: dict[tuple[int, str], Joint] = {}

    async def open_session(self, name: str, ttl_s: float) -> Session:
        session = await self._open_session(name, ttl_s)
        self._bind(session)
        return session

    async def current(self) -> Sequence[int]:
        return await self._voters()

    def _bind(self, session: Session | SessionInfo) -> Joint:
        """Cache the acceptors that decide the transactions of ``session``."""
        while len(self._bound) >= SESSIONS_MAX:
            del self._bound[next(iter(self._bound))]
        bound = self._bound[session.id, session.nonce] = Joint(frozenset(session.acceptors))
        return bound

    async def vote(self, txid: TxId, branches: Sequence[BranchRecord]) -> Decision:
        votes = {BranchInstance(each.number, each.participant): _prepared(each) for each in branches}
        leader = FirstBallot(txid, await self._acceptors_of(txid), votes)

        def step(reply: AcceptorReply) -> Requests:
            leader.step(reply)
            return ()

        work = _Work(leader, step, self._ask)
        work.send(leader.messages())
        await self._until_known(work, lambda: [*_only(leader.messages(), leader.unheard), *leader.ask()])
        return await self._decided(leader)

    async def settle(self, txid: TxId) -> Settlement:
        leader = Recovery(txid, await self._acceptors_of(txid), self._random.getrandbits(62) + 1)
        work = _Work(leader, leader.step, self._ask)
        work.send(leader.begin())
        await self._until_known(work, leader.begin)
        decision = await self._decided(leader)
        pairs = zip(leader.branches, leader.chosen, strict=True)
        return Settlement(decision, tuple(record_of(branch, value) for branch, value in pairs))

    async def _acceptors_of(self, txid: TxId) -> Joint:
        bound = self._bound.get((txid.session, txid.nonce))
        if bound is None:
            session = await self._session_of(txid)
            bound = None if session is None else self._bind(session)
        if bound is None or not bound.incoming:
            raise OutcomeUnknown(txid, "the ledger does not know which acceptors its session was bound to")
        return bound

    async def _until_known(self, work: _Work, again: Callable[[], Requests]) -> None:
        loop = asyncio.get_running_loop()
        end, pauses = loop.time() + self._timeout_s, pauses_around(*PAUSE_S, self._random)
        while not work.known.done():
            left_s = end - loop.time()
            if left_s <= 0:
                raise LedgerUnavailable(f"no quorum of acceptors answered in time; last: {work.trouble}")
            await all_done([work.known], min(left_s, next(pauses)))
            if not work.known.done():
                work.send(again())
        work.known.result()

    async def _decided(self, leader: FirstBallot | Recovery) -> Decision:
        """The outcome of ``leader``, or the ledger's record if the acceptors have dropped the transaction."""
        if leader.outcome is not None:
            return leader.outcome
        recorded = await self._record(leader.txid)
        if recorded is RecordedDecision.NOT_RECORDED:
            raise OutcomeUnknown(leader.txid, "its acceptors have dropped it, and no outcome is recorded")
        return Decision(str(recorded))


class _Work:
    """One leader and its requests. ``known`` is done once the outcome is known, or an acceptor has dropped
    the transaction."""

    def __init__(
        self, leader: FirstBallot | Recovery, step: Callable[[AcceptorReply], Requests], ask: SendRequest
    ) -> None:
        self.known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.trouble = "no acceptor has answered yet"
        self._leader = leader
        self._step = step
        self._ask = ask

    def _unasked(self, answer: AcceptorReply) -> bool:
        if isinstance(answer, Phase1b) and isinstance(self._leader, FirstBallot):
            return True
        return not isinstance(answer, Forgotten) and not answer.known.sound

    def send(self, requests: Requests) -> None:
        for to, request in requests:
            self._ask(to, request, partial(self._answered, to))

    def _answered(self, by: int, answer: AcceptorReply | Exception) -> None:
        if self.known.done():
            return
        if isinstance(answer, Exception):
            self.trouble = str(answer)
            return
        if (answer.txid, answer.acceptor) != (self._leader.txid, by) or self._unasked(answer):
            # Counts as no answer: the other acceptors may be a quorum without it.
            self.trouble = f"node {by} sent an answer to a request that it did not get"
            log.warning("%s: %s", self._leader.txid, self.trouble)
            return
        try:
            more = self._step(answer)
        except PeerMisbehaved as error:
            log.exception("acceptors of %s contradict each other", self._leader.txid)
            self.known.set_exception(LedgerError(str(error)))
            return
        if self._leader.outcome is not None or self._leader.forgotten:
            self.known.set_result(None)
        else:
            self.send(more)


def among(sessions: Iterable[SessionInfo], txid: TxId) -> SessionInfo | None:
    """The session of ``txid`` among ``sessions``; None if it is not among them."""
    return next((one for one in sessions if (one.id, one.nonce) == (txid.session, txid.nonce)), None)


def _only(requests: Requests, acceptors: Sequence[int]) -> list[tuple[int, AcceptorRequest]]:
    return [(to, request) for to, request in requests if to in acceptors]


def _prepared(branch: BranchRecord) -> Value:
    """The vote PREPARED for ``branch``. It contains the evidence and the tag, so that the process that finds
    the outcome can record them. Without a tag it has the form that version 0.1.0 reads: transaction id,
    system, timeline."""
    if not is_newer(branch):
        if branch.xid is None or branch.system is None or branch.timeline is None:
            return Value(True)
        return Value(True, _encode((branch.xid, branch.system, branch.timeline)))
    evidence = _Evidence(
        branch.xid, branch.system, branch.timeline, branch.tag, branch.history, branch.position
    )
    return Value(True, _encode(evidence))


def record_of(branch: BranchInstance, value: Value | None) -> BranchRecord:
    """The record of ``branch`` with the evidence in its chosen ``value``."""
    if value is None or not value.evidence:
        return BranchRecord(branch.number, branch.participant)
    try:
        evidence = _decode(value.evidence)
    except (
        ValueError,
        RecursionError,
    ):  # written by the voting coordinator; the vote counts without evidence
        return BranchRecord(branch.number, branch.participant)
    return BranchRecord(
        branch.number,
        branch.participant,
        evidence.xid,
        evidence.system,
        evidence.timeline,
        evidence.tag,
        evidence.history,
        evidence.position,
    )
