"""Durations as flags: a misread unit makes `check --older-than` blind."""

from __future__ import annotations

import pytest

from undoubt.report.times import parse_duration, show_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5m", 90),
        ("90", 90),
        ("0", 0),
        (" 5 M ", 300),
        ("1m 30s", 90),
    ],
)
def test_reads_what_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "-5m", "5m!", "5 minutes", "1e3", "nan", "inf", "\uff15m"])
def test_refuses_anything_else(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0.0s"),
        (0.25, "0.2s"),
        (59.9, "59s"),
        (60, "1m 00s"),
        (3_599, "59m 59s"),
        (7_260, "2h 01m"),
        (90_000, "1d 01h"),
        (864_000, "10d 00h"),
    ],
)
def test_shows_two_units(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown


@pytest.mark.parametrize("text", ["5000d", "9" * 400, "1h" + "9" * 400 + "d", "315360001"])
def test_refuses_more_than_ten_years(text: str) -> None:
    """Broken if a wait is given to a timer that cannot hold it."""
    with pytest.raises(ValueError, match="longer than ten years"):
        parse_duration(text)
