"""Lengths of time as people write them: ``30s``, ``5m``, ``2h``, ``1h30m``, ``7d``, ``500ms``."""

from __future__ import annotations

import re

import click

from undoubt.participants.bounds import DURATION_S_MAX

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


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


class Duration(click.ParamType[float]):
    """A click parameter that gives seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
