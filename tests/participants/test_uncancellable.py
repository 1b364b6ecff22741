"""Tasks that nobody may cancel."""

from __future__ import annotations

import asyncio
import gc

import pytest

from undoubt.participants.tasks import all_of, all_within, uncancellable


async def test_it_cannot_be_cancelled() -> None:
    """Broken if an impatient caller stops a commit between its phases."""
    gate = asyncio.Event()
    task = uncancellable(gate.wait())
    await asyncio.sleep(0)
    assert not task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    assert await task


async def test_a_timeout_inside_it_ends() -> None:
    """Broken if a silent server holds up a commit for ever: ``asyncio.timeout`` cancels its own task."""

    async def ask() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "no answer"
        return "an answer"

    async with asyncio.timeout(10):
        assert await uncancellable(ask()) == "no answer"
        assert await all_of([ask(), ask()]) == ["no answer", "no answer"]


async def test_a_wait_for_inside_it_ends() -> None:
    """Broken as above, by the older way to say it."""

    async def ask() -> str:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except TimeoutError:
            return "no answer"
        return "an answer"

    async with asyncio.timeout(10):
        assert await uncancellable(ask()) == "no answer"


async def test_it_survives_a_timeout_around_its_watcher() -> None:
    """Broken if the timeout of whoever waits is taken for one inside the task."""
    gate = asyncio.Event()
    task = uncancellable(gate.wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.wait([task])  # awaited directly it could not be left before its end
    assert not task.done()
    gate.set()
    assert await task


async def test_abandoning_stops_it() -> None:
    """Broken if a coordinator can never close."""
    task = uncancellable(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.abandon()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_failures_of_abandoned_ones_are_not_logged_as_forgotten() -> None:
    """Broken if the log of a coordinator that closes is full of errors that are nobody's concern any more."""
    logged: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context["message"]))

    async def fail() -> None:
        raise OSError("no connection")

    async def both() -> None:
        await all_of([fail(), asyncio.Event().wait()])

    task = uncancellable(both())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.abandon()
    await asyncio.wait([task])
    del task
    gc.collect()
    assert logged == []


async def test_those_that_are_late_are_cancelled() -> None:
    """Broken if one participant that is silent holds up a vote beyond the deadline."""

    async def quick() -> int:
        return 1

    quick_one, late = await all_within([quick(), asyncio.Event().wait()], 0.01)
    assert quick_one == 1
    assert isinstance(late, asyncio.CancelledError)


def test_the_end_of_the_loop_waits_for_it() -> None:
    """Broken if ``asyncio.run`` cuts a commit in two on its way out."""
    done = []

    async def commit() -> None:
        await asyncio.sleep(0.05)
        done.append("committed")

    async def main() -> None:
        uncancellable(commit())
        await asyncio.sleep(0)

    asyncio.run(main())
    assert done == ["committed"]
