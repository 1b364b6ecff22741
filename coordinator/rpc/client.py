"""The check of a call before it is queued, callers that wait for answers, the loop that passes the answers to
them, and how long a peer has sent nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.rpc.envelope import (
    Answer,
    Elsewhere,
    Failed,
    LeaderHint,
    Reply,
    encode,
    illegible,
    raised,
)
from undoubt.coordinator.wire import RemoteProtocolError
from undoubt.coordinator.wire.settings import FRAME_BYTES_MAX
from undoubt.participants.errors import UsageError

CALL_BYTES_MAX = FRAME_BYTES_MAX // 2
"""The largest encoded call, in bytes. A frame has room for such a call and the fields around it."""


def judged(call: msgspec.Struct, decode: Callable[[bytes], msgspec.Struct]) -> msgspec.Raw:
    """``call`` in its encoded form. Raises ``UsageError`` if ``decode``, the peer's decoder, refuses it: an
    id that is not a ``TxId``, a number out of range, text that is not valid Unicode; or if it is too large.

    A call is checked when it is made, before it is queued. A message that the peer cannot decode would end
    the connection that all callers of this process share, and would be sent again on the next connection."""
    try:
        payload = encode(call)
        decode(payload)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UsageError(f"{type(call).__name__} has an argument that no ledger accepts: {error}") from error
    if len(payload) > CALL_BYTES_MAX:
        raise UsageError(f"{type(call).__name__} of {len(payload)} bytes; the limit is {CALL_BYTES_MAX}")
    return msgspec.Raw(payload)


class PendingCall:
    """One caller that waits for an answer. ``decode`` decodes the result, and raises ``ValueError`` or
    ``RecursionError`` if it cannot. ``resolve`` is called once, with the result or with the exception."""

    __slots__ = ("decode", "resolve")

    def __init__(
        self, decode: Callable[[msgspec.Raw], Any], resolve: Callable[[Any | Exception], None]
    ) -> None:
        self.decode = decode
        self.resolve = resolve


W = TypeVar("W", bound=PendingCall)


class Replies(Generic[W]):
    """The waiting callers, by the numbers of their requests.

    ``follows``: an :class:`.Elsewhere` is returned to the owner of the connection, and the rest of its frame
    is not read; otherwise its caller gets ``LedgerUnavailable``. ``strict``: callers are never removed before
    they are resolved, so an answer with a number that no caller waits for is an error of the peer."""

    def __init__(self, *, follows: bool = False, strict: bool = False) -> None:
        self.waiting: dict[int, W] = {}
        self._follows = follows
        self._strict = strict
        self._number = 0

    def add(self, waiting: W) -> int:
        """Add a caller; returns the number of its request."""
        self._number += 1
        self.waiting[self._number] = waiting
        return self._number

    def received(self, answers: Iterable[Answer]) -> Elsewhere | None:
        """Resolve the callers of ``answers``. Raises ``RemoteProtocolError`` if ``strict`` and no caller
        waits for one of the numbers. Returns an ``Elsewhere`` if ``follows``."""
        for answer in answers:
            match answer:
                case Reply(number=number, result=result):
                    if (waiting := self._take(number)) is not None:
                        waiting.resolve(_read(waiting, result))
                case Failed():
                    if (waiting := self._take(answer.number)) is not None:
                        waiting.resolve(raised(answer))
                case Elsewhere():
                    if self._follows:
                        return answer
                    if (waiting := self._take(answer.number)) is not None:
                        waiting.resolve(LedgerUnavailable(answer.why))
                case LeaderHint():
                    pass
        return None

    def _take(self, number: int) -> W | None:
        if self._strict and number not in self.waiting:
            raise RemoteProtocolError(f"an answer to request {number}, which was not sent")
        return self.waiting.pop(number, None)

    def fail(self, why: Callable[[], Exception]) -> None:
        """Resolve all waiting callers with the exception that ``why`` makes, a new one for each."""
        waiting, self.waiting = self.waiting, {}
        for each in waiting.values():
            each.resolve(why())


def _read(waiting: PendingCall, result: msgspec.Raw) -> Any:
    """The decoded result. A result that cannot be decoded is an error of this one call only."""
    try:
        return waiting.decode(result)
    except (ValueError, RecursionError) as error:
        return illegible(error)


def into(future: asyncio.Future[Any]) -> Callable[[Any | Exception], None]:
    """A ``resolve`` that sets ``future``. If the future is done already, the result is dropped: its caller
    may have been cancelled."""
    return partial(_resolve, future)


def _resolve(future: asyncio.Future[Any], result: Any | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


SILENCE_S = 1.0
"""A peer that sends nothing for so long while it owes an answer counts as gone: paused or cut off."""


class Liveness:
    """For how long a peer that owes an answer has sent nothing. Times are the loop's, in seconds.

    A node that works sends something at short intervals while it owes an answer
    (``undoubt.coordinator.node.clients``). The time is counted from the first request after which the peer
    has sent nothing. If it were counted from the last request, a peer that gets requests all the time could
    stay silent for ever."""

    def __init__(self) -> None:
        self._received_at = self._asked_at = 0.0

    def asked(self, now: float) -> None:
        if self._asked_at <= self._received_at:
            self._asked_at = now

    def received(self, now: float) -> None:
        self._received_at = now

    def seconds(self, now: float) -> float:
        """The length of the silence. Without meaning while the peer owes no answer."""
        return now - max(self._received_at, self._asked_at)
