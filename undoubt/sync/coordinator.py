"""The coordinator for threads: each call runs the async engine's method in the engine's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import TypeVar, cast

from undoubt.coordinator.coordinator import Coordinator as EngineCoordinator
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.retries import pause_before_retry
from undoubt.coordinator.runnable import check_synchronous, checked_result
from undoubt.participants import bounds
from undoubt.participants.contract import Participant
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import InvariantViolation
from undoubt.sync.lock import Lock
from undoubt.sync.portal import Portal
from undoubt.sync.transaction import Transaction

T = TypeVar("T")

Opening = Callable[[], AbstractAsyncContextManager[EngineCoordinator]]


class Coordinator:
    """A coordinator for any number of threads.

    It is open from construction until ``close``, or until the end of its ``with`` block.

    ``opening`` is called in the engine's loop and returns the engine's coordinator;
    :func:`undoubt.sync.connect` is the usual way to make a coordinator. It belongs to the process that made
    it: in a fork each call raises ``WrongProcess``. In a thread that runs an event loop each call raises
    ``UsageError``.
    """

    def __init__(self, opening: Opening) -> None:
        bounds.having("opening", opening, "a function that opens a coordinator")
        self._opening = opening
        self._stack = contextlib.AsyncExitStack()
        self._opening_or_shutting = asyncio.Lock()
        self._closing = threading.Lock()
        self._portal = Portal("undoubt-engine", self.close)
        try:
            self._engine = self._portal.call(self._open)
        except BaseException:
            self.close()
            raise
        self.ledger_id: str = self._engine.ledger_id

    @property
    def engine(self) -> EngineCoordinator:
        """The asynchronous coordinator, which runs in the loop of :attr:`portal`."""
        return self._engine

    @property
    def portal(self) -> Portal:
        return self._portal

    def transaction(
        self,
        *,
        timeout: float | None = None,
        protocol: str | None = None,
        key: str | None = None,
        agent: str | None = None,
    ) -> Transaction:
        """A new transaction, for ``with``. It is aborted if it is not decided after ``timeout`` seconds.
        ``protocol``: ``2pc``, ``3pc``, ``paxos`` or ``last``, by default the configuration's protocol.
        ``key``: of all transactions with one key only one commits; for the others ``tx.repeated`` is true.
        ``agent``: with ``last``, the participant that commits last; by default the configuration's."""
        self._portal.check()
        engine = self._engine.transaction(timeout=timeout, protocol=protocol, key=key, agent=agent)
        return Transaction(self._portal, engine)

    def lock(
        self,
        name: str,
        *,
        timeout: float | None = None,
        shared: bool = False,
        tx: Transaction | None = None,
    ) -> Lock:
        """A distributed lock, for ``with``. ``timeout`` is how long to wait for it, in seconds; 0: take it
        only if it is free now; None: without limit. Any number of ``shared`` holders have it together.
        ``tx``: a transaction that has begun, and that waits for the lock meanwhile."""
        self._portal.check()
        if tx is not None:
            bounds.having("tx", tx, "a transaction of this coordinator", "branch", "commit")
        engine = None if tx is None else tx.engine
        return Lock(self._portal, self._engine.lock(name, timeout=timeout, shared=shared, tx=engine))

    def run(
        self,
        function: Callable[..., T],
        *args: object,
        retries: int = 5,
        timeout: float | None = None,
        protocol: str | None = None,
        key: str | None = None,
        agent: str | None = None,
    ) -> T:
        """Call ``function(tx, *args)`` in a new transaction; returns the function's result after the commit.

        ``timeout``, ``protocol``, ``key`` and ``agent`` are those of :meth:`transaction`, for each attempt.
        With a key, the function's result is stored, and has to be one that can be stored; a function that
        returns None may have set ``tx.result`` instead. If a transaction with this key has committed before,
        the function is not called, and the stored result is returned. The transaction is repeated up to
        ``retries`` times, after growing random pauses, if it failed by a deadlock or a serialization failure.
        All other errors are raised immediately, also ``OutcomeUnknown``, and all
        errors after ``function`` itself has called ``commit``. Raises ``UsageError``, and commits nothing, if
        ``function`` is a coroutine function or an argument is not within its bounds.
        """
        bounds.count("retries", retries)
        check_synchronous(function)
        for attempt in count():
            tx = self.transaction(timeout=timeout, protocol=protocol, key=key, agent=agent)
            try:
                with tx:
                    if tx.repeated:
                        return cast("T", tx.result)
                    result = checked_result(function, function(tx, *args))
                    if key is not None:
                        if tx.active and result is not None:  # otherwise it has committed, or set the result
                            tx.result = result
                        result = cast("T", tx.result)
            except Exception as error:  # errors of the application are raised, unless retryable
                pause_s = pause_before_retry(error, attempt, retries)
                if pause_s is None or tx.may_have_committed:
                    raise
            else:
                return result
            time.sleep(pause_s)
        raise InvariantViolation("unreachable")

    def outcome(self, txid: TxId | str) -> RecordedDecision:
        """The decision that the ledger has recorded for a transaction id, or for its text. NOT_RECORDED does
        not mean aborted."""
        return self._portal.call(self._engine.outcome, txid)

    @property
    def participants(self) -> tuple[str, ...]:
        """The names of the participants."""
        return tuple(self._engine.participants.names())

    def add_participant(self, participant: Participant) -> None:
        """Register a participant, which can be used immediately. A ``PostgresParticipant`` has to be made
        with ``handles="sync"``. Raises ``UsageError`` if the name is taken."""
        self._portal.call(self._add, participant)

    def remove_participant(self, name: str) -> None:
        """Unregister and close a participant. Raises ``ParticipantInUse`` while it has an unresolved branch,
        and ``ParticipantUnavailable`` if it does not answer."""
        self._portal.call(self._engine.remove_participant, name)

    def close(self) -> None:
        """Abort transactions that have not begun to commit, wait up to ``drain_s`` for commits, and end the
        session, the ledger and the thread. May be repeated, by any thread; the interpreter's exit calls it.

        After Ctrl-C the closing goes on in the background; the next call, or the exit, waits for its end.
        """
        if self._portal.elsewhere:
            return
        with self._closing:
            if self._portal.ended:
                return
            try:
                self._portal.call(self._shut)
            except UsageError:
                raise  # the call was refused: nothing has changed
            except Exception:
                self._portal.close()
                raise
            self._portal.close()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # In the loop.

    async def _open(self) -> EngineCoordinator:
        async with self._opening_or_shutting:
            return await self._stack.enter_async_context(self._opening())

    async def _shut(self) -> None:
        async with self._opening_or_shutting:
            await self._stack.aclose()

    async def _add(self, participant: Participant) -> None:
        self._engine.add_participant(participant)
