"""Pauses between attempts, for every loop that tries again: each twice as long as the last, up to a limit.

Loops that may fail together draw their pauses at random, so that they do not try again together (M. Brooker,
"Exponential backoff and jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random


def limit_s(least_s: float, most_s: float, attempt: int) -> float:
    """The longest pause after attempt number ``attempt``, which counts from 0; in seconds."""
    return min(least_s * 2.0 ** min(attempt, 60), most_s)


def pauses(least_s: float, most_s: float = math.inf) -> Iterator[float]:
    """One after the other, without end."""
    attempt = 0
    while True:
        yield limit_s(least_s, most_s, attempt)
        attempt += 1


def pauses_around(least_s: float, most_s: float, random: Random) -> Iterator[float]:
    """Each between half of its length and one and a half."""
    for pause_s in pauses(least_s, most_s):
        yield pause_s * (0.5 + random.random())
