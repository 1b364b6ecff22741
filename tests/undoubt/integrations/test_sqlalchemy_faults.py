"""The interleavings that worry most: after the decision nothing rolls back, whatever dies or is late."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import undoubt
from tests.participants.support import run_on
from tests.undoubt.integrations.conftest import App, Order, Payment, World, application
from tests.undoubt.integrations.test_sqlalchemy import PAYMENTS, both, watch
from undoubt.participants.contract import Decision
from undoubt.participants.errors import UsageError


async def applied(world: World) -> None:
    while await world.prepared():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ["orders", "payments"])
async def test_backend_killed_after_the_decision(app: App, world: World, name: str) -> None:
    """The trap: a session that did prepare, recorded the decision and committed one by one had its own exit
    roll the other one back. Here both are committed, and the session hears nothing else."""
    killed: list[int] = []
    pid = 0

    async def kill(step: str, _: str) -> None:
        if step == "after_decide":
            killed.append(pid)
            await run_on(world.dsns[name], f"select pg_terminate_backend({pid}, 5000)")

    def program(session: Session) -> list[str]:
        nonlocal pid
        seen = watch(session)
        session.add_all(both(1))
        session.flush()
        arguments = {"mapper": Order if name == "orders" else Payment}
        pid = session.scalar(sa.text("select pg_backend_pid()"), bind_arguments=arguments)
        session.commit()
        return seen

    world.at_step = kill
    assert await app.run(program) == ["before_commit", "after_commit"]
    assert killed == [pid]
    world.at_step = None
    await applied(world)
    assert await world.ids() == ({1}, {1})
    await app.run(lambda session: (session.add_all(both(2)), session.commit()))
    assert await world.ids() == ({1, 2}, {1, 2})


@pytest.mark.parametrize("step", ["before_prepare", "after_prepare", "before_decide"])
async def test_backend_killed_before_the_decision(app: App, world: World, step: str) -> None:
    """A backend that is lost before it has prepared aborts both; afterwards its branch outlives it."""
    killed: list[int] = []
    pid = 0

    async def kill(now: str, subject: str) -> None:
        if now == step and (now == "before_decide" or ":payments:" in f"{subject}:"):
            killed.append(pid)
            await run_on(world.dsns["payments"], f"select pg_terminate_backend({pid}, 5000)")

    def program(session: Session) -> str:
        nonlocal pid
        session.add_all(both(1))
        session.flush()
        pid = session.scalar(sa.text("select pg_backend_pid()"), bind_arguments=PAYMENTS)
        try:
            session.commit()
        except undoubt.TransactionAborted:
            return "aborted"
        return "committed"

    world.at_step = kill
    told = await app.run(program)
    await applied(world)
    assert await world.ids() == (({1}, {1}) if told == "committed" else (set(), set()))
    assert told == ("aborted" if step == "before_prepare" else "committed")
    assert killed == [pid]
    world.at_step = None
    await app.run(lambda session: (session.add_all(both(2)), session.commit()))


async def test_no_answer_from_the_ledger(app: App, world: World) -> None:
    """OutcomeUnknown: neither event may say what became of it, the session's exit rolls nothing back, and the
    connections, which the engine still uses, are not the pool's any more."""
    ledger: Any = app.engine.ledger
    decide, let = ledger.decide, list[bool]()

    async def late(txid: Any, decision: Decision, *arguments: Any, **options: Any) -> Any:
        while not let:  # set in another thread, for synchronous applications
            await asyncio.sleep(0.01)
        return await decide(txid, decision, *arguments, **options)

    ledger.decide = late

    def program(session: Session) -> tuple[list[str], Any]:
        seen = watch(session)
        session.add_all(both(1))
        with pytest.raises(undoubt.OutcomeUnknown):
            session.commit()
        session.rollback()
        names = []
        for name in ("orders", "payments"):
            with app.sync_engine(name).connect() as connection:
                names.append(connection.scalar(sa.text("show application_name")))
        return seen, names

    seen, names = await app.run(program, timeout=1.0)
    assert seen == ["before_commit"]
    assert names == ["", ""], "the engine's connections went back to the pool"
    assert len(await world.prepared()) == 2
    ledger.decide = decide
    await app.run(lambda session: (session.add(Order(id=5, item="x")), session.commit()))
    let.append(True)
    await applied(world)
    assert await world.ids() == ({1, 5}, {1})
    await app.run(lambda session: (session.add_all(both(2)), session.commit()))


async def test_timeout_while_the_session_idles(app: App, world: World) -> None:
    """The engine rolls the branches back; a statement that comes later is refused, not run outside."""

    def program(session: Session) -> None:
        session.add_all(both(1))
        session.flush()
        # The statement that runs just then is cancelled, and one that comes later does not begin.
        with pytest.raises((undoubt.TransactionAborted, sa.exc.DBAPIError)):
            while True:
                session.execute(sa.text("select pg_sleep(0.05)"), bind_arguments=PAYMENTS)
                session.execute(sa.text("select 1"), bind_arguments={"mapper": Order})
        with pytest.raises(undoubt.TransactionAborted, match="timeout"):
            session.commit()
        session.rollback()
        session.add(Order(id=2, item="a lamp"))
        session.commit()

    await app.run(program, timeout=2)
    assert await world.ids() == ({2}, set())


async def test_connection_given_back_behind_our_back(app: App, world: World) -> None:
    """Its pool has rolled it back and may have lent it to somebody else: nothing of ours may go there."""

    def program(session: Session) -> None:
        session.add_all(both(1))
        session.flush()
        session.connection(bind_arguments=PAYMENTS).close()
        with app.sync_engine("payments").begin() as other:
            other.execute(sa.insert(Payment.__table__).values(id=7, amount=1))  # type: ignore[arg-type]
            with pytest.raises(undoubt.TransactionAborted):
                session.commit()
        session.rollback()
        session.add_all(both(2))
        session.commit()

    await app.run(program)
    assert await world.ids() == ({2}, {2, 7})


async def test_lost_idle_connections(world: World) -> None:
    """pool_pre_ping finds them; without it the first unit of work pays, as it does with SQLAlchemy alone."""
    async with application(world, pool_pre_ping=True) as app:
        await app.run(lambda session: (session.add_all(both(1)), session.commit()))
        for admin in world.admin.values():
            await admin.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
                " and application_name not like 'undoubt:%'"
            )
        await app.run(lambda session: (session.add_all(both(2)), session.commit()))
    assert await world.ids() == ({1, 2}, {1, 2})


async def test_many_units_of_work_over_small_pools(app: App, world: World) -> None:
    """Two connections a pool, and more sessions than that at once, each in its own thread or task."""

    def program(session: Session, number: int) -> None:
        with session.begin():
            session.add_all(both(number))

    await asyncio.gather(*(app.run(program, number) for number in range(1, 13)))
    assert await world.ids() == (set(range(1, 13)), set(range(1, 13)))
    for name in ("orders", "payments"):
        assert app.sync_engine(name).pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_coordinator_closed_under_a_session(app: App, world: World) -> None:
    """What was not committed by then is rolled back, and the application is told."""

    def first(session: Session) -> None:
        session.add_all(both(1))
        session.flush()

    def second(session: Session) -> None:
        with pytest.raises((undoubt.TransactionAborted, UsageError)):
            session.commit()
        session.rollback()

    if world.kind.startswith("sync"):
        with app.made() as session:
            await asyncio.to_thread(first, session)
            await asyncio.to_thread(app.coordinator.close)
            await asyncio.to_thread(second, session)
    else:
        async with app.made() as session:
            await session.run_sync(first)
            await app.coordinator.close()
            await session.run_sync(second)
    assert await world.ids() == (set(), set())
    assert await world.prepared() == []
