"""A session whose lock another holder has had since is refused by the database."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.undoubt.integrations.conftest import App, Order, Payment, World
from tests.undoubt.integrations.test_sqlalchemy_outbox import migrated
from undoubt.errors import LockLost, StaleLock, TransactionAborted, UsageError

__all__ = ["migrated"]


async def locked(app: App, name: str = "job") -> Any:
    """A lock of the coordinator, whichever door it is behind."""
    if app.world.kind.startswith("sync"):
        return await asyncio.to_thread(lambda: app.coordinator.lock(name).acquire())
    return await app.coordinator.lock(name).acquire()


async def released(app: App, lock: Any) -> None:
    if app.world.kind.startswith("sync"):
        await asyncio.to_thread(lock.release)
    else:
        await lock.release()


async def test_a_stale_holder_commits_nothing(migrated: World, app: App) -> None:
    """It would write over what the next holder has written."""

    def program(session: Any, lock: Any, number: int) -> None:
        session.undoubt_guard(lock, "orders")
        session.add_all([Order(id=number, item="a lamp"), Payment(id=number, amount=1)])
        session.commit()

    lock = await locked(app)
    await app.run(program, lock, 1)
    ledger = app.engine.ledger.ledger_id
    await app.world.admin["orders"].execute(
        "select undoubt.guard_lock($1, 'job', $2)", ledger, lock.token + 1
    )
    with pytest.raises((StaleLock, LockLost)):
        await app.run(program, lock, 2)
    await released(app, lock)
    assert await app.world.ids() == ({1}, {1})


async def test_what_cannot_be_guarded_changes_nothing(migrated: World, app: App) -> None:
    lock = await locked(app)

    def program(session: Any) -> None:
        with pytest.raises(UsageError, match="lock must be one of"):
            session.undoubt_guard("job", "orders")
        with pytest.raises(UsageError, match="leads to participant 'stock'"):
            session.undoubt_guard(lock, "stock")
        session.add(Order(id=1, item="a lamp"))
        session.commit()

    await app.run(program)
    await released(app, lock)
    assert await app.world.ids() == ({1}, set())


async def test_a_guard_in_a_nested_block_that_is_undone(migrated: World, app: App) -> None:
    """The rest of the session would be written beside the next holder."""
    lock = await locked(app)
    later = (app.engine.ledger.ledger_id, lock.token + 1)

    def program(session: Any, number: int) -> None:
        nested = session.begin_nested()
        session.undoubt_guard(lock, "orders")
        nested.rollback()
        if number == 2:
            with psycopg.connect(app.world.dsns["orders"]) as next_holder:
                next_holder.execute("select undoubt.guard_lock(%s, 'job', %s)", later)
        session.add_all([Order(id=number, item="a lamp"), Payment(id=number, amount=1)])
        session.commit()

    await app.run(program, 1)
    with pytest.raises(TransactionAborted) as aborted:
        await app.run(program, 2)
    assert isinstance(aborted.value.cause, StaleLock)
    await released(app, lock)
    assert await app.world.ids() == ({1}, {1})
