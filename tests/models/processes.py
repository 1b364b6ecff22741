"""Models made of the product's own objects: processes that send each other messages.

A state is what each process knows, and which messages were ever sent. Any of these may arrive at any time,
any number of times, or never: a network that loses, repeats and reorders. A process is stepped once for
each pair of what it knows and what it could hear, in however many states of the whole that pair occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol

Message = Hashable
Sent = Iterable[tuple[int, Message]]
"""Position of the process it is for, and what."""


class Process(Protocol):
    """Two with equal keys behave alike for ever."""

    def copy(self) -> Process: ...

    def key(self) -> Hashable: ...

    def options(self, arriving: Sequence[Any]) -> Iterable[Any]:
        """What may happen next, given all that was ever sent to it."""
        ...

    def take(self, option: Any) -> Sent:
        """One of them happens: what it sends."""
        ...

    def show(self) -> str: ...


State = tuple[int, ...]
"""The messages as bits, then a number for what each process knows."""

Judge = Callable[[Sequence[Any], Sequence[Message]], str | None]
"""Given what some processes know, and some messages: what is wrong."""


class System:
    """A model for :func:`tests.models.search.explore`.

    ``judge`` sees the first ``judged`` processes and the messages that ``evidence`` is true of.
    """

    def __init__(
        self, processes: Sequence[Process], judge: Judge, *, judged: int, evidence: Callable[[Message], bool]
    ) -> None:
        self._known: list[list[Process]] = [[process] for process in processes]
        self._numbers: list[dict[Hashable, int]] = [{process.key(): 0} for process in processes]
        self._messages: list[Message] = []
        self._bits: dict[tuple[int, Message], int] = {}
        self._to: list[int] = [0] * len(processes)
        self._evidence = 0
        self._is_evidence = evidence
        self._judge = judge
        self._judged = judged
        self._judgements: dict[State, str | None] = {}
        self._effects: list[dict[tuple[int, int], list[tuple[int, int]]]] = [{} for _ in processes]

    def initial(self) -> State:
        return (0,) * (len(self._known) + 1)

    def successors(self, state: State) -> list[State]:
        sent = state[0]
        following = []
        for position, effects in enumerate(self._effects):
            at = state[position + 1], sent & self._to[position]
            found = effects.get(at)
            if found is None:
                found = effects[at] = self._find(position, *at)
            before, after = state[1 : position + 1], state[position + 2 :]
            for number, new in found:
                following.append((sent | new, *before, number, *after))
        return following

    def _find(self, position: int, known: int, arriving: int) -> list[tuple[int, int]]:
        """What that process may know next, and what it sends on the way there."""
        process = self._known[position][known]
        found = dict[tuple[int, int], None]()
        for option in process.options(self._named(arriving)):
            stepped = process.copy()
            new = 0
            for each in stepped.take(option):
                new |= self._bit(each)
            found[self._number(position, stepped), new] = None
        return [each for each in found if each != (known, 0)]

    def _named(self, messages: int) -> list[Message]:
        named = []
        while messages:
            named.append(self._messages[(messages & -messages).bit_length() - 1])
            messages &= messages - 1
        return named

    def _bit(self, addressed: tuple[int, Message]) -> int:
        if addressed not in self._bits:
            to, message = addressed
            bit = self._bits[addressed] = 1 << len(self._messages)
            self._messages.append(message)
            self._to[to] |= bit
            if self._is_evidence(message):
                self._evidence |= bit
        return self._bits[addressed]

    def _number(self, position: int, process: Process) -> int:
        numbers, key = self._numbers[position], process.key()
        if key not in numbers:
            numbers[key] = len(numbers)
            self._known[position].append(process)
        return numbers[key]

    def wrong(self, state: State) -> str | None:
        asked = (state[0] & self._evidence, *state[1 : self._judged + 1])
        if asked not in self._judgements:
            self._judgements[asked] = self._judge(self.processes(asked), self._named(asked[0]))
        return self._judgements[asked]

    def processes(self, state: State) -> list[Any]:
        """What each knows in that state."""
        return [self._known[position][number] for position, number in enumerate(state[1:])]

    def describe(self, state: State) -> str:
        return " | ".join(process.show() for process in self.processes(state))
