"""What cannot take part says so at once, and cannot commit by itself afterwards either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.undoubt.integrations.conftest import App, Order, Payment, World, application
from tests.undoubt.integrations.test_sqlalchemy import PAYMENTS, both
from undoubt.participants.errors import UsageError


def refused(match: str) -> Callable[[Session], None]:
    """A program whose second engine is refused, and that swallows it."""

    def program(session: Session) -> None:
        session.add(Order(id=1, item="a lamp"))
        session.flush()
        with pytest.raises(UsageError, match=match):
            session.execute(sa.text("select 1"), bind_arguments=PAYMENTS)
        with pytest.raises(Exception, match=match):
            session.commit()
        session.rollback()

    return program


async def test_engine_without_participant(app: App, world: World) -> None:
    orders = app.engines["orders"]
    await app.run(refused("has no participant"), participants={orders: "orders"})
    assert await world.ids() == (set(), set())


async def test_engine_of_another_database(app: App, world: World) -> None:
    """Its branches would be looked for, and finished, in the wrong place."""
    orders, payments = app.engines["orders"], app.engines["payments"]

    def swapped(session: Session) -> None:
        with pytest.raises(UsageError, match="leads to"):
            session.execute(sa.text("select 1"), bind_arguments=PAYMENTS)

    await app.run(swapped, participants={orders: "payments", payments: "orders"})


async def test_engines_that_change_their_participants(app: App, world: World) -> None:
    """Broken if a pooled connection that has been a branch of its own participant is lent to the one of
    another database."""
    orders, payments = app.engines["orders"], app.engines["payments"]

    def right(session: Session) -> None:
        session.add_all(both(1))
        session.commit()

    def swapped(session: Session) -> None:
        with pytest.raises(UsageError, match="leads to"):
            session.execute(sa.text("select 1"), bind_arguments=PAYMENTS)

    await app.run(right)
    await app.run(swapped, participants={orders: "payments", payments: "orders"})
    await app.run(lambda session: (session.add_all(both(3)), session.commit()))
    assert await world.ids() == ({1, 3}, {1, 3})


async def test_a_role_that_the_database_sets(world: World) -> None:
    """Broken if an operator is told to grant, or to trust, the role that whoever owns the database has put in
    the application's way."""
    admin = world.admin["payments"]
    name = await admin.fetchval("select quote_ident(current_database())")
    await admin.execute(f"create role setter; alter database {name} set role = setter")
    try:
        async with application(world) as app:
            await app.run(refused(r"role 'setter'.*run ALTER DATABASE .* RESET role;"))
    finally:
        await admin.execute(f"alter database {name} reset role; drop role setter")
    assert await world.ids() == (set(), set())


async def test_unknown_participant(app: App) -> None:
    orders, payments = app.engines["orders"], app.engines["payments"]
    await app.run(refused("unknown participant"), participants={orders: "orders", payments: "somewhere"})


async def test_unsupported_driver(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """psycopg2, pg8000: their connections cannot be driven by the engine."""
    monkeypatch.setattr(app.sync_engine("payments").dialect, "driver", "pg8000")
    await app.run(refused(r"uses postgresql\+pg8000, but undoubt supports only"))


async def test_no_postgresql(app: App) -> None:
    """An engine that cannot prepare."""
    other = sa.create_engine("sqlite://")
    binds: dict[Any, Any] = {Order: app.sync_engine("orders"), Payment: other}
    participants = {app.engines["orders"]: "orders", other: "payments"}

    def program(session: Session) -> None:
        made = type(session)(
            binds=binds,
            coordinator=app.coordinator,
            participants=participants,  # type: ignore[call-arg]
        )
        refused("is not PostgreSQL")(made)
        made.close()

    await app.run(program)
    other.dispose()


async def test_autocommit(world: World) -> None:
    async with application(world, isolation_level="AUTOCOMMIT") as app:

        def program(session: Session) -> None:
            session.add_all(both(1))
            with pytest.raises(UsageError, match="AUTOCOMMIT"):
                session.flush()
            with pytest.raises(Exception, match="AUTOCOMMIT"):
                session.commit()

        await app.run(program)
    assert await world.ids() == (set(), set())


async def test_arguments(app: App) -> None:
    with pytest.raises(UsageError, match="twophase"):
        app.made(twophase=True)
    with pytest.raises(UsageError, match="coordinator"):
        app.made(coordinator=object())


async def test_bound_to_a_connection(app: App) -> None:
    """Somebody else's transaction may be open in it."""

    def program(session: Session) -> None:
        with app.sync_engine("orders").connect() as connection:
            made: Any = type(session)(
                bind=connection,
                coordinator=app.coordinator,
                participants={app.engines["orders"]: "orders"},  # type: ignore[call-arg]
            )
            with pytest.raises(UsageError, match="bind it to engines"):
                made.execute(sa.text("select 1"))
            made.close()

    await app.run(program)


async def test_the_other_kind_of_coordinator(app: App, world: World) -> None:
    """A synchronous session would wait in the loop that has to answer it."""
    if not world.kind.startswith("sync"):
        pytest.skip("seen from the synchronous side")
    async with application(
        World("async psycopg", world.dsns, world.config | {"ledger": {"url": world.config["ledger"]["url"]}})
    ) as other:

        def program(session: Session) -> None:
            with pytest.raises(UsageError, match=r"undoubt\.sync\.connect"):
                session.execute(sa.text("select 1"), bind_arguments=PAYMENTS)
            session.rollback()

        await app.run(program, coordinator=other.coordinator)
