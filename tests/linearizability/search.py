"""Whether calls that overlapped can be put into an order that a model allows.

Wing and Gong's search: of the calls that could be next (asked before every other one's answer) try each; go
on until all that were answered are placed. Lowe's improvement: a set of placed calls with a state that was
met before leads nowhere new. Calls without an answer may be placed anywhere after they were asked, or not at
all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from tests.linearizability.history import Call

S = TypeVar("S", bound=Hashable)

Step = Callable[[S, Call], Iterable[S]]
"""The states after a call with its result, none if that result is impossible in this state. For a call
without an answer: the states in which it may leave the model."""


def possible(calls: Sequence[Call], start: S, step: Step[S]) -> bool:
    """Whether there is such an order. Exponential at worst in the number of calls that overlap."""
    ordered = sorted(calls, key=lambda call: call.asked_at)
    wanted = sum(1 << i for i, call in enumerate(ordered) if call.result is not None)
    seen: set[tuple[int, S]] = {(0, start)}
    stack: list[tuple[int, S]] = [(0, start)]
    while stack:
        placed, state = stack.pop()
        if placed & wanted == wanted:
            return True
        for config in _onwards(ordered, placed, state, step):
            if config not in seen:
                seen.add(config)
                stack.append(config)
    return False


def _onwards(ordered: Sequence[Call], placed: int, state: S, step: Step[S]) -> list[tuple[int, S]]:
    """Where to go from here. An answered call that fits and changes nothing can as well come now."""
    found = []
    for i in _next(ordered, placed):
        call = ordered[i]
        for after in step(state, call):
            if after != state:
                found.append((placed | 1 << i, after))
            elif call.result is not None:
                return [(placed | 1 << i, state)]
    return found


def _next(ordered: Sequence[Call], placed: int) -> list[int]:
    """The calls that may come next; the ones answered first are tried first (they come last)."""
    left = [i for i in range(len(ordered)) if not placed >> i & 1]
    first_answer = min((ordered[i].answered_at for i in left), default=math.inf)
    able = [i for i in left if ordered[i].asked_at <= first_answer]
    return sorted(able, key=lambda i: ordered[i].answered_at, reverse=True)
