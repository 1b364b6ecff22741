"""Deadlocks through locks of the ledger: each is ended, and nothing that is none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.recovery.test_deadlocks import Told, detector, wait
from tests.recovery.world import World
from undoubt.coordinator.errors import DistributedDeadlock
from undoubt.coordinator.ledger.locks import LockInfo, LockRequest
from undoubt.participants.ids import TxId
from undoubt.recovery.deadlocks import DeadlockDetector


@dataclass
class Locks:
    """A world, and requests for the locks of its ledger."""

    world: World
    told: Told = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def txids(self, count: int) -> list[TxId]:
        return [self.world.session.txid(seq) for seq in range(1, count + 1)]

    async def ask(self, txid: TxId | None, name: str = "job", *, shared: bool = False) -> LockRequest:
        session = self.world.session
        asked = LockRequest(name, session.id, session.nonce, next(self.numbers), shared, txid)
        assert await self.world.ledger.lock(asked, wait=True) is not None
        return asked

    async def victims(self) -> list[TxId]:
        """Those of two looks: a wait of a transaction for itself counts only when it is seen again."""
        looking = detector(self.world, self.told)
        await looking.look()
        await looking.look()
        victims = list(dict.fromkeys(txid for txid, _ in self.told))
        self.told.clear()
        return victims


@pytest.fixture
async def locks() -> Locks:
    return Locks(await World().open())


async def test_a_row_and_a_lock_in_opposite_order(locks: Locks) -> None:
    """Each of the two systems sees an ordinary wait: both transactions would wait until their timeouts."""
    old, young = locks.txids(2)
    await locks.ask(young)
    await locks.ask(old)
    locks.world.orders.waiting = [wait(young, old)]
    (found,) = await detector(locks.world, locks.told).look()
    assert [txid for txid, _ in locks.told] == [young]
    assert isinstance(found, DistributedDeadlock)
    assert found.cycle == (str(young), str(old))
    read = DistributedDeadlock.parse(young, str(found))
    assert read is not None
    assert read.cycle == found.cycle
    assert str(found).startswith("deadlock across ledger locks, orders:")


async def test_two_locks_in_opposite_order(locks: Locks) -> None:
    """No database takes part, and the ledger does not end it by itself."""
    one, two = locks.txids(2)
    for txid, name in ((one, "a"), (two, "b"), (one, "b"), (two, "a")):
        await locks.ask(txid, name)
    assert await locks.victims() == [two]


async def test_shared_holders(locks: Locks) -> None:
    """A writer waits for each of them, also for one that came first."""
    first, second, writer = locks.txids(3)
    await locks.ask(first, shared=True)
    await locks.ask(second, shared=True)
    await locks.ask(writer)
    locks.world.orders.waiting = [wait(second, writer)]
    assert await locks.victims() == [writer]


async def test_a_reader_behind_a_writer_that_waits(locks: Locks) -> None:
    """The queue is never reordered: the reader waits for the writer, which waits for the holder."""
    holder, writer, reader = locks.txids(3)
    await locks.ask(holder, shared=True)
    await locks.ask(writer)
    await locks.ask(reader, shared=True)
    locks.world.orders.waiting = [wait(holder, reader)]
    assert await locks.victims() == [reader]


async def test_a_reader_behind_a_writer_without_a_transaction(locks: Locks) -> None:
    holder, reader = locks.txids(2)
    await locks.ask(holder, shared=True)
    await locks.ask(None)
    await locks.ask(reader, shared=True)
    locks.world.orders.waiting = [wait(holder, reader)]
    assert await locks.victims() == [reader]


async def test_whoever_is_only_queued_is_no_victim(locks: Locks) -> None:
    """The youngest stands between the two in the queue: to abort it would be in vain."""
    holder, waiter, queued = locks.txids(3)
    await locks.ask(holder)
    await locks.ask(queued)
    await locks.ask(waiter)
    locks.world.orders.waiting = [wait(holder, waiter)]
    assert await locks.victims() == [waiter]


async def test_whoever_only_waits_is_no_deadlock(locks: Locks) -> None:
    for txid in locks.txids(3):
        await locks.ask(txid)
    assert await locks.victims() == []


@pytest.mark.parametrize("holder", ["nobody's", "own", "shared", "another lock", "gone"])
async def test_what_is_no_deadlock(locks: Locks, holder: str) -> None:
    """A victim would be aborted for nothing."""
    one, two = locks.txids(2)
    shared = holder == "shared"
    asked = await locks.ask({"nobody's": None, "own": one}.get(holder, two), shared=shared)
    await locks.ask(one, "another" if holder == "another lock" else "job", shared=shared)
    locks.world.orders.waiting = [wait(two, one)]
    if holder == "gone":
        await locks.world.ledger.unlock(asked)
    assert await locks.victims() == []


async def test_a_lock_that_was_given_away_between_the_passes(locks: Locks) -> None:
    """Two waits that never were at one moment join to no cycle."""
    one, two = locks.txids(2)
    ledger = locks.world.ledger
    asked = [await locks.ask(two), await locks.ask(one)]
    locks.world.orders.waiting = [wait(two, one)]
    contended = ledger.contended_locks

    async def then_given_away() -> Sequence[LockInfo]:
        found = await contended()
        for request in asked:
            await ledger.unlock(request)
        asked[:] = [await locks.ask(two), await locks.ask(one)]
        return found

    ledger.contended_locks = then_given_away  # type: ignore[method-assign]
    assert await locks.victims() == []


async def test_the_request_of_a_victim_of_another_process_is_ended(locks: Locks) -> None:
    """There is no statement to cancel: the victim would wait on, and with it all others. Its process asks for
    the cause when the request has ended, so the cause has to be there before."""
    one, two = locks.txids(2)
    for txid, name in ((one, "a"), (two, "b"), (one, "b")):
        await locks.ask(txid, name)
    last = await locks.ask(two, "a")
    ledger = locks.world.ledger
    unlock = ledger.unlock

    async def unlocked(request: LockRequest) -> bool:
        cause = await ledger.doomed(two)
        assert cause is not None
        assert "deadlock" in cause
        return await unlock(request)

    ledger.unlock = unlocked  # type: ignore[method-assign]
    await DeadlockDetector(ledger, locks.world.registry).look()
    assert await ledger.lock_entry(last) is None
