"""The service as it runs beside an application: who is looked after, when, and what it tells of itself."""

from __future__ import annotations

import asyncio
import random
from typing import Any, NoReturn

import pytest

from tests.recovery.world import FAST, World, until
from undoubt.coordinator.errors import LedgerUnavailable
from undoubt.participants.contract import Decision, XactStatus
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.recovery.settings import RecoverySettings
from undoubt.recovery.worker import RecoveryWorker


@pytest.fixture
async def world() -> World:
    return await World().open()


async def test_it_resolves_what_appears_while_it_runs(world: World) -> None:
    async with world.service() as service:
        for _ in range(3):
            gids = await world.left(Decision.COMMIT)
            await until(lambda: not world.ledger.machine.state.unfinished)
            assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED
        active = await world.left()
        counters = service.status().counters
        await until(lambda: counters.seen_active > 1)
        assert active[0] in world.orders.prepared
        assert (counters.committed, counters.rolled_back, counters.finished) == (6, 0, 3)
        await world.end_session()
        await until(lambda: counters.rolled_back == 2)


async def test_a_live_coordinators_decisions_are_not_asked_about(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its second phase and its batch of finishes there are hundreds: each would cost a query."""
    monkeypatch.setattr("undoubt.recovery.worker.YOUNG_S", 0.1)
    asked: list[object] = []
    books = world.orders.evidence

    async def evidence(of: Any) -> Any:
        asked.append(of)
        return await books(of)

    world.orders.evidence = evidence  # type: ignore[method-assign, assignment]
    gids = await world.left(Decision.COMMIT)
    for gid in gids:
        world.databases[gid.participant].finish_by_hand(gid, Decision.COMMIT)
    started = asyncio.get_running_loop().time()
    async with world.service() as service:
        await until(lambda: bool(asked))
        assert asyncio.get_running_loop().time() - started >= 0.1
        await until(lambda: service.status().counters.finished == 1)  # left behind: it is asked about in time


async def test_it_works_only_while_the_ledger_leads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a follower it would burden every database once more for nothing."""
    leads = False
    monkeypatch.setattr(type(world.ledger), "leads", property(lambda _self: leads))
    gids = await world.left(Decision.COMMIT)
    async with world.service() as service:
        for _ in range(50):
            await asyncio.sleep(0)
        assert service.status().counters.scans == 0
        assert (service.status().running, service.status().leads) == (True, False)
        leads = True
        await until(lambda: world.orders.xact_status(gids[0]) is XactStatus.COMMITTED)
        leads = False
        await until(lambda: service.status().participants == ())
        scans = service.status().counters.scans
        await asyncio.sleep(0.05)
        assert service.status().counters.scans == scans


async def test_by_hand_it_works_whoever_leads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(world.ledger), "leads", property(lambda _self: False))
    gids = await world.left(Decision.COMMIT)
    async with world.service(always=True):
        await until(lambda: world.orders.xact_status(gids[0]) is XactStatus.COMMITTED)


async def test_participants_come_and_go(world: World) -> None:
    """One that is added must not wait for a restart; one that was removed is closed, and must be let go."""
    gids = await world.left(Decision.COMMIT)
    removed = world.registry.remove("payments")
    async with world.service() as service:
        await until(lambda: world.orders.xact_status(gids[0]) is XactStatus.COMMITTED)
        (left,) = service.status().unfinished
        assert (left.waits_for, left.unknown) == (("payments",), ("payments",))
        world.registry.add(removed)
        await until(lambda: world.payments.xact_status(gids[1]) is XactStatus.COMMITTED)
        world.registry.remove("orders")
        await until(lambda: [one.participant for one in service.status().participants] == ["payments"])
        await until(lambda: service.status().unfinished == ())


async def test_a_replaced_participant_gets_a_worker_of_its_own(world: World) -> None:
    """The old object is closed: asked for ever, it would answer for the new one that it is closed."""
    async with world.service() as service:
        await until(lambda: len(service.status().participants) == 2)
        await world.registry.remove("payments").close()
        successor = ScriptedParticipant("payments")
        world.registry.add(successor)
        world.databases["payments"] = successor
        gids = await world.left(Decision.COMMIT)
        await until(lambda: successor.xact_status(gids[1]) is XactStatus.COMMITTED)
        await until(lambda: all(one.last_error is None for one in service.status().participants))


async def test_one_that_hangs_delays_no_other(world: World) -> None:
    gids = await world.left(Decision.COMMIT)

    async def hang() -> list[object]:
        await asyncio.Event().wait()
        return []

    world.orders.in_doubt = hang  # type: ignore[method-assign, assignment]
    world.orders.waits = hang  # type: ignore[method-assign, assignment]
    async with world.service():
        await until(lambda: world.payments.xact_status(gids[1]) is XactStatus.COMMITTED)


async def test_status_shows_failures_until_it_works_again(world: World) -> None:
    world.payments.down = ParticipantUnavailable("payments", "connection refused")
    async with world.service() as service:
        await until(lambda: any(one.failures >= 3 for one in service.status().participants))
        orders, payments = service.status().participants
        assert (orders.failures, orders.last_error, orders.retry_in_s) == (0, None, None)
        assert "connection refused" in str(payments.last_error)
        world.payments.down = None
        await until(lambda: service.status().participants[1].failures == 0)
        assert service.status().participants[1].last_error is None


async def test_a_ledger_without_quorum_is_tried_again(world: World) -> None:
    gids = await world.left(Decision.COMMIT)
    reading = world.ledger.unfinished

    async def down(**_: object) -> list[object]:
        raise LedgerUnavailable("no quorum")

    world.ledger.unfinished = down  # type: ignore[method-assign, assignment]
    async with world.service() as service:
        await until(lambda: len(service.status().participants) == 2)
        await until(lambda: all(one.last_error == "no quorum" for one in service.status().participants))
        world.ledger.unfinished = reading  # type: ignore[method-assign]
        await until(lambda: world.orders.xact_status(gids[0]) is XactStatus.COMMITTED)


async def test_a_bug_in_one_pass_is_told_and_the_next_is_made(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gids = await world.left(Decision.COMMIT)
    listing, calls = world.orders.in_doubt, 0

    async def broken_once() -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("transaction")
        return await listing()

    world.orders.in_doubt = broken_once  # type: ignore[method-assign, assignment]
    async with world.service():
        await until(lambda: world.orders.xact_status(gids[0]) is XactStatus.COMMITTED)
    assert "KeyError" in caplog.text


async def test_a_bug_in_sweeping_ends_no_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if one unexpected error about old rows leaves a database without recovery for good."""
    monkeypatch.setattr("undoubt.recovery.worker.SWEEP_INTERVAL_S", 0.0)
    swept: list[float] = []

    async def stale(older_than_s: float, buried_s: float) -> NoReturn:  # noqa: ARG001
        swept.append(older_than_s)
        raise RuntimeError("a bug")

    world.orders.states.stale = stale  # type: ignore[method-assign]
    async with world.service():
        await until(lambda: len(swept) > 1)
        gids = await world.left(Decision.COMMIT)
        await until(lambda: not world.ledger.machine.state.unfinished)
        assert world.orders.xact_status(gids[0]) is XactStatus.COMMITTED


async def test_what_must_not_be_touched_is_in_the_status(world: World) -> None:
    gid = world.gids()[0]
    strange = type(gid)("zzzzzzzzzz", gid.protocol, gid.txid, 1, "orders")
    await world.prepare(strange)
    async with world.service() as service:
        await until(lambda: any(one.reported for one in service.status().participants))
        orders, _ = service.status().participants
        assert (orders.reported, orders.prepared) == ((str(strange),), 1)


async def test_close_ends_everything_in_the_middle_of_anything(world: World) -> None:
    """A pass that goes on after close would use closed connections."""
    await world.left(Decision.COMMIT)
    inside = asyncio.Event()

    async def hang(call: str, _gid: object) -> None:
        if call == "settle_commit":
            inside.set()
            await asyncio.Event().wait()

    world.orders.before = hang
    tasks = asyncio.all_tasks()
    service = await world.service().start()
    await inside.wait()
    await service.close()
    await service.close()
    assert asyncio.all_tasks() == tasks
    assert service.status().running is False


async def test_start_twice_is_one(world: World) -> None:
    service = await world.service().start()
    before = asyncio.all_tasks()
    await service.start()
    assert asyncio.all_tasks() == before
    await service.close()


class Highest(random.Random):
    """Every pause is as long as it may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_pauses_double_up_to_the_limit_and_are_random(world: World) -> None:
    settings = RecoverySettings(interval_s=1.0, backoff_max_s=5.0)

    def worker(rng: random.Random) -> RecoveryWorker:
        return RecoveryWorker(world.orders, world.service().context, settings, lambda: True, rng)

    steady = worker(Highest())
    pauses = [steady.pause_s()]
    for _ in range(4):
        steady.failed("down")
        pauses.append(steady.pause_s())
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    some = worker(random.Random(1))
    for _ in range(2_000):
        some.failed("down")
    drawn = [some.pause_s() for _ in range(200)]
    assert min(drawn) < 1.0 < 4.0 < max(drawn) <= 5.0


async def test_a_worker_that_lost_the_lead_does_nothing_more(world: World) -> None:
    """Also between two looks of the service at who leads."""
    leads, asked = True, asyncio.Event()

    def allowed() -> bool:
        asked.set()
        return leads

    service = world.service()
    task = asyncio.create_task(
        RecoveryWorker(world.orders, service.context, FAST, allowed, random.Random(1)).run()
    )
    await until(lambda: service.context.counters.scans > 0)
    leads = False
    scans = -1
    while scans != service.context.counters.scans:  # the pass that is under way
        scans = service.context.counters.scans
        asked.clear()
        await asked.wait()
    gids = await world.left(Decision.COMMIT)
    asked.clear()
    await asked.wait()
    asked.clear()
    await asked.wait()
    task.cancel()
    await asyncio.wait([task])
    assert gids[0] in world.orders.prepared


def test_settings_are_those_of_a_test() -> None:
    """Else the tests above would wait for seconds and prove nothing about pauses."""
    assert FAST.interval_s == 0.0
