"""Breadth first through all states: the first wrong one is found by a shortest way."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Model(Protocol[S]):
    """States are values: two that are equal have the same future."""

    def initial(self) -> S: ...

    def successors(self, state: S) -> Iterable[S]:
        """Every state that one step leads to; ``state`` itself and repetitions do no harm."""
        ...

    def wrong(self, state: S) -> str | None:
        """What is wrong in ``state``, if anything."""
        ...

    def describe(self, state: S) -> str:
        """For people who look at a way that leads to a wrong state."""
        ...


class Found(AssertionError):
    """A reachable state is wrong. ``way`` leads from the first state to it."""

    def __init__(self, what: str, way: list[str]) -> None:
        steps = "\n".join(f"{number:3} {each}" for number, each in enumerate(way, 1))
        super().__init__(f"{what}, after {len(way)} states:\n{steps}")
        self.what = what
        self.way = way


class TooMany(AssertionError):
    """There are more states than the search was allowed to look at."""


@dataclass(frozen=True, slots=True)
class Explored(Generic[S]):
    """All states that can be reached. ``depth`` counts states on the longest of the shortest ways, the first
    included, as TLC does."""

    states: frozenset[S] | int
    depth: int

    @property
    def count(self) -> int:
        return self.states if isinstance(self.states, int) else len(self.states)


def explore(model: Model[S], *, states_max: int | None = None, keep: bool = False) -> Explored[S]:
    """Look at every state. ``keep`` them for whoever wants to see what was reached. Raises Found, TooMany."""
    first = model.initial()
    before: dict[S, S | None] = {first: None}
    frontier = [first]
    depth = 0
    _check(model, first, before)
    while frontier:
        depth += 1
        reached: list[S] = []
        for state in frontier:
            for following in model.successors(state):
                if following not in before:
                    before[following] = state
                    _check(model, following, before)
                    reached.append(following)
        if states_max is not None and len(before) > states_max:
            raise TooMany(f"more than {states_max} states, at depth {depth}")
        frontier = reached
    return Explored(frozenset(before) if keep else len(before), depth)


def _check(model: Model[S], state: S, before: dict[S, S | None]) -> None:
    what = model.wrong(state)
    if what is None:
        return
    way: list[str] = []
    at: S | None = state
    while at is not None:
        way.append(model.describe(at))
        at = before[at]
    raise Found(what, way[::-1])
