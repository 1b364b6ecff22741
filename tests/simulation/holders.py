"""What must hold of locks at every step. Shares no code with what it judges.

Told of each grant that an application gets, and of each moment at which one is told that it is certain to
hold its lock. Once a later holder has been told of its grant, no earlier one may be certain any more, unless
both share the lock: also after the later one has ended. A token is higher than all that anybody had been told
of before the lock was asked for, over restarts, changes of leaders and sessions that end (M. Burrows, "The
Chubby lock service", 2006, §2.4)."""

from __future__ import annotations

from collections import Counter, defaultdict

from tests.simulation.judge import Violation


class Holders:
    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.highest = 0
        """The highest token that anybody was told of."""
        self._tokens: set[int] = set()
        self._grants: dict[str, dict[int, bool]] = defaultdict(dict)
        """By lock: whether each of its tokens is shared."""

    def granted(self, name: str, token: int, *, shared: bool, floor: int) -> None:
        """An application was told of its grant; it has asked when ``highest`` was ``floor``."""
        self.counts["locks granted"] += 1
        if token in self._tokens:
            raise Violation(f"{name} is granted with token {token}, which another holder has had")
        if token <= floor:
            raise Violation(f"{name} is granted with token {token}, and {floor} was granted before")
        self._tokens.add(token)
        self._grants[name][token] = shared
        self.highest = max(self.highest, token)

    def certain(self, name: str, token: int) -> None:
        """An application was told that no other one can hold its lock now, or only shared."""
        self.counts["locks held"] += 1
        grants = self._grants[name]
        for later, shared in grants.items():
            if later > token and not (shared and grants[token]):
                raise Violation(f"{name} is held with token {token}, and was granted with {later} since")
