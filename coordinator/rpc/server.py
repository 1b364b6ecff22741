"""Reads the requests of one connection, carries out each independently of the others, and sends the
answers."""

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


def message_count(payload: bytes) -> int:
    """The number of messages in a frame, as its first bytes declare it. It is checked before the frame is
    decoded, since a decoded message is many times larger. Raises ``ValueError`` if the frame is not a list of
    messages."""
    first = payload[0] if payload else 0
    if first & 0xF0 == 0x90:  # msgpack's array formats (specification, "array format family")
        return first & 0x0F
    if first in {0xDC, 0xDD}:
        return int.from_bytes(payload[1 : 3 if first == 0xDC else 5])
    raise ValueError("not a list of messages")


class Requests(abc.ABC, Generic[C]):
    """A Receiver that serves the requests of one connection. A call that has begun continues if the
    connection is lost: it may be partly recorded, and its caller repeats it.

    ``requests_max``: a peer with more unanswered requests is faulty, and its connection is closed. ``who``
    names this process in answers to calls that fail because of a bug."""

    def __init__(self, connection: Connection, *, requests_max: int, who: str) -> None:
        self.connection = connection
        self.unanswered = 0
        self._requests_max = requests_max
        self._who = who
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @abc.abstractmethod
    def read(self, payload: bytes) -> tuple[Sequence[Request[C]], Sequence[Failed]]:
        """Decode a frame: its requests, and the answers to requests whose call cannot be decoded. Raises
        ``ValueError`` or ``RemoteProtocolError`` if the payload is not a frame of requests."""

    @abc.abstractmethod
    def begin(self, number: int, call: C) -> None:
        """Carry out ``call``, now or later, and call :meth:`answer` once. A raised exception becomes the
        answer."""

    @abc.abstractmethod
    def say(self, answer: Answer) -> None:
        """Send ``answer``, immediately or together with the other answers of this turn of the loop."""

    @abc.abstractmethod
    def lost(self, why: str) -> None: ...

    def received(self, payload: bytes) -> None:
        requests, refused = self.read(payload)
        for answer in refused:
            self.say(answer)
        self.unanswered += len(requests)
        if self.unanswered > self._requests_max:
            raise RemoteProtocolError(f"more than {self._requests_max} unanswered requests")
        for request in requests:
            try:
                self.begin(request.number, request.call)
            except Exception as error:  # noqa: BLE001 - answered to the caller, and logged if it is a bug
                self.answer(request.number, self._error_of(request.call, error))

    def later(self, number: int, call: C, work: Coroutine[Any, Any, object]) -> None:
        """Run ``work``, which carries out ``call``, in a task, and :meth:`answer` with its result."""
        task = self._loop.create_task(self._carry_out(number, call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, number: int, call: C, work: Coroutine[Any, Any, object]) -> None:
        try:
            result = await work
        except Exception as error:  # noqa: BLE001 - as above
            result = self._error_of(call, error)
        self.answer(number, result)

    def _error_of(self, call: C, error: Exception) -> UndoubtError:
        """The error to answer. An exception that is a bug is logged, and answered as ``LedgerUnavailable``:
        its caller needs an answer, and the other callers of the connection are not affected."""
        if isinstance(error, UndoubtError):
            return error
        log.error("call %s failed", type(call).__name__, exc_info=error)
        return LedgerUnavailable(f"{self._who} failed: {type(error).__name__}: {error}")

    def answer(self, number: int, result: object) -> None:
        """Answer a request with ``result``: the call's declared reply, or an ``UndoubtError``."""
        self.unanswered -= 1
        self.say(self.as_message(number, result))

    def as_message(self, number: int, result: object) -> Answer:
        """``result`` as the answer to request ``number``."""
        if isinstance(result, UndoubtError):
            return failed(number, result)
        return Reply(number, msgspec.Raw(encode(result)))
