"""The detector of deadlocks across databases: it ends every one of them, and nothing that is none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.recovery.world import FAST, World, until
from undoubt.coordinator.errors import DistributedDeadlock, SelfDeadlock, TransactionAborted
from undoubt.coordinator.ledger.contract import BranchRecord
from undoubt.coordinator.retries import retryable
from undoubt.coordinator.supervision import restarts
from undoubt.participants.contract import Decision, Waiting
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import TxId
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.recovery.deadlocks import DeadlockDetector

Told = list[tuple[TxId, BaseException]]


@pytest.fixture
async def world() -> World:
    return await World("inventory", "orders", "payments").open()


def wait(
    waiter: object, holder: object, since: str = "t1", pid: int = 1, holder_pid: int | None = None
) -> Waiting:
    return Waiting(str(waiter), str(holder), since, pid, 700 + pid, holder_pid)


def detector(world: World, told: Told | None = None) -> DeadlockDetector:
    def cancel(txid: TxId, cause: BaseException) -> bool:
        assert told is not None
        told.append((txid, cause))
        return True

    return DeadlockDetector(world.ledger, world.registry, None if told is None else cancel)


def second_pass(database: ScriptedParticipant, waiting: Sequence[Waiting]) -> None:
    """From the second look on, ``database`` shows these."""
    looks = 0

    async def waits() -> Any:
        nonlocal looks
        looks += 1
        return list(database.waiting) if looks == 1 else list(waiting)

    database.waits = waits  # type: ignore[method-assign]


async def test_two_databases_in_opposite_order(world: World) -> None:
    """Neither database sees it: both transactions would hang until their timeouts."""
    old, young = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [wait(old, young)]
    world.payments.waiting = [wait(young, old)]
    told: Told = []
    (found,) = await detector(world, told).look()
    assert [txid for txid, _ in told] == [young]
    cause = told[0][1]
    assert isinstance(cause, DistributedDeadlock)
    assert cause is found
    assert cause.cycle == (str(young), str(old))
    assert "orders" in str(cause)
    assert "payments" in str(cause)
    assert retryable(TransactionAborted(young, cause))
    assert world.orders.cancelled == world.payments.cancelled == []


async def test_three_databases_in_a_ring(world: World) -> None:
    one, two, three = (world.session.txid(seq) for seq in (1, 2, 3))
    world.databases["inventory"].waiting = [wait(one, two)]
    world.orders.waiting = [wait(two, three)]
    world.payments.waiting = [wait(three, one)]
    told: Told = []
    (found,) = await detector(world, told).look()
    assert found.cycle == (str(three), str(one), str(two))
    assert [txid for txid, _ in told] == [three]


async def test_through_a_session_that_is_no_transaction_of_ours(world: World) -> None:
    """A plain session of one database stands in the middle of the ring; only ours can be aborted by us."""
    one, two = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [wait(one, "orders/99"), wait("orders/99", two)]
    world.payments.waiting = [wait(two, one)]
    told: Told = []
    (found,) = await detector(world, told).look()
    assert [txid for txid, _ in told] == [two]
    assert found.cycle == (str(two), str(one), "orders/99")


@pytest.mark.parametrize("change", ["gone", "another lock", "another holder"])
async def test_a_wait_that_did_not_stand_through_both_passes_is_none(world: World, change: str) -> None:
    """Its holder let go meanwhile: the victim would be aborted for a deadlock that never was."""
    one, two, other = (world.session.txid(seq) for seq in (1, 2, 3))
    world.orders.waiting = [wait(one, two)]
    world.payments.waiting = [wait(two, one)]
    later = {"gone": [], "another lock": [wait(two, one, "t2")], "another holder": [wait(two, other)]}
    second_pass(world.payments, later[change])
    told: Told = []
    assert await detector(world, told).look() == []
    assert told == []


async def test_all_of_the_first_pass_comes_before_any_of_the_second(world: World) -> None:
    """Passes that overlap can see two waits that never stood at one moment."""
    order: list[str] = []
    for name, database in world.databases.items():
        database.waiting = [wait(world.session.txid(1), world.session.txid(2))]
        asked = database.waits

        async def waits(name: str = name, asked: Any = asked) -> Any:
            order.append(name)
            return await asked()

        database.waits = waits  # type: ignore[method-assign]
    await detector(world, []).look()
    assert [set(order[:3]), set(order[3:])] == [set(world.databases)] * 2


async def test_a_chain_is_no_cycle(world: World) -> None:
    one, two, three = (world.session.txid(seq) for seq in (1, 2, 3))
    world.orders.waiting = [wait(one, two), wait(one, three)]
    world.payments.waiting = [wait(two, three)]
    assert await detector(world, []).look() == []


async def test_what_one_database_sees_whole_is_left_to_it(world: World) -> None:
    """It ends its own deadlocks (deadlock_timeout); a second victim would be one too many."""
    one, two = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [wait(one, two), wait(two, one)]
    world.payments.waiting = list(world.orders.waiting)  # the same database under two names
    assert await detector(world, []).look() == []


@pytest.mark.parametrize("holder_pid", [2, 0])
async def test_a_transaction_that_waits_for_itself(world: World, holder_pid: int) -> None:
    """Two of its participants lead to one database, which sees a session that waits for an idle one, or for a
    prepared branch. Running it again would be in vain."""
    txid = world.session.txid(1)
    world.orders.waiting = [wait(txid, txid, pid=1, holder_pid=holder_pid)]
    world.payments.waiting = list(world.orders.waiting)
    told: Told = []
    looking = detector(world, told)
    assert await looking.look() == []
    (found,) = await looking.look()
    assert told == [(txid, found)]
    assert isinstance(found, SelfDeadlock)
    assert "two branches of transaction" in str(found)
    assert "'orders' and 'payments'" in str(found)
    assert not retryable(TransactionAborted(txid, found))


async def test_a_short_wait_of_a_transaction_for_itself_is_none(world: World) -> None:
    """The lock by which a table grows is held for a moment; a savepoint gives its locks back."""
    txid = world.session.txid(1)
    told: Told = []
    looking = detector(world, told)
    for since in ("t1", "t2", None, "t2", "t3"):
        world.orders.waiting = [] if since is None else [wait(txid, txid, since, 1, 2)]
        assert await looking.look() == []
    assert told == []


async def test_two_transactions_with_two_branches_each_in_one_database(world: World) -> None:
    """It sees four sessions, of which two wait for two idle ones: no deadlock that it would end."""
    one, two = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [
        wait(one, two, pid=11, holder_pid=22),
        wait(two, one, pid=21, holder_pid=12),
    ]
    world.payments.waiting = list(world.orders.waiting)
    told: Told = []
    (found,) = await detector(world, told).look()
    assert [txid for txid, _ in told] == [two]
    assert not isinstance(found, SelfDeadlock)


async def test_what_one_database_sees_whole_from_backend_to_backend(world: World) -> None:
    """As above, but the two that wait are the two that hold."""
    one, two = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [
        wait(one, two, pid=11, holder_pid=21),
        wait(two, one, pid=21, holder_pid=11),
    ]
    assert await detector(world, []).look() == []


async def test_a_local_cycle_does_not_hide_one_across_databases(world: World) -> None:
    one, two, three = (world.session.txid(seq) for seq in (1, 2, 3))
    world.orders.waiting = [wait(one, two), wait(two, one), wait(one, three)]
    world.payments.waiting = [wait(three, one)]
    told: Told = []
    (found,) = await detector(world, told).look()
    assert found.cycle == (str(three), str(one))


async def test_two_deadlocks_at_once_both_end(world: World) -> None:
    one, two, three, four = (world.session.txid(seq) for seq in (1, 2, 3, 4))
    world.orders.waiting = [wait(one, two), wait(three, four)]
    world.payments.waiting = [wait(two, one), wait(four, three)]
    told: Told = []
    assert len(await detector(world, told).look()) == 2
    assert [txid for txid, _ in told] == [two, four]


async def test_one_victim_ends_two_cycles_that_share_it(world: World) -> None:
    one, two, three = (world.session.txid(seq) for seq in (1, 2, 3))
    world.orders.waiting = [wait(one, three), wait(two, three)]
    world.payments.waiting = [wait(three, one), wait(three, two)]
    told: Told = []
    assert len(await detector(world, told).look()) == 1
    assert [txid for txid, _ in told] == [three]


async def test_a_transaction_whose_commit_is_recorded_is_no_victim(world: World) -> None:
    """Its decision stands. The other one must give way, though it is the older."""
    old, young = world.session.txid(1), world.session.txid(2)
    await world.ledger.decide(young, Decision.COMMIT, [BranchRecord(1, "orders")])
    world.orders.waiting = [wait(old, young)]
    world.payments.waiting = [wait(young, old)]
    told: Told = []
    await detector(world, told).look()
    assert [txid for txid, _ in told] == [old]


async def test_without_a_possible_victim_nothing_happens(world: World) -> None:
    one, two = world.session.txid(1), world.session.txid(2)
    await world.ledger.decide(one, Decision.COMMIT, [BranchRecord(1, "orders")])
    await world.ledger.decide(two, Decision.COMMIT, [BranchRecord(1, "orders")])
    world.orders.waiting = [wait(one, two)]
    world.payments.waiting = [wait(two, one)]
    told: Told = []
    assert await detector(world, told).look() == []
    assert told == []


@pytest.mark.parametrize("answers", [None, False])
async def test_another_processs_transaction_is_cancelled_at_its_database(
    world: World, answers: bool | None
) -> None:
    """Its coordinator is elsewhere: the very wait that was seen is cancelled, on condition that it stands."""
    old, young = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [wait(old, young, pid=1)]
    world.payments.waiting = [wait(young, old, pid=2)]
    cancel = None if answers is None else (lambda _txid, _cause: False)
    await DeadlockDetector(world.ledger, world.registry, cancel).look()
    assert (world.orders.cancelled, world.payments.cancelled) == ([], world.payments.waiting)


async def test_a_database_that_is_down_hides_no_other_deadlock(world: World) -> None:
    one, two = world.session.txid(1), world.session.txid(2)
    world.databases["inventory"].down = ParticipantUnavailable("inventory", "down")
    world.orders.waiting = [wait(one, two)]
    world.payments.waiting = [wait(two, one)]
    assert len(await detector(world, []).look()) == 1


async def test_a_bug_at_one_database_hides_no_other_deadlock(world: World) -> None:
    """A driver raises what it likes, for example of a value in a dsn."""

    async def break_() -> Any:
        raise ValueError("invalid literal for int()")

    world.databases["inventory"].waits = break_  # type: ignore[method-assign]
    one, two = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [wait(one, two)]
    world.payments.waiting = [wait(two, one)]
    before = restarts["deadlocks"]
    assert len(await detector(world, []).look()) == 1
    assert restarts["deadlocks"] == before + 2, "it is counted once in each of the two passes"


async def test_a_database_that_hangs_hides_no_other_deadlock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("undoubt.recovery.deadlocks.LOOK_TIMEOUT_S", 0.05)

    async def hang() -> Any:
        await asyncio.Event().wait()

    world.databases["inventory"].waits = hang  # type: ignore[method-assign]
    one, two = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [wait(one, two)]
    world.payments.waiting = [wait(two, one)]
    assert len(await detector(world, []).look()) == 1


async def test_the_service_looks_by_itself_and_counts(world: World) -> None:
    old, young = world.session.txid(1), world.session.txid(2)
    world.orders.waiting = [wait(old, young)]
    world.payments.waiting = [wait(young, old)]
    told: list[TxId] = []

    def cancel(txid: TxId, _cause: BaseException) -> bool:
        told.append(txid)
        world.payments.waiting = []
        return True

    async with world.service(FAST, cancel=cancel) as service:
        await until(lambda: bool(told))
        await until(lambda: service.status().counters.deadlocks == 1)
    assert told == [young]
