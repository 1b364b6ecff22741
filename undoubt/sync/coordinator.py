"""The coordinator in the hands of threads: every call is the async engine's, carried out in its loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import TypeVar

from undoubt.coordinator.coordinator import Coordinator as EngineCoordinator
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.retries import pause_before_retry
from undoubt.coordinator.runnable import check_synchronous, checked_result
from undoubt.participants import bounds
from undoubt.participants.contract import Participant
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import InvariantViolation
from undoubt.sync.portal import Portal
from undoubt.sync.transaction import Transaction

T = TypeVar("T")

Opening = Callable[[], AbstractAsyncContextManager[EngineCoordinator]]


class Coordinator:
    """Open from construction until ``close``, or the end of its ``with`` block. For any number of threads.

    ``opening`` is called in the engine's loop and gives the coordinator to use;
    :func:`undoubt.sync.connect` is the usual way to make one. Belongs to the process that made it: a fork
    that uses it gets ``WrongProcess``. A thread whose own event loop is running gets ``UsageError``.
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
        """The asynchronous one, which lives in the loop of :attr:`portal`."""
        return self._engine

    @property
    def portal(self) -> Portal:
        return self._portal

    def transaction(self, *, timeout: float | None = None, protocol: str | None = None) -> Transaction:
        """A new transaction, for ``with``. Not decided after ``timeout`` seconds, it is aborted.
        ``protocol``: ``2pc``, ``3pc`` or ``paxos``, else the configuration's."""
        self._portal.check()
        return Transaction(self._portal, self._engine.transaction(timeout=timeout, protocol=protocol))

    def run(
        self,
        function: Callable[..., T],
        *args: object,
        retries: int = 5,
        timeout: float | None = None,
        protocol: str | None = None,
    ) -> T:
        """``function(tx, *args)`` in a transaction of its own; returns its result once committed.

        ``timeout`` and ``protocol`` are those of :meth:`transaction`, for each attempt. Repeated up to
        ``retries`` times, after growing random pauses, where the cause was a deadlock or a serialization
        failure. Everything else is raised at once, ``OutcomeUnknown`` above all, and whatever ``function``
        raises after a commit of its own. Raises ``UsageError``, and commits nothing, if ``function`` is
        a coroutine function or an argument is not within its bounds.
        """
        bounds.count("retries", retries)
        check_synchronous(function)
        for attempt in count():
            tx = self.transaction(timeout=timeout, protocol=protocol)
            try:
                with tx:
                    result = checked_result(function, function(tx, *args))
            except Exception as error:  # whatever the application raises passes through, unless retryable
                pause_s = pause_before_retry(error, attempt, retries)
                if pause_s is None or tx.may_have_committed:
                    raise
            else:
                return result
            time.sleep(pause_s)
        raise InvariantViolation("unreachable")

    def outcome(self, txid: TxId | str) -> RecordedDecision:
        """What the ledger has recorded, for an id or its text. NOT_RECORDED never means aborted."""
        return self._portal.call(self._engine.outcome, txid)

    @property
    def participants(self) -> tuple[str, ...]:
        """The names of the participants."""
        return tuple(self._engine.participants.names())

    def add_participant(self, participant: Participant) -> None:
        """Register one more, at once usable. A ``PostgresParticipant`` has to be made with
        ``handles="sync"``. Raises ``UsageError`` if the name is taken."""
        self._portal.call(self._add, participant)

    def remove_participant(self, name: str) -> None:
        """Unregister and close one. Raises ``ParticipantInUse`` while any branch of it is unresolved, and
        ``ParticipantUnavailable`` if it cannot be asked."""
        self._portal.call(self._engine.remove_participant, name)

    def close(self) -> None:
        """Abort what has not begun to commit, wait up to ``drain_s`` for what has, end the session, the
        ledger and the thread. May be repeated, by any thread; also done when the interpreter exits.

        Interrupted by Ctrl-C it goes on in the background, and the next call, or the exit, waits for it.
        """
        if self._portal.elsewhere:
            return
        with self._closing:
            if self._portal.ended:
                return
            try:
                self._portal.call(self._shut)
            except UsageError:
                raise  # refused: everything is as it was
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
