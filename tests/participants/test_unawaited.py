"""Answers that come, or do not come, when no caller waits for them: only the session ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from tests.participants.hands import at
from tests.participants.proxy import Proxy
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Settled, Vote
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.asyncpg import line as asyncpg_line
from undoubt.participants.postgres.pipeline import ROLLBACK
from undoubt.participants.postgres.psycopg import pipeline as psycopg_pipeline
from undoubt.participants.postgres.psycopg import polling as psycopg_polling
from undoubt.participants.postgres.session import Step

WAYS = ("",)
ENDLESS = Step("select pg_catalog.pg_sleep(3600)")
LIMIT_S = 30.0


@pytest_asyncio.fixture
async def participant(database: Database) -> AsyncIterator[PostgresParticipant]:
    participant = participant_at(database.dsn)
    yield participant
    await participant.close()


async def gone(database: Database, pid: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await database.admin.fetchval("select true from pg_stat_activity where pid = $1", pid):
            await asyncio.sleep(0.005)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


async def test_an_interrupt_while_prepare_is_sent(
    participant: PostgresParticipant, gid: Gid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what was sent. Broken if the session is used again: the answer to PREPARE would be taken
    for the answer to the next statement."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(asyncpg_line, "deadlines", interrupt)
        patch.setattr(psycopg_pipeline, "send", interrupt)
        branch.prepare()
    assert branch.session.broken  # type: ignore[attr-defined]
    assert await branch.rollback() is Settled.ABSENT
    await branch.release()


def with_the_answer(call: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Call ``call`` in the turn of the event loop in which the answer to a pipeline comes, before anybody has
    heard of the answer."""
    set_result, finish = psycopg_polling.Polling.set_result, asyncpg_line.Exchange.finish

    def polled(polling: Any, result: object) -> None:
        set_result(polling, result)
        call()

    def finished(exchange: Any) -> None:
        finish(exchange)
        call()

    patch.setattr(psycopg_polling.Polling, "set_result", polled, raising=False)
    patch.setattr(asyncpg_line.Exchange, "finish", finished)


async def test_a_session_closed_in_the_turn_of_an_answer(
    participant: PostgresParticipant, database: Database, gid: Gid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the event loop then reads what was sent behind from a connection that is being closed: its
    file descriptor may soon be another connection's. Or if that goes on to run on the server."""
    branch = await participant.begin(gid, timeout_s=30)
    await at(branch).execute(WRITE)
    session: Any = branch.session  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        with_the_answer(session.discard, patch)
        ended = session.pipeline([ROLLBACK], behind=[ENDLESS], timeout_s=30)
        looked_at = session.pgconn.socket if hasattr(session, "pgconn") else None
        assert (await ended).tags == ["ROLLBACK"]
    if looked_at is not None:
        assert not asyncio.get_running_loop().remove_reader(looked_at)
    await gone(database, session.pid)
    await branch.release()


async def test_a_reset_that_is_lost_when_nobody_waits(database: Database, gid: Gid) -> None:
    """The branch has ended, and its connection is lost before the reset behind COMMIT PREPARED is answered.
    Broken if the session is lent again, or if the lost answer is an error that nobody takes."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with Proxy(database.dsn) as proxy, contextlib.AsyncExitStack() as stack:
        participant = participant_at(proxy.dsn, connections_max=1)
        stack.push_async_callback(participant.close)
        branch = await participant.begin(gid, timeout_s=30)
        await at(branch).execute(WRITE)
        session: Any = branch.session  # type: ignore[attr-defined]
        pipeline = session.pipeline

        def longer(steps: Any, *, behind: Any = (), timeout_s: float) -> Any:
            return pipeline(steps, behind=[ENDLESS] if behind else (), timeout_s=timeout_s)

        session.pipeline = longer
        assert (await branch.prepare()).vote is Vote.PREPARED
        assert await branch.commit() is Settled.APPLIED
        await branch.release()
        proxy.cut()
        again = await participant.begin(new_gid(), timeout_s=30)
        assert again.session is not session  # type: ignore[attr-defined]
        await again.rollback()
        await again.release()
    await database.admin.execute("select pg_terminate_backend($1)", session.pid)  # it has heard of nothing
    await gone(database, session.pid)
    del session.pipeline, session, branch
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
    assert await database.balance() == 90
