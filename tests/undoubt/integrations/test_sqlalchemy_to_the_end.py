"""What applications of SQLAlchemy have besides a plain session: two-phase flags, shards, savepoints, events;
and SQLModel."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import pytest
import sqlalchemy as sa
import sqlmodel
from sqlalchemy import event
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm import sessionmaker

import undoubt
from tests.undoubt.integrations.conftest import App, Order, Payment, World
from tests.undoubt.integrations.test_sqlalchemy import PAYMENTS
from undoubt.errors import UsageError
from undoubt.integrations import sqlmodel as undoubt_sqlmodel
from undoubt.integrations.sqlalchemy import AsyncSession, Session, ShardedSession


class Item(sqlmodel.SQLModel, table=True):
    __tablename__ = "orders"
    id: int = sqlmodel.Field(primary_key=True)
    item: str


def arguments(app: App) -> dict[str, Any]:
    return {
        "coordinator": app.coordinator,
        "participants": {engine: name for name, engine in app.engines.items()},
        "binds": {Order: app.engines["orders"], Payment: app.engines["payments"]},
    }


async def test_twophase_is_refused_with_the_line_to_change(app: App) -> None:
    """The flag of an existing sessionmaker would be ignored otherwise, or run SQLAlchemy's own protocol."""
    kind: Any = Session if app.world.kind.startswith("sync") else AsyncSession
    with pytest.raises(UsageError, match="remove twophase=True"):
        kind(twophase=True, **arguments(app))
    with pytest.raises(UsageError, match="remove twophase=True"):
        sessionmaker(class_=kind, **arguments(app))(twophase=True)

    def later(session: Any) -> None:
        assert session.twophase is False
        with pytest.raises(UsageError, match="remove twophase=True"):
            session.twophase = True
        with pytest.raises(UsageError, match="remove the call of prepare"):
            session.prepare()

    await app.run(later)


async def test_a_session_of_sqlalchemys_own_with_twophase_is_noticed(app: App) -> None:
    """Beside undoubt, on the same engines, it would prepare branches that no recovery knows."""
    await app.run(lambda session: session.connection(bind_arguments={"bind": app.sync_engine("orders")}))

    with pytest.raises(UsageError, match=r"undoubt\.integrations\.sqlalchemy\.Session"):
        await plain_twophase(app, app.engines["orders"])
    assert await app.world.prepared() == []
    assert await app.world.ids() == (set(), set())


async def test_a_derived_engine_is_the_participants_too(app: App) -> None:
    """Broken if ``engine.execution_options()`` hides that the pool is a participant's."""
    await app.run(lambda session: session.connection(bind_arguments={"bind": app.sync_engine("orders")}))
    with pytest.raises(UsageError, match="twophase=True uses"):
        await plain_twophase(app, app.engines["orders"].execution_options(compiled_cache=None))
    assert await app.world.ids() == (set(), set())


async def test_the_engine_behind_a_derived_one_is_the_participants_too(app: App) -> None:
    """Broken if a session that is bound to it is not told why its transaction aborts, or SQLAlchemy's own
    two-phase commit is not refused there."""
    payments = app.engines["payments"]
    derived = {payments.execution_options(compiled_cache=None): "payments"}

    await app.world.admin["payments"].execute("select pg_advisory_lock(4711)")

    def swallows(session: Any) -> None:
        session.execute(sa.text("set local lock_timeout = '150ms'"), bind_arguments=PAYMENTS)
        with contextlib.suppress(sa.exc.DBAPIError):
            session.execute(sa.text("select pg_advisory_xact_lock(4711)"), bind_arguments=PAYMENTS)
        session.commit()

    with pytest.raises(undoubt.TransactionAborted, match=r"\(lock_timeout\)"):
        await app.run(swallows, participants=derived)
    with pytest.raises(UsageError, match="twophase=True uses"):
        await plain_twophase(app, payments, Payment(id=1, amount=1))
    assert await app.world.ids() == (set(), set())


@pytest.mark.parametrize("derived", [False, True])
async def test_an_engine_that_has_prepared_by_itself_is_refused(app: App, derived: bool) -> None:
    """Broken if the order decides: before undoubt's first session on the engine it is not known to be a
    participant's, so the two kinds of commit would go on beside each other."""
    orders = app.engines["orders"]
    await plain_twophase(app, orders.execution_options(compiled_cache=None) if derived else orders)
    gc.collect()  # the derived engine
    for _ in range(2):
        with pytest.raises(UsageError, match=r"has used .* in this process.*change Session\(twophase=True"):
            await app.run(lambda _: None)
    assert await app.world.ids() == ({1}, set())


async def plain_twophase(app: App, engine: Any, row: Any = None) -> None:
    """Commit ``row``, an order by default, by a session of SQLAlchemy's own with its two-phase commit."""

    def write(session: PlainSession) -> None:
        session.add(row or Order(id=1, item="a lamp"))
        session.flush()

    binds: Any = {Order: engine, Payment: engine}
    if app.world.kind.startswith("sync"):

        def here() -> None:
            with PlainSession(twophase=True, binds=binds) as session:
                write(session)
                session.commit()

        await asyncio.to_thread(here)
    else:
        from sqlalchemy.ext.asyncio import AsyncSession as PlainAsync  # noqa: PLC0415 - of this case

        async with PlainAsync(twophase=True, binds=binds) as session:
            await session.run_sync(write)
            await session.commit()


async def test_shards_commit_together(app: App) -> None:
    """One class in two databases, as ``horizontal_shard`` has it."""
    for connection in app.world.admin.values():
        await connection.execute("create table shard (id int primary key, item text)")
    table = sa.orm.registry().generate_base()

    class Shard(table):  # type: ignore[misc, valid-type]
        __tablename__ = "shard"
        id: Any = sa.Column(sa.Integer, primary_key=True)
        item: Any = sa.Column(sa.Text)

    if not app.world.kind.startswith("sync"):
        return await _shards_of_asyncio(app, Shard)
    made = sessionmaker(class_=ShardedSession, **_sharding(app))

    def program(fail: bool) -> None:
        with made.begin() as session:
            session.add_all([Shard(id=1, item="even"), Shard(id=2, item="odd")])
            session.flush()
            if fail:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(program, True)
    assert await _shards(app) == [[], []]
    await asyncio.to_thread(program, False)
    assert await _shards(app) == [[2], [1]]
    assert "before_decide" in app.world.seen
    return None


async def _shards_of_asyncio(app: App, shard: Any) -> None:
    class Sharded(AsyncSession):
        sync_session_class = ShardedSession

    async with Sharded(**_sharding(app)) as session:
        session.add_all([shard(id=1, item="even"), shard(id=2, item="odd")])
        await session.commit()
    assert await _shards(app) == [[2], [1]]
    assert "before_decide" in app.world.seen


def _sharding(app: App) -> dict[str, Any]:
    options = arguments(app)
    del options["binds"]
    names = ("orders", "payments")
    return {
        **options,
        "shards": {name: app.sync_engine(name) for name in names},
        "shard_chooser": lambda mapper, instance, clause=None: names[instance.id % 2],
        "identity_chooser": lambda mapper, key, **_: [names[key[0] % 2]],
        "execute_chooser": lambda _: names,
    }


async def _shards(app: App) -> list[list[int]]:
    sql = "select id from shard order by id"
    return [[row["id"] for row in await each.fetch(sql)] for each in app.world.admin.values()]


async def test_savepoints_and_events_are_sqlalchemys(app: App) -> None:
    """The events of a session come in SQLAlchemy's order, ``after_commit`` once, and after the commit of
    all."""
    seen: list[str] = []

    def program(session: Any) -> None:
        for name in ("before_commit", "after_commit", "after_rollback", "after_soft_rollback"):
            event.listen(session, name, lambda *_, name=name: seen.append(name))
        session.add(Order(id=1, item="a lamp"))
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add(Payment(id=1, amount=-1))
            session.flush()
        savepoint = session.begin_nested()
        session.add(Payment(id=2, amount=2))
        session.flush()
        savepoint.rollback()
        with session.begin_nested():
            session.add(Payment(id=3, amount=3))
        seen.clear()
        session.commit()

    await app.run(program)
    assert seen == ["before_commit", "after_commit"]
    assert await app.world.ids() == ({1}, {3})


async def test_sqlmodel_commits_over_both(app: App) -> None:
    """Its models, and its ``exec``."""
    options = arguments(app)
    options["binds"] = {Item: app.engines["orders"], Payment: app.engines["payments"]}

    def program(session: Any, amount: int) -> list[int]:
        session.add(Item(id=1, item="a lamp"))
        session.add(Payment(id=1, amount=amount))
        found = list(session.exec(sqlmodel.select(Item.id)))
        session.commit()
        return found

    async def run(amount: int) -> list[int]:
        if app.world.kind.startswith("sync"):

            def here() -> list[int]:
                with undoubt_sqlmodel.Session(**options) as session:
                    return program(session, amount)

            return await asyncio.to_thread(here)
        async with undoubt_sqlmodel.AsyncSession(**options) as session:
            found: list[int] = await session.run_sync(program, amount)
            return found

    with pytest.raises(sa.exc.IntegrityError):
        await run(-1)
    assert await app.world.ids() == (set(), set())
    assert await run(1) == [1]
    assert await app.world.ids() == ({1}, {1})


async def test_sqlmodel_tells_an_abort(app: App, world: World) -> None:
    """What PREPARE refuses is raised by its ``commit`` too."""
    await world.admin["payments"].execute(
        "alter table payments add constraint once unique (amount) deferrable initially deferred"
    )
    kind: Any = undoubt_sqlmodel.Session if world.kind.startswith("sync") else undoubt_sqlmodel.AsyncSession

    def program(session: Any) -> None:
        session.add_all([Order(id=1, item="a lamp"), Payment(id=1, amount=7), Payment(id=2, amount=7)])
        session.commit()

    def here() -> None:
        with kind(**arguments(app)) as session:
            program(session)

    with pytest.raises(undoubt.TransactionAborted):
        if world.kind.startswith("sync"):
            await asyncio.to_thread(here)
        else:
            async with kind(**arguments(app)) as session:
                await session.run_sync(program)
    assert await world.ids() == (set(), set())
