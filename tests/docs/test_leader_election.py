"""The recipe of docs/locks.md for leader election, as processes in trouble use it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.locks import Lock
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.errors import StaleLock
from undoubt.participants.registry import Registry


def recipe() -> Any:
    """``lead`` of the page."""
    [text] = [block.text for block in blocks("python", ROOT / "docs/locks.md") if "def lead(" in block.text]
    found: dict[str, Any] = {}
    exec(text.partition("async def main")[0], found)
    return found["lead"]


async def candidates(stack: AsyncExitStack, ledger: MemoryLedger, count: int) -> list[Coordinator]:
    made = [Coordinator(ledger, Registry(), CoordinatorSettings()) for _ in range(count)]
    return [await stack.enter_async_context(each) for each in made]


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_candidate_that_is_cancelled_has_ended_before_the_next_leads(cancellations: int) -> None:
    """Two leaders at once: the lock is given back while the work of its holder is still cleaned up, at the
    first cancellation or at a later one."""
    lead, leading, most, turns = recipe(), set[int](), 0, asyncio.Semaphore(0)
    ledger, cleaning, clean = MemoryLedger(), asyncio.Event(), asyncio.Event()

    async def serve(number: int) -> None:
        nonlocal most
        leading.add(number)
        most = max(most, len(leading))
        turns.release()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await clean.wait()
            leading.discard(number)

    async with asyncio.timeout(60), AsyncExitStack() as stack:
        made = await candidates(stack, ledger, 2)
        one = asyncio.create_task(lead(made[0], lambda _: serve(1)))
        await turns.acquire()
        other = asyncio.create_task(lead(made[1], lambda _: serve(2)))
        [leader] = await ledger.locks()
        for _ in range(cancellations):
            one.cancel()
            await cleaning.wait()
            await asyncio.sleep(0)
        assert await made[1].lock("another").try_acquire()  # the ledger has heard what was sent before
        [now] = await ledger.locks(only=leader.name)
        assert (now.holders, leading) == (leader.holders, {1})
        clean.set()
        await turns.acquire()
        await asyncio.wait([one])
        assert (one.cancelled(), leading, most) == (True, {2}, 1)
        other.cancel()
        await asyncio.wait([other])
        assert leading == set()


async def test_a_candidate_that_is_cancelled_after_its_lock_was_lost_ends() -> None:
    """Broken if a cancellation is swallowed while a deposed leader cleans up: it would lead again."""
    lead, ledger = recipe(), MemoryLedger()
    leading, cleaning, clean = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(_: object) -> None:
        leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await clean.wait()

    async with asyncio.timeout(60), AsyncExitStack() as stack:
        [coordinator] = await candidates(stack, ledger, 1)
        candidate = asyncio.create_task(lead(coordinator, serve))
        await leading.wait()
        [lock] = await ledger.locks()
        await ledger.unlock(lock.holders[0].request)
        await cleaning.wait()
        candidate.cancel()
        await asyncio.sleep(0)
        clean.set()
        await asyncio.wait([candidate])
        assert candidate.cancelled()


async def test_a_stale_leader_is_a_candidate_again() -> None:
    """A leader that was stopped, and that hears of it first from a database, would never lead again."""
    lead, tokens = recipe(), list[int]()

    async def serve(lock: Lock) -> None:
        tokens.append(lock.token)
        if len(tokens) == 1:
            raise StaleLock("orders", "another holder has been there")
        await asyncio.Event().wait()

    async with asyncio.timeout(60), AsyncExitStack() as stack:
        [coordinator] = await candidates(stack, MemoryLedger(), 1)
        leading = asyncio.create_task(lead(coordinator, serve))
        while len(tokens) < 2:
            assert not leading.done()
            await asyncio.sleep(0.01)
        assert tokens[0] < tokens[1]
        leading.cancel()
        await asyncio.wait([leading])


async def test_an_error_of_the_work_ends_the_candidate() -> None:
    """It would be called again at once, as often as the ledger grants the lock."""
    lead, calls = recipe(), 0

    async def serve(_: object) -> None:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError

    async with asyncio.timeout(60), AsyncExitStack() as stack:
        [coordinator] = await candidates(stack, MemoryLedger(), 1)
        before = asyncio.all_tasks()
        with pytest.raises(ZeroDivisionError):
            await lead(coordinator, serve)
        left = [task for task in asyncio.all_tasks() - before if "lost" in repr(task)]
        assert (calls, left) == (1, [])
