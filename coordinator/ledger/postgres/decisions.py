"""Sends the decisions of many callers in one statement: one round trip, one commit, one answer for each.

Decisions that arrive while a statement is running wait, and are sent together (group commit: DeWitt et al.,
*Implementation Techniques for Main Memory Database Systems*, 1984, §5.2). A statement contains decisions of
one session only: a lock or an error in another session does not affect them, and the locks of two sessions
are never held at the same time, so two processes cannot deadlock on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from undoubt.coordinator.errors import (
    BranchListMismatch,
    LedgerError,
    LedgerUnavailable,
    OutcomeUnknown,
)
from undoubt.coordinator.ledger.commands import Decide
from undoubt.coordinator.ledger.contract import (
    ABORTS_BY_ABSENCE,
    TERMINATES_BY_ITSELF,
    BranchRecord,
    SessionState,
)
from undoubt.coordinator.ledger.machine import fingerprint
from undoubt.coordinator.ledger.postgres.connections import Connections
from undoubt.coordinator.ledger.rules import agrees, labels, sorted_branches
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId
from undoubt.participants.tasks import Uncancellable, uncancellable

BATCH_MAX = 64
SENDING_MAX = 2
"""Most concurrent statements of one session: one is carried out while the next is being sent."""

_encode = msgspec.json.Encoder().encode


def encode_branches(branches: Sequence[BranchRecord]) -> str:
    return _encode(sorted_branches(branches)).decode()


decode_branches = msgspec.json.Decoder(tuple[BranchRecord, ...]).decode

DecideResult = Decision | UndoubtError


@dataclass(slots=True)
class _Asked:
    command: Decide
    answer: asyncio.Future[Decision]


class Decisions:
    """The queue of decisions. Belongs to one event loop."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._waiting: dict[int, list[_Asked]] = {}  # by session, oldest first
        self._sending: dict[int, int] = {}  # statements under way, by session
        self._tasks: set[Uncancellable[None]] = set()

    async def decide(self, command: Decide) -> Decision:
        """As in the contract. If the caller is cancelled, the decision is still sent."""
        asked = _Asked(command, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(command.txid.session, []).append(asked)
        self._send(command.txid.session)
        return await asked.answer

    async def close(self) -> None:
        """Wait for the answers to all running statements."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _send(self, session: int) -> None:
        waiting = self._waiting.get(session)
        if not waiting or self._sending.get(session, 0) >= SENDING_MAX:
            return
        batch, rest = _apart(waiting)
        self._waiting[session] = rest
        if not rest:
            del self._waiting[session]
        self._sending[session] = self._sending.get(session, 0) + 1
        task = uncancellable(self._carry(session, batch), name="undoubt-ledger-decide")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, session: int, batch: list[_Asked]) -> None:
        try:
            answers = await self._answers([asked.command for asked in batch])
        except UndoubtError as error:
            answers = {asked.command.txid: error for asked in batch}
        except BaseException as error:
            unanswered = LedgerUnavailable(f"the decision was not answered: {error!r}")
            answers = {asked.command.txid: unanswered for asked in batch}
            raise
        finally:
            self._sending[session] -= 1
            if not self._sending[session]:
                del self._sending[session]
            for asked in batch:
                _resolve(asked.answer, answers[asked.command.txid])
            self._send(session)

    async def _answers(self, commands: list[Decide]) -> dict[TxId, DecideResult]:
        try:
            return await self._together(commands)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            if len(commands) == 1:
                return {commands[0].txid: error}
        answers: dict[TxId, DecideResult] = {}  # one of them fails: the others are sent again, each alone
        for command in commands:
            answers |= await self._answers([command])
        return answers

    async def _together(self, commands: list[Decide]) -> dict[TxId, DecideResult]:
        rows = await self._connections.ask(
            "decide",
            session=[command.txid.session for command in commands],
            nonce=[command.txid.nonce for command in commands],
            seq=[command.txid.seq for command in commands],
            protocol=[command.protocol for command in commands],
            decision=[str(command.decision) for command in commands],
            branches=[encode_branches(command.branches) for command in commands],
            decided_at=[command.at for command in commands],
            cause=[command.cause if command.decision is Decision.ABORT else "" for command in commands],
            by_itself=sorted(TERMINATES_BY_ITSELF),
            by_absence=sorted(ABORTS_BY_ABSENCE),
        )
        found = {
            TxId(session, nonce, seq): (state, decision) for session, nonce, seq, state, decision in rows
        }
        answers: dict[TxId, DecideResult] = {}
        for command in commands:
            state, decision = found[command.txid]
            if state is None:
                why = "the ledger does not know its session, or has dropped it"
                answers[command.txid] = OutcomeUnknown(command.txid, why)
            elif decision is not None:
                answers[command.txid] = Decision(decision)
            else:
                answers[command.txid] = await self.recorded(command, SessionState(state))
        return answers

    async def recorded(self, command: Decide, state: SessionState) -> DecideResult:
        """The answer if no row was written for ``command``: a decision exists already, or the state of its
        session does not allow one."""
        txid = command.txid
        ((decision, branches, kept),) = await self._connections.ask(
            "recorded", session=txid.session, seq=txid.seq, nonce=txid.nonce
        )
        if decision is None:
            if state is not SessionState.RESTORED:
                raise LedgerUnavailable(f"the session of {txid} is being dropped; repeat the call")
            why = "its session is from before the ledger was restored or failed over"
            return OutcomeUnknown(txid, why)
        known, given = labels(decode_branches(branches)), labels(command.branches)
        if kept is not None:  # the fingerprint is all that is known of its branches
            known = given if kept == fingerprint(command.branches) else ["finished"]
        if agrees(command.decision, given, Decision(decision), known):
            return Decision(decision)
        return BranchListMismatch(txid, known, given)


def _apart(waiting: list[_Asked]) -> tuple[list[_Asked], list[_Asked]]:
    """The decisions for one statement, and the rest. Two decisions of one transaction go into two
    statements."""
    taken: dict[TxId, _Asked] = {}
    rest = []
    for asked in waiting:
        if len(taken) < BATCH_MAX and asked.command.txid not in taken:
            taken[asked.command.txid] = asked
        else:
            rest.append(asked)
    return sorted(taken.values(), key=lambda asked: asked.command.txid), rest


def _resolve(answer: asyncio.Future[Decision], result: DecideResult) -> None:
    if answer.done():  # the waiting caller was cancelled
        return
    if isinstance(result, Decision):
        answer.set_result(result)
    else:
        answer.set_exception(result)
