"""Futures that go on without a task, and one timer for all deadlines."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
import uvloop
from psycopg.waiting import Ready, Wait

from undoubt.participants import deadlines as deadlines_module
from undoubt.participants.deadlines import Deadlines, deadlines
from undoubt.participants.invariant import InvariantViolation
from undoubt.participants.postgres.psycopg.polling import Polling
from undoubt.participants.tasks import Answered, Continued, all_within, failed, started

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


async def test_what_is_given_up_waits_for_nothing_more() -> None:
    """A coordinator that closes gives up the second phase while the answer of a branch is on its way: broken
    if the branch is then waited for in another session."""
    begun: list[int] = []

    async def elsewhere() -> int:
        begun.append(1)
        await asyncio.Event().wait()
        return 2

    def judge(_: Answered[int]) -> int | Coroutine[Any, Any, int]:
        return elsewhere()

    answer = first()
    continued = Continued(answer).then(judge)
    answer.set_result(1)
    assert not continued.cancel()
    await asyncio.wait([continued], timeout=10)
    assert continued.cancelled()
    assert begun == []


async def test_an_answer_that_has_come_is_used() -> None:
    """Broken if a vote that came at the deadline is lost, or what waits for it cannot be cancelled then."""
    answer = first()
    continued = Continued(answer).then(lambda answered: answered.result() + 1)

    async def wait() -> int:
        return await continued

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    answer.set_result(1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert continued.result() == 2


def interrupt(_: object) -> int:
    raise KeyboardInterrupt


def interrupted(start: Callable[[], asyncio.Future[Any]]) -> BaseException | None:
    """What the future of ``start`` has ended with after an interrupt, which the loop has heard of once."""

    async def wait() -> asyncio.Future[Any]:
        waited_for = start()
        await asyncio.wait([waited_for], timeout=10)
        return waited_for

    with asyncio.Runner() as runner:
        waiting = runner.get_loop().create_task(wait())
        with pytest.raises(KeyboardInterrupt):
            runner.get_loop().run_until_complete(waiting)
        ended = runner.get_loop().run_until_complete(waiting)
    assert ended.done()
    return ended.exception()


def test_an_interrupt_ends_what_is_waited_for() -> None:
    """``asyncio.run`` waits for running commits after Ctrl-C: broken if it waits for ever for a vote, or is
    interrupted once more by what the loop has heard of."""

    def judged() -> asyncio.Future[Any]:
        answer = first()
        answer.set_result(1)
        return Continued(answer).then(interrupt).then(lambda answered: answered.result())

    def waited() -> asyncio.Future[Any]:
        async def later() -> int:
            return interrupt(None)

        def judge(_: Answered[int]) -> int | Coroutine[Any, Any, int]:
            return later()

        answer = first()
        answer.set_result(1)
        return Continued(answer).then(judge).then(lambda answered: answered.result())

    def polled() -> asyncio.Future[Any]:
        here, there = socket.socketpair()

        def reads() -> Any:
            yield 1
            with here, there:
                interrupt(None)

        there.send(b"1")
        return Continued(Polling(reads(), here.fileno(), 60))

    for start in (judged, waited, polled):
        assert isinstance(interrupted(start), KeyboardInterrupt), start


def test_an_interrupt_at_once_is_heard_once() -> None:
    """Broken if the votes that were asked for before are not awaited, or if the program is not interrupted,
    or is a second time by what waits."""

    def judge(answered: Answered[Any]) -> Any:
        return answered.result()

    def asked() -> asyncio.Future[Any]:
        future: Any = started(lambda: interrupt(None))  # type: ignore[arg-type, return-value]
        return future.then(judge)  # type: ignore[no-any-return]

    assert isinstance(interrupted(asked), KeyboardInterrupt)


async def test_a_judge_that_comes_too_late() -> None:
    """Broken if a second phase whose answer has come is taken for applied although nobody has judged it."""
    answer = first()
    answer.set_result(1)
    continued = Continued(answer)
    await continued
    with pytest.raises(InvariantViolation):
        continued.then(lambda answered: answered.result())


@pytest.mark.parametrize("first_to_come", ["answer", "deadline"])
async def test_an_answer_in_the_turn_of_the_deadline(first_to_come: str) -> None:
    """Broken if a vote that came in the same turn of the event loop as the deadline is lost, or is waited for
    for ever."""
    loop = asyncio.get_running_loop()
    answer, silent = first(), first()
    votes = [Continued(answer).then(lambda answered: answered.result()), Continued(silent)]
    waiting = loop.create_task(all_within(votes, 3600))
    await asyncio.sleep(0)
    [deadline] = deadlines().waiting
    calls: list[Callable[[], object]] = [lambda: answer.set_result(7), deadline.expire]
    for call in calls if first_to_come == "answer" else reversed(calls):
        call()
    vote, none = await waiting
    assert vote == 7
    assert isinstance(none, asyncio.CancelledError)
    assert silent.cancelled()


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

    def timer(at: float, *more: Any, **options: Any) -> Any:
        set_timers.append(at)
        return call_at(at, *more, **options)

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


async def test_deadlines_that_are_due_together() -> None:
    """Broken if one that fails takes those behind it with it: a vote without a deadline; or if one is called
    that another has cancelled."""
    loop = asyncio.get_running_loop()
    failures: list[object] = []
    loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))
    expired: list[int] = []
    done = asyncio.Event()
    wrong = ValueError("no")

    def fail() -> None:
        raise wrong

    def cancel() -> None:
        cancelled.cancel()

    mine = Deadlines()
    now = loop.time()
    mine.call_at(now, cancel)
    cancelled = mine.call_at(now, lambda: expired.append(1))
    mine.call_at(now, fail)
    mine.call_at(now, done.set)
    async with asyncio.timeout(10):
        await done.wait()
    assert failures == [wrong]
    assert expired == []
    assert not mine.waiting


async def test_a_deadline_expires_in_its_own_context() -> None:
    """Broken if the rollback of one request is traced as a part of another."""
    request = ContextVar("request", default="none")
    seen: list[str] = []
    done = asyncio.Event()
    mine = Deadlines()
    now = asyncio.get_running_loop().time()
    for name, at in (("first", now), ("second", now)):
        request.set(name)
        mine.call_at(at, lambda: seen.append(request.get()))
    request.set("third")
    mine.call_at(now, done.set)
    await done.wait()
    assert seen == ["first", "second"]


def test_closed_loops_are_forgotten() -> None:
    """Broken if a worker that calls ``asyncio.run`` for each job keeps all their loops."""

    async def use() -> Deadlines:
        deadlines().call_at(asyncio.get_running_loop().time() + 60, lambda: None)
        return deadlines()

    used = [asyncio.run(use()) for _ in range(3)]
    kept = list(deadlines_module.of_loops.values())
    assert [each in kept for each in used] == [False, False, True]


LOOPS = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


@LOOPS
def test_polling_gets_what_comes(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Broken if an answer that comes in pieces, or that can be read before everything is written, is not
    read."""

    async def poll() -> list[int]:
        here, there = socket.socketpair()
        with here, there:

            def reads() -> Any:
                seen = []
                for waits in (Wait.RW, Wait.RW, Wait.R, Wait.R, Wait.W):
                    ready = yield waits
                    seen.append(int(ready))
                    if ready & Ready.R:
                        here.recv(1)
                return seen

            polling = Polling(reads(), here.fileno(), 60)
            while not polling.done():
                if not select.select([here], [], [], 0)[0]:
                    there.send(b"1")
                await asyncio.sleep(0)
            return list(await polling)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        seen = runner.run(poll())
    assert Ready.R in seen
    assert seen[2:] == [Ready.R, Ready.R, Ready.W]


@LOOPS
def test_polling_leaves_the_socket_alone(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Broken if the event loop looks at a socket whose connection is closed, and whose number another one may
    have by then."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(polled_and_left())


async def polled_and_left() -> None:
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
