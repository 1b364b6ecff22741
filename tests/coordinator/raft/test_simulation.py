"""Hundreds of seeded runs under faults; what must hold is checked after every step."""

from __future__ import annotations

import pytest

from tests.coordinator.raft.simulation import Simulation

SEEDS_PER_TEST = 25
STEPS = 1200


@pytest.mark.parametrize("first", range(0, 300, SEEDS_PER_TEST))
def test_safety_under_faults_and_agreement_after_them(first: int) -> None:
    """Broken if two lead in a term, a committed entry changes or is lost, a message goes out before what it
    depends on is stored, a read is stale, an entry is applied twice, or a healed cluster does not agree."""
    for seed in range(first, first + SEEDS_PER_TEST):
        try:
            Simulation(seed).run(STEPS)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_runs_reach_what_they_are_for() -> None:
    """Broken if the runs above pass because next to nothing happens in them."""
    runs = [Simulation(seed) for seed in range(60)]
    for run in runs:
        run.run(STEPS)
    clusters = [run.cluster for run in runs]
    invariants = [cluster.invariants for cluster in clusters]
    assert sum(len(each.committed) for each in invariants) > 1000
    assert sum(len(each.leader_of) for each in invariants) > 80
    assert sum(len(cluster.reads) for cluster in clusters) > 200
    nodes = [node for cluster in clusters for node in cluster.running]
    assert sum(node.disk.snapshot.index > 1 for node in nodes) > 40
    assert sum(cluster.restarts for cluster in clusters) > 100
    assert sum(cluster.installed for cluster in clusters) > 5
    assert sum(node.up.internals.history.current_index > 1 for node in nodes) > 20


def test_a_seed_replays() -> None:
    """Broken if a failing seed could not be looked at again."""
    traces = []
    for _ in range(2):
        run = Simulation(12)
        run.run(STEPS)
        traces.append((run.cluster.invariants.committed, run.cluster.invariants.checked, run.cluster.reads))
    assert traces[0] == traces[1]
