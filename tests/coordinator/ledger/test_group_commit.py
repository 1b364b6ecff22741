"""Writes that share a sync: the states of a disk, and what those who wait are told in each of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from undoubt.coordinator.ledger.disk import StoreBroken, StoreFull
from undoubt.coordinator.ledger.group_commit import (
    TRANSITIONS,
    WITH_ROOM,
    WITHOUT_ROOM,
    DiskEvent,
    DiskState,
    GroupCommit,
)
from undoubt.participants.invariant import InvariantViolation, state_after

STEPS = 6
ENDS = {DiskEvent.STORED, DiskEvent.STORED_LAST, DiskEvent.REFUSE, DiskEvent.FAIL}


def test_every_state_is_reached() -> None:
    reached = {DiskState.IDLE}
    for _ in DiskState:
        reached |= {to for (state, _), to in TRANSITIONS.items() if state in reached}
    assert reached == set(DiskState)


def test_what_is_closed_or_broken_remains_so() -> None:
    """Broken if a disk is written to after nobody knows what is on it, or after the node let it go."""
    for state in (DiskState.CLOSED, DiskState.BROKEN):
        assert {to for (before, _), to in TRANSITIONS.items() if before is state} == {state}
    for to in (to for (state, _), to in TRANSITIONS.items() if state is DiskState.CLOSING):
        assert to in {DiskState.CLOSING, DiskState.CLOSED, DiskState.BROKEN}


def test_every_state_but_a_broken_one_can_be_closed_and_a_write_ends_once() -> None:
    """Broken if a write is begun while one is under way, or ends that was not begun."""
    for state in DiskState:
        assert (state, DiskEvent.CLOSE) in TRANSITIONS
        ends = {event for event in ENDS if (state, event) in TRANSITIONS}
        assert ends in (set(), ENDS)
        assert not (ends and (state, DiskEvent.BEGIN) in TRANSITIONS)
        begins = TRANSITIONS.get((state, DiskEvent.BEGIN))
        assert begins is None or (begins, DiskEvent.STORED) in TRANSITIONS


def test_an_event_that_cannot_happen_is_a_bug() -> None:
    for state, event in itertools.product(DiskState, DiskEvent):
        if (state, event) in TRANSITIONS:
            assert state_after(TRANSITIONS, state, event, "the disk") is TRANSITIONS[state, event]
        else:
            with pytest.raises(InvariantViolation, match=f"the disk: event {event} in state {state}"):
                state_after(TRANSITIONS, state, event, "the disk")


@dataclass
class Pending:
    """A write under way, as a future."""

    writes: tuple[int, ...]
    error: BaseException | None = None
    room: bool = True
    tell: list[Callable[[Pending], None]] = field(default_factory=list)

    def add_done_callback(self, tell: Callable[[Pending], None]) -> None:
        self.tell.append(tell)

    def cancelled(self) -> bool:
        return False

    def exception(self) -> BaseException | None:
        return self.error

    def result(self) -> bool:
        return self.room


class Timer:
    def __init__(self, loop: Loop, call: Callable[[], None]) -> None:
        self._loop, self.call = loop, call

    def cancel(self) -> None:
        self._loop.timers.remove(self)


class Loop:
    """Of an event loop, the timers."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, _: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self, call)
        self.timers.append(timer)
        return timer


class Walk:
    """A group commit, its store, and what everybody was told. Even writes can be left out."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.under_way: Pending | None = None
        self.given = 0
        self.durable: list[int] = []
        self.told: list[int] = []
        self.refused: list[int] = []
        self.full: list[bool] = []
        self.broken: list[BaseException] = []
        self.commit: GroupCommit[int] = GroupCommit(self, self.full.append, self.broken.append)  # type: ignore[arg-type]

    def write(self, writes: Sequence[int]) -> Pending:
        assert self.under_way is None, "two writes are under way"
        assert self.commit.state in {DiskState.WRITING, DiskState.TRYING}
        self.under_way = Pending(tuple(writes))
        return self.under_way

    def give(self) -> None:
        number = self.given = self.given + 1
        refused = None if number % 2 else lambda _: self.refused.append(number)
        self.commit.give(number, lambda: self._stored(number), refused=refused)
        self.commit.flush()

    def _stored(self, number: int) -> None:
        """What depends on the write leaves now: a vote, an acknowledgement, an answer."""
        assert number in self.durable
        self.told.append(number)

    def end(self, error: BaseException | None = None, *, room: bool = True) -> None:
        pending, self.under_way = self.under_way, None
        assert pending is not None
        pending.error, pending.room = error, room
        if error is None:
            self.durable += pending.writes
        for tell in pending.tell:
            tell(pending)

    def retry(self) -> None:
        timer = self.loop.timers.pop()
        timer.call()

    def moves(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Everything that can happen now."""
        yield "give", self.give
        yield "close", self.commit.close
        if self.under_way is not None:
            yield "stored", self.end
            yield "stored last", lambda: self.end(room=False)
            yield "refuse", lambda: self.end(StoreFull("no room"))
            yield "fail", lambda: self.end(StoreBroken("broken"))
        if self.loop.timers:
            yield "retry", self.retry

    def check(self) -> None:
        state = self.commit.state
        assert self.told == [number for number in self.durable if number in self.told]
        assert sorted(self.told) == self.told, "told in another order than given"
        assert set(self.told).isdisjoint(self.refused)
        assert len(self.loop.timers) == (state in {DiskState.FULL, DiskState.REFUSED})
        assert len(self.broken) == (state is DiskState.BROKEN)
        assert (self.under_way is not None) == ((state, DiskEvent.STORED) in TRANSITIONS)
        if state in WITH_ROOM | WITHOUT_ROOM:
            assert (self.full[-1:] == [True]) == (state in WITHOUT_ROOM) == self.commit.full
        assert all(one is not two for one, two in itertools.pairwise(self.full)), "told twice"


def test_every_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sequence of so many events: one write at a time, told only what is durable, in order; full and
    broken are told once; nothing is begun after the end. Broken if any of it does not hold."""
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    seen: set[DiskState] = set()
    walks: list[tuple[str, ...]] = [()]
    for _ in range(STEPS):
        longer: list[tuple[str, ...]] = []
        for walk in walks:
            longer += [(*walk, name) for name in _after(walk, loop, seen)]
        walks = longer
    for walk in walks:
        _after(walk, loop, seen)
    assert seen == set(DiskState)


def _after(names: tuple[str, ...], loop: Loop, seen: set[DiskState]) -> list[str]:
    """What can happen after these events."""
    loop.timers.clear()
    walk = Walk(loop)
    for name in names:
        dict(walk.moves())[name]()
        walk.check()
        seen.add(walk.commit.state)
    return [name for name, _ in walk.moves()]


async def test_all_that_waited_is_drained() -> None:
    """Broken if a ledger is closed before what it was given is stored."""

    class Slow:
        def __init__(self) -> None:
            self.written: list[int] = []

        def write(self, writes: Sequence[int]) -> asyncio.Future[bool]:
            done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self.written += writes
            asyncio.get_running_loop().call_soon(done.set_result, True)
            return done

    told, slow = list[int](), Slow()

    def go_on() -> None:
        commit.flush()

    commit: GroupCommit[int] = GroupCommit(slow, lambda _: None, lambda _: None, go_on)
    for number in (1, 2, 3):
        commit.give(number, lambda number=number: told.append(number))  # type: ignore[misc]
        commit.flush()
    await commit.drained()
    assert told == slow.written == [1, 2, 3]
    commit.close()
    await commit.drained()


def test_a_write_that_is_stored_first_is_stored_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a snapshot of the log shares a write with commands that came after it was made."""
    monkeypatch.setattr(asyncio, "get_running_loop", Loop)
    walk = Walk(Loop())
    walk.give()
    walk.give()
    walk.commit.give(10, lambda: None, first=True)
    for expected in ((1,), (10,), (2,)):
        assert walk.under_way is not None
        assert walk.under_way.writes == expected
        walk.end()
        walk.commit.flush()
    assert walk.commit.state is DiskState.IDLE
