"""When a leader calls for the followers that it has not sent an entry to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from undoubt.coordinator.node.driver import FACTOR, LEAST_S, Patience


class Clock:
    """The part of an event loop that is asked for time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when_s, call))
        return self.timers[-1]

    def pass_(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while due := [one for one in self.timers if not one.cancelled and one.when_s <= end_s]:
            first = min(due, key=lambda one: one.when_s)
            self.timers.remove(first)
            self.now_s = max(self.now_s, first.when_s)
            first.call()
        self.now_s = end_s


class Timer:
    def __init__(self, when_s: float, call: Callable[[], None]) -> None:
        self.when_s = when_s
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Leader:
    """What is looked at of a consensus core."""

    def __init__(self) -> None:
        self.leads = True
        self.commit_index = self.last_index = 10
        self.holds_back = False
        self.hurried: list[int] = []

    def propose(self) -> None:
        self.last_index += 1
        self.holds_back = True

    def commit(self) -> None:
        self.commit_index = self.last_index
        self.holds_back = False

    def hurry(self, index: int) -> None:
        self.hurried.append(index)
        self.holds_back = False


class Scene:
    def __init__(self) -> None:
        self.clock, self.raft = Clock(), Leader()
        self.woken = 0
        raft: Any = self.raft
        loop: Any = self.clock
        self.patience = Patience(raft, self._wake, loop)

    def _wake(self) -> None:
        self.woken += 1

    def entry(self, wait_s: float) -> None:
        """One entry that is committed after so long."""
        self.raft.propose()
        self.patience.look()
        self.clock.pass_(wait_s)
        self.raft.commit()
        self.patience.look()


def test_an_entry_that_is_late_calls_for_the_others() -> None:
    """Broken if a commit waits for a heartbeat because one follower is slow, paused or dead."""
    scene = Scene()
    scene.raft.propose()
    scene.patience.look()
    scene.clock.pass_(LEAST_S * 0.9)
    assert scene.raft.hurried == []
    scene.clock.pass_(LEAST_S * 0.2)
    assert (scene.raft.hurried, scene.woken) == ([11], 1)
    scene.clock.pass_(1)
    assert scene.raft.hurried == [11]
    scene.raft.commit()
    scene.patience.look()
    scene.raft.propose()
    scene.patience.look()
    scene.clock.pass_(1)
    assert scene.raft.hurried == [11, 12], "the next one is waited for as well"


def test_entries_in_time_call_for_nobody() -> None:
    """Broken if every follower is sent everything at once after all; or if each entry costs a timer."""
    scene = Scene()
    for _ in range(100):
        scene.entry(LEAST_S / 10)
    assert scene.raft.hurried == []
    assert len(scene.clock.timers) == 1
    scene.clock.pass_(1)
    assert (scene.raft.hurried, scene.clock.timers) == ([], [])


def test_an_entry_is_timed_by_itself() -> None:
    """Broken if an entry counts as late because of the time that those before it took."""
    scene = Scene()
    scene.entry(LEAST_S / 2)
    scene.raft.propose()
    scene.patience.look()
    scene.clock.pass_(LEAST_S * 0.9)
    assert scene.raft.hurried == []
    scene.clock.pass_(LEAST_S)
    assert scene.raft.hurried == [12]


def test_a_slow_network_is_not_late() -> None:
    """Broken if followers far away are all sent everything: what counts is three times what they usually
    take."""
    scene = Scene()
    usual_s = LEAST_S * 4
    scene.entry(usual_s)
    assert scene.raft.hurried == [11], "at first nothing is known"
    for _ in range(20):
        scene.entry(usual_s)
    scene.entry(usual_s * FACTOR * 0.9)
    assert scene.raft.hurried == [11]
    scene.entry(usual_s * FACTOR * 1.1)
    assert scene.raft.hurried == [11, scene.raft.last_index]


def test_the_end_of_a_lead() -> None:
    """Broken if a node that leads no more, or was stopped, hurries, or takes the time of another leader's
    entries for its own."""
    scene = Scene()
    scene.raft.propose()
    scene.patience.look()
    scene.raft.leads = scene.raft.holds_back = False
    scene.clock.pass_(1)
    scene.patience.look()
    assert scene.raft.hurried == []
    scene.raft.leads = True
    scene.raft.propose()
    scene.patience.look()
    scene.patience.stop()
    scene.clock.pass_(1)
    assert scene.raft.hurried == []
