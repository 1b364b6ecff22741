"""What each command of an operator has to do, and with which status it has to end: of one transaction with
two branches. It shares no code with the product. A branch that has ended in the other direction, by hand or
as recorded, is contradicted only with a flag; and so is one of a recorded decision that nobody sees, since
its database does not answer: it has applied the decision, or will."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

ACTS_PER_CASE = 4


@dataclass
class Expected:
    status: int
    splits: bool
    """One branch is committed now and the other rolled back, which was not so before."""
    audited: bool


DOWN = ["down"]
"""Not a command: from here on, the database of the first branch does not answer."""


def scripted(case: int, txid: str, gids: list[str]) -> list[list[str]]:
    """What tired people do, of a transaction with COMMIT, with ABORT, and with nothing recorded."""
    one, other = gids
    commit, rollback = ["indoubt", "commit"], ["indoubt", "rollback"]
    return (
        [
            [*commit, one],
            [*rollback, other],
            [*rollback, other, "--heuristic"],
            [*rollback, other, "--heuristic", "--contradict"],
            ["indoubt", "forget", other],
        ],
        [
            ["tx", "resolve", txid, "--commit"],
            [*rollback, one],
            [*commit, other, "--heuristic"],
            ["indoubt", "forget", other],
        ],
        [
            [*commit, one, "--heuristic"],
            [*rollback, other],
            [*rollback, other, "--heuristic", "--contradict"],
            ["tx", "resolve", txid, "--rollback"],
        ],
        [
            [*commit, one],
            DOWN,
            [*rollback, other, "--heuristic"],
            ["tx", "resolve", txid, "--rollback", "--heuristic"],
            ["tx", "resolve", txid, "--rollback", "--heuristic", "--contradict"],
        ],
        [
            [*rollback, one],
            DOWN,
            ["tx", "resolve", txid, "--commit", "--heuristic"],
            [*commit, other, "--heuristic"],
            [*commit, other, "--heuristic", "--contradict"],
        ],
    )[case]


SCRIPTED = 5


def generated(random_: random.Random, txid: str, gids: list[str], *, decided: bool) -> Iterator[list[str]]:
    """Commands without their note, some of them foolish. If a decision is recorded (``decided``), the first
    database may be down from some point on."""
    down = random_.randrange(2 * ACTS_PER_CASE) if decided else None
    for number in range(ACTS_PER_CASE):
        if number == down:
            yield DOWN
        flags = random_.choice([[], ["--heuristic"], ["--heuristic"], ["--heuristic", "--contradict"]])
        match random_.randrange(6):
            case 0 | 1 | 2:
                yield ["indoubt", random_.choice(["commit", "rollback"]), random_.choice(gids), *flags]
            case 3 | 4:
                yield ["tx", "resolve", txid, random_.choice(["--commit", "--rollback"]), *flags]
            case _:
                yield random_.choice(
                    [
                        ["indoubt", "forget", random_.choice(gids)],
                        ["tx", "resolve", txid, "--participant-gone", "payments"],
                    ]
                )


@dataclass
class Model:
    """``recorded``: ``commit``, ``abort`` or None. ``presumed``: it is aborted without a record, since its
    session is gone. ``ends``: of each branch, None while it is prepared."""

    recorded: str | None
    presumed: bool = False
    ends: list[str | None] = field(default_factory=lambda: [None, None])
    by_hand: dict[int, str] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)
    with_evidence: bool = False
    written: bool = False
    """Whether the decision is in the ledger, and not only presumed."""
    down: bool = False
    """Whether the database of the first branch does not answer."""

    def __post_init__(self) -> None:
        self.with_evidence = self.written = self.recorded is not None
        if self.presumed and self.recorded is None:
            self.recorded = "abort"

    @property
    def split(self) -> bool:
        return {"commit", "abort"} <= set(self.ends)

    def act(self, words: list[str], gids: list[str]) -> Expected:
        before = self.split
        heuristic, contradict = "--heuristic" in words, "--contradict" in words
        if words[:2] == ["tx", "resolve"]:
            if "--participant-gone" in words:
                return Expected(5, splits=False, audited=True)
            status, audited = self._resolve(
                "commit" if "--commit" in words else "abort", heuristic=heuristic, contradict=contradict
            )
        elif words[1] == "forget":
            status, audited = self._forget(gids.index(words[2])), True
        else:
            order = "commit" if words[1] == "commit" else "abort"
            number = gids.index(words[2])
            audited = self._is_seen(number)
            status = self._end(number, order, heuristic=heuristic, contradict=contradict)
        return Expected(status, self.split and not before, audited)

    def _forget(self, number: int) -> int:
        if number not in self.by_hand or number in self.forgotten:
            return 3
        self.forgotten.add(number)
        return 0

    def _end(self, number: int, order: str, *, heuristic: bool, contradict: bool) -> int:
        if not self._is_seen(number):
            return 4 if self.down else 3
        against = self._contradicts(order, 1 - number)
        if self.recorded == order:
            self.ends[number] = order
            self.written = True
            return 0
        if order == "commit" and not heuristic:
            return 5
        if against and not contradict:
            return 5
        if order == "abort" and self.recorded is None:
            self.recorded = self.ends[number] = "abort"
            self.written = True
            return 0
        if not heuristic:
            return 5
        self.ends[number] = self.by_hand[number] = order
        return 0

    def _resolve(self, order: str, *, heuristic: bool, contradict: bool) -> tuple[int, bool]:
        prepared = [number for number in (0, 1) if self._is_seen(number)]
        splits = any(self._known_end(number) not in {None, order} for number in (0, 1))
        contradicts = any(self._contradicts(order, number) for number in (0, 1))
        if not prepared:
            if self.down:
                return 4, False
            return (5 if splits or (self.written and self.recorded != order) else 0), False
        if self.recorded != order:
            if not heuristic and (self.recorded is not None or order == "commit"):
                return 5, True
            if contradicts and not contradict:
                return 5, True
        failed = any(
            self._end(number, order, heuristic=heuristic, contradict=contradict) for number in prepared
        )
        if not (failed or splits) and self.down:
            return 4, True
        return (5 if failed or contradicts else 0), True

    def _is_seen(self, number: int) -> bool:
        """Whether it is prepared, and its database says so."""
        return self.ends[number] is None and not (self.down and number == 0)

    def _known_end(self, number: int) -> str | None:
        """How it ended, if anything tells: what was recorded by hand, or its database."""
        if number in self.by_hand:
            return self.by_hand[number]
        told = self.with_evidence and not (self.down and number == 0)
        return self.ends[number] if told else None

    def _contradicts(self, order: str, number: int) -> bool:
        """Whether ``order`` to the other branch splits the transaction from this one, as far as is known."""
        if self._is_seen(number):
            return False
        known = self._known_end(number)
        return known != order if known else self.recorded not in {None, order}
