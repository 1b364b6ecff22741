"""What one request does in the databases: one transaction or one session of SQLAlchemy, which the request
ends before it is answered.

:class:`AsyncRequestWork` is for handlers that are coroutines, and for handlers in threads of an application
of ASGI. :class:`ThreadRequestWork` is for applications of WSGI. Both begin nothing before they are asked for
a transaction."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import HeuristicOutcome, TransactionAborted
from undoubt.coordinator.runnable import check_synchronous, checked_result
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import TxId
from undoubt.sync import Coordinator as SyncCoordinator
from undoubt.sync import Transaction as SyncTransaction

T = TypeVar("T")

log = logging.getLogger(__name__)

_in_threads: set[asyncio.Future[Any]] = set()
"""Keeps what runs in threads referenced until it is done."""


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function`` in a thread. It is called and runs to its end also if the caller is cancelled."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    _in_threads.add(running)
    running.add_done_callback(_in_threads.discard)
    return await asyncio.shield(running)


class RequestWork:
    """What both kinds have in common. ``coordinator`` gives the application's, ``sessions`` makes
    SQLAlchemy's sessions."""

    def __init__(
        self,
        coordinator: Callable[[], Coordinator | SyncCoordinator],
        sessions: Callable[[], Any] | None,
        options: dict[str, Any],
    ) -> None:
        self._coordinator = coordinator
        self._sessions = sessions
        self._options = options
        self._lock = threading.Lock()
        self._transaction: Transaction | SyncTransaction | None = None
        self._session: Any = None
        self._hooks: list[Callable[[], object]] = []
        self._over = False
        self.raised = False
        """The handler has raised an error: nothing is committed, whatever is answered to it."""

    @property
    def coordinator(self) -> Coordinator | SyncCoordinator:
        """The application's. Raises ``UsageError`` if it is not open."""
        return self._coordinator()

    @property
    def txid(self) -> TxId | None:
        """The id of the transaction, None if none has begun."""
        if self._session is not None:
            found: TxId | None = getattr(self._session, "undoubt_txid", None)
            return found
        return None if self._transaction is None else self._transaction.id

    @property
    def may_have_committed(self) -> bool:
        """Whether the transaction may have committed."""
        if self._session is not None:
            return bool(getattr(self._session, "undoubt_may_have_committed", False))
        return self._transaction is not None and self._transaction.may_have_committed

    @property
    def rolled_back(self) -> bool:
        """Whether the application has rolled back by itself, of which its answer may say nothing."""
        began = self._session is not None or self._transaction is not None
        repeated = bool(getattr(self._session, "undoubt_repeated", False))  # the first one has committed
        return began and self.txid is not None and not self.may_have_committed and not repeated

    def sync_transaction(self) -> SyncTransaction:
        """The transaction for threads; begins it at the first call. Raises ``UsageError``, and what ``start``
        raises."""
        with self._lock:
            match self._begun(SyncCoordinator):
                case SyncTransaction() as begun:
                    return begun
                case _:
                    made: SyncTransaction = self._made()
                    self._transaction = made.start()
                    return made

    def session(self) -> Any:
        """The session; makes it at the first call. Raises ``UsageError``."""
        self._check_open()
        if self._transaction is not None:
            raise UsageError("the request works in a transaction already: a request has one of both")
        if self._sessions is None:
            raise UsageError("name the maker of sessions: sessions=sessionmaker(…)")
        if self._session is None:
            self._session = self._sessions()
        return self._session

    def on_commit(self, function: Callable[[], object]) -> None:
        """Call ``function`` after the commit, before the response; never if the application has rolled back
        by itself. What it raises is logged: the request has succeeded. Raises ``UsageError`` once the
        response has begun, and for a coroutine function: nothing would await it."""
        self._check_open()
        check_synchronous(function, "on_commit()")
        self._hooks.append(function)

    def _committed(self) -> None:
        hooks, self._hooks = self._hooks, []
        if self.rolled_back:
            return
        for function in hooks:
            try:
                checked_result(function, function(), "on_commit()")
            except Exception:  # the transaction has committed, whatever comes of the hook
                log.exception("a function that was to be called after the commit has failed")

    def _begun(self, kind: type[Any]) -> Transaction | SyncTransaction | None:
        self._check_open()
        if self._session is not None:
            raise UsageError("the request works in a session already: a request has one of both")
        if not isinstance(self.coordinator, kind):
            raise UsageError(
                "handlers that are coroutines need the coordinator of undoubt.connect and transaction(),"
                " handlers in threads that of undoubt.sync.connect and sync_transaction()"
            )
        return self._transaction

    def _made(self) -> Any:
        return self.coordinator.transaction(**self._options)

    def _check_open(self) -> None:
        if self._over:
            raise UsageError(
                "the request's transaction is over: it ends before the response is sent. Code that runs"
                " later (a streamed body, a background task) needs a transaction of its own"
            )


class ThreadRequestWork(RequestWork):
    """The work of a request that one thread handles."""

    def commit(self) -> None:
        """Commit what was begun. Raises what ``commit`` raises."""
        self._over = True
        if isinstance(self._transaction, SyncTransaction):
            self._transaction.__exit__(None, None, None)
        elif self._session is not None:
            _finish_session(self._session)
        self._committed()

    def undo(self, error: BaseException | None) -> None:
        """Roll back what was begun, if its commit has not begun, because of ``error``. Raises
        ``TransactionAborted`` if that is the reason of ``error``."""
        self._over = True
        if isinstance(self._transaction, SyncTransaction):
            _undo_transaction(self._transaction, error)
        elif self._session is not None:
            _undo_session(self._session)

    def outcome(self) -> str:
        """What became of a transaction that may have committed."""
        if isinstance(self._transaction, SyncTransaction):
            return _outcome_of(self._transaction)
        return "unknown"


class AsyncRequestWork(RequestWork):
    """The work of a request of ASGI. Its handler may be a coroutine or run in a thread."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._beginning = asyncio.Lock()

    async def transaction(self) -> Transaction:
        """The transaction; begins it at the first call. Raises ``UsageError``, and what ``start`` raises."""
        async with self._beginning:
            match self._begun(Coordinator):
                case Transaction() as begun:
                    return begun
                case _:
                    made: Transaction = self._made()
                    self._transaction = await made.start()
                    return made

    async def commit(self) -> None:
        """As that of :class:`ThreadRequestWork`. The commit goes on if the caller is cancelled."""
        self._over = True
        match self._transaction:
            case Transaction() as begun:
                await begun.end_block()
            case SyncTransaction() as begun:
                await in_thread(begun.__exit__, None, None, None)
            case None if self._session is not None:
                await self._with_session(_finish_session, _finish_async_session)
            case None:
                pass
        self._committed()

    async def undo(self, error: BaseException | None) -> None:
        """As that of :class:`ThreadRequestWork`."""
        self._over = True
        match self._transaction:
            case Transaction() as begun if error is not None:
                await begun.__aexit__(type(error), error, error.__traceback__)
            case Transaction() as begun if begun.active:
                await begun.rollback()
            case SyncTransaction() as begun:
                await in_thread(_undo_transaction, begun, error)
            case None if self._session is not None:
                await self._with_session(_undo_session, _undo_async_session)
            case _:
                pass

    async def outcome(self) -> str:
        """As that of :class:`ThreadRequestWork`."""
        match self._transaction:
            case Transaction() as begun:
                try:
                    await begun.committed()
                except UndoubtError as error:
                    return _named(error)
                return "committed"
            case SyncTransaction() as begun:
                return await in_thread(_outcome_of, begun)
            case None:
                return "unknown"

    async def _with_session(
        self, synchronous: Callable[[Any], None], asynchronous: Callable[[Any], Any]
    ) -> None:
        if inspect.iscoroutinefunction(self._session.commit):
            await asynchronous(self._session)
        else:
            await in_thread(synchronous, self._session)


def _undo_transaction(transaction: SyncTransaction, error: BaseException | None) -> None:
    if error is not None:
        transaction.__exit__(type(error), error, error.__traceback__)
    elif transaction.active:
        transaction.rollback()


def _outcome_of(transaction: SyncTransaction) -> str:
    try:
        transaction.__exit__(None, None, None)
    except UndoubtError as error:
        return _named(error)
    return "committed"


def _named(error: BaseException) -> str:
    match error:
        case TransactionAborted():
            return "aborted"
        case HeuristicOutcome():
            return "heuristic"
        case _:
            return "unknown"


def _finish_session(session: Any) -> None:
    try:
        session.commit()
    finally:
        session.close()


def _undo_session(session: Any) -> None:
    session.close()


async def _finish_async_session(session: Any) -> None:
    try:
        await session.commit()
    finally:
        await session.close()


async def _undo_async_session(session: Any) -> None:
    await session.close()
