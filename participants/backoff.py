"""The pauses between the attempts of a loop that retries: each is twice as long as the last, up to a limit.

Loops that may fail together draw their pauses at random, so that they do not retry simultaneously (M.
Brooker, "Exponential backoff and jitter", AWS Architecture Blog, 2015)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random


def limit_s(least_s: float, most_s: float, attempt: int) -> float:
    """The longest pause after attempt number ``attempt``, which counts from 0; in seconds."""
    return min(least_s * 2.0 ** min(attempt, 60), most_s)


def pauses(least_s: float, most_s: float = math.inf) -> Iterator[float]:
    """The pauses one after another, in seconds, without end."""
    attempt = 0
    while True:
        yield limit_s(least_s, most_s, attempt)
        attempt += 1


def pauses_around(least_s: float, most_s: float, random: Random) -> Iterator[float]:
    """The pauses of :func:`pauses`, each multiplied by a random factor from 0.5 to 1.5."""
    for pause_s in pauses(least_s, most_s):
        yield pause_s * (0.5 + random.random())
