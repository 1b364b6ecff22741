"""Pauses of loops that try again."""

from __future__ import annotations

from itertools import islice
from random import Random

from undoubt.participants.backoff import limit_s, pauses, pauses_around


def test_pauses_double_up_to_the_limit() -> None:
    assert list(islice(pauses(0.1, 0.5), 5)) == [0.1, 0.2, 0.4, 0.5, 0.5]


def test_many_attempts_are_no_overflow() -> None:
    """2.0 ** 1024 raises OverflowError: the loop would end with the error that it was to outlive."""
    assert limit_s(0.1, 5.0, 10**9) == 5.0


def test_those_who_failed_together_do_not_come_again_together() -> None:
    some = list(islice(pauses_around(0.1, 0.8, Random(1)), 50))
    others = list(islice(pauses_around(0.1, 0.8, Random(2)), 50))
    assert all(one != other for one, other in zip(some, others, strict=True))
    for drawn, exact in zip(some, pauses(0.1, 0.8), strict=False):
        assert 0.5 * exact <= drawn <= 1.5 * exact
