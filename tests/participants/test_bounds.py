"""Durations and counts: what is within bounds passes as it is, everything else is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from undoubt.participants.bounds import DURATION_S_MAX, OutOfBounds, count, seconds

KIND = lambda value: type(value).__name__  # noqa: E731
WRONG: list[Any] = [
    float("nan"),
    float("inf"),
    -float("inf"),
    -1,
    -0.001,
    1e300,
    10**400,
    DURATION_S_MAX * 1.001,
    "5",
    b"5",
    True,
    None,
    [5],
]


@pytest.mark.parametrize("value", WRONG, ids=KIND)
def test_a_wrong_duration_is_refused_by_name(value: Any) -> None:
    """Broken if a value gets in that fails later, in a task of ours or in a message that others share."""
    with pytest.raises(OutOfBounds, match=r"^timeout must be "):
        seconds("timeout", value, zero=False)


@pytest.mark.parametrize("value", [0, 0.0, 1, 0.001, DURATION_S_MAX])
def test_a_duration_within_bounds_passes(value: float) -> None:
    assert seconds("wait", value) == value


def test_zero_and_the_least_are_bounds_of_their_own() -> None:
    with pytest.raises(OutOfBounds, match="more than 0"):
        seconds("timeout", 0, zero=False)
    with pytest.raises(OutOfBounds, match="must be 1 to"):
        seconds("ttl", 0.999, least=1)


@pytest.mark.parametrize("value", [-1, 2**31, 1 << 20_000, 1.0, "1", True, None, float("nan")], ids=KIND)
def test_a_wrong_count_is_refused_by_name(value: Any) -> None:
    with pytest.raises(OutOfBounds, match=r"^retries must be "):
        count("retries", value)
