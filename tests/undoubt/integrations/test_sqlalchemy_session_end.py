"""A session whose branch was ended by a timeout of the server hears of which."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.undoubt.integrations.conftest import App, Order, World
from tests.undoubt.integrations.test_sqlalchemy import PAYMENTS, both
from undoubt import TransactionAborted

WAIT = "select pg_advisory_xact_lock(4711)"
TIMEOUTS = ("statement_timeout", "lock_timeout", "transaction_timeout")


async def known(world: World, setting: str) -> bool:
    """Servers before version 17 have no transaction_timeout."""
    sql = "select exists (select from pg_settings where name = $1)"
    return bool(await world.admin["payments"].fetchval(sql, setting))


def begun(session: Session, setting: str) -> None:
    session.add_all(both(1))
    session.flush()
    session.execute(sa.text(f"set local {setting} = '150ms'"), bind_arguments=PAYMENTS)


async def aborted(app: App, program: Any, setting: str) -> None:
    with pytest.raises(TransactionAborted) as raised:
        await app.run(program)
    assert f"({setting})" in str(raised.value)
    assert await app.world.ids() == (set(), set())


@pytest.mark.parametrize("setting", TIMEOUTS)
async def test_in_a_statement_whose_error_is_swallowed(app: App, world: World, setting: str) -> None:
    if not await known(world, setting):
        return
    await world.admin["payments"].execute("select pg_advisory_lock(4711)")

    def program(session: Session) -> None:
        begun(session, setting)
        with contextlib.suppress(sa.exc.DBAPIError):
            session.execute(sa.text(WAIT), bind_arguments=PAYMENTS)
        session.commit()

    await aborted(app, program, setting)


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
@pytest.mark.parametrize("asks", [False, True])
async def test_between_statements(app: App, world: World, setting: str, asks: bool) -> None:
    if not await known(world, setting):
        return

    def program(session: Session) -> None:
        pid = session.scalar(sa.text("select pg_backend_pid()"), bind_arguments=PAYMENTS)
        begun(session, setting)
        is_there = "select exists (select from pg_stat_activity where pid = %s)"
        with psycopg.connect(world.dsns["payments"], autocommit=True) as watch:
            while watch.execute(is_there, (pid,)).fetchone() == (True,):
                pass
        for _ in range(3):  # in which the event loop can hear of it
            session.execute(sa.text("select 1"), bind_arguments={"mapper": Order})
        if asks:
            with contextlib.suppress(sa.exc.DBAPIError):
                session.execute(sa.text("select 1"), bind_arguments=PAYMENTS)
        session.commit()

    await aborted(app, program, setting)


@pytest.mark.parametrize("setting", ["lock_timeout", "transaction_timeout"])
async def test_at_prepare(app: App, world: World, setting: str) -> None:
    if not await known(world, setting):
        return
    await world.admin["payments"].execute(
        "create function dawdle() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock(4711); return null; end $$;"
        "create constraint trigger slow after insert on payments deferrable initially deferred"
        " for each row execute function dawdle()"
    )
    await world.admin["payments"].execute("select pg_advisory_lock(4711)")

    def program(session: Session) -> None:
        begun(session, setting)
        session.commit()

    await aborted(app, program, setting)
