"""Last-agent commit: what splits it, what never does, and that the search can tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models.last_agent import COMMIT, Database, Decider, LastAgent, World
from tests.models.search import Found, explore

BOTH = [pytest.param(True, id="a standby that is waited for"), pytest.param(False, id="one that is not")]


@pytest.mark.parametrize("synchronous", BOTH)
def test_it_does_not_split(synchronous: bool) -> None:
    """Broken if recoveries, an operator and a coordinator that is only slow could end it differently, with a
    COMMIT in flight, a restart and a failover at any moment."""
    explore(LastAgent(2, 2, synchronous), states_max=100_000)


@pytest.mark.parametrize("synchronous", BOTH)
def test_both_ends_are_reached(synchronous: bool) -> None:
    """Broken if nothing splits because nothing ever ends; by the coordinator, and without it."""
    states = explore(LastAgent(1, 1, synchronous), keep=True).states
    assert not isinstance(states, int)
    for end in ("committed", "aborted"):
        ended = [world for world in states if world.others == (end,)]
        assert any(world.recoveries[0].phase == "idle" for world in ended)
        assert any(world.coordinator.phase == "stopped" for world in ended)


def test_a_failover_without_a_standby_that_is_waited_for_loses_the_agents_part_alone() -> None:
    """Broken if the documentation warns of what cannot happen."""
    states = explore(LastAgent(1, 0, synchronous=False), keep=True).states
    assert not isinstance(states, int)
    assert any(world.database.lost and world.others == ("committed",) for world in states)


def test_a_restored_ledger_does_not_split_it() -> None:
    """Broken if a row that was deleted before the ledger was set back is taken for one that never was."""
    explore(LastAgent(2, 1, restarts=0, restores=True), states_max=200_000)


class ReadsAlone(LastAgent):
    """Takes a row that it does not see for an abort: a COMMIT in flight reads as absent."""

    def write_tombstone(self, world: World) -> Iterator[tuple[World, Decider]]:
        seen = world.database.row if world.database.seen else "-"
        yield world, Decider("decide", COMMIT if seen == COMMIT else "abort")


class TrustsAbsence(LastAgent):
    def trusts_absence(self) -> bool:
        return True


class DeletesBeforeItIsCopied(LastAgent):
    def may_delete(self, world: World) -> bool:
        return True


class KnowsBetterThanTheLedger(LastAgent):
    """Acts by the tombstone that it could write because the row had been deleted."""

    def obeys(self, answered: str, own: str) -> str:
        return own


class ShowsWhatIsUnconfirmed(LastAgent):
    def shows(self, at: Database) -> bool:
        return True


class BelievesWhatIsUnconfirmed(LastAgent):
    def believes(self, at: Database) -> bool:
        return True


class TakesSilenceForAbort(LastAgent):
    def after_silence(self) -> Decider:
        return Decider("ending", "abort")


class RecordsAfterARestore(LastAgent):
    def records(self, world: World, verdict: str) -> bool:
        return True


class OperatorRecordsAtOnce(LastAgent):
    """An operator records ABORT without a tombstone."""

    def keep(self, world: World) -> Iterator[World]:
        yield from super().keep(world)
        if world.ledger == "-":
            yield world._replace(ledger="abort", recoveries=(Decider("ending", "abort"),))


BROKEN = [
    pytest.param(RecordsAfterARestore(2, 1, restarts=0, restores=True), id="a ledger that was set back"),
    pytest.param(OperatorRecordsAtOnce(1, 1), id="an ABORT that an operator records before the tombstone"),
    pytest.param(ReadsAlone(1, 1), id="a look without a tombstone"),
    pytest.param(TrustsAbsence(2, 1, synchronous=False), id="absence after a failover"),
    pytest.param(DeletesBeforeItIsCopied(1, 1), id="a row that is deleted before the ledger has it"),
    pytest.param(KnowsBetterThanTheLedger(1, 1), id="the ledger's answer is not obeyed"),
    pytest.param(ShowsWhatIsUnconfirmed(1, 1), id="a row that a failover may take back"),
    pytest.param(BelievesWhatIsUnconfirmed(1, 0), id="a COMMIT with a warning"),
    pytest.param(TakesSilenceForAbort(1, 0), id="no answer to COMMIT"),
]


@pytest.mark.parametrize("model", BROKEN)
def test_a_planted_error_splits_the_transaction(model: LastAgent) -> None:
    """Broken if the search overlooks it."""
    with pytest.raises(Found):
        explore(model, states_max=100_000)
