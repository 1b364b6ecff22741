"""Futures that go on without a task, and one timer for all deadlines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from undoubt.participants import deadlines as deadlines_module
from undoubt.participants.deadlines import Deadlines, deadlines
from undoubt.participants.postgres.psycopg.polling import Polling
from undoubt.participants.tasks import Answered, Continued, failed, started

KINDS = ("asyncpg",)
WAYS = ("",)


def first() -> asyncio.Future[int]:
    return asyncio.get_running_loop().create_future()


async def test_judges_see_one_after_the_other() -> None:
    """Broken if an answer, or an error in its place, passes a judge."""

    def refused(answered: Answered[int]) -> int:
        with pytest.raises(ValueError, match="no"):
            answered.result()
        return 2

    def doubled(answered: Answered[int]) -> int:
        return answered.result() * 2

    answer = first()
    answer.set_exception(ValueError("no"))
    assert await Continued(answer).then(refused).then(doubled) == 4


async def test_error_of_the_last_judge() -> None:
    def refuse(_: Answered[int]) -> int:
        raise ValueError("no")

    answer = first()
    answer.set_result(1)
    with pytest.raises(ValueError, match="no"):
        await Continued(answer).then(refuse)
    with pytest.raises(ValueError, match="not begun"):
        await Continued.failed(ValueError("not begun"))


async def test_what_has_to_wait_cannot_be_cancelled_by_strangers() -> None:
    """``asyncio.run`` cancels all tasks: broken if a commit then stops between its phases."""
    gate = asyncio.Event()

    async def later() -> int:
        await gate.wait()
        return 2

    def judge(_: Answered[int]) -> int | Coroutine[Any, Any, int]:
        return later()

    answer = first()
    answer.set_result(1)
    continued = Continued(answer).then(judge).then(lambda answered: answered.result() + 1)
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await continued == 3


@pytest.mark.parametrize("when", ["asked", "waiting"])
async def test_cancelling_it_cancels_what_is_under_way(when: str) -> None:
    """Broken if a vote that nobody waits for any more leaves its session in use."""
    seen: list[str] = []

    async def later() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("waiting")
            raise
        return 2

    def judge(answered: Answered[int]) -> int | Coroutine[Any, Any, int]:
        try:
            answered.result()
        except asyncio.CancelledError:
            seen.append("asked")
            raise
        return later()

    answer = first()
    continued = Continued(answer).then(judge)
    if when == "waiting":
        answer.set_result(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert continued.cancel()
    await asyncio.wait([continued])
    assert continued.cancelled()
    assert not continued.cancel()
    assert seen == [when]


async def test_an_error_at_once_is_an_error_of_the_future() -> None:
    """Broken if the votes that were asked for before are not awaited."""

    def call() -> asyncio.Future[int]:
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        await started(call)
    with pytest.raises(ValueError, match="later"):
        await started(lambda: failed(ValueError("later")))


async def test_one_timer_for_all_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    loop: Any = asyncio.get_running_loop()
    set_timers: list[float] = []
    call_at = loop.call_at

    def timer(at: float, *more: Any) -> Any:
        set_timers.append(at)
        return call_at(at, *more)

    monkeypatch.setattr(loop, "call_at", timer)
    mine = Deadlines()
    expired: list[int] = []
    done = asyncio.Event()
    now = loop.time()

    def last() -> None:
        expired.append(2)
        done.set()

    mine.call_at(now + 0.02, last)
    cancelled = mine.call_at(now + 0.015, lambda: expired.append(0))
    mine.call_at(now + 0.01, lambda: expired.append(1))
    mine.call_at(now + 60, lambda: expired.append(3))
    cancelled.cancel()
    cancelled.cancel()
    await done.wait()
    assert expired == [1, 2]
    assert set_timers[:3] == [now + 0.02, now + 0.015, now + 0.01]
    assert len(mine.waiting) == 1
    assert deadlines() is deadlines()


def test_closed_loops_are_forgotten() -> None:
    """Broken if a worker that calls ``asyncio.run`` for each job keeps all their loops."""

    async def use() -> Deadlines:
        deadlines().call_at(asyncio.get_running_loop().time() + 60, lambda: None)
        return deadlines()

    used = [asyncio.run(use()) for _ in range(3)]
    kept = list(deadlines_module._of.values())
    assert [each in kept for each in used] == [False, False, True]


async def test_polling_leaves_the_socket_alone() -> None:
    """Broken if the event loop looks at a socket whose connection is closed, and whose number another one may
    have by then."""
    here, there = socket.socketpair()
    with here, there:

        def reads() -> Any:
            while True:
                yield 1

        polling = Polling(reads(), here.fileno(), 0.01)
        with pytest.raises(TimeoutError):
            await polling
        assert not asyncio.get_running_loop().remove_reader(here.fileno())
        cancelled = Polling(reads(), here.fileno(), 60)
        cancelled.cancel()
        assert not asyncio.get_running_loop().remove_reader(here.fileno())
        lost = Polling(reads(), here.fileno(), 60)
        lost.fail(OSError("closed"))
        with pytest.raises(OSError, match="closed"):
            await lost
        assert not asyncio.get_running_loop().remove_reader(here.fileno())
