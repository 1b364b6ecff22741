"""Branches that others prepare, and transactions of which every commit is recorded: over scripted
participants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.coordinator.stage import NAMES, Stage
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import TransactionAborted, TransactionEnded
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.contract import Settled, Work, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable, UsageError
from undoubt.participants.ids import NO_KEY, Gid, SessionKey
from undoubt.participants.scripted import Script, ScriptedBranch, ScriptedParticipant


@dataclass
class Announcer:
    """Of a branch whose vote is what the participant's script says."""

    participant: ScriptedParticipant

    @property
    def name(self) -> str:
        return self.participant.name

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> ScriptedBranch:
        return await self.participant.begin(gid, timeout_s=timeout_s, key=key)


MISSING = Script(
    prepare=BranchFailed("beta", "was announced, but is not prepared"), rollback=[Settled.ABSENT]
)
"""Nothing is found, now and later."""


@pytest.fixture
async def stages() -> AsyncIterator[Any]:
    made: list[Stage] = []

    async def make(*scripts: Script, **settings: Any) -> Stage:
        stage = Stage(dict(zip(NAMES, scripts, strict=False)), drain_s=0.2, **settings)
        made.append(stage)
        await stage.coordinator.start()
        return stage

    yield make
    for stage in made:
        await stage.coordinator.close()


async def begun(coordinator: Coordinator, **options: Any) -> Transaction:
    return await coordinator.transaction(prepares_all=True, **options).start()


async def record(stage: Stage, tx: Transaction) -> RecordedDecision:
    return await stage.coordinator.outcome(tx.id)


@pytest.mark.parametrize("work", [Work.WRITES, Work.READ_ONLY])
async def test_a_single_branch_is_prepared_and_recorded(stages: Any, work: Work) -> None:
    """Broken if who was not answered finds nothing in the ledger, and takes that for aborted."""
    stage = await stages(Script(work=work))
    tx = await begun(stage.coordinator)
    await tx.branch("alpha")
    await tx.commit()
    assert await record(stage, tx) is RecordedDecision.COMMIT
    assert stage.participants["alpha"].trace() == ["begin", "prepare", "commit"]


async def test_an_announced_branch_commits_with_the_others(stages: Any) -> None:
    stage = await stages(Script(), Script())
    tx = await begun(stage.coordinator)
    await tx.branch("alpha")
    branches = [await tx.announce(Announcer(stage.participants["beta"])) for _ in range(2)]
    assert [branch.gid.branch for branch in branches] == [2, 3]
    assert tx.participants == ("alpha", "beta")
    await tx.commit()
    assert stage.xact_statuses() == {XactStatus.COMMITTED}
    with pytest.raises(TransactionEnded):
        await tx.announce(Announcer(stage.participants["beta"]))


async def test_one_that_is_missing_aborts_and_that_is_recorded(stages: Any) -> None:
    """Broken if a PREPARE that comes late stays prepared for as long as the coordinator's session lives."""
    stage = await stages(Script(), MISSING)
    tx = await begun(stage.coordinator)
    await tx.branch("alpha")
    await tx.announce(Announcer(stage.participants["beta"]))
    with pytest.raises(TransactionAborted, match="was announced, but is not prepared"):
        await tx.commit()
    assert await record(stage, tx) is RecordedDecision.ABORT
    [left] = await stage.ledger.unfinished()
    assert {branch.participant for branch in left.branches} >= {"beta"}


async def test_a_rollback_that_finds_nothing_is_recorded(stages: Any) -> None:
    """Broken if what is prepared after a rollback has to wait for the session's floor, or its end."""
    stage = await stages(MISSING)
    tx = await begun(stage.coordinator)
    await tx.announce(Announcer(stage.participants["alpha"]))
    await tx.rollback()
    assert await record(stage, tx) is RecordedDecision.ABORT


async def test_a_deadline_that_finds_nothing_is_recorded(stages: Any) -> None:
    stage = await stages(MISSING)
    tx = await begun(stage.coordinator, timeout=0.2)
    await tx.announce(Announcer(stage.participants["alpha"]))
    while tx.active:
        await asyncio.sleep(0.01)
    await tx.rollback()
    assert isinstance(tx.interruption, TimeoutError)
    assert await record(stage, tx) is RecordedDecision.ABORT


async def test_a_rollback_that_finds_it_needs_no_record(stages: Any) -> None:
    stage = await stages(Script())
    tx = await begun(stage.coordinator)
    await tx.announce(Announcer(stage.participants["alpha"]))
    await tx.rollback()
    assert await record(stage, tx) is RecordedDecision.NOT_RECORDED
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_a_rollback_that_is_not_answered_is_recorded(stages: Any) -> None:
    """It may be prepared there."""
    stage = await stages(Script(rollback=[ParticipantUnavailable("alpha", "down")]))
    tx = await begun(stage.coordinator)
    await tx.announce(Announcer(stage.participants["alpha"]))
    await tx.rollback()
    assert await record(stage, tx) is RecordedDecision.ABORT


@pytest.mark.parametrize("settled", [Settled.APPLIED, Settled.ABSENT, Settled.BUSY])
async def test_withdrawing(stages: Any, settled: Settled) -> None:
    """Broken if a branch that could not be ended is left out of the transaction all the same."""
    stage = await stages(Script(), Script(rollback=[settled, None]))
    tx = await begun(stage.coordinator)
    await tx.branch("alpha")
    branch = await tx.announce(Announcer(stage.participants["beta"]))
    assert await tx.withdraw(branch.gid) is settled
    left = settled is Settled.BUSY
    assert (branch.gid in tx.gids) is left
    again = await tx.announce(Announcer(stage.participants["beta"]))
    assert again.gid.branch == 3
    if not left:
        with pytest.raises(UsageError, match="has no branch"):
            await tx.withdraw(branch.gid)
    await tx.rollback()


async def test_three_phase_commit_takes_none(stages: Any) -> None:
    """Its row has to be there before PREPARE: a termination that finds none could contradict the rest."""
    stage = await stages(Script())
    tx = await begun(stage.coordinator, protocol="3pc")
    with pytest.raises(UsageError, match="three-phase"):
        await tx.announce(Announcer(stage.participants["alpha"]))
    await tx.rollback()


async def test_what_is_known_of_a_commit(stages: Any) -> None:
    stage = await stages(Script())
    tx = await begun(stage.coordinator)
    with pytest.raises(UsageError, match="has not begun"):
        await tx.committed()
    await tx.branch("alpha")
    assert await tx.commit() == await tx.committed()
