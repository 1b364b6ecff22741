"""Defines ``PaxosReady``, which contains everything that an acceptor's driver has to do next."""

from __future__ import annotations

from collections import deque

import msgspec

from undoubt.coordinator.paxos.marks import Marks
from undoubt.coordinator.paxos.messages import AcceptorReply
from undoubt.coordinator.paxos.record import AcceptorRecord
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import invariant


class Outgoing(msgspec.Struct, frozen=True):
    """One reply. ``to`` is the number that the driver gave as the sender of the request."""

    to: int
    message: AcceptorReply


class PaxosReady(msgspec.Struct, frozen=True):
    """The work that the driver has to do next; the package's docstring gives its order."""

    token: int
    """The argument for ``on_persisted``."""
    records: tuple[AcceptorRecord, ...] = ()
    """Records to store; each replaces the stored record of its transaction."""
    dropped: tuple[TxId, ...] = ()
    """Transactions whose records have to be deleted, after ``records`` and together with ``marks``."""
    marks: Marks | None = None
    """Marks to store; None if they have not changed."""
    replies_now: tuple[Outgoing, ...] = ()
    replies_after_sync: tuple[Outgoing, ...] = ()
    """Replies that depend on what is being stored: ``on_persisted`` returns them once they may be sent."""

    @property
    def writes(self) -> bool:
        """Whether there is something to store before ``on_persisted(token)``."""
        return bool(self.records or self.dropped or self.marks is not None)

    @property
    def empty(self) -> bool:
        return not (self.writes or self.replies_now or self.replies_after_sync)


class PaxosWrites:
    """The unfinished writes in the order in which they were handed out, each with the replies that wait for
    it."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[int, tuple[Outgoing, ...]]] = deque()
        self._token = 0

    @property
    def idle(self) -> bool:
        return not self._under_way

    def next_token(self) -> int:
        self._token += 1
        return self._token

    def begin(self, token: int, replies: tuple[Outgoing, ...]) -> None:
        self._under_way.append((token, replies))

    def done(self, token: int) -> list[Outgoing]:
        """Remove the writes up to ``token``, which are durable, and return their replies. Raises
        InvariantViolation for a token that was never handed out."""
        invariant(token <= self._token, f"{token} was never handed out")
        free = list[Outgoing]()
        while self._under_way and self._under_way[0][0] <= token:
            free += self._under_way.popleft()[1]
        return free
