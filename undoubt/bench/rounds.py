"""Decides which contender has the next turn.

In a round each contender has one turn. The first contender changes with each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from undoubt.bench.contract import Turn
from undoubt.bench.field import Contender

TURN_S = 1.0
WARM_UP_S = 0.5

Rounds = dict[int, list[dict[str, Turn]]]
"""Turns by concurrency, then by round, then by contender."""


def rounds_of(seconds: float, contenders: int) -> tuple[int, float]:
    """How many rounds fit into ``seconds``, at least three, and how long a turn is, about :data:`TURN_S`."""
    rounds = max(3, round(seconds / contenders / TURN_S))
    return rounds, seconds / contenders / rounds


async def play(
    contenders: Mapping[str, Contender],
    concurrencies: Sequence[int],
    seconds: float,
    say: Callable[[str], None],
) -> tuple[Rounds, dict[str, int]]:
    """Measure for ``seconds`` at each concurrency. Returns the rounds, and the number of transfers of each
    contender, including the warm-up."""
    rounds, turn_s = rounds_of(seconds, len(contenders))
    names = list(contenders)
    all_rounds: Rounds = {}
    transfers = dict.fromkeys(names, 0)
    for concurrency in concurrencies:
        say(f"concurrency {concurrency}: {rounds} rounds, turns of {turn_s:.2f} s")
        for name in names:
            transfers[name] += (await contenders[name].turn(concurrency, WARM_UP_S)).transfers
        played: list[dict[str, Turn]] = []
        for number in range(rounds):
            start = number % len(names)
            turns = {}
            for name in names[start:] + names[:start]:
                turns[name] = await contenders[name].turn(concurrency, turn_s)
                transfers[name] += turns[name].transfers
            played.append(turns)
        all_rounds[concurrency] = played
    return all_rounds, transfers
