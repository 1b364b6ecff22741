"""Sessions that nobody closes: as with SQLAlchemy's own, their connections come back, and no lock stays."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import undoubt
from tests.undoubt.integrations.conftest import NAMES, App, Order, Payment, World
from tests.undoubt.integrations.test_sqlalchemy import both

pytestmark = [
    # As with SQLAlchemy's own sessions: drivers and asyncio's pools complain of what nobody has closed.
    pytest.mark.filterwarnings("ignore:The garbage collector is trying"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

OPEN = (
    "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
    " and pid <> pg_backend_pid()"
)


async def used(app: App, program: Any, **options: Any) -> Any:
    """A session in which ``program`` has run, and which nobody closes."""
    session = app.made(**options)
    if app.world.kind.startswith("sync"):
        await asyncio.to_thread(program, session)
    else:
        await session.run_sync(program)
    return session


def writes(session: Session) -> None:
    session.add_all(both(1))
    session.flush()


async def clean(app: App, world: World) -> None:
    """Once both pools have all of their connections, and no transaction is open anywhere."""
    await collected(app)
    async with asyncio.timeout(30):
        while app.engine.live:
            await asyncio.sleep(0.005)
        for name in NAMES:
            while await world.admin[name].fetchval(OPEN):
                await asyncio.sleep(0.005)


async def collected(app: App) -> None:
    """Once both pools have all of their connections."""
    async with asyncio.timeout(30):
        while [app.sync_engine(name).pool.checkedout() for name in NAMES] != [0, 0]:  # type: ignore[attr-defined]
            gc.collect()
            await asyncio.sleep(0.005)


async def test_a_session_that_is_dropped(app: App, world: World) -> None:
    """Long before its timeout: broken if the coordinator, or the pool itself, keeps its connections alive."""
    for _ in range(3):  # the pools have two connections each
        session = await used(app, writes, timeout=600)
        assert app.sync_engine("orders").pool.checkedout() == 1  # type: ignore[attr-defined]
        del session
        await clean(app, world)
    await app.run(lambda session: (session.add_all(both(2)), session.commit()))
    assert await world.ids() == ({2}, {2})
    assert await world.prepared() == []


async def test_a_session_that_is_dropped_while_another_works(app: App, world: World) -> None:
    """The next one gets the same connections: nothing of the dropped transaction's may go there any more."""

    def program(session: Session) -> None:
        session.add_all(both(2))
        session.flush()

    for _ in range(3):
        session = await used(app, writes, timeout=600)
        del session
        await collected(app)
        other = await used(app, program, timeout=600)
        await clean_of_others(app)
        if world.kind.startswith("sync"):
            await asyncio.to_thread(other.commit)
            await asyncio.to_thread(other.close)
        else:
            await other.commit()
            await other.close()
        await app.run(
            lambda session: (
                session.execute(sa.delete(Order)),
                session.execute(sa.delete(Payment)),
                session.commit(),
            )
        )
    await clean(app, world)


async def clean_of_others(app: App) -> None:
    """Once the transactions of dropped sessions have been aborted, and one is left."""
    async with asyncio.timeout(30):
        while len(app.engine.live) > 1:
            await asyncio.sleep(0.005)


async def test_a_session_that_is_neither_dropped_nor_closed(app: App, world: World) -> None:
    """Its transaction's timeout ends what it holds in the databases, and the engine forgets it."""
    session, timeout_s = None, 0.5
    while session is None:
        try:
            session = await used(app, writes, timeout=timeout_s)
        except undoubt.TransactionAborted:
            timeout_s *= 2  # the machine is so busy that it ends before it has written
    async with asyncio.timeout(30):
        while app.engine.live:  # which the databases hear of first
            await asyncio.sleep(0.005)
        for name in NAMES:
            while await world.admin[name].fetchval(OPEN):
                await asyncio.sleep(0.005)
    if world.kind.startswith("sync"):
        await asyncio.to_thread(session.close)
    else:
        await session.close()
    await clean(app, world)
    assert await world.ids() == (set(), set())


async def test_a_connection_that_is_invalidated(app: App, world: World) -> None:
    """Its pool has thrown it away; the branch that is open in it must not wait for the garbage collector."""

    def program(session: Session) -> None:
        writes(session)
        session.connection(bind_arguments={"mapper": Payment}).invalidate()
        with pytest.raises((undoubt.TransactionAborted, sa.exc.SQLAlchemyError)):
            session.commit()
        session.rollback()

    gc.disable()
    try:
        await app.run(program, timeout=600)
        await clean(app, world)
    finally:
        gc.enable()
    assert await world.ids() == (set(), set())
