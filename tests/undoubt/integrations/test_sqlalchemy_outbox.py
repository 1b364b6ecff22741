"""Messages that a session publishes are in the outbox exactly if the session has committed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import undoubt
from tests.undoubt.integrations.conftest import NAMES, App, Order, Payment, World, application
from undoubt.errors import ParticipantRefused, UsageError
from undoubt.participants.outbox import PAYLOAD_BYTES_MAX
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

MESSAGES = "select topic, key, payload, dedupe_id from undoubt.undoubt_outbox order by id"


@pytest_asyncio.fixture
async def migrated(world: World) -> World:
    """Its databases have an outbox."""
    for name, dsn in world.dsns.items():
        await migrate(name, ParticipantSettings(dsn=dsn))
    return world


async def messages(app: App, name: str = "orders") -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await app.world.admin[name].fetch(MESSAGES)]


async def test_a_message_commits_with_its_session(migrated: World, app: App) -> None:
    """Published before and after the first statement of its engine, and with nothing else in its database."""

    def program(session: Any) -> list[str]:
        first = session.undoubt_publish("orders", {"n": 1}, topic="placed", key="ada")
        session.add(Order(id=1, item="a lamp"))
        session.flush()
        second = session.undoubt_publish("orders", "two", headers={"X-Kind": "lamp"})
        session.undoubt_publish("payments", b"three")
        session.add(Order(id=2, item="a chair"))
        session.commit()
        return [first, second]

    first, second = await app.run(program)
    assert await messages(app) == [
        ("placed", "ada", b'{"n":1}', first),
        ("orders", None, b"two", second),
    ]
    assert [row[:3] for row in await messages(app, "payments")] == [("payments", None, b"three")]
    assert await app.world.ids() == ({1, 2}, set())
    assert "before_decide" in app.world.seen


async def test_a_message_goes_with_what_is_rolled_back(migrated: World, app: App) -> None:
    """A receiver would be told of an order that nobody has placed."""

    def rolled_back(session: Any) -> None:
        session.undoubt_publish("orders", "never")
        session.rollback()

    def refused(session: Any) -> None:
        session.undoubt_publish("orders", "never")
        session.add_all([Order(id=1, item="a lamp"), Payment(id=1, amount=-1)])
        with pytest.raises(sa.exc.IntegrityError):
            session.commit()

    def savepoint(session: Any) -> None:
        nested = session.begin_nested()
        session.undoubt_publish("orders", "never")
        nested.rollback()
        with session.begin_nested():
            session.undoubt_publish("orders", "kept")
        session.commit()

    def savepoint_of_a_branch(session: Any) -> None:
        """The message is the first use of the connection within the savepoint."""
        session.execute(sa.text("select 1"), bind_arguments={"bind": app.sync_engine("orders")})
        nested = session.begin_nested()
        session.undoubt_publish("orders", "never")
        nested.rollback()
        with session.begin_nested(), session.begin_nested():
            session.undoubt_publish("orders", "kept too")
        session.commit()

    for program in (rolled_back, refused, savepoint, savepoint_of_a_branch):
        await app.run(program)
    assert [row[2] for row in await messages(app)] == [b"kept", b"kept too"]


async def test_a_session_publishes_in_each_of_its_transactions(migrated: World, app: App) -> None:
    """The connection of the transaction before is no branch of this one."""

    def program(session: Any) -> None:
        for number in range(3):
            session.undoubt_publish("orders", str(number))
            session.commit()

    await app.run(program)
    found = await messages(app)
    assert [row[2] for row in found] == [b"0", b"1", b"2"]
    assert len({row[3] for row in found}) == 3


async def test_two_engines_of_one_database(migrated: World, app: App) -> None:
    """The engine whose connection is the branch already: a second branch of the database would be refused."""
    engines = {app.engines[name]: name for name in NAMES}
    if app.world.kind.startswith("sync"):
        second: Any = sa.create_engine(app.sync_engine("orders").url)
    else:
        second = create_async_engine(app.sync_engine("orders").url)

    def program(session: Any) -> None:
        session.connection(bind_arguments={"bind": getattr(second, "sync_engine", second)})
        session.undoubt_publish("orders", "by the second")
        session.commit()
        session.undoubt_publish("orders", "by the first")
        session.commit()

    await app.run(program, participants={**engines, second: "orders"})
    assert [row[2] for row in await messages(app)] == [b"by the second", b"by the first"]
    await _dispose(second)


async def _dispose(engine: Any) -> None:
    if isinstance(engine, sa.Engine):
        engine.dispose()
    else:
        await engine.dispose()


async def test_what_cannot_be_published_changes_nothing(migrated: World, app: App) -> None:
    """The session goes on, and commits: neither a bad argument nor an engine that is missing is an error of
    the database."""

    def program(session: Any) -> None:
        for bad in (object(), "x" * (PAYLOAD_BYTES_MAX + 1), float("nan")):
            with pytest.raises(UsageError):
                session.undoubt_publish("orders", bad)
        with pytest.raises(UsageError, match="no engine of the session leads to participant 'stock'"):
            session.undoubt_publish("stock", "x")
        assert session.undoubt_txid is None
        session.add(Order(id=1, item="a lamp"))
        session.commit()

    await app.run(program)
    assert (await messages(app), await app.world.ids()) == ([], ({1}, set()))


async def test_a_database_without_an_outbox_says_so(app: App) -> None:
    """The message would be lost."""

    def program(session: Any) -> None:
        session.add(Order(id=1, item="a lamp"))
        with pytest.raises(ParticipantRefused, match="undoubt participants migrate orders"):
            session.undoubt_publish("orders", "x")
        session.rollback()

    await app.run(program)
    assert await app.world.ids() == (set(), set())


async def test_the_timeout_is_told_while_it_waits_for_another_ones_key(migrated: World) -> None:
    """Broken if the caller reads that a statement was cancelled, and no reason."""
    async with application(migrated) as app:
        admin = app.world.admin["orders"]
        async with admin.transaction():
            await admin.execute("select undoubt.publish('other', 'orders', 'ada', 'x', '{}')")

            def program(session: Any) -> None:
                with pytest.raises(undoubt.TransactionAborted, match="timeout"):
                    session.undoubt_publish("orders", "waits", key="ada")

            await app.run(program, timeout=1.0)
        assert [row[2] for row in await messages(app)] == [b"x"]


async def test_the_applications_own_session_publishes(migrated: World, app: App) -> None:
    """Of ``AsyncSession`` it is a coroutine."""

    def here() -> str:
        with app.made() as session, session.begin():
            return str(session.undoubt_publish("orders", "x", topic="placed", key="ada"))

    if app.world.kind.startswith("sync"):
        sent = await asyncio.to_thread(here)
    else:
        async with app.made() as session, session.begin():
            sent = await session.undoubt_publish("orders", "x", topic="placed", key="ada")
    assert await messages(app) == [("placed", "ada", b"x", sent)]
