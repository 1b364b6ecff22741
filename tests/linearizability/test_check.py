"""Histories written by hand: right ones are let pass, planted wrong ones are not.

The checker is only worth what it rejects.
"""

from __future__ import annotations

import itertools

import pytest

from tests.linearizability.check import violations
from tests.linearizability.history import Call, History

INF = float("inf")


def history(*calls: Call) -> History:
    return History(lambda: 0.0, list(calls))


def call(what: str, begin: float, end: float, result: str | None, **more: object) -> Call:
    return Call("somebody", what, begin, end, session=1, result=result, **more)  # type: ignore[arg-type]


def decide(asked: str, begin: float, end: float, result: str | None, seq: int = 1) -> Call:
    return call("decide", begin, end, result, seq=seq, asked=asked)


def outcome(begin: float, end: float, result: str, seq: int = 1) -> Call:
    return call("outcome", begin, end, result, seq=seq)


def keep_alive(begin: float, end: float, result: str | None, floor: int = 1) -> Call:
    return call("keep_alive", begin, end, result, floor=floor)


def terminated(what: str, begin: float, end: float, result: str, asked: str = "") -> Call:
    """Of a transaction of three-phase commit."""
    return call(what, begin, end, result, seq=1, asked=asked, protocol="3")


RIGHT = {
    "one commit": [decide("commit", 0, 1, "commit"), outcome(2, 3, "committed")],
    "the first of two that overlap": [decide("commit", 0, 5, "abort"), decide("abort", 1, 2, "abort")],
    "an unanswered commit took effect": [decide("commit", 0, INF, None), outcome(3, 4, "committed")],
    "an unanswered commit did not, and the session ended": [
        decide("commit", 0, INF, None),
        outcome(3, 4, "active"),
        outcome(5, 6, "aborted"),
    ],
    "expired": [keep_alive(0, 1, "ok"), keep_alive(2, 3, "SessionLost"), decide("commit", 4, 5, "abort")],
    "below the floor": [keep_alive(0, 1, "ok", floor=2), decide("commit", 2, 3, "abort")],
    "a commit while the session is being closed": [
        decide("commit", 0, 9, "commit"),
        call("close", 1, 2, "ok"),
    ],
}

RIGHT["three-phase commit is not fenced by its session"] = [
    call("close", 0, 1, "ok"),
    terminated("outcome", 2, 3, "ask_protocol"),
    terminated("decide", 4, 5, "commit", asked="commit"),
    terminated("outcome", 6, 7, "committed"),
]

WRONG = {
    "three-phase commit presumed aborted": [
        call("close", 0, 1, "ok"),
        terminated("outcome", 2, 3, "aborted"),
    ],
    "two decisions": [decide("commit", 0, 1, "commit"), decide("abort", 2, 3, "abort")],
    "a decision that changes": [outcome(0, 1, "committed"), outcome(2, 3, "aborted")],
    "a commit out of nothing": [outcome(0, 1, "committed")],
    "a read from the past": [decide("commit", 0, 1, "commit"), outcome(2, 3, "active")],
    "a lost decision": [
        decide("commit", 0, 1, "commit"),
        call("record", 2, 3, "not_recorded", seq=1),
        outcome(4, 5, "committed"),
    ],
    "a commit after the session was closed": [call("close", 0, 1, "ok"), decide("commit", 2, 3, "commit")],
    "a commit after it was told as aborted": [outcome(0, 1, "aborted"), decide("commit", 2, 3, "commit")],
    "a commit below the floor": [keep_alive(0, 1, "ok", floor=2), decide("commit", 2, 3, "commit")],
    "a session that lives again": [keep_alive(0, 1, "SessionLost"), keep_alive(2, 3, "ok")],
    "an abort that nothing explains": [decide("commit", 0, 1, "abort"), keep_alive(2, 3, "ok")],
    "active after another transaction was presumed aborted": [
        outcome(0, 1, "aborted", seq=1),
        outcome(2, 3, "active", seq=2),
    ],
    "a commit after another transaction was presumed aborted": [
        outcome(0, 1, "aborted", seq=1),
        decide("commit", 2, 3, "commit", seq=2),
    ],
    "a session number twice": [
        call("open", 0, 1, "one"),
        call("open", 0, 1, "other"),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_ledger_may_answer(name: str) -> None:
    """Broken if the checker cries wolf: then nobody looks any more."""
    assert violations(history(*RIGHT[name])) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_no_ledger_may_answer(name: str) -> None:
    """Broken if the checker sleeps."""
    assert violations(history(*WRONG[name])) != []


def test_dropped_sessions() -> None:
    """Broken if a lost decision could pass for a dropped one where nothing is old enough to be dropped."""
    calls = [decide("commit", 0, 1, "commit"), outcome(5, 6, "forgotten")]
    assert violations(history(*calls), drops=True) == []
    assert violations(history(*calls)) != []
    assert violations(history(*calls, outcome(7, 8, "committed")), drops=True) != []


def test_the_order_of_recording_does_not_matter() -> None:
    """Broken if the search depended on which caller happened to be noted first."""
    for calls in itertools.permutations(WRONG["a read from the past"]):
        assert violations(history(*calls)) != []
    for calls in itertools.permutations(RIGHT["an unanswered commit took effect"]):
        assert violations(history(*calls)) == []


def test_many_that_overlap() -> None:
    """Broken if the search takes for ever where forty calls are under way at once."""
    calls = [decide("commit", 0, 100, "commit", seq=seq) for seq in range(1, 21)]
    calls += [outcome(0, 100, "committed", seq=seq) for seq in range(1, 21)]
    assert violations(history(*calls, keep_alive(50, 60, "ok"))) == []
    assert (
        violations(history(*calls, keep_alive(101, 102, "ok", floor=30), outcome(103, 104, "active"))) != []
    )
