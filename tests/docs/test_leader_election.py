"""The recipe of docs/locks.md for leader election, as processes in trouble use it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger.memory import MemoryLedger
from undoubt.coordinator.settings import CoordinatorSettings
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


async def test_a_candidate_that_is_cancelled_has_ended_before_the_next_leads() -> None:
    """Two leaders at once."""
    lead, leading, most, turns = recipe(), set[int](), 0, asyncio.Semaphore(0)
    cleaning, clean = asyncio.Event(), asyncio.Event()

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
        made = await candidates(stack, MemoryLedger(), 2)
        one = asyncio.create_task(lead(made[0], lambda _: serve(1)))
        await turns.acquire()
        other = asyncio.create_task(lead(made[1], lambda _: serve(2)))
        one.cancel()
        await cleaning.wait()
        assert leading == {1}
        clean.set()
        await turns.acquire()
        assert (one.done(), leading, most) == (True, {2}, 1)
        other.cancel()
        await asyncio.wait([other])
        assert leading == set()


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
