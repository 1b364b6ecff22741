"""Who waits for which answer, the loop that tells them, and how long a peer has been silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec

from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.coordinator.rpc.envelope import Answer, Elsewhere, Failed, LeaderHint, Reply, illegible, raised
from undoubt.coordinator.wire import RemoteProtocolError


class PendingCall:
    """Somebody who waits: ``decode`` reads the result (``ValueError`` and ``RecursionError`` say that it
    cannot be read), ``tell`` is called once, with the result or with why there is none."""

    __slots__ = ("decode", "tell")

    def __init__(self, decode: Callable[[msgspec.Raw], Any], tell: Callable[[Any | Exception], None]) -> None:
        self.decode = decode
        self.tell = tell


W = TypeVar("W", bound=PendingCall)


class Replies(Generic[W]):
    """By the numbers of their requests, those who wait. ``follows``: an :class:`.Elsewhere` is for whoever
    keeps the connection, and ends the frame; else its asker is told that there is no answer. ``strict``:
    whoever waits stays until it is told, so a number that nobody waits for is a fault of the peer's."""

    def __init__(self, *, follows: bool = False, strict: bool = False) -> None:
        self.waiting: dict[int, W] = {}
        self._follows = follows
        self._strict = strict
        self._number = 0

    def add(self, waiting: W) -> int:
        """The number of its request."""
        self._number += 1
        self.waiting[self._number] = waiting
        return self._number

    def received(self, answers: Iterable[Answer]) -> Elsewhere | None:
        """Tell everybody whose answer is among these. Raises ``RemoteProtocolError`` if ``strict``."""
        for answer in answers:
            match answer:
                case Reply(number=number, result=result):
                    if (waiting := self._take(number)) is not None:
                        waiting.tell(_read(waiting, result))
                case Failed():
                    if (waiting := self._take(answer.number)) is not None:
                        waiting.tell(raised(answer))
                case Elsewhere():
                    if self._follows:
                        return answer
                    if (waiting := self._take(answer.number)) is not None:
                        waiting.tell(LedgerUnavailable(answer.why))
                case LeaderHint():
                    pass
        return None

    def _take(self, number: int) -> W | None:
        if self._strict and number not in self.waiting:
            raise RemoteProtocolError(f"an answer to request {number}, which was not asked")
        return self.waiting.pop(number, None)

    def fail(self, why: Callable[[], Exception]) -> None:
        """Tell everybody who still waits."""
        waiting, self.waiting = self.waiting, {}
        for each in waiting.values():
            each.tell(why())


def _read(waiting: PendingCall, result: msgspec.Raw) -> Any:
    """One that cannot be read is no answer, to whoever asked for it and to nobody else."""
    try:
        return waiting.decode(result)
    except (ValueError, RecursionError) as error:
        return illegible(error)


def into(future: asyncio.Future[Any]) -> Callable[[Any | Exception], None]:
    """``tell`` of whoever awaits ``future``, and may have gone away."""
    return partial(_resolve, future)


def _resolve(future: asyncio.Future[Any], result: Any | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


SILENCE_S = 1.0
"""Who says nothing for so long while it is asked something is taken for gone: paused, or cut off."""


class Liveness:
    """For how long a peer that was asked something has said nothing. Times are the loop's, in seconds.

    A node that works says something every moment while it owes an answer
    (``undoubt.coordinator.node.clients``). Counted is from the first question that it has not followed by
    anything: not from the last one, or whoever is asked all the time could be silent for ever."""

    def __init__(self) -> None:
        self._heard_at = self._asked_at = 0.0

    def asked(self, now: float) -> None:
        if self._asked_at <= self._heard_at:
            self._asked_at = now

    def heard(self, now: float) -> None:
        self._heard_at = now

    def seconds(self, now: float) -> float:
        """As long as nothing is owed it means nothing."""
        return now - max(self._heard_at, self._asked_at)
