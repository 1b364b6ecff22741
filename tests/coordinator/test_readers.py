"""Branches that only read, as far as their databases know: what their COMMIT says, and when it counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.coordinator.stage import NAMES, Stage
from tests.coordinator.voting_ledger import VotingLedger
from undoubt.coordinator.errors import HeuristicOutcome, LedgerUnavailable, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.participants.contract import CommitNotSent, Settled, Vote, Work, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable
from undoubt.participants.scripted import Script

REFUSED = BranchFailed("alpha", "the far side refused it, as told")
UNSENT = CommitNotSent(BranchFailed("beta", "its connection was lost before COMMIT, as told"))
LOST = ParticipantUnavailable("alpha", "the connection was lost, as told")


@pytest.fixture(params=["2pc", "3pc", "paxos"])
async def stages(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    made: list[Stage] = []

    async def make(*scripts: Script, **settings: Any) -> Stage:
        ledger = VotingLedger() if request.param == "paxos" else MemoryLedger()
        stage = Stage(
            dict(zip(NAMES, scripts, strict=False)),
            ledger,
            **{"drain_s": 0.2, "protocol": request.param, **settings},
        )
        made.append(stage)
        await stage.coordinator.start()
        return stage

    yield make
    for stage in made:
        for gate in stage.gates.values():
            gate.set()
        await stage.coordinator.close()


def reader(answer: BaseException | None = None, *, at: str = "poll") -> Script:
    """``at``: where it turns out that it only reads."""
    if at == "poll":
        return Script(work=Work.READ_ONLY, end_reading=answer)
    return Script(surely_writes=True, prepare=Vote.READ_ONLY, end_reading=answer)


@pytest.mark.parametrize("at", ["poll", "prepare"])
async def test_all_refuse_to_commit(stages: Any, at: str) -> None:
    """Broken if ``commit`` returns although what its branches wrote through foreign tables is lost."""
    stage = await stages(reader(REFUSED, at=at), reader(REFUSED, at=at))
    with pytest.raises(TransactionAborted, match="the far side") as raised:
        await stage.transfer()
    assert raised.value.cause is REFUSED
    assert await stage.ledger.heuristics() == []


@pytest.mark.parametrize("at", ["poll", "prepare"])
async def test_some_refuse_to_commit(stages: Any, at: str) -> None:
    """Broken if it is called aborted although another branch has committed, and may have written too."""
    stage = await stages(reader(REFUSED, at=at), reader(at=at))
    with pytest.raises(HeuristicOutcome) as raised:
        await stage.transfer()
    assert raised.value.kind is Settled.HEURISTIC_ROLLBACK
    assert raised.value.__cause__ is REFUSED


@pytest.mark.parametrize("writers", [1, 2])
async def test_a_reader_refuses_beside_writers(stages: Any, writers: int) -> None:
    """Broken if a lost write is only logged once the writers have committed, in one phase or in two."""
    stage = await stages(reader(REFUSED), *[Script() for _ in range(writers)])
    with pytest.raises(HeuristicOutcome) as raised:
        await stage.transfer()
    assert raised.value.kind is Settled.HEURISTIC_MIXED
    assert {gid.participant: kind for gid, kind in raised.value.branches.items()} == {
        "alpha": Settled.HEURISTIC_ROLLBACK
    }
    [recorded] = await stage.ledger.heuristics()
    assert (recorded.gid.participant, recorded.kind) == ("alpha", Settled.HEURISTIC_ROLLBACK)
    assert "the far side" in recorded.note


async def test_a_refusal_is_told_though_the_ledger_does_not_answer(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await stages(reader(REFUSED), Script(), Script())

    async def unavailable(*_: Any) -> None:
        raise LedgerUnavailable("it is down, as told")

    monkeypatch.setattr(stage.ledger, "record_heuristic", unavailable)
    with pytest.raises(HeuristicOutcome):
        await stage.transfer(timeout=0.3)


@pytest.mark.parametrize("lost", [LOST, UNSENT], ids=["lost", "unsent"])
@pytest.mark.parametrize("writers", [1, 2])
async def test_a_readers_lost_connection_is_a_warning(
    stages: Any, writers: int, lost: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken if every reader whose connection breaks at the wrong moment makes an alarm."""
    stage = await stages(reader(lost), *[Script() for _ in range(writers)])
    with caplog.at_level(logging.WARNING):
        assert (await stage.transfer()).pending == ()
    assert "did not end with its transaction" in caplog.text
    assert await stage.ledger.heuristics() == []


@pytest.mark.parametrize("at", ["poll", "prepare"])
@pytest.mark.parametrize(
    "other", [LOST, None, REFUSED, UNSENT], ids=["lost", "committed", "refused", "unsent"]
)
async def test_the_answer_to_a_commit_is_lost_and_no_branch_is_known_to_write(
    stages: Any, other: BaseException | None, at: str
) -> None:
    """Broken if a block ends normally, or as aborted, although nobody knows whether what its branches wrote
    through foreign tables is committed."""
    stage = await stages(reader(LOST, at=at), reader(other, at=at))
    with pytest.raises(OutcomeUnknown, match="the connection was lost, as told") as raised:
        await stage.transfer()
    assert raised.value.__cause__ is LOST
    assert await stage.ledger.heuristics() == []


@pytest.mark.parametrize("other", [UNSENT, REFUSED], ids=["unsent", "refused"])
async def test_no_commit_was_sent_or_granted(stages: Any, other: BaseException) -> None:
    """Broken if it is called unknown, or committed, although no branch can have committed."""
    stage = await stages(reader(UNSENT), reader(other))
    with pytest.raises(TransactionAborted):
        await stage.transfer()
    assert await stage.ledger.heuristics() == []


async def test_one_commit_was_not_sent_and_another_took_effect(stages: Any) -> None:
    stage = await stages(reader(), reader(UNSENT))
    with pytest.raises(HeuristicOutcome) as raised:
        await stage.transfer()
    assert raised.value.kind is Settled.HEURISTIC_ROLLBACK
    assert [gid.participant for gid in raised.value.branches] == ["beta"]


async def test_mixed_for_certain_though_an_answer_was_lost(stages: Any) -> None:
    """Broken if what is known to have gone wrong is not recorded because something else is not known."""
    stage = await stages(reader(LOST), reader(UNSENT), reader())
    with pytest.raises(HeuristicOutcome) as raised:
        await stage.transfer()
    told = {gid.participant: kind for gid, kind in raised.value.branches.items()}
    assert told == {"alpha": Settled.HEURISTIC_HAZARD, "beta": Settled.HEURISTIC_ROLLBACK}
    assert {each.gid.participant: each.kind for each in await stage.ledger.heuristics()} == told


async def test_the_caller_does_not_wait_for_readers_of_a_pending_transaction(stages: Any) -> None:
    """Broken if a database that is down makes a committed transaction wait: readers end after it."""
    down = ParticipantUnavailable("beta", "it is down, as told")
    stage = await stages(reader(), Script(commit=[down, None]), Script())
    result = await stage.transfer()
    assert [gid.participant for gid in result.pending] == ["beta"]
    while stage.xact_statuses() != {XactStatus.COMMITTED}:
        await asyncio.sleep(0.01)


async def test_readers_do_not_commit_after_the_deadline(stages: Any) -> None:
    stage = await stages(reader(), reader())
    stage.hold("poll alpha")
    with pytest.raises(TransactionAborted):
        await stage.transfer(timeout=0.2)
    assert stage.xact_statuses() == {XactStatus.ABORTED}


async def test_readers_count_for_nothing_in_a_uniform_rollback(stages: Any) -> None:
    """Broken if a branch that only read makes a mixed outcome of one that is the same in every writer."""
    by_hand = [Settled.HEURISTIC_ROLLBACK]
    stage = await stages(Script(commit=[*by_hand]), Script(commit=[*by_hand]), reader())
    with pytest.raises(HeuristicOutcome) as raised:
        await stage.transfer()
    assert raised.value.kind is Settled.HEURISTIC_ROLLBACK


async def test_readers_count_for_nothing_in_a_uniform_commit(stages: Any) -> None:
    by_hand = [Settled.HEURISTIC_COMMIT]
    stage = await stages(Script(rollback=[*by_hand]), Script(rollback=[*by_hand]), reader())
    arrived = stage.hold("after_prepare beta")
    task = asyncio.create_task(stage.transfer(timeout=0.1))
    await arrived.wait()
    with pytest.raises(HeuristicOutcome) as raised:
        await task
    assert raised.value.kind is Settled.HEURISTIC_COMMIT
