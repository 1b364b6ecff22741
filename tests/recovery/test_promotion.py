"""What a promoted server has lost is told, once, and only as far as the server proves it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tests.recovery.world import World, until
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.participants.contract import Decision, Evidence, Settled, TimelineHistory, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.recovery import promotion

LEFT_AT = 1 << 40
FAR = promotion.PREPARES_WITHIN + 1


@pytest.fixture
async def world() -> World:
    return await World().open()


async def finished(world: World, position: int | None, decision: Decision = Decision.COMMIT) -> list[Gid]:
    """A transaction that ended everywhere, and was prepared at that position of the WAL."""
    gids = world.gids()
    branches = {gid: replace(await world.prepare(gid), position=position) for gid in gids}
    records = [
        BranchRecord(
            gid.branch, gid.participant, seen.xid, seen.system, seen.timeline, gid.tag, None, seen.position
        )
        for gid, seen in branches.items()
    ]
    assert await world.ledger.decide(gids[0].txid, decision, records) is decision
    for gid in gids:
        world.databases[gid.participant].finish_by_hand(gid, decision)
    await world.ledger.finish([gids[0].txid])
    return gids


def promote(world: World, ancestors: dict[str, int] | None) -> None:
    world.payments.timeline = "00000002"
    world.payments.history = TimelineHistory(world.payments.system, "00000002", ancestors)


async def test_what_was_finished_and_is_lost_is_told(world: World) -> None:
    """Broken if an acknowledged transaction is half there after a failover, and nobody is told: no branch of
    it is prepared, and its decision is finished."""
    kept = await finished(world, LEFT_AT - FAR)
    lost = [await finished(world, LEFT_AT + number) for number in range(2)]
    aborted = await finished(world, LEFT_AT + 9, Decision.ABORT)
    unknown = await finished(world, None)
    promote(world, {"00000001": LEFT_AT})
    await world.recover()
    found = await world.heuristics()
    assert {gid: one.kind for gid, one in found.items()} == {
        gids[1]: Settled.HEURISTIC_ROLLBACK for gids in lost
    }
    assert all(one.decision is Decision.COMMIT and "timeline 00000002" in one.note for one in found.values())
    assert not {kept[1], aborted[1], unknown[1]} & set(found)
    [act] = [one for one in await world.ledger.acts(limit=10) if one.verb == promotion.ACT]
    assert act.result == "done"
    assert "2 committed branches" in act.note


async def test_it_is_looked_for_once_in_each_timeline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if each start of a recovery reads the whole ledger, or if what an operator has forgotten is told
    again."""
    [_, gid] = await finished(world, LEFT_AT)
    promote(world, {"00000001": LEFT_AT})
    await world.recover()
    await world.ledger.forget_heuristic(gid)
    asked = []
    transactions = world.ledger.transactions

    async def counted(**page: object) -> object:
        asked.append(page)
        return await transactions(**page)  # type: ignore[arg-type]

    monkeypatch.setattr(world.ledger, "transactions", counted)
    await world.recover()
    assert asked == []
    promote(world, {"00000001": LEFT_AT})
    world.payments.timeline = "00000003"
    world.payments.history = TimelineHistory(world.payments.system, "00000003", {"00000001": LEFT_AT})
    await world.recover()
    assert asked
    assert await world.heuristics() == {}


async def test_all_pages_are_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if only the newest transactions are looked at, or one is counted twice."""
    monkeypatch.setattr(promotion, "PAGE", 2)
    lost = [(await finished(world, LEFT_AT))[1] for _ in range(7)]
    promote(world, {"00000001": LEFT_AT})
    async with world.service():
        await until(lambda: len(world.ledger.machine.heuristics(include_forgotten=False)) == len(lost))
    assert set(await world.heuristics()) == set(lost)


async def test_a_prepare_that_may_have_come_too_late_is_asked_for(world: World) -> None:
    """Broken if it counts as kept, because its position was read before the end of its timeline: the record
    of PREPARE comes after it. The answer is no proof, so it is a hazard; what was committed is none."""
    late, there = await finished(world, LEFT_AT - 1), await finished(world, LEFT_AT - 1)
    for branch in world.payments.branches:
        if branch.gid == late[1]:
            world.payments.xact_statuses[branch.xid] = XactStatus.ABORTED
    promote(world, {"00000001": LEFT_AT})
    await world.recover()
    assert {gid: one.kind for gid, one in (await world.heuristics()).items()} == {
        late[1]: Settled.HEURISTIC_HAZARD
    }
    assert there[1] not in await world.heuristics()


async def test_a_decision_that_is_not_finished_yet_is_told_too(world: World) -> None:
    """Broken if only finished ones are looked at: a coordinator whose COMMIT PREPARED was answered finishes
    its transaction a moment later, and by then the look is over."""
    [_, gid] = gids = world.gids()
    seen: dict[Gid, Evidence] = {one: replace(await world.prepare(one), position=LEFT_AT) for one in gids}
    records = [
        BranchRecord(one.branch, one.participant, e.xid, e.system, e.timeline, one.tag, None, e.position)
        for one, e in seen.items()
    ]
    await world.ledger.decide(gid.txid, Decision.COMMIT, records)
    for one in gids:
        world.databases[one.participant].finish_by_hand(one, Decision.COMMIT)
    promote(world, {"00000001": LEFT_AT})
    check = promotion.PromotionCheck(world.ledger, world.payments)
    while not await check.go_on():
        pass
    await world.ledger.finish([gid.txid])
    assert (await world.heuristics())[gid].kind is Settled.HEURISTIC_ROLLBACK


async def test_a_role_that_may_not_read_the_history_makes_no_guess(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken if everything counts as lost, or as kept without a word."""
    await finished(world, LEFT_AT)
    promote(world, None)
    with caplog.at_level(logging.WARNING):
        await world.recover()
    assert await world.heuristics() == {}
    assert "cannot be told: grant execute" in caplog.text


async def test_a_database_that_is_down_is_looked_at_later(world: World) -> None:
    """Broken if its promotion is forgotten because it did not answer at once, or holds up the others."""
    [_, gid] = await finished(world, LEFT_AT)
    promote(world, {"00000001": LEFT_AT})
    world.payments.down = ParticipantUnavailable("payments", "connection refused")
    await world.recover()
    assert await world.heuristics() == {}
    world.payments.down = None
    await world.recover()
    assert gid in await world.heuristics()
