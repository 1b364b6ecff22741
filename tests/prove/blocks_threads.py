"""The same for threads: the synchronous API, and a synchronous session of SQLAlchemy."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import flask
import sqlalchemy as sa

import undoubt.sync
from tests.prove.blocks_cases import ABORTED, COMMITTED
from tests.prove.blocks_stage import CASE_S, NAMES, TIMEOUT_S, AppError, Ended, Play, Stage, Victim
from undoubt import TransactionAborted
from undoubt.integrations import answers
from undoubt.integrations.flask import Undoubt
from undoubt.integrations.sqlalchemy import Session

AT_ONCE = 4


class Threads:
    """What they share."""

    def __init__(self, stage: Stage, opened: AsyncExitStack) -> None:
        self.coordinator = undoubt.sync.connect(stage.configuration("psycopg", opened))
        self.engines = {
            name: sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
            for name, dsn in stage.dsns.items()
        }

    def close(self) -> None:
        for engine in self.engines.values():
            engine.dispose()
        self.coordinator.close()


class OwnWork:
    def __init__(self, tx: undoubt.sync.Transaction) -> None:
        self.tx = tx

    @property
    def active(self) -> bool:
        return self.tx.active

    @property
    def id(self) -> Any:
        return self.tx.id

    def execute(self, name: str, sql: str) -> None:
        self.tx.branch(name).execute(sql)

    def commit(self) -> None:
        self.tx.commit()

    def rollback(self) -> None:
        self.tx.rollback()


class SessionWork:
    def __init__(self, session: Session, engines: dict[str, sa.Engine]) -> None:
        self._session = session
        self._engines = engines

    @property
    def _transaction(self) -> Any:
        unit: Any = self._session._undoubt_unit
        return unit._transaction

    @property
    def active(self) -> bool:
        return bool(self._transaction.active)

    @property
    def id(self) -> Any:
        return self._transaction.id

    def execute(self, name: str, sql: str) -> None:
        self._session.execute(sa.text(sql), bind_arguments={"bind": self._engines[name]})

    def commit(self) -> None:
        self._session.commit()

    def rollback(self) -> None:
        self._session.rollback()


Work = OwnWork | SessionWork
Body = Callable[[Work], None]


def block(threads: Threads, play: Play, body: Body) -> None:
    with threads.coordinator.transaction(timeout=play.timeout_s) as tx:
        body(OwnWork(tx))


def started(threads: Threads, play: Play, body: Body) -> None:
    tx = threads.coordinator.transaction(timeout=play.timeout_s).start()
    try:
        body(OwnWork(tx))
    except BaseException:
        tx.rollback()
        raise
    if not (play.rolled_back or play.committed_by_hand):
        tx.commit()


def run(threads: Threads, play: Play, body: Body) -> None:
    def function(tx: undoubt.sync.Transaction) -> str:
        body(OwnWork(tx))
        return "value"

    value = threads.coordinator.run(function, timeout=play.timeout_s)
    play.expect(value == "value", f"run returned {value!r}")


def session(threads: Threads, play: Play, body: Body) -> None:
    participants = {engine: name for name, engine in threads.engines.items()}
    with Session(
        coordinator=threads.coordinator, participants=participants, timeout=play.timeout_s
    ) as opened:
        with contextlib.suppress(sa.exc.DBAPIError):  # as there
            body(SessionWork(opened, threads.engines))
        if not (play.rolled_back or play.committed_by_hand):
            opened.commit()


def request(threads: Threads, play: Play, body: Body) -> None:
    """A request of Flask, whose client hears what ``answer`` is given."""
    told: list[BaseException] = []

    def answer(error: BaseException) -> answers.WebAnswer:
        told.append(error)
        return answers.answer(error)

    app = flask.Flask(__name__)
    app.testing = True  # what a view raises reaches the caller
    extension = Undoubt(app, coordinator=threads.coordinator, timeout=play.timeout_s, answer=answer)

    @app.post("/")
    def view() -> str:
        body(OwnWork(extension.transaction()))
        return "done"

    answered = app.test_client().post("/")
    if told:
        play.expect(answered.status_code != 200, "the client read that it is done")
        raise told[0]


def _doom(threads: Threads, work: Work) -> None:
    async def doom() -> bool:
        return threads.coordinator.engine.cancel(work.id, Victim("as told"))

    threads.coordinator.portal.call(doom)


def commit(threads: Threads, play: Play, work: Work) -> None:
    """The end commits."""


def commit_by_hand(threads: Threads, play: Play, work: Work) -> None:
    work.commit()
    play.committed_by_hand = True


def raise_error(threads: Threads, play: Play, work: Work) -> None:
    raise AppError


def roll_back(threads: Threads, play: Play, work: Work) -> None:
    work.rollback()
    play.rolled_back = True


def timeout_while_idle(threads: Threads, play: Play, work: Work) -> None:
    while work.active:
        time.sleep(0.01)  # a thread that does nothing else: nothing tells it that the time is over


def timeout_in_a_statement(threads: Threads, play: Play, work: Work) -> None:
    with contextlib.suppress(sa.exc.DBAPIError):
        work.execute("orders", "select pg_sleep(60)")


def timeout_swallowed(threads: Threads, play: Play, work: Work) -> None:
    while work.active:
        with contextlib.suppress(Exception):
            work.execute("payments", "select pg_sleep(0.05)")
    for name in NAMES:
        with contextlib.suppress(Exception):
            work.execute(name, "update entry set what = what || ' later'")


def victim(threads: Threads, play: Play, work: Work) -> None:
    _doom(threads, work)
    with contextlib.suppress(sa.exc.DBAPIError):
        work.execute("orders", "select 1")


def victim_at_the_end(threads: Threads, play: Play, work: Work) -> None:
    _doom(threads, work)


def victim_swallowed(threads: Threads, play: Play, work: Work) -> None:
    _doom(threads, work)
    with contextlib.suppress(Exception):
        work.execute("orders", "select 1")


def sql_error_swallowed(threads: Threads, play: Play, work: Work) -> None:
    with contextlib.suppress(Exception):
        work.execute("payments", "select 1/0")


def commit_error_swallowed(threads: Threads, play: Play, work: Work) -> None:
    sql_error_swallowed(threads, play, work)
    with contextlib.suppress(TransactionAborted):
        work.commit()


WAYS_IN = {each.__name__: each for each in (block, started, run, session, request)}
NO_BLOCK = frozenset({"started", "session"})


@dataclass(frozen=True)
class WayOut:
    body: Callable[[Threads, Play, Work], None]
    ends: frozenset[Ended]
    timeout_s: float = 30.0
    cause: type[BaseException] | None = None
    not_for: frozenset[str] = frozenset()


WAYS_OUT = {
    way.body.__name__: way
    for way in (
        WayOut(commit, COMMITTED),
        WayOut(commit_by_hand, COMMITTED),
        WayOut(raise_error, frozenset({Ended.APPLICATION})),
        WayOut(roll_back, frozenset({Ended.ROLLED_BACK})),
        WayOut(timeout_while_idle, ABORTED, TIMEOUT_S, TimeoutError),
        WayOut(timeout_in_a_statement, ABORTED, TIMEOUT_S, TimeoutError, frozenset({"request"})),
        WayOut(timeout_swallowed, ABORTED, TIMEOUT_S, TimeoutError),
        WayOut(victim, ABORTED, cause=Victim, not_for=frozenset({"request"})),
        WayOut(victim_at_the_end, ABORTED, cause=Victim),
        WayOut(victim_swallowed, ABORTED, cause=Victim),
        WayOut(sql_error_swallowed, ABORTED),
        WayOut(commit_error_swallowed, ABORTED, not_for=NO_BLOCK),
    )
}


@dataclass(frozen=True)
class ThreadCase:
    way_in: str
    way_out: str

    def __str__(self) -> str:
        return f"threads: {self.way_in}, {self.way_out}"

    @property
    def ends(self) -> frozenset[Ended]:
        return WAYS_OUT[self.way_out].ends

    @property
    def cause(self) -> type[BaseException] | None:
        return WAYS_OUT[self.way_out].cause


def thread_cases() -> Iterator[ThreadCase]:
    for way_in, way_out in itertools.product(WAYS_IN, WAYS_OUT):
        if way_in not in WAYS_OUT[way_out].not_for:
            yield ThreadCase(way_in, way_out)


async def play_threads(
    stage: Stage, opened: AsyncExitStack, chosen: list[ThreadCase], *, first_row: int
) -> list[tuple[ThreadCase, BaseException | None, Play]]:
    if not chosen:
        return []
    threads = await asyncio.to_thread(Threads, stage, opened)
    room = asyncio.Semaphore(AT_ONCE)

    async def one(row: int, case: ThreadCase) -> tuple[ThreadCase, BaseException | None, Play]:
        async with room:
            timeout_s = WAYS_OUT[case.way_out].timeout_s
            play = Play(stage, "psycopg", row, timeout_s, may_be_interrupted=False)
            return case, await _play(threads, case, play), play

    try:
        return await asyncio.gather(*(one(row, case) for row, case in enumerate(chosen, first_row)))
    finally:
        await asyncio.to_thread(threads.close)


async def _play(threads: Threads, case: ThreadCase, play: Play) -> BaseException | None:
    way_out = WAYS_OUT[case.way_out]

    def body(work: Work) -> None:
        for name in NAMES:
            work.execute(name, f"insert into entry values ('{play.what}')")
        work.execute("orders", f"update held set n = n + 1 where id = {play.row}")
        way_out.body(threads, play, work)

    def program() -> BaseException | None:
        try:
            WAYS_IN[case.way_in](threads, play, body)
        except Exception as error:  # noqa: BLE001 - it is the proof's to judge
            return error
        return None

    try:
        async with asyncio.timeout(CASE_S):
            heard = await asyncio.to_thread(program)
    except TimeoutError:
        play.hung.append(f"it did not end within {CASE_S:g} s")
        return None
    await play.row_is_free()
    return heard
