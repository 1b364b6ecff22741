"""Many branches are ended together, and the young branches of live coordinators are left to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from tests.recovery.world import World, told
from undoubt.participants.contract import Decision, Ending, Settled
from undoubt.participants.errors import ParticipantError, ParticipantRefused, ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.recovery.resolve import LEFT_TO_LIVE_S, TOGETHER_MAX
from undoubt.recovery.settings import RecoverySettings


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    world = await World("orders").open()
    world.orders.at_once = True
    yield world


async def left(world: World, count: int, decision: Decision = Decision.COMMIT) -> list[Gid]:
    return [gid for _ in range(count) for gid in await world.left(decision)]


async def test_many_are_ended_together(world: World) -> None:
    """Broken if each of ten thousand waits for the answer about another, or if few open more connections."""
    few = await left(world, 8)
    await world.recover()
    assert world.orders.together == []
    assert world.orders.trace().count("settle_commit") == len(few)
    gids = [*await left(world, 30), *await left(world, 10, Decision.ABORT)]
    seen: list[tuple[str, str]] = []
    report = await world.service(observe=lambda step, subject: seen.append((step, subject))).run_once()
    assert [told(report, gid) for gid in gids] == [("commit", "done")] * 30 + [("rollback", "done")] * 10
    assert [len(part) for part in world.orders.together] == [16, 16, 8]
    assert not world.orders.prepared
    assert not await world.unfinished()
    for gid in gids[:30]:
        assert seen.index(("before_commit", str(gid))) < seen.index(("after_commit", str(gid)))
    for step, count in (("before_commit", 30), ("after_rollback", 10)):
        assert sum(each == step for each, _ in seen) == count
    assert await world.service().run_once() is not None


async def test_a_call_is_never_too_large(world: World) -> None:
    """Broken if one connection gets all branches, or a superuser looks up ten thousand owners in advance."""
    await left(world, 2 * TOGETHER_MAX + 10)
    await world.service(RecoverySettings(parallel=1)).run_once()
    assert [len(part) for part in world.orders.together] == [TOGETHER_MAX, TOGETHER_MAX, 10]


async def test_an_error_of_one_ends_that_one(world: World) -> None:
    """Broken if a branch that may not be ended holds up the others, or is told as ended."""
    gids = await left(world, 20)
    settle = world.orders.settle

    async def refused(gid: Gid, order: Decision, evidence: object) -> Settled:
        if gid == gids[3]:
            raise ParticipantRefused("orders", "no right")
        return Settled.BUSY if gid == gids[4] else await settle(gid, order, evidence)  # type: ignore[arg-type]

    world.orders.settle = refused  # type: ignore[method-assign]
    report = await world.recover()
    expected = [("commit", "done")] * 20
    expected[3], expected[4] = ("commit", "failed"), ("commit", "look_again")
    assert [told(report, gid) for gid in gids] == expected
    assert await world.unfinished() == {gids[3].txid, gids[4].txid}
    assert not report.errors


async def test_one_that_hangs_does_not_hold_up_the_others_for_ever(world: World) -> None:
    """Broken if each pass waits for the same branch at the head of a call, and those behind it stay in
    doubt."""
    gids = await left(world, 40)
    hung: list[int] = []

    async def lost(endings: Sequence[Ending]) -> Sequence[Settled | ParticipantError]:
        results: list[Settled | ParticipantError] = []
        for gid, order, evidence in endings:
            if (results and isinstance(results[-1], ParticipantError)) or gid == gids[0]:
                results.append(ParticipantUnavailable("orders", "no answer in time"))
            else:
                results.append(await world.orders.settle(gid, order, evidence))
        hung.append(len([one for one in results if isinstance(one, ParticipantError)]))
        return results

    world.orders.settle_each = lost  # type: ignore[method-assign]
    settle = world.orders.settle

    async def hangs(gid: Gid, order: Decision, evidence: object) -> Settled:
        if gid == gids[0]:
            raise ParticipantUnavailable("orders", "no answer in time")
        return await settle(gid, order, evidence)  # type: ignore[arg-type]

    world.orders.settle = hangs  # type: ignore[method-assign]
    service = world.service()
    first = await service.run_once()
    assert sorted(hung) == [0, 0, 16]
    assert told(first, gids[1]) == ("commit", "failed"), "it is not known what became of it"
    assert set(world.orders.prepared) == set(gids[:16])
    hung.clear()
    second = await service.run_once()
    assert hung == [0], "the one that hangs is alone"
    assert (told(second, gids[0]), told(second, gids[1])) == (("commit", "failed"), ("commit", "done"))
    assert set(world.orders.prepared) == {gids[0]}
    world.orders.settle = settle  # type: ignore[method-assign]
    await service.run_once()
    assert not world.orders.prepared
    assert service.context.alone == {"orders": {gids[0]}}
    await service.run_once()
    assert service.context.alone == {"orders": set()}


async def test_a_database_that_is_down_is_not_asked_for_every_branch(world: World) -> None:
    """Broken if a pass goes on through ten thousand branches of a database that does not answer."""
    await left(world, 400)
    calls = 0

    async def down(endings: Sequence[Ending]) -> Sequence[ParticipantError]:
        nonlocal calls
        calls += 1
        return [ParticipantUnavailable("orders", "down")] * len(endings)

    world.orders.settle_each = down  # type: ignore[method-assign]
    report = await world.service(RecoverySettings(parallel=1)).run_once()
    assert calls == 2
    report = await world.service(RecoverySettings(parallel=2)).run_once()
    assert (calls, dict(report.errors)) == (4, {})


async def test_a_live_coordinator_ends_its_young_branches_itself(world: World) -> None:
    """Broken if recovery races the second phase of live transactions: one of the two finds them busy."""
    world.orders.age_s = 0.5
    gids = [*await left(world, 12), *await left(world, 2, Decision.ABORT)]
    service = world.service()
    report = await service.run_once()
    assert {told(report, gid) for gid in gids} == {("wait", "nothing")}
    assert len(world.orders.prepared) == 14
    assert service.context.counters.seen_active == 2 * 14, "it looks again before it leaves them"
    world.orders.age_s = LEFT_TO_LIVE_S
    report = await service.run_once()
    assert {told(report, gid) for gid in gids} == {("commit", "done"), ("rollback", "done")}


@pytest.mark.parametrize("clock", [0.5, -3.0])
async def test_nobody_waits_for_a_dead_coordinator(world: World, clock: float) -> None:
    """Broken if branches of a session that is closed, or that has passed them, stay in doubt for their first
    seconds; or any, while the clock of their database is behind."""
    world.orders.age_s = clock
    gids = await left(world, 3)
    if clock > 0:
        await world.ledger.keep_alive(world.session, floor=gids[2].txid.seq)
        report = await world.recover()
        assert [told(report, gid)[0] for gid in gids] == ["commit", "commit", "wait"]
        await world.end_session()
    report = await world.recover()
    assert told(report, gids[2]) == ("commit", "done")
    assert not world.orders.prepared


async def test_a_dry_run_says_so(world: World) -> None:
    """Broken if a dry run ends something, or tells that it would end what recovery leaves alone."""
    old = await left(world, 20)
    report = await world.recover(dry_run=True)
    assert {told(report, gid) for gid in old} == {("commit", "would_do")}
    world.orders.age_s = 0.0
    report = await world.recover(dry_run=True)
    assert {told(report, gid) for gid in old} == {("wait", "nothing")}
    assert world.orders.trace().count("settle_commit") == 0
