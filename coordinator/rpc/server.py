"""Requests in, each carried out alone, answers out."""

from __future__ import annotations

import abc
import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.rpc.envelope import Answer, Failed, Reply, Request, encode, failed
from undoubt.coordinator.wire import Connection, RemoteProtocolError
from undoubt.participants.errors import UndoubtError

log = logging.getLogger(__name__)

C = TypeVar("C")


class Requests(abc.ABC, Generic[C]):
    """A Receiver of one connection. What is asked goes on when the connection is lost: it may be half
    recorded, and whoever asked asks again.

    ``requests_max``: a peer with more than that unanswered has gone wrong, and loses its connection. ``who``
    is told in answers that a bug of ours leads to."""

    def __init__(self, connection: Connection, *, requests_max: int, who: str) -> None:
        self.connection = connection
        self.unanswered = 0
        self._requests_max = requests_max
        self._who = who
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @abc.abstractmethod
    def read(self, payload: bytes) -> tuple[Sequence[Request[C]], Sequence[Failed]]:
        """The frame's requests, and refusals of those that cannot be read: they concern nobody else. Raises
        ``ValueError`` or ``RemoteProtocolError`` for what is no frame of requests."""

    @abc.abstractmethod
    def begin(self, number: int, call: C) -> None:
        """Carry it out, now or later, and :meth:`answer` once. An exception is its answer."""

    @abc.abstractmethod
    def say(self, answer: Answer) -> None:
        """Send it, now or with others of this turn of the loop."""

    @abc.abstractmethod
    def lost(self, why: str) -> None: ...

    def received(self, payload: bytes) -> None:
        requests, refused = self.read(payload)
        for answer in refused:
            self.say(answer)
        self.unanswered += len(requests)
        if self.unanswered > self._requests_max:
            raise RemoteProtocolError(f"more than {self._requests_max} requests at once")
        for request in requests:
            try:
                self.begin(request.number, request.call)
            except Exception as error:  # noqa: BLE001 - told to whoever asked, and logged if it is a bug
                self.answer(request.number, self._told(request.call, error))

    def later(self, number: int, call: C, work: Coroutine[Any, Any, object]) -> None:
        """:meth:`answer` with the result of ``work``, which carries out ``call``."""
        task = self._loop.create_task(self._carry_out(number, call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, number: int, call: C, work: Coroutine[Any, Any, object]) -> None:
        try:
            result = await work
        except Exception as error:  # noqa: BLE001 - as above
            result = self._told(call, error)
        self.answer(number, result)

    def _told(self, call: C, error: Exception) -> UndoubtError:
        """The caller has to hear something, and the connection's other callers hear theirs."""
        if isinstance(error, UndoubtError):
            return error
        log.error("call %s failed", type(call).__name__, exc_info=error)
        return LedgerUnavailable(f"{self._who} failed: {type(error).__name__}: {error}")

    def answer(self, number: int, result: object) -> None:
        """A result as the call declares it, or an ``UndoubtError``."""
        self.unanswered -= 1
        self.say(self.told(number, result))

    def told(self, number: int, result: object) -> Answer:
        if isinstance(result, UndoubtError):
            return failed(number, result)
        return Reply(number, msgspec.Raw(encode(result)))
