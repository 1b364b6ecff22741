"""The pool's arithmetic, with sessions that go nowhere: how many, lent to whom, and which are closed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.postgres import pool as pool_module
from undoubt.participants.postgres.pool import Pool, Slot


class Nobody:
    """A session that goes nowhere."""

    in_transaction = False

    def __init__(self) -> None:
        self.broken = False

    def discard(self) -> None:
        self.broken = True


def pool_of(
    size_max: int,
    *,
    idle_s: float = 0.0,
    clean: Callable[[Slot[Any]], Awaitable[None]] | None = None,
    opened: list[Nobody] | None = None,
) -> Pool[Any]:
    made = [] if opened is None else opened

    async def connect() -> Nobody:
        await asyncio.sleep(0)
        made.append(Nobody())
        return made[-1]

    return Pool("p", connect, size_max, idle_s=idle_s, clean=clean)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


class Cleaner:
    """Cleans when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self, slot: Slot[Any]) -> None:
        self.begun += 1
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        slot.used = False


async def test_a_session_that_is_being_cleaned_takes_its_place() -> None:
    """Else there would be more connections than connections_max; and it is not lent in the middle of it."""
    cleaner, opened = Cleaner(), list[Nobody]()
    pool = pool_of(1, clean=cleaner, opened=opened)
    slot = await pool.acquire(1)
    slot.used = True
    pool.release(slot)
    await until(lambda: cleaner.begun == 1)
    with pytest.raises(ParticipantUnavailable, match="connections_max"):
        await pool.acquire(0.1)
    waiting = asyncio.create_task(pool.acquire(20))
    await asyncio.sleep(0)
    assert pool.size == 1
    cleaner.go.set()
    assert (await waiting) is slot
    assert (slot.used, len(opened)) == (False, 1)
    pool.close()


async def test_who_does_not_want_to_wait_for_cleaning_gets_another() -> None:
    """Where there is room: cleaning may hang for as long as a statement may."""
    cleaner, opened = Cleaner(), list[Nobody]()
    pool = pool_of(2, clean=cleaner, opened=opened)
    slot = await pool.acquire(1)
    slot.used = True
    pool.release(slot)
    await until(lambda: cleaner.begun == 1)
    other = await pool.acquire(20)
    assert other is not slot
    assert (pool.size, len(opened)) == (2, 2)
    pool.release(other)
    cleaner.go.set()
    await until(lambda: not pool.cleaning)
    assert (pool.size, len(pool.idle)) == (2, 2)
    pool.close()


async def test_a_session_that_cannot_be_cleaned_is_closed_and_leaves_its_place() -> None:
    cleaner = Cleaner()
    cleaner.failure = RuntimeError("no")
    pool = pool_of(1, clean=cleaner)
    slot = await pool.acquire(1)
    slot.used = True
    pool.release(slot)
    await until(lambda: cleaner.begun == 1)
    waiting = asyncio.create_task(pool.acquire(20))
    await asyncio.sleep(0)
    cleaner.go.set()
    other = await waiting
    assert other is not slot
    assert slot.session.broken
    assert pool.size == 1
    pool.close()


async def test_a_burst_shrinks_again() -> None:
    """What has not been used for connections_idle_s is closed, and what is in use now and then stays."""
    opened = list[Nobody]()
    pool = pool_of(8, idle_s=0.2, opened=opened)
    for slot in [await pool.acquire(1) for _ in range(8)]:
        pool.release(slot)
    hot = pool.idle[-1]

    async with asyncio.timeout(20):
        while pool.size > 1:
            slot = await pool.acquire(1)
            assert slot is hot
            pool.release(slot)
            await asyncio.sleep(0.01)
    assert [session.broken for session in opened] == [True] * 7 + [False]
    await until(lambda: pool.size == 0)
    pool.close()


async def test_without_a_limit_connections_stay() -> None:
    pool = pool_of(2, idle_s=0.0)
    for slot in [await pool.acquire(1) for _ in range(2)]:
        pool.release(slot)
    assert pool._timer is None
    pool.close()


async def test_one_that_knows_an_old_schema_takes_its_neighbours_with_it() -> None:
    """Each of them would fail one transaction as well."""
    opened = list[Nobody]()
    pool = pool_of(3, opened=opened)
    slots = [await pool.acquire(1) for _ in range(3)]
    for slot in slots[1:]:
        pool.release(slot)
    slots[0].stale = True
    pool.release(slots[0])
    assert all(session.broken for session in opened)
    assert pool.size == 0
    pool.close()


async def test_closing_fails_those_who_wait() -> None:
    pool = pool_of(1)
    held = await pool.acquire(1)
    waiting = asyncio.create_task(pool.acquire(20))
    await asyncio.sleep(0)
    pool.close()
    with pytest.raises(ParticipantUnavailable, match="closed"):
        await waiting
    pool.release(held)
    assert pool.size == 0
    with pytest.raises(ParticipantUnavailable, match="closed"):
        await pool.acquire(1)


async def test_whatever_happens_no_place_is_lost_or_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that are cancelled, sessions that break, cleaning and connecting that fail, in any order."""
    monkeypatch.setattr(pool_module, "CLEAN_AFTER_S", 0.0)
    monkeypatch.setattr(pool_module, "CLEAN_WAIT_S", 0.001)
    rng = random.Random(20_260_301)
    alive: set[Nobody] = set()
    most = 0

    class Counted(Nobody):
        def discard(self) -> None:
            super().discard()
            alive.discard(self)

    async def connect() -> Nobody:
        nonlocal most
        await asyncio.sleep(rng.choice([0, 0.0005]))
        if rng.random() < 0.1:
            raise ConnectionError
        session = Counted()
        alive.add(session)
        most = max(most, len(alive))
        return session

    async def clean(slot: Slot[Any]) -> None:
        await asyncio.sleep(rng.choice([0, 0.0005]))
        if rng.random() < 0.1:
            raise RuntimeError
        slot.used = False

    pool: Pool[Any] = Pool("p", connect, 3, idle_s=0.003, clean=clean)

    async def use() -> None:
        for _ in range(60):
            try:
                slot = await pool.acquire(20, fresh=rng.random() < 0.1)
            except ConnectionError:
                continue
            try:
                await asyncio.sleep(rng.choice([0, 0, 0.0005, 0.002]))
                slot.used = rng.random() < 0.8
                slot.stale = rng.random() < 0.02
                if rng.random() < 0.1:
                    slot.session.discard()
            finally:
                pool.release(slot)
            if rng.random() < 0.02:
                pool.drop_idle()

    users = [asyncio.create_task(use()) for _ in range(8)]
    for user in rng.sample(users, 3):
        await asyncio.sleep(0.005)
        user.cancel()
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*users, return_exceptions=True)
    assert [error for error in ended if isinstance(error, Exception)] == []
    await until(lambda: pool.size == 0)
    assert alive == set()
    assert most <= 3
    pool.close()


def test_sessions_come_back_while_a_timer_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a session cannot be given back while the timer of another session is due: the timer is then a
    plain Handle in uvloop (uvloop/loop.pyx, ``call_later``: a delay of less than half a millisecond)."""
    monkeypatch.setattr(pool_module, "CLEAN_AFTER_S", 0.0)

    async def give_back() -> int:
        pool = pool_of(2, clean=Cleaner())
        slots = [await pool.acquire(1), await pool.acquire(1)]
        for slot in slots:
            slot.used = True
            pool.release(slot)
        size = pool.size
        pool.close()
        return size

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(give_back()) == 2
