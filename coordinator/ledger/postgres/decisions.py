"""Decisions of many callers in one statement: one round trip, one commit, one answer for each of them.

Decisions that arrive while the server is at work wait, and are sent together (group commit: DeWitt et al.,
*Implementation Techniques for Main Memory Database Systems*, 1984, §5.2). A statement carries decisions of
one session only: what blocks or breaks another session's cannot touch them, and locks of two sessions are
never held at once, so that two processes cannot deadlock on them.
"""

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
from undoubt.coordinator.ledger.contract import TERMINATES_BY_ITSELF, BranchRecord, SessionState
from undoubt.coordinator.ledger.postgres.connections import Connections
from undoubt.coordinator.ledger.rules import agrees, labels, sorted_branches
from undoubt.coordinator.uncancellable import Uncancellable, uncancellable
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId

BATCH_MAX = 64
SENDING_MAX = 2
"""Statements of one session at a time: one is carried out while the next is on its way."""

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
    """See the module. Belongs to one event loop."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._waiting: dict[int, list[_Asked]] = {}  # by session, oldest first
        self._sending: dict[int, int] = {}  # statements under way, by session
        self._tasks: set[Uncancellable[None]] = set()

    async def decide(self, command: Decide) -> Decision:
        """As the contract's. Whoever asks may be cancelled: the decision goes its way."""
        asked = _Asked(command, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(command.txid.session, []).append(asked)
        self._send(command.txid.session)
        return await asked.answer

    async def close(self) -> None:
        """Wait for the answers to what was asked."""
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
            told = LedgerUnavailable(f"the decision was not answered: {error!r}")
            answers = {asked.command.txid: told for asked in batch}
            raise
        finally:
            self._sending[session] -= 1
            if not self._sending[session]:
                del self._sending[session]
            for asked in batch:
                _tell(asked.answer, answers[asked.command.txid])
            self._send(session)

    async def _answers(self, commands: list[Decide]) -> dict[TxId, DecideResult]:
        try:
            return await self._together(commands)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            if len(commands) == 1:
                return {commands[0].txid: error}
        answers: dict[TxId, DecideResult] = {}  # one of them is the matter: the others need not suffer for it
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
        )
        told = {TxId(session, nonce, seq): (state, decision) for session, nonce, seq, state, decision in rows}
        answers: dict[TxId, DecideResult] = {}
        for command in commands:
            state, decision = told[command.txid]
            if state is None:
                why = "the ledger does not know its session, or has dropped it"
                answers[command.txid] = OutcomeUnknown(command.txid, why)
            elif decision is not None:
                answers[command.txid] = Decision(decision)
            else:
                answers[command.txid] = await self._recorded(command, SessionState(state))
        return answers

    async def _recorded(self, command: Decide, state: SessionState) -> DecideResult:
        """Nothing was written for ``command``: there is a decision already, or its session forbids it."""
        txid = command.txid
        ((decision, branches),) = await self._connections.ask(
            "recorded", session=txid.session, seq=txid.seq, nonce=txid.nonce
        )
        if decision is None:
            if state is not SessionState.RESTORED:
                raise LedgerUnavailable(f"the session of {txid} is just being dropped; ask again")
            why = "its session is from before the ledger was restored or failed over"
            return OutcomeUnknown(txid, why)
        known, given = labels(decode_branches(branches)), labels(command.branches)
        if agrees(command.decision, given, Decision(decision), known):
            return Decision(decision)
        return BranchListMismatch(txid, known, given)


def _apart(waiting: list[_Asked]) -> tuple[list[_Asked], list[_Asked]]:
    """What one statement can take, and the rest: a transaction that is asked about twice goes into two."""
    taken: dict[TxId, _Asked] = {}
    rest = []
    for asked in waiting:
        if len(taken) < BATCH_MAX and asked.command.txid not in taken:
            taken[asked.command.txid] = asked
        else:
            rest.append(asked)
    return sorted(taken.values(), key=lambda asked: asked.command.txid), rest


def _tell(answer: asyncio.Future[Decision], told: DecideResult) -> None:
    if answer.done():  # whoever asked was cancelled
        return
    if isinstance(told, Decision):
        answer.set_result(told)
    else:
        answer.set_exception(told)
