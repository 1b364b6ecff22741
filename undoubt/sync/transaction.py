"""A transaction for threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg

from undoubt.coordinator.errors import CoordinatorClosed, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.transaction import CommitResult
from undoubt.coordinator.transaction import Transaction as EngineTransaction
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import TxId
from undoubt.sync.portal import Portal

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")


class Transaction:
    """``with coordinator.transaction() as tx``: commits at the block's end, rolls back if it raises.

    Made by :meth:`undoubt.sync.Coordinator.transaction`. Different threads may use different branches. One
    thread ends the transaction; if another thread's statement still runs then, the transaction is aborted.

    The transaction can be aborted while its thread works: by its timeout, by the resolution of a deadlock, by
    a lost session. Then a running statement of a branch is cancelled, every further call raises, and the end
    of the block raises ``TransactionAborted`` with the cause.
    """

    def __init__(self, portal: Portal, engine: EngineTransaction) -> None:
        self._portal = portal
        self._engine = engine
        self._given_up = False

    @property
    def engine(self) -> EngineTransaction:
        """The asynchronous transaction, which runs in the engine's loop."""
        return self._engine

    @property
    def id(self) -> TxId:
        """The transaction's id; raises ``UsageError`` before it has begun."""
        return self._engine.id

    @property
    def participants(self) -> tuple[str, ...]:
        """The names of the participants in which the transaction has a branch."""
        return self._engine.participants

    @property
    def active(self) -> bool:
        """True until commit or rollback is called, or the transaction is doomed."""
        return self._engine.active

    @property
    def may_have_committed(self) -> bool:
        """Whether the transaction may have committed: False until its commit begins, and again once it is
        certain that it did not commit."""
        return self._engine.may_have_committed

    @property
    def repeated(self) -> bool:
        """Whether another transaction had committed with the key of this one before: nothing has to be
        done."""
        return self._engine.repeated

    @property
    def result(self) -> Any:
        """The result that is stored with the key; can be set until the commit begins."""
        return self._engine.result

    @result.setter
    def result(self, value: object) -> None:
        self._engine.result = value

    def start(self) -> Transaction:
        """Begin the transaction without ``with``; the caller has to call ``commit`` or ``rollback``."""
        try:
            self._portal.call(self._begin)
        except BaseException:
            # After an interruption the transaction may have begun, or may begin later, and no caller ends it.
            self._given_up = True
            self._portal.post(self._end_what_began)
            raise
        return self

    def branch(self, name: str) -> Connection[Any]:
        """The connection to participant ``name`` inside this transaction; the same one each time.

        Raises ``UnknownParticipant``; ``ParticipantUnavailable`` or ``ParticipantRefused`` if the branch
        cannot be opened, and then the whole transaction can only be rolled back; ``TransactionEnded``.
        """
        return cast("Connection[Any]", self._call(self._engine.branch, name))

    def branches(self, *names: str) -> tuple[Connection[Any], ...]:
        """The connections to several participants. The branches are opened concurrently: one wait instead of
        one for each."""
        return cast("tuple[Connection[Any], ...]", self._call(self._open, names))

    def publish(
        self,
        name: str,
        payload: object,
        *,
        topic: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Put a message into the outbox of participant ``name``, inside its branch; returns its dedupe id.
        See :func:`undoubt.coordinator.publishing.publish`."""
        return self._call(partial(self._engine.publish, name, payload, topic=topic, key=key, headers=headers))

    def commit(self) -> CommitResult:
        """Commit everywhere or nowhere.

        Returns once COMMIT is certain and COMMIT PREPARED was sent to every participant. Raises
        ``TransactionAborted`` (committed nowhere), ``OutcomeUnknown`` (no answer within the timeout: the
        commit goes on in the background), or ``HeuristicOutcome``. An exception that the handler of a signal
        raises (``KeyboardInterrupt``, a time limit) does not stop the commit: it goes on in the background
        too, a note of the exception says so, and ``coordinator.outcome(tx.id)`` may return its outcome
        later."""
        return self._finish(self._engine.commit)

    def _finish(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return self._call(function)
        except CoordinatorClosed:
            if self._engine.committing:
                raise OutcomeUnknown(self.id, "the coordinator was closed meanwhile") from None
            raise
        except UndoubtError:
            raise
        except BaseException as error:  # the handler of a signal has raised it in this thread
            if self._engine.active:
                self._portal.flush()  # the commit may be on its way to the loop
            self._engine.note_commit(error)
            raise

    def rollback(self) -> None:
        """Roll back all branches. Does nothing if the transaction was rolled back already."""
        self._call(self._engine.rollback)

    def __enter__(self) -> Transaction:
        if self._engine.key_use is not None:
            self._engine.key_use.entered_in = threading.current_thread()
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            try:
                self._finish(self._engine.end_block)
            except BaseException as left:
                if self._engine.active:  # it was interrupted before the commit began
                    self._roll_back(left)
                raise
            return
        if self._engine.committing or self._engine.may_have_committed:
            self._engine.note_commit(error)
        else:
            self._roll_back(error)
        cause = self._engine.interruption
        if cause is not None and may_come_from_a_branch(error):
            raise TransactionAborted(self.id, cause) from cause

    def _roll_back(self, error: BaseException) -> None:
        """Roll back, or wait for the end of a rollback. The application has to see ``error``, so errors of
        the rollback are not raised."""
        try:
            if self._engine.active:
                self._portal.call(self._engine.undo_after, error)
            else:
                self._portal.call(self._engine.rollback)
        except TransactionAborted:
            return  # aborted from outside meanwhile: the caller raises the cause
        except UndoubtError as failure:
            error.add_note(f"the rollback of transaction {self.id} could not be waited for: {failure}")

    def _call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        try:
            return self._portal.call(function, *arguments)
        except CoordinatorClosed:
            if (cause := self._engine.interruption) is not None:
                raise TransactionAborted(self.id, cause) from cause
            raise

    # In the loop.

    async def _open(self, names: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(await asyncio.gather(*(self._engine.branch(name) for name in names)))

    async def _begin(self) -> None:
        await self._engine.start()
        await self._end_what_began()

    async def _end_what_began(self) -> None:
        if self._given_up and self._engine.active:
            await self._engine.rollback()


def may_come_from_a_branch(error: BaseException) -> bool:
    """Whether ``error`` may come from a cancelled statement or from a branch that has ended: an error of
    undoubt or of psycopg, or an error that was raised from, or while handling, such an error."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        if isinstance(each, psycopg.Error | UndoubtError):
            return True
        seen.add(id(each))
        todo += [each.__cause__, each.__context__]
    return False
