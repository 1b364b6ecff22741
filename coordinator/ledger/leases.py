"""Computes when sessions expire, by the monotonic clock of the process that owns or leads the ledger.

Deadlines are not part of the ledger's state, in which no clock may decide anything. The one process that owns
or leads the ledger keeps them beside the machine, and proposes an ``ExpireSession`` command for each session
that is due. A new owner or leader begins with a full lifetime for each session (Gray and Cheriton, *Leases*,
1989, §2)."""

from __future__ import annotations

from collections.abc import Iterable

from undoubt.coordinator.ledger.contract import SessionInfo, SessionState


class Leases:
    """The deadlines of open sessions. Times are in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}

    def renew(self, session: int, ttl_s: float, now: float) -> None:
        self._deadlines[session] = now + ttl_s

    def postpone(self, seconds: float) -> None:
        """Move all deadlines by ``seconds``, after this process was stopped for so long: renewals may have
        arrived that it has not read."""
        for session in self._deadlines:
            self._deadlines[session] += seconds

    def due(self, sessions: Iterable[SessionInfo], now: float) -> list[int]:
        """The open sessions that were not renewed in time. The lifetime of a session that is new here begins
        now."""
        open_now = {session.id: session for session in sessions if session.state is SessionState.OPEN}
        for gone in self._deadlines.keys() - open_now.keys():
            del self._deadlines[gone]
        for number in open_now.keys() - self._deadlines.keys():
            self.renew(number, open_now[number].ttl_s, now)
        return sorted(number for number in self._deadlines if self.is_due(number, now))

    def is_due(self, session: int, now: float) -> bool:
        """Whether ``session`` was not renewed before its deadline, nor since."""
        deadline = self._deadlines.get(session)
        return deadline is not None and deadline < now
