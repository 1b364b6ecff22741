"""When sessions run out, by the monotonic clock of whoever may say so.

Not part of the ledger's state: a clock decides nothing there. The one process that owns or leads the ledger
keeps this beside the machine, and turns what is due into ``ExpireSession`` commands. Whoever takes over
starts with a full lifetime for every session (Gray and Cheriton, *Leases*, 1989, §2).
"""

from __future__ import annotations

from collections.abc import Iterable

from undoubt.coordinator.ledger.contract import SessionInfo, SessionState


class Leases:
    """Deadlines of open sessions. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}

    def renew(self, session: int, ttl_s: float, now: float) -> None:
        self._deadlines[session] = now + ttl_s

    def postpone(self, seconds: float) -> None:
        """Whoever keeps this has slept for so long: renewals may have come in that it has not seen."""
        for session in self._deadlines:
            self._deadlines[session] += seconds

    def due(self, sessions: Iterable[SessionInfo], now: float) -> list[int]:
        """Open sessions that were not renewed in time. One never seen before begins its lifetime now."""
        open_now = {session.id: session for session in sessions if session.state is SessionState.OPEN}
        for gone in self._deadlines.keys() - open_now.keys():
            del self._deadlines[gone]
        for number in open_now.keys() - self._deadlines.keys():
            self.renew(number, open_now[number].ttl_s, now)
        return sorted(number for number in self._deadlines if self.is_due(number, now))

    def is_due(self, session: int, now: float) -> bool:
        """It was not renewed in time, nor since."""
        deadline = self._deadlines.get(session)
        return deadline is not None and deadline < now
