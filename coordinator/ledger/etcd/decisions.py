"""Decisions: many callers' in one transaction of etcd (group commit), each in a nested one of its own.

The nested transaction of a decision compares four things, and then writes the decision: the session's key is
present, with a count of renewals that is not below what this process knows (so its lease has not ended, and
etcd was not set back behind the last renewal); the last decision of the session that this process was told of
is there; the floor is not above the transaction; the transaction has no decision. The outer transaction
compares the era, and that the clock is not older than it was seen. So the first decision is the only one, and
a session that has ended, or is from an earlier incarnation, records no COMMIT. A decision whose details were
deleted is not overlooked: it is below the floor, or its session has ended.

A decision that is not written so is computed from what is there, by :meth:`EtcdDecisions.settle`. Both may be
repeated: a lost answer leaves a decision, which the repetition finds."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from undoubt.coordinator.errors import LedgerUnavailable, OutcomeUnknown
from undoubt.coordinator.ledger.commands import Decide
from undoubt.coordinator.ledger.contract import ABORTS_BY_ABSENCE, TERMINATES_BY_ITSELF, SessionState
from undoubt.coordinator.ledger.etcd import messages
from undoubt.coordinator.ledger.etcd.client import EtcdRefused
from undoubt.coordinator.ledger.etcd.keyspace import DecisionValue, encode, number
from undoubt.coordinator.ledger.etcd.recorded import answer_to, keys_about, recorded
from undoubt.coordinator.ledger.etcd.sessions import KnownSession, Operations, Sessions
from undoubt.coordinator.ledger.etcd.store import EtcdStore, KeySnapshot
from undoubt.coordinator.ledger.rules import sorted_branches
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.tasks import Uncancellable, all_of, uncancellable

NESTED_OPERATIONS = 4
"""The compares, and the writes, of one decision."""
BATCH_MAX = messages.OPERATIONS_MAX - NESTED_OPERATIONS - 5
"""Most decisions in one transaction."""
BATCH_BYTES_MAX = 500_000
"""A transaction ends after the decision with which it has so many bytes; etcd's default limit is 1.5 MiB
(``--max-request-bytes``), of the request as protocol buffers, which is smaller than as JSON."""
SENDING_MAX = 2
"""Most transactions that are under way at one time."""


class _Waiting(NamedTuple):
    command: Decide
    known: KnownSession
    value: bytes
    answer: asyncio.Future[Decision]


class EtcdDecisions:
    def __init__(self, store: EtcdStore, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions
        self._waiting: list[_Waiting] = []
        self._sending = 0
        self._tasks: set[Uncancellable[None]] = set()

    async def decide(self, command: Decide) -> Decision:
        """As in the contract, for a checked command. If the caller is cancelled, the decision is still
        sent."""
        txid = command.txid
        known = await self._sessions.known(txid.session, txid.nonce)
        if known is None:
            raise _unknown_session(command)
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        value = encode(value_of(command, command.decision))
        self._waiting.append(_Waiting(command, known, value, answer))
        self._send()
        return await answer

    async def close(self) -> None:
        """Wait for the answers to all transactions that are under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _send(self) -> None:
        while self._waiting and self._sending < SENDING_MAX:
            batch, self._waiting = _apart(self._waiting)
            self._sending += 1
            task = uncancellable(self._carry(batch), name="undoubt-ledger-decide")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, batch: list[_Waiting]) -> None:
        written: list[bool] = []
        failure: UndoubtError | None = None
        try:
            written = await self._written(batch)
        except UndoubtError as error:
            failure = error
        except BaseException as error:
            failure = LedgerUnavailable(f"the decision was not answered: {error!r}")
            raise
        finally:
            self._sending -= 1
            if failure is not None:
                for each in batch:
                    _resolve(each.answer, failure)
            self._send()
        for each, done in zip(batch, written, strict=True):
            if done:
                _resolve(each.answer, each.command.decision)
        left = [each for each, done in zip(batch, written, strict=True) if not done]
        for ended in await all_of(map(self._settle_for, left)):
            if ended is not None:
                raise ended

    async def _settle_for(self, waiting: _Waiting) -> None:
        try:
            _resolve(waiting.answer, await self.settle(waiting.command))
        except UndoubtError as error:
            _resolve(waiting.answer, error)
        except BaseException as error:
            _resolve(waiting.answer, LedgerUnavailable(f"the decision was not answered: {error!r}"))
            raise

    async def _written(self, batch: list[_Waiting]) -> list[bool]:
        """Which of ``batch`` were recorded as asked. The others may have been recorded before."""
        store = self._store
        fits = [each.known.incarnation == store.era.incarnation for each in batch]
        sent = [each for each, fit in zip(batch, fits, strict=True) if fit]
        if not sent:
            return fits
        asked = store.asked
        transaction = messages.EtcdTransaction(
            store.fence(),
            [messages.nested(self._transaction(each)) for each in sent],
        )
        try:
            answer = await store.client.transact(transaction)
        except EtcdRefused as error:
            if error.too_large:
                return [False] * len(batch)  # each alone
            raise
        if not store.note(answer.header, asked):
            await store.read([])  # begins a new incarnation
        if not answer.succeeded:
            return [False] * len(batch)
        nested = iter(answer.responses)
        written = [fit and _succeeded(next(nested)) for fit in fits]
        for each, done in zip(batch, written, strict=True):
            if done:
                each.known.decided = (each.command.txid, answer.header.revision)
        return written

    def _transaction(self, waiting: _Waiting) -> messages.EtcdTransaction:
        command, keys = waiting.command, self._store.keys
        txid = command.txid
        lease, floor = keys.lease(txid.session, txid.nonce), keys.floor(txid.session)
        compare = [
            messages.absent(keys.decision(txid)),
            messages.above(lease, number(max(waiting.known.renewals - 1, 0))),
        ]
        if waiting.known.floor > 1:
            compare.append(messages.below(floor, number(txid.seq + 1)))
        else:
            compare.append(messages.absent(floor))
        if waiting.known.decided is not None:
            last, revision = waiting.known.decided
            compare.append(messages.unchanged(keys.decision(last), revision))
        return messages.EtcdTransaction(compare, self._writes(command, waiting.value))

    def _writes(self, command: Decide, value: bytes) -> list[messages.EtcdOperation]:
        keys, txid = self._store.keys, command.txid
        return [
            messages.put(keys.decision(txid), value),
            messages.put(keys.unfinished(txid)),
            messages.put(keys.decided(command.at, txid)),
        ]

    async def settle(self, command: Decide) -> Decision:
        """Record a decision by the state of its session, unless one is recorded; returns the recorded one.
        Raises as in the contract."""
        txid, keys = command.txid, self._store.keys

        def settled(snapshot: KeySnapshot) -> tuple[Operations, Decision | UndoubtError]:
            standing = self._sessions.standing(snapshot, txid.session, txid.nonce)
            if standing.state is None:
                return [], _unknown_session(command)
            found = recorded(keys, snapshot, txid)
            if found is not None:
                return [], answer_to(command, found)
            decision = command.decision
            by_itself = command.protocol in TERMINATES_BY_ITSELF
            by_absence = command.protocol in ABORTS_BY_ABSENCE and decision is Decision.ABORT
            if standing.state is SessionState.RESTORED and (by_absence or not by_itself):
                why = "its session is from before the ledger was restored, or set back"
                return [], OutcomeUnknown(txid, why)
            if not by_itself and standing.presumed(txid.seq):
                decision = Decision.ABORT
            return self._writes(command, encode(value_of(command, decision))), decision

        try:
            answer = await self._sessions.change_in(txid, keys_about(keys, txid), settled)
        except EtcdRefused as error:
            if not error.too_large:
                raise
            raise UsageError(
                f"the decision on transaction {txid} is larger than etcd accepts ({error}): raise its"
                " --max-request-bytes, or use fewer branches"
            ) from None
        if isinstance(answer, UndoubtError):
            raise answer
        return answer


def value_of(command: Decide, decision: Decision) -> DecisionValue:
    cause = command.cause if command.decision is Decision.ABORT else ""
    branches = tuple(sorted_branches(command.branches))
    return DecisionValue(command.txid.nonce, command.protocol, decision, branches, command.at, cause)


def _unknown_session(command: Decide) -> OutcomeUnknown:
    return OutcomeUnknown(command.txid, "the ledger does not know its session, or has dropped it")


def _succeeded(answer: messages.OperationAnswer) -> bool:
    return answer.response_txn is not None and answer.response_txn.succeeded


def _apart(waiting: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
    """The decisions for one transaction, and the rest. etcd refuses a transaction that writes a key twice."""
    taken: list[_Waiting] = []
    txids = set()
    rest = []
    size = 0
    for each in waiting:
        fits = len(taken) < BATCH_MAX and (not taken or size + len(each.value) <= BATCH_BYTES_MAX)
        if fits and each.command.txid not in txids:
            taken.append(each)
            txids.add(each.command.txid)
            size += len(each.value)
        else:
            rest.append(each)
    return taken, rest


def _resolve(answer: asyncio.Future[Decision], result: Decision | UndoubtError) -> None:
    if answer.done():  # the waiting caller was cancelled
        return
    if isinstance(result, Decision):
        answer.set_result(result)
    else:
        answer.set_exception(result)
