"""What each command of an operator has to do, and with which status it has to end: of one transaction with
two branches. It shares no code with the product."""

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


def scripted(case: int, txid: str, gids: list[str]) -> list[list[str]]:
    """What tired people do, of a transaction with COMMIT, with ABORT, and with nothing recorded."""
    one, other = gids
    commit, rollback = ["indoubt", "commit"], ["indoubt", "rollback"]
    return (
        [
            [*commit, one],
            [*rollback, other],
            [*rollback, other, "--heuristic"],
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
    )[case]


SCRIPTED = 3


def generated(random_: random.Random, txid: str, gids: list[str]) -> Iterator[list[str]]:
    """Commands without their note, some of them foolish."""
    for _ in range(ACTS_PER_CASE):
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
            audited = self.ends[number] is None
            status = self._end(number, order, heuristic=heuristic, contradict=contradict)
        return Expected(status, self.split and not before, audited)

    def _forget(self, number: int) -> int:
        if number not in self.by_hand or number in self.forgotten:
            return 3
        self.forgotten.add(number)
        return 0

    def _end(self, number: int, order: str, *, heuristic: bool, contradict: bool) -> int:
        if self.ends[number] is not None:
            return 3
        against = self.by_hand.get(1 - number) not in {None, order}
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
        prepared = [number for number, end in enumerate(self.ends) if end is None]
        ended = [end for number, end in enumerate(self.ends) if end and self._is_known(number)]
        splits = any(end != order for end in ended)
        if not prepared:
            return (5 if splits or (self.written and self.recorded != order) else 0), False
        if self.recorded != order:
            if not heuristic and (self.recorded is not None or order == "commit"):
                return 5, True
            if splits and not contradict:
                return 5, True
        failed = any(
            self._end(number, order, heuristic=heuristic, contradict=contradict) for number in prepared
        )
        return (5 if failed or splits else 0), True

    def _is_known(self, number: int) -> bool:
        """Whether anything tells how it ended."""
        return number in self.by_hand or self.with_evidence
