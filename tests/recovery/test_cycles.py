"""The search for cycles against one that shares no code with it: every simple cycle, tried out."""

from __future__ import annotations

import itertools
import random

import pytest

from undoubt.participants.contract import Waiting
from undoubt.recovery.deadlocks import Edge, find_cycle, standing_edges

GRAPHS = 1_500


def graph(rng: random.Random, nodes: int, databases: str) -> list[Edge]:
    """A few random waits, some of them seen by several databases; of a transaction's one or two backends."""
    waits: dict[str, list[Waiting]] = {}
    for _ in range(rng.randint(2, 9)):
        waiter, holder = rng.sample(range(nodes), 2)
        if not rng.randrange(12):
            holder = waiter
        pid, holder_pid = 10 * waiter + rng.randrange(1, 3), 10 * holder + rng.randrange(1, 3)
        if holder_pid == pid:
            continue
        told = rng.choice([holder_pid, holder_pid, holder_pid, 0, None])
        wait = Waiting(str(waiter), str(holder), "t", pid, None, told)
        waits.setdefault(rng.choice(databases), []).append(wait)
    once = {name: list(dict.fromkeys(seen)) for name, seen in waits.items()}
    return standing_edges(dict(once), dict(once))


def spans(cycle: list[Edge]) -> bool:
    """No one database sees all of it as a ring of backends."""
    for database in frozenset[str]().union(*(edge.participants for edge in cycle)):
        seen = [[wait for name, wait in edge.waits if name == database] for edge in cycle]
        for ring in itertools.product(*seen):
            ends = zip(ring, [*ring[1:], ring[0]], strict=True)
            if all(wait.holder_pid in {None, after.pid} for wait, after in ends):
                return False
    return True


def tried_out(edges: list[Edge], nodes: int) -> bool:
    """Whether there is such a cycle."""
    by_ends = {(edge.waiter, edge.holder): edge for edge in edges}
    for length in range(1, nodes + 1):
        for ring in itertools.permutations(map(str, range(nodes)), length):
            ends = zip(ring, [*ring[1:], ring[0]], strict=True)
            cycle = [by_ends.get(end) for end in ends]
            if all(cycle) and spans([edge for edge in cycle if edge is not None]):
                return True
    return False


@pytest.mark.parametrize("databases", ["ab", "abc"])
def test_it_finds_a_cycle_exactly_where_there_is_one(databases: str) -> None:
    """One missed hangs for ever; one invented aborts a transaction for nothing."""
    rng = random.Random(20_250_301)
    found = 0
    for _ in range(GRAPHS):
        nodes = rng.choice([3, 4, 5])
        edges = graph(rng, nodes, databases)
        cycle = find_cycle(edges)
        assert (cycle is not None) == tried_out(edges, nodes), edges
        if cycle is not None:
            found += 1
            assert spans(cycle)
            assert all(a.holder == b.waiter for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
            assert len({edge.waiter for edge in cycle}) == len(cycle)
    assert GRAPHS / 10 < found < GRAPHS * 9 / 10  # both answers were asked for
