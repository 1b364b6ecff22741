"""Locks as the application uses them, over a ledger in memory. Each test's docstring says what breaks if it
fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.coordinator.stage import Stage
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import (
    CoordinatorClosed,
    LedgerLocked,
    LedgerUnavailable,
    LockLost,
    LockTimeout,
    TransactionAborted,
    TransactionEnded,
)
from undoubt.coordinator.ledger.contract import Session
from undoubt.coordinator.ledger.locks import LockEntry
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.errors import StaleLock, UsageError
from undoubt.participants.registry import Registry
from undoubt.participants.scripted import Script

TTL_S = 1.0


@asynccontextmanager
async def coordinators(ledger: MemoryLedger, count: int = 2) -> AsyncIterator[list[Coordinator]]:
    made = [
        Coordinator(ledger, Registry(), CoordinatorSettings(session_ttl_s=TTL_S, name=f"process {number}"))
        for number in range(count)
    ]
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(each) for each in made]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def queue_of(ledger: MemoryLedger, name: str = "job") -> list[bool]:
    """Of each request whether it is granted."""
    return [entry.granted for info in await ledger.locks() if info.name == name for entry in info.entries]


async def test_the_block_has_the_lock_and_gives_it_back() -> None:
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        async with one.lock("job", timeout=10) as lock:
            assert lock.held
            lock.check()
            token = lock.token
            assert await queue_of(ledger) == [True]
            assert not await other.lock("job").try_acquire()
            with pytest.raises(LockTimeout):
                await other.lock("job", timeout=0.05).acquire()
            assert await queue_of(ledger) == [True]
        assert await queue_of(ledger) == []
        async with other.lock("job", timeout=0) as second:
            assert second.token > token
    with pytest.raises(CoordinatorClosed):
        one.lock("job")


async def test_waiters_get_it_in_their_order() -> None:
    ledger = MemoryLedger()
    order: list[int] = []

    async def work(coordinator: Coordinator, number: int) -> None:
        async with coordinator.lock("job") as lock:
            order.append(lock.token)
            await asyncio.sleep(0)

    async with coordinators(ledger) as made:
        first = await made[0].lock("job").acquire()
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(work(made[number % 2], number)))
            await until(lambda: len(ledger.machine.state.locks.queues["job"]) == len(tasks) + 1)
        await first.release()
        await asyncio.gather(*tasks)
        assert order == sorted(order)
        assert len(order) == 6


async def test_shared_holders_and_a_writer() -> None:
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        async with one.lock("page", shared=True), other.lock("page", shared=True, timeout=0):
            assert not await one.lock("page").try_acquire()
        assert await one.lock("page").try_acquire()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    """The lock would be granted to a task that is gone, and nobody would release it."""
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        lock = await one.lock("job").acquire()
        waiter = asyncio.create_task(other.lock("job").acquire())
        await until(lambda: len(ledger.machine.state.locks.queues["job"]) == 2)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await until(lambda: len(ledger.machine.state.locks.queues["job"]) == 1)
        await lock.release()
        assert await queue_of(ledger) == []


async def test_the_end_of_the_session_is_noticed_and_raised() -> None:
    """A holder would finish its block believing that nobody else was in it."""
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        with pytest.raises(LockLost, match="its session was closed or has expired"):
            async with one.lock("job") as lock:
                await ledger.elapse(3 * TTL_S)
                assert (await lock.lost()).startswith("its session")
                assert not lock.held
                with pytest.raises(LockLost):
                    lock.check()
                with pytest.raises(LockLost):
                    await lock.guard(object())
                async with other.lock("job", timeout=10) as second:
                    assert second.token > lock.token
        async with one.lock("job", timeout=10):
            assert await queue_of(ledger) == [True]


async def test_an_error_of_the_block_is_not_hidden_by_a_lost_lock() -> None:
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        with pytest.raises(ZeroDivisionError):
            async with one.lock("job") as lock:
                await ledger.elapse(3 * TTL_S)
                await lock.lost()
                raise ZeroDivisionError


async def test_a_waiter_whose_session_ended_asks_again() -> None:
    """A candidate for leadership that waits for days would fail with the first outage of the ledger."""
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        first = await one.lock("job").acquire()
        waiter = asyncio.create_task(other.lock("job").acquire())
        await until(lambda: len(ledger.machine.state.locks.queues["job"]) == 2)
        await ledger.elapse(3 * TTL_S)
        lock = await waiter
        assert lock.held
        await first.lost()
        assert await queue_of(ledger) == [True]


@pytest.mark.parametrize("ended", ["session", "grant"])
async def test_a_block_whose_lock_has_ended_unnoticed(ended: str) -> None:
    """A process that was stopped goes on, and ends its block before it has heard anything: it would take its
    work for protected."""
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        with pytest.raises(LockLost):
            async with one.lock("job") as lock:
                if ended == "session":
                    await ledger.elapse(3 * TTL_S)
                else:
                    assert await ledger.revoke_lock("job", lock.token)
                    assert lock.held
                second = await other.lock("job").acquire()
        lock = await one.lock("another").acquire()
        assert await ledger.revoke_lock("another", lock.token)
        assert await lock.release() is False
        assert await second.release() is True
        assert await second.release() is False


@pytest.mark.parametrize("young", [True, False])
async def test_the_end_of_a_block_while_the_ledger_does_not_answer(
    young: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the block ends as if the lock had been held although its session may have expired, or fails
    although the session certainly lasts."""
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        loop = asyncio.get_running_loop()
        before = loop.time()
        lock = await one.lock("job").acquire()
        ledger.down = LedgerUnavailable("down, in this test")

        async def no_answer(*_: object) -> None:
            raise LedgerUnavailable("down, in this test")

        ledger.keep_alive = no_answer  # type: ignore[method-assign, assignment]
        monkeypatch.setattr(loop, "time", lambda: before + (0.0 if young else 2 * TTL_S))
        with contextlib.ExitStack() as stack:
            if not young:
                stack.enter_context(pytest.raises(LockLost, match="could not be renewed in time"))
            await lock.__aexit__(None, None, None)
        monkeypatch.undo()
        ledger.down = None


async def test_a_ledger_that_does_not_answer_makes_the_lock_uncertain() -> None:
    """A holder would believe in a lock that the ledger may have given away."""
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        lock = await one.lock("job").acquire()
        ledger.down = LedgerUnavailable("down, in this test")

        async def no_answer(*_: object) -> None:
            raise LedgerUnavailable("down, in this test")

        ledger.keep_alive = no_answer  # type: ignore[method-assign, assignment]
        await until(lambda: not lock.held)
        with pytest.raises(LockLost, match="could not be renewed"):
            lock.check()
        assert lock.token
        ledger.down = None
        del ledger.keep_alive
        await until(lambda: lock.held)
        await lock.release()
        assert await queue_of(ledger) == []


async def test_a_lock_is_uncertain_after_the_machine_was_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the event loop stands still while a machine is suspended; the ledger's does not."""
    clock_gettime, asleep_s = time.clock_gettime, 0.0

    def clock(which: int) -> float:
        return clock_gettime(which) + (asleep_s if which == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", clock)
    async with coordinators(MemoryLedger(), 1) as (one,), one.lock("job") as lock:
        held = [lock.held]
        asleep_s = 3600.0
        assert [*held, lock.held] == [True, False]
        await until(lambda: lock.held)  # its session is renewed: this ledger has not noticed


async def test_a_ledger_whose_clock_runs_faster_has_not_given_the_lock_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken if a holder is certain for as long by its own clock as the ledger waits by another one."""
    async with coordinators(MemoryLedger(), 1) as (one,), one.lock("job") as lock:
        loop = asyncio.get_running_loop()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + 0.9 * TTL_S)
        held = [lock.held]
        monkeypatch.setattr(loop, "time", lambda: now + 0.995 * TTL_S)
        held.append(lock.held)
        monkeypatch.undo()
    assert held == [True, False]


async def test_a_release_that_is_not_answered_is_repeated() -> None:
    """The lock would stay held as long as its process lives."""
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        lock = await one.lock("job").acquire()
        ledger.down = LedgerUnavailable("down, in this test")
        await lock.release()
        ledger.down = None
        assert await queue_of(ledger) == [True]
        await until(lambda: not ledger.machine.state.locks.queues)


async def test_a_session_that_ends_while_its_locks_are_compared() -> None:
    """An operator would look for another one who has released the lock."""
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        lock = await one.lock("job").acquire()
        session_locks = ledger.session_locks

        async def too_late(session: int, nonce: str) -> Sequence[LockEntry]:
            await ledger.elapse(3 * TTL_S)
            return await session_locks(session, nonce)

        ledger.session_locks = too_late  # type: ignore[method-assign]
        assert (await lock.lost()).startswith("its session")


@pytest.mark.parametrize("call", ["unlock", "session_locks"])
async def test_a_session_is_renewed_whatever_else_is_slow(call: str) -> None:
    """A process that gives many locks back would lose those that it keeps."""
    ledger, renewed = MemoryLedger(), 0
    keep_alive = ledger.keep_alive

    async def no_answer(*_: object) -> None:
        await asyncio.Event().wait()

    async def count(session: Session, floor: int) -> None:
        nonlocal renewed
        await keep_alive(session, floor)
        renewed += session.id == kept

    async with coordinators(ledger, 1) as (one,), one.lock("kept") as lock:
        kept = ledger.machine.state.locks.queues["kept"][0].request.session
        other = await one.lock("job").acquire()
        ledger.down = LedgerUnavailable("down, in this test")
        await other.release()  # it will be ended later
        ledger.down = None
        setattr(ledger, call, no_answer)
        ledger.keep_alive = count  # type: ignore[method-assign]
        await until(lambda: renewed > 4)
        assert lock.held
        delattr(ledger, call)


@pytest.mark.parametrize("call", ["open_session", "lock", "lock_entry"])
@pytest.mark.parametrize("silent", [True, False])
async def test_a_request_waits_while_the_ledger_does_not_answer(
    call: str, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a timeout a candidate for leadership would fail with the first outage of the ledger; with one
    it would wait for longer, or would not be told that the lock was not granted."""
    monkeypatch.setattr("undoubt.coordinator.locks.ANSWER_S", 0.05)
    monkeypatch.setattr("undoubt.coordinator.locks.RETRY_S", 0.01)
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        holder = await other.lock("job").acquire()
        asked, answers, method = 0, False, getattr(ledger, call)

        async def no_answer(*arguments: object, **options: object) -> object:
            nonlocal asked
            asked += 1
            if answers:
                return await method(*arguments, **options)
            if silent:
                await asyncio.Event().wait()
            raise (LedgerUnavailable if asked % 2 else LedgerLocked)("down, in this test")

        setattr(ledger, call, no_answer)
        for timeout in (0, 0.01) if call != "lock_entry" else (2.0,):
            with pytest.raises(LockTimeout, match="the ledger does not answer") as late:
                await one.lock("job", timeout=timeout).acquire()
            assert isinstance(late.value.__cause__, LedgerUnavailable | LedgerLocked)
        if call != "lock_entry":
            with pytest.raises(LockTimeout):
                await one.lock("job").try_acquire()
        asked = 0
        waiting = asyncio.create_task(one.lock("job").acquire())
        await until(lambda: asked > (0 if silent else 3))
        assert not waiting.done()
        answers = True
        await holder.release()
        if silent:
            waiting.cancel()
        else:
            assert (await waiting).held


async def test_an_operators_release_is_noticed() -> None:
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        lock = await one.lock("job").acquire()
        assert await ledger.revoke_lock("job", lock.token)
        assert await other.lock("job").try_acquire()
        assert "operator" in await lock.lost()
        await lock.release()
        assert await queue_of(ledger) == [True]


async def test_what_the_ledger_has_and_nobody_knows_is_ended() -> None:
    """A request whose answer was lost, and that arrives after its end, would hold the lock for ever."""
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        lock = await one.lock("job").acquire()
        entry = (await ledger.locks())[0].entries[0]
        other = await one.lock("other").acquire()
        await lock.release()
        await ledger.lock(entry.request, wait=True)
        assert await queue_of(ledger) == [True]
        await until(lambda: "job" not in ledger.machine.state.locks.queues)
        assert other.held


async def test_the_session_of_locks_ends_when_it_is_idle_and_begins_anew() -> None:
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        tokens = []
        for _ in range(2):
            async with one.lock("job") as lock:
                tokens.append(lock.token)
            await until(lambda: sum(i.state == "open" for i in ledger.machine.session_infos()) == 1)
        assert tokens == sorted(set(tokens))
        async with one.lock("job"):
            assert sum(info.state == "open" for info in await ledger.sessions()) == 2
    assert not any(info.state == "open" for info in await ledger.sessions())


@pytest.mark.parametrize("block", [True, False])
async def test_a_transaction_that_is_aborted_waits_no_more(
    block: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A victim of a deadlock would wait on, and the others with it; its lock would be granted to nobody."""
    for each in ("locks", "ledger.lock_serving"):  # it does not ask again by itself
        monkeypatch.setattr(f"undoubt.coordinator.{each}.LOCK_WAIT_S_MAX", 60.0)
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        await other.lock("job").acquire()
        begun: list[Transaction] = []

        async def wait() -> None:
            tx = one.transaction(timeout=60)
            begun.append(tx)
            if block:
                async with tx:
                    await one.lock("job", tx=tx).acquire()
            else:
                await one.lock("job", tx=await tx.start()).acquire()

        waiter = asyncio.create_task(wait())
        await until(lambda: len(ledger.machine.state.locks.queues["job"]) == 2)
        assert ledger.machine.state.locks.queues["job"][1].request.txid == begun[0].id
        assert one.cancel(begun[0].id, KeyError("victim"))
        with pytest.raises(TransactionAborted, match="victim"):
            async with asyncio.timeout(20):
                await waiter
        await until(lambda: len(ledger.machine.state.locks.queues["job"]) == 1)
        with pytest.raises(TransactionAborted, match="victim"):
            await one.lock("job", tx=begun[0]).acquire()


async def test_a_request_that_another_process_ends() -> None:
    """With a cause it aborts the transaction; without one the program asks again, and has lost no other
    lock."""
    ledger = MemoryLedger()
    async with coordinators(ledger) as (one, other):
        holder = await other.lock("job").acquire()
        kept = await one.lock("kept").acquire()
        for cause in ("", "says the test"):
            tx = await one.transaction(timeout=60).start()
            waiter = asyncio.create_task(one.lock("job", tx=tx).acquire())
            await until(lambda: len(ledger.machine.state.locks.queues["job"]) == 2)
            request = ledger.machine.state.locks.queues["job"][1].request
            if cause:
                await ledger.doom(tx.id, cause)
            await ledger.unlock(request)
            if cause:
                with pytest.raises(TransactionAborted, match=cause):
                    await waiter
                continue
            await until(lambda: len(ledger.machine.state.locks.queues["job"]) == 2)
            await holder.release()
            holder = await waiter
            await tx.rollback()
        kept.check()


async def test_a_transaction_that_would_wait_for_itself() -> None:
    """No detector of deadlocks could see the circle: it would wait until its timeout."""
    async with coordinators(MemoryLedger(), 1) as (one,):
        tx = await one.transaction(timeout=60).start()
        for shared, again in ((False, False), (False, True), (True, False)):
            async with one.lock("job", shared=shared, tx=tx):
                with pytest.raises(UsageError, match="not reentrant"):
                    async with asyncio.timeout(20):
                        await one.lock("job", shared=again, tx=tx).acquire()
        async with one.lock("job", shared=True, tx=tx), one.lock("job", shared=True, tx=tx):
            pass
        async with one.lock("job", tx=tx), one.lock("another", tx=tx):
            other = await one.transaction(timeout=60).start()
            assert not await one.lock("job", tx=other).try_acquire()
            await other.rollback()
        await tx.rollback()


async def test_the_lock_of_a_transaction_that_is_over() -> None:
    async with coordinators(MemoryLedger(), 1) as (one,):
        tx = await one.transaction().start()
        await tx.rollback()
        with pytest.raises(TransactionEnded, match="it can wait for no lock"):
            await one.lock("job", tx=tx).acquire()


async def test_misuse_is_refused() -> None:
    ledger = MemoryLedger()
    async with coordinators(ledger, 1) as (one,):
        for bad in ("", "a\0b", "n" * 201, 7, None):
            with pytest.raises(UsageError):
                one.lock(bad)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            one.lock("job", timeout=-1)
        lock = one.lock("job")
        for use in (lambda: lock.token, lock.check):
            with pytest.raises(UsageError, match="not acquired"):
                use()
        await lock.release()
        await lock.acquire()
        with pytest.raises(UsageError, match="acquired already"):
            await lock.acquire()
        with pytest.raises(UsageError, match="not the connection of a branch"):
            await lock.guard(object())


async def test_a_stale_holder_cannot_commit() -> None:
    """Broken if the guard shows another token than that of the grant, or a refused branch commits."""
    stage = Stage({"orders": Script(), "payments": Script()})
    async with stage.coordinator as one:
        other = await Coordinator(stage.ledger, Registry(), CoordinatorSettings()).start()
        old = await one.lock("job").acquire()
        assert await stage.ledger.revoke_lock("job", old.token)
        new = await other.lock("job").acquire()
        orders = stage.participants["orders"]
        async with one.transaction() as tx:
            await old.guard(await tx.branch("orders"))
            await tx.branch("payments")
        assert orders.tokens == {(stage.ledger.ledger_id, "job"): old.token}
        orders.tokens[stage.ledger.ledger_id, "job"] = new.token
        with pytest.raises(TransactionAborted):
            async with one.transaction() as tx:
                with pytest.raises(StaleLock):
                    await old.guard(await tx.branch("orders"))
                await tx.branch("payments")
        await other.close()
