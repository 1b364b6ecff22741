"""What must be so of locks, from what applications have told. Shares no code with what it judges.

All moments are of the clock that the processes share. An application tells of a grant when it has asked and
when it was told, and of each moment from which on it was still certain that it had its lock."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Grant:
    lock: str
    token: int
    shared: bool
    asked_at: float
    at: float


@dataclass
class Holders:
    grants: list[Grant] = field(default_factory=list)
    certain: list[tuple[str, int, float]] = field(default_factory=list)
    """The lock, the token, and a moment after which its holder was told that no other one can have the lock,
    or only share it."""

    def held_twice(self) -> list[str]:
        """Holders that were certain although a later one had been told of its grant; unless both share it."""
        by_lock = defaultdict[str, list[Grant]](list)
        for grant in self.grants:
            by_lock[grant.lock].append(grant)
        shared = {(grant.lock, grant.token): grant.shared for grant in self.grants}
        return [
            f"{lock} was held with token {token} after it was granted with {later.token}"
            for lock, token, moment in self.certain
            for later in by_lock[lock]
            if later.token > token
            and later.at < moment
            and not (later.shared and shared.get((lock, token), False))
        ]

    def out_of_order(self) -> list[str]:
        """Tokens of two grants, and grants whose token is not higher than one that somebody had been told of
        before they were asked for."""
        wrong, seen = list[str](), dict[int, Grant]()
        for grant in self.grants:
            if (other := seen.setdefault(grant.token, grant)) is not grant:
                wrong.append(f"token {grant.token} is that of {other.lock} and of {grant.lock}")
        told = sorted(self.grants, key=lambda grant: grant.at)
        highest, place = 0, 0
        for grant in sorted(self.grants, key=lambda grant: grant.asked_at):
            while place < len(told) and told[place].at < grant.asked_at:
                highest, place = max(highest, told[place].token), place + 1
            if grant.token <= highest:
                wrong.append(f"{grant.lock} is granted with token {grant.token}, and {highest} was before")
        return wrong
