"""What an acceptor's driver must do next, in one value."""

from __future__ import annotations

from collections import deque

import msgspec

from undoubt.coordinator.paxos.marks import Marks
from undoubt.coordinator.paxos.messages import AcceptorReply
from undoubt.coordinator.paxos.record import AcceptorRecord
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import invariant


class Outgoing(msgspec.Struct, frozen=True):
    """``to`` is whatever the driver gave as the request's sender."""

    to: int
    message: AcceptorReply


class PaxosReady(msgspec.Struct, frozen=True):
    """One step's work. The package's docstring gives the order in which the driver does it."""

    token: int
    """For ``on_persisted``."""
    records: tuple[AcceptorRecord, ...] = ()
    """Store, each in place of what is stored of its transaction."""
    dropped: tuple[TxId, ...] = ()
    """Delete; after ``records``, and together with ``marks``."""
    marks: Marks | None = None
    """Store, if given."""
    replies_now: tuple[Outgoing, ...] = ()
    replies_after_sync: tuple[Outgoing, ...] = ()
    """Depend on what is being stored: ``on_persisted`` returns them when they may be sent."""

    @property
    def writes(self) -> bool:
        """Whether there is something to store before ``on_persisted(token)``."""
        return bool(self.records or self.dropped or self.marks is not None)

    @property
    def empty(self) -> bool:
        return not (self.writes or self.replies_now or self.replies_after_sync)


class PaxosWrites:
    """Writes under way, in the order in which they were handed out, and what waits for each."""

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
        """Everything up to ``token`` is durable. Raises InvariantViolation for a token never handed out."""
        invariant(token <= self._token, f"{token} was never handed out")
        free = list[Outgoing]()
        while self._under_way and self._under_way[0][0] <= token:
            free += self._under_way.popleft()[1]
        return free
