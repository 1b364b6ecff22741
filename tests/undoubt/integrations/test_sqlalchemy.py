"""A unit of work over two databases and one commit, as an application of SQLAlchemy's sees it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

import undoubt
from tests.undoubt.integrations.conftest import App, Order, Payment, World, application
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

PAYMENTS = {"mapper": Payment}


def both(number: int, amount: int = 1) -> list[Any]:
    return [Order(id=number, item="a lamp"), Payment(id=number, amount=amount)]


def watch(session: Session) -> list[str]:
    """The events of a session, as they come."""
    seen: list[str] = []
    for name in ("before_commit", "after_commit", "after_rollback"):
        event.listen(session, name, lambda *_, name=name: seen.append(name))
    return seen


async def test_commit(app: App, world: World) -> None:
    """Else nothing works: both or neither, flush and events in their order, objects read again afterwards."""

    def program(session: Session) -> list[str]:
        seen = watch(session)
        session.add_all(both(1))
        session.flush()
        session.add(Payment(id=2, amount=2))  # flushed by the commit
        session.commit()
        payment = session.get_one(Payment, 1)
        assert seen == ["before_commit", "after_commit"]
        payment.amount = 7
        session.commit()
        assert not sa.inspect(payment).session.in_transaction()  # type: ignore[union-attr]
        assert sa.inspect(payment).expired_attributes == {"id", "amount"}
        assert payment.amount == 7
        return seen

    await app.run(program)
    assert await world.ids() == ({1}, {1, 2})
    assert await world.prepared() == []


async def test_one_database_takes_one_phase(app: App, world: World) -> None:
    """A unit of work in one database needs no PREPARE and no ledger; one that reads the other neither."""

    def program(session: Session) -> None:
        session.add(Order(id=1, item="a lamp"))
        session.commit()
        session.add(Order(id=2, item="a lamp"))
        assert session.scalars(sa.select(Payment)).all() == []
        session.commit()

    await app.run(program)
    assert await world.ids() == ({1, 2}, set())
    assert "before_prepare" not in world.seen
    assert "before_decide" not in world.seen


async def test_swallowed_error(app: App, world: World) -> None:
    """What SQLAlchemy's own twophase makes half a commit of."""

    def program(session: Session) -> list[str]:
        seen = watch(session)
        session.add_all(both(1))
        session.flush()
        with contextlib.suppress(sa.exc.DBAPIError):
            session.execute(sa.text("select 1/0"), bind_arguments=PAYMENTS)
        with pytest.raises(undoubt.TransactionAborted, match="swallowed"):
            session.commit()
        session.rollback()
        session.add_all(both(2))
        session.commit()
        return seen

    assert await app.run(program) == ["before_commit", "after_rollback", "before_commit", "after_commit"]
    assert await world.ids() == ({2}, {2})


async def test_a_connection_that_the_application_has_rolled_back(app: App, world: World) -> None:
    """Broken if the error is hidden behind a warning, which is an error here, of the second end."""

    def program(session: Session) -> None:
        session.add_all(both(1))
        session.flush()
        session.connection(bind_arguments=PAYMENTS).rollback()
        with pytest.raises(undoubt.TransactionAborted, match="ended by the application"):
            session.commit()
        session.rollback()
        session.add_all(both(2))
        session.commit()

    await app.run(program)
    assert await world.ids() == ({2}, {2})


@pytest.mark.parametrize("how", ["rollback", "close", "raise", "raise in begin", "flush fails"])
async def test_roll_back(app: App, world: World, how: str) -> None:
    """Nothing of it stays, in either, and the connections are usable at once."""

    def program(session: Session) -> None:
        if how == "raise in begin":
            with session.begin():
                session.add_all(both(1))
                session.flush()
                raise KeyError("mine")
        session.add_all(both(1, amount=-1 if how == "flush fails" else 1))
        session.flush()
        match how:
            case "rollback":
                session.rollback()
                assert session.scalars(sa.select(Order)).all() == []
            case "raise":
                raise KeyError("mine")
            case _:
                pass

    expected = {"raise": KeyError, "raise in begin": KeyError, "flush fails": sa.exc.IntegrityError}
    with pytest.raises(expected[how]) if how in expected else contextlib.nullcontext():
        await app.run(program)
    assert await world.ids() == (set(), set())
    for number in (10, 11, 12):
        await app.run(lambda session, number: (session.add_all(both(number)), session.commit()), number)
    assert await world.ids() == ({10, 11, 12}, {10, 11, 12})


async def test_nested(app: App, world: World) -> None:
    """begin_nested is a savepoint in each database, and its failure costs nothing around it."""

    def program(session: Session) -> None:
        with session.begin():
            session.add_all(both(1))
            with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
                session.add_all(both(2, amount=-1))
            with session.begin_nested():
                session.add_all(both(3))

    await app.run(program)
    assert await world.ids() == ({1, 3}, {1, 3})


async def test_first_use_inside_a_savepoint(app: App, world: World) -> None:
    """The branch is the outermost transaction's, not the savepoint's."""

    def program(session: Session) -> None:
        nested = session.begin_nested()
        session.add_all(both(1))
        session.flush()
        nested.commit()
        session.commit()

    await app.run(program)
    assert await world.ids() == ({1}, {1})


async def test_the_pool_gets_back_what_it_gave(app: App, world: World) -> None:
    """A name, a timeout, a marker or a lock left behind would be the next user's, who knows nothing of us;
    a connection thrown away each time would be a new one for every commit."""
    probe = sa.text(
        "select pg_backend_pid(), current_setting('application_name'), current_setting('lock_timeout'),"
        " current_setting('idle_in_transaction_session_timeout'),"
        " coalesce(current_setting('undoubt.tx', true), '')"
    )

    def look(session: Session) -> list[Any]:
        seen = []
        for name in ("orders", "payments"):
            with app.sync_engine(name).connect() as connection:
                seen.append(tuple(connection.execute(probe).one()))
        return seen

    def program(session: Session, number: int, fails: bool) -> None:
        session.add_all(both(number, amount=1))
        session.flush()
        if fails:
            with contextlib.suppress(sa.exc.DBAPIError):
                session.execute(sa.text("select 1/0"), bind_arguments=PAYMENTS)
            with pytest.raises(undoubt.TransactionAborted):
                session.commit()
        else:
            session.commit()

    before = await app.run(look)
    for number in range(1, 5):
        await app.run(program, number, number % 2 == 0)
    after = await app.run(look)
    assert after == before
    for name in ("orders", "payments"):
        assert app.sync_engine(name).pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_what_the_engine_is_set_up_to(world: World) -> None:
    """The isolation level of an engine holds in its branches, and a serializable reader is prepared."""
    async with application(world, isolation_level="SERIALIZABLE") as app:

        def program(session: Session) -> str:
            session.add_all(both(1))
            session.flush()
            level = session.scalar(sa.text("show transaction_isolation"), bind_arguments=PAYMENTS)
            session.commit()
            return str(level)

        assert await app.run(program) == "serializable"
    assert await world.ids() == ({1}, {1})


async def test_three_phase_commit(app: App, world: World) -> None:
    """The protocol is the coordinator's business, whosever the connections are."""
    for name, dsn in world.dsns.items():
        await migrate(name, ParticipantSettings(dsn=dsn))

    def program(session: Session) -> None:
        session.add_all(both(1))
        session.commit()

    await app.run(program, protocol="3pc")
    assert "before_precommit" in world.seen
    assert await world.ids() == ({1}, {1})
    assert await world.prepared() == []


async def test_core_statements_of_the_session_belong_to_it(app: App, world: World) -> None:
    """session.connection() is inside the branch as well."""

    def program(session: Session) -> None:
        session.add(Order(id=1, item="a lamp"))
        connection = session.connection(bind_arguments=PAYMENTS)
        connection.execute(sa.insert(Payment.__table__).values(id=1, amount=1))  # type: ignore[arg-type]
        session.rollback()
        session.add(Order(id=2, item="a lamp"))
        connection = session.connection(bind_arguments=PAYMENTS)
        connection.execute(sa.insert(Payment.__table__).values(id=2, amount=1))  # type: ignore[arg-type]
        session.commit()

    await app.run(program)
    assert await world.ids() == ({2}, {2})


async def test_a_repeated_key_is_told_at_the_first_statement(app: App, world: World) -> None:
    """An order would be made twice; or a session that has done nothing would be told that it is aborted."""

    def program(session: Session) -> Any:
        session.add_all(both(1))
        session.flush()
        session.undoubt_result = {"order": 1}  # type: ignore[attr-defined]
        session.commit()
        return session.undoubt_txid  # type: ignore[attr-defined]

    def again(session: Session) -> tuple[Any, Any]:
        session.add_all(both(2))
        with pytest.raises(undoubt.errors.AlreadyCommitted) as caught:
            session.flush()
        with pytest.raises((undoubt.errors.AlreadyCommitted, sa.exc.InvalidRequestError)):
            session.commit()
        session.rollback()
        assert not session.undoubt_may_have_committed  # type: ignore[attr-defined]
        return caught.value.txid, caught.value.result

    first = await app.run(program, key="order-42")
    assert await app.run(again, key="order-42") == (first, {"order": 1})
    assert await world.ids() == ({1}, {1})
    await app.run(lambda session: session.add_all(both(3)) or session.commit(), key="order-43")
    assert await world.ids() == ({1, 3}, {1, 3})
    assert await world.prepared() == []


async def test_last_agent_commit_of_a_session(app: App, world: World) -> None:
    """Broken if the connection of a session cannot be the agent's, or its row is committed without the
    other's."""
    for name, dsn in world.dsns.items():
        await migrate(name, ParticipantSettings(dsn=dsn))

    def program(session: Session, number: int) -> None:
        session.add_all(both(number))
        session.commit()

    await app.run(program, 1, protocol="last", agent="payments")
    assert await world.ids() == ({1}, {1})
    assert "after_agent" in world.seen
    with pytest.raises(sa.exc.IntegrityError):
        await app.run(program, 1, protocol="last", agent="orders")
    assert await world.ids() == ({1}, {1})
    assert await world.prepared() == []
