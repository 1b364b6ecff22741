"""Moments and lengths of time as text: ISO 8601, and what people write: ``30s``, ``2h``, ``1h30m``."""

from __future__ import annotations

import datetime
import re
import time

from undoubt.participants.bounds import DURATION_S_MAX

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def iso(seconds: float | None) -> str | None:
    """``2026-03-01T12:00:00.250Z`` of seconds since 1970."""
    if seconds is None:
        return None
    moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def age(seconds: float | None) -> float | None:
    """Seconds since that moment by this machine's clock, never negative; milliseconds are enough."""
    return None if seconds is None else round(max(time.time() - seconds, 0.0), 3)


def parse_duration(text: str) -> float:
    """A duration in seconds, up to ten years; a number without a unit is in seconds. Raises
    ``ValueError``."""
    cleaned = text.strip().lower().replace(" ", "")
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", cleaned):
        seconds = float(cleaned)
    elif not _WHOLE.fullmatch(cleaned):
        raise ValueError(f"{text!r} is not a duration; write 30s, 5m, 2h, 1h30m or 7d")
    else:
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(cleaned))
    if seconds > DURATION_S_MAX:
        raise ValueError(f"{text[:40]!r} is longer than ten years")
    return seconds


def show_duration(seconds: float) -> str:
    """For output: the two largest units, ``2h 05m``; under ten seconds with a decimal."""
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3_600}h {whole % 3_600 // 60:02}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3_600:02}h"
