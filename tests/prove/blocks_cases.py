"""Every way into a transaction with every way out of it, as asynchronous programs write them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tests.prove.blocks_stage import (
    NAMES,
    TIMEOUT_S,
    AppError,
    Ended,
    Play,
    Stage,
    Victim,
    Work,
)
from undoubt import TransactionAborted
from undoubt.coordinator.transaction import Transaction
from undoubt.integrations import answers, asgi
from undoubt.integrations.sqlalchemy import AsyncSession
from undoubt.integrations.starlette import Receive, Scope, Send

Body = Callable[[Work], Awaitable[None]]


# The application's side of a transaction.


class OwnWork:
    """``async with coordinator.transaction() as tx``."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx

    async def execute(self, name: str, sql: str) -> None:
        await (await self.tx.branch(name)).execute(sql)

    async def commit(self) -> None:
        await self.tx.commit()

    async def rollback(self) -> None:
        await self.tx.rollback()


class AdoptedWork(OwnWork):
    """Branches that somebody else opens."""

    def __init__(self, tx: Transaction, stage: Stage, driver: str) -> None:
        super().__init__(tx)
        self._registry = stage.coordinators[driver].participants
        self._branches: dict[str, Any] = {}

    async def execute(self, name: str, sql: str) -> None:
        if name not in self._branches:
            self._branches[name] = await self.tx.adopt(self._registry.get(name))
        await self._branches[name].connection.execute(sql)


class SessionWork:
    """A session of SQLAlchemy."""

    def __init__(self, session: AsyncSession, engines: dict[str, Any]) -> None:
        self._session = session
        self._engines = engines

    @property
    def tx(self) -> Transaction:
        unit: Any = self._session.sync_session._undoubt_unit  # type: ignore[attr-defined]
        tx: Transaction = unit._transaction
        return tx

    async def execute(self, name: str, sql: str) -> None:
        engine = self._engines[name].sync_engine
        await self._session.execute(sa.text(sql), bind_arguments={"bind": engine})

    async def commit(self) -> None:
        await self._session.commit()

    async def rollback(self) -> None:
        await self._session.rollback()


# Ways in. Each returns when the transaction is over, and raises what its program would hear.


def begin(play: Play) -> Transaction:
    return play.stage.coordinators[play.driver].transaction(timeout=play.timeout_s)


async def block(play: Play, body: Body) -> None:
    async with begin(play) as tx:
        await body(OwnWork(tx))


async def adopted(play: Play, body: Body) -> None:
    async with begin(play) as tx:
        await body(AdoptedWork(tx, play.stage, play.driver))


@contextlib.asynccontextmanager
async def _wrapped(play: Play) -> AsyncIterator[Transaction]:
    async with begin(play) as tx:
        yield tx


async def _yielded(play: Play) -> AsyncGenerator[Transaction, None]:
    async with begin(play) as tx:
        yield tx


async def wrapper(play: Play, body: Body) -> None:
    async with _wrapped(play) as tx:
        await body(OwnWork(tx))


async def stack(play: Play, body: Body) -> None:
    async with contextlib.AsyncExitStack() as opened:
        await body(OwnWork(await opened.enter_async_context(_wrapped(play))))


async def generator(play: Play, body: Body) -> None:
    async for tx in _yielded(play):
        await body(OwnWork(tx))


async def fixture(play: Play, body: Body) -> None:
    """Each step in a task of its own, as pytest-asyncio runs them."""
    opened = _yielded(play)
    tx = await asyncio.create_task(opened.__anext__())
    try:
        await body(OwnWork(tx))
    except BaseException:
        await asyncio.create_task(opened.aclose())
        raise
    with contextlib.suppress(StopAsyncIteration):
        await asyncio.create_task(_next(opened))


async def _next(opened: AsyncIterator[Transaction]) -> None:
    with contextlib.suppress(StopAsyncIteration):
        await anext(opened)


async def elsewhere(play: Play, body: Body) -> None:
    """A task that lives on stands in the block, and another one does the work."""
    loop = asyncio.get_running_loop()
    entered: asyncio.Future[Transaction] = loop.create_future()
    leave: asyncio.Future[None] = loop.create_future()

    async def keep() -> None:
        async with begin(play) as tx:
            entered.set_result(tx)
            await leave

    keeping = asyncio.create_task(keep())
    keeping.add_done_callback(lambda task: task.cancelled() or task.exception())
    try:
        await body(OwnWork(await entered))
    except BaseException as error:
        if not leave.done():
            leave.set_exception(AppError())
        told = await asyncio.gather(keeping, return_exceptions=True)
        play.expect(isinstance(told[0], AppError | TransactionAborted), f"the block's task heard {told[0]!r}")
        raise error from None
    if not leave.done():
        leave.set_result(None)
    await asyncio.wait([keeping])
    if keeping.cancelled():
        play.wrong.append("the task that entered the block was cancelled for good")
    await keeping


async def started(play: Play, body: Body) -> None:
    tx = await begin(play).start()
    try:
        await body(OwnWork(tx))
    except BaseException:
        await tx.rollback()
        raise
    if not (play.rolled_back or play.committed_by_hand):
        await tx.commit()


async def run(play: Play, body: Body) -> None:
    async def function(tx: Transaction) -> str:
        await body(OwnWork(tx))
        return "value"

    value = await play.stage.coordinators[play.driver].run(function, timeout=play.timeout_s)
    play.expect(value == "value", f"run returned {value!r}")


async def session(play: Play, body: Body) -> None:
    engines = play.stage.engines[play.driver]
    async with AsyncSession(
        coordinator=play.stage.coordinators[play.driver],
        participants={engine: name for name, engine in engines.items()},
        timeout=play.timeout_s,
    ) as opened:
        # What a driver says of a statement that is broken off is not ours: the commit has to tell.
        with contextlib.suppress(sa.exc.DBAPIError):
            await body(SessionWork(opened, engines))
        if not (play.rolled_back or play.committed_by_hand):
            await opened.commit()


async def request(play: Play, body: Body) -> None:
    """A request of an application of ASGI, whose client hears what ``answer`` is given. What the application
    raises reaches its server."""
    told: list[BaseException] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await body(OwnWork(await asgi.transaction()))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def answer(error: BaseException) -> answers.WebAnswer:
        told.append(error)
        return answers.answer(error)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    statuses: list[int | None] = []
    middleware = asgi.CommitBeforeResponse(
        application,
        coordinator=play.stage.coordinators[play.driver],
        timeout=play.timeout_s,
        answer=answer,
    )
    await middleware({"type": "http", "headers": []}, receive, send)
    if told:
        play.expect(statuses[0] != 200, "the client read that it is done")
        raise told[0]


WaysIn = Callable[[Play, Body], Awaitable[None]]
WAYS_IN: dict[str, WaysIn] = {
    each.__name__: each
    for each in (
        block, wrapper, stack, generator, fixture, elsewhere, started, run, adopted, session,
        request,
    )
}  # fmt: skip
INTERRUPTED = frozenset({"block", "wrapper", "run", "adopted"})
"""Where the task in the block is cancelled, since nobody but the block can meet that."""
COMMITS_ELSEWHERE = frozenset({"fixture", "elsewhere"})
"""Where another task than the application's commits."""
NO_BLOCK = frozenset({"started", "session"})
"""What is swallowed there nobody can raise again."""


# Ways out: what the body does once it has written in both databases.


async def commit(play: Play, work: Work) -> None:
    """Nothing more: the end commits."""


async def commit_by_hand(play: Play, work: Work) -> None:
    await work.commit()
    play.committed_by_hand = True


async def raise_error(play: Play, work: Work) -> None:
    raise AppError


async def roll_back(play: Play, work: Work) -> None:
    await work.rollback()
    play.rolled_back = True


async def timeout_while_idle(play: Play, work: Work) -> None:
    tx = work.tx
    try:
        while tx.active:
            await asyncio.sleep(0.01)
        await play.row_is_free()
    except asyncio.CancelledError:
        play.interrupted()
        raise


async def timeout_in_a_statement(play: Play, work: Work) -> None:
    try:
        await work.execute("orders", "select pg_sleep(60)")
    except asyncio.CancelledError:
        play.interrupted()
        raise
    except sa.exc.DBAPIError:
        await timeout_while_idle(play, work)


async def timeout_swallowed(play: Play, work: Work) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await timeout_while_idle(play, work)
    await play.row_is_free()


async def timeout_and_everything_swallowed(play: Play, work: Work) -> None:
    tx = work.tx
    while tx.active:
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await work.execute("payments", "select pg_sleep(0.05)")
    for name in NAMES:
        with contextlib.suppress(Exception):
            await work.execute(name, "update entry set what = what || ' later'")


async def timeout_that_the_loop_hears_late(play: Play, work: Work) -> None:
    tx = work.tx
    while tx.active and asyncio.get_running_loop().time() < tx.deadline:
        await asyncio.sleep(0)


async def victim(play: Play, work: Work) -> None:
    play.doom(work)
    await timeout_while_idle(play, work)


async def victim_at_the_end(play: Play, work: Work) -> None:
    play.doom(work)


async def victim_swallowed(play: Play, work: Work) -> None:
    play.doom(work)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0.05)


async def cancelled(play: Play, work: Work) -> None:
    play.cancel_soon()
    await asyncio.sleep(60)


async def cancelled_in_a_statement(play: Play, work: Work) -> None:
    play.cancel_soon()
    await work.execute("orders", "select pg_sleep(60)")


async def cancelled_and_swallowed(play: Play, work: Work) -> None:
    play.cancel_soon()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


async def cancelled_in_the_same_moment(play: Play, work: Work) -> None:
    play.doom(work)
    play.cancel_now()


async def cancelled_while_it_commits(play: Play, work: Work) -> None:
    play.stage.at_prepare[str(work.tx.id)] = play.cancel_now


async def sql_error_swallowed(play: Play, work: Work) -> None:
    with contextlib.suppress(Exception):
        await work.execute("payments", "select 1/0")


async def commit_error_swallowed(play: Play, work: Work) -> None:
    await sql_error_swallowed(play, work)
    with contextlib.suppress(TransactionAborted):
        await work.commit()


@dataclass(frozen=True)
class WayOut:
    body: Callable[[Play, Work], Awaitable[None]]
    ends: frozenset[Ended]
    times_out: bool = False
    cause: type[BaseException] | None = None
    not_for: frozenset[str] = frozenset()


COMMITTED = frozenset({Ended.COMMITTED})
ABORTED = frozenset({Ended.ABORTED})
CANCELLED = frozenset({Ended.CANCELLED})
WAYS_OUT = {
    way.body.__name__: way
    for way in (
        WayOut(commit, COMMITTED),
        WayOut(commit_by_hand, COMMITTED),
        WayOut(raise_error, frozenset({Ended.APPLICATION})),
        WayOut(roll_back, frozenset({Ended.ROLLED_BACK})),
        WayOut(timeout_while_idle, ABORTED, times_out=True, cause=TimeoutError),
        WayOut(
            timeout_in_a_statement,
            ABORTED,
            times_out=True,
            cause=TimeoutError,
            not_for=frozenset({"request"}),
        ),
        WayOut(timeout_swallowed, ABORTED, times_out=True, cause=TimeoutError),
        WayOut(timeout_and_everything_swallowed, ABORTED, times_out=True, cause=TimeoutError),
        WayOut(timeout_that_the_loop_hears_late, ABORTED, times_out=True, cause=TimeoutError),
        WayOut(victim, ABORTED, cause=Victim),
        WayOut(victim_at_the_end, ABORTED, cause=Victim),
        WayOut(victim_swallowed, ABORTED, cause=Victim),
        WayOut(cancelled, CANCELLED),
        WayOut(cancelled_in_a_statement, CANCELLED),
        WayOut(cancelled_and_swallowed, COMMITTED),
        WayOut(cancelled_in_the_same_moment, ABORTED | CANCELLED),
        WayOut(cancelled_while_it_commits, CANCELLED, not_for=COMMITS_ELSEWHERE),
        WayOut(sql_error_swallowed, ABORTED),
        WayOut(commit_error_swallowed, ABORTED, not_for=NO_BLOCK),
    )
}


# What the task has been through before.


async def nothing(play: Play) -> None:
    """A fresh task."""


async def cancelled_once(play: Play) -> None:
    """It caught the error and took nothing back, as nearly everybody writes it."""
    play.cancel_now()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(1)


async def failed_task_group(play: Play) -> None:
    """Leaves a request behind before Python 3.13."""

    async def fails() -> None:
        raise ValueError

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.sleep(1)
    play.cancels = play.task.cancelling()


BEFORE: dict[str, Callable[[Play], Awaitable[None]]] = {
    each.__name__: each for each in (nothing, cancelled_once, failed_task_group)
}


@dataclass(frozen=True)
class Case:
    driver: str
    way_in: str
    way_out: str
    before: str
    eager: bool = False

    def __str__(self) -> str:
        eager = " (eager)" if self.eager else ""
        return f"{self.driver}{eager}: {self.way_in}, {self.way_out}, after {self.before}"

    @property
    def ends(self) -> frozenset[Ended]:
        return WAYS_OUT[self.way_out].ends

    @property
    def cause(self) -> type[BaseException] | None:
        return WAYS_OUT[self.way_out].cause

    @property
    def timeout_s(self) -> float:
        return TIMEOUT_S if WAYS_OUT[self.way_out].times_out else 30.0


def cases() -> Iterator[Case]:
    for driver, way_in, way_out, before in itertools.product(
        ("asyncpg", "psycopg"), WAYS_IN, WAYS_OUT, BEFORE
    ):
        if way_in not in WAYS_OUT[way_out].not_for:
            yield Case(driver, way_in, way_out, before)
            if sys.version_info >= (3, 12) and driver == "asyncpg":
                yield Case(driver, way_in, way_out, before, eager=True)


async def play_case(case: Case, play: Play) -> None:
    """The program of one case. Raises what it hears."""
    await BEFORE[case.before](play)
    way_out = WAYS_OUT[case.way_out]

    async def body(work: Work) -> None:
        for name in NAMES:
            await work.execute(name, f"insert into entry values ('{play.what}')")
        await work.execute("orders", f"update held set n = n + 1 where id = {play.row}")
        await way_out.body(play, work)

    await WAYS_IN[case.way_in](play, body)
