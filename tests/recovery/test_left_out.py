"""A branch that was taken out of its transaction before the decision, and is prepared all the same: a COMMIT
is about the branches that are recorded with it, and about no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.recovery.world import World, told
from undoubt.participants.contract import Decision, XactStatus
from undoubt.participants.ids import Protocol


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    yield await World().open()


@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("finished", [False, True])
async def test_it_is_rolled_back(world: World, protocol: Protocol, finished: bool) -> None:
    """Broken if what somebody withdrew is committed because its transaction was."""
    orders, payments = world.gids(protocol)
    evidence = await world.prepare(orders)
    await world.decide(Decision.COMMIT, {orders: evidence})
    if finished:
        await world.recover()
        assert await world.unfinished() == set()
    late = await world.prepare(payments)
    report = await world.recover()
    assert told(report, payments) == ("rollback", "done")
    assert world.payments.xact_statuses[late.xid] is XactStatus.ABORTED
    assert world.orders.xact_statuses[evidence.xid] is XactStatus.COMMITTED
    assert await world.heuristics() == {}
    assert await world.unfinished() == set()


async def test_one_that_is_recorded_is_committed(world: World) -> None:
    gids = await world.left(Decision.COMMIT)
    await world.recover()
    assert world.payments.xact_statuses == {1_001: XactStatus.COMMITTED}
    assert await world.unfinished() == set()
    assert gids
