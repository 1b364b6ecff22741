"""A transaction of zope commits in all databases or in none, beside its other data managers."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import transaction
import zope.sqlalchemy
from sqlalchemy import create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker
from werkzeug.test import Client

import undoubt.sync
from tests.undoubt.integrations.web.client import Failed
from tests.undoubt.integrations.web.shop import NOBODY, Shop, statements
from undoubt.coordinator.errors import DistributedDeadlock
from undoubt.errors import UsageError
from undoubt.integrations.sqlalchemy import Session
from undoubt.integrations.zope import DataManager, join
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # WebOb uses module cgi
    from pyramid.config import Configurator
    from pyramid.response import Response


@pytest.fixture
def coordinator(shop: Shop) -> Iterator[undoubt.sync.Coordinator]:
    with undoubt.sync.connect(shop.settings, observe=shop.observe, recover=False) as opened:
        yield opened
        transaction.abort()


def write(manager: DataManager, number: int, account: int = 1) -> None:
    for name, statement in statements(number, account).items():
        manager.branch(name).execute(statement.encode())


class Other:
    """Another data manager, which notes its calls and may fail in one of them."""

    transaction_manager = transaction.manager

    def __init__(self, key: str, fails: str = "") -> None:
        self._key = key
        self._fails = fails
        self.calls: list[str] = []

    def sortKey(self) -> str:
        return self._key

    def __getattr__(self, name: str) -> Any:
        if name not in {"tpc_begin", "commit", "tpc_vote", "tpc_finish", "tpc_abort", "abort"}:
            raise AttributeError(name)

        def called(_: Any) -> None:
            self.calls.append(name)
            if name == self._fails:
                raise Failed

        return called


def test_a_transaction_commits_by_its_last_agent(shop: Shop) -> None:
    """Broken if the COMMIT of the agent comes before the vote of another data manager."""
    shop.make_last_agent("payments")
    with undoubt.sync.connect(shop.settings, observe=shop.observe, recover=False) as coordinator:
        for number, fails in enumerate(("tpc_vote", "")):
            with nullcontext() if not fails else pytest.raises(Failed), transaction.manager as current:
                current.join(Other("a", fails=fails))
                write(join(coordinator, protocol="last", agent="orders"), number)
    assert (shop.ids(), shop.prepared()) == (([1], [1]), [])
    assert shop.seen.count("after_agent") == 1


@pytest.mark.parametrize("key", ["~\x7f", "\u00e9", "\U0010ffff"])
def test_every_other_manager_votes_before_the_commit(
    shop: Shop, coordinator: undoubt.sync.Coordinator, key: str
) -> None:
    """Broken if the databases have committed when another data manager votes against it."""
    other = Other(key, fails="tpc_vote")
    expected: type[Exception] = UsageError if key.startswith("~") else Failed
    with pytest.raises(expected), transaction.manager as current:
        current.join(other)
        write(join(coordinator), 1)
    assert (shop.ids(), shop.prepared()) == (([], []), [])


def test_a_manager_that_votes_later_is_refused(shop: Shop, coordinator: undoubt.sync.Coordinator) -> None:
    other = Other("\U0010ffff" * 99)
    with pytest.raises(UsageError, match="votes after undoubt has committed"), transaction.manager as current:
        current.join(other)
        write(join(coordinator), 1)
    assert "tpc_vote" not in other.calls
    assert (shop.ids(), shop.prepared()) == (([], []), [])


def test_a_transaction_commits_in_both(shop: Shop, coordinator: undoubt.sync.Coordinator) -> None:
    with transaction.manager:
        write(join(coordinator), 1)
        assert join(coordinator) is join(coordinator)
    assert shop.ids() == ([1], [1])
    with pytest.raises(Failed), transaction.manager:
        write(join(coordinator), 2)
        raise Failed
    assert (shop.ids(), shop.prepared()) == (([1], [1]), [])


def test_what_prepare_refuses_aborts_the_others(shop: Shop, coordinator: undoubt.sync.Coordinator) -> None:
    """The vote of undoubt is the last one, so that its failure is still everybody's."""
    other = Other("zzz")
    transaction.get().join(other)
    write(join(coordinator), 1, NOBODY)
    with pytest.raises(undoubt.TransactionAborted):
        transaction.commit()
    transaction.abort()
    assert "tpc_finish" not in other.calls
    assert "tpc_abort" in other.calls
    assert shop.ids() == ([], [])


@pytest.mark.parametrize("fails", ["tpc_begin", "commit", "tpc_vote"])
def test_another_data_manager_that_fails_aborts_the_databases(
    shop: Shop, coordinator: undoubt.sync.Coordinator, fails: str
) -> None:
    transaction.get().join(Other("zzz", fails))
    write(join(coordinator), 1)
    with pytest.raises(Failed):
        transaction.commit()
    transaction.abort()
    assert (shop.ids(), shop.prepared()) == (([], []), [])
    assert "before_decide" not in shop.seen


def test_a_second_manager_of_one_phase_is_refused_before_any_vote(
    shop: Shop, coordinator: undoubt.sync.Coordinator
) -> None:
    """Beside a plain session of SQLAlchemy one of both could fail after the other has committed."""
    other = Other("~sqlalchemy:1")
    transaction.get().join(other)
    write(join(coordinator), 1)
    with pytest.raises(UsageError, match=r"class_=undoubt\.integrations\.sqlalchemy\.Session"):
        transaction.commit()
    transaction.abort()
    assert "tpc_vote" not in other.calls
    assert shop.ids() == ([], [])


def test_savepoints_are_of_all_branches(shop: Shop, coordinator: undoubt.sync.Coordinator) -> None:
    """Also of a branch that is opened after the savepoint: all that it has done is undone."""
    with transaction.manager:
        manager = join(coordinator)
        manager.branch("orders").execute("insert into orders (id) values (1)")
        before = transaction.savepoint()
        write(manager, 2)
        before.rollback()
        manager.branch("payments").execute("insert into payments (id, account) values (3, 1)")
        inner = transaction.savepoint()
        with pytest.raises(psycopg.errors.UniqueViolation):
            manager.branch("orders").execute("insert into orders (id) values (1)")
        inner.rollback()
    assert shop.ids() == ([1], [3])


def test_savepoints_are_of_branches_that_the_transaction_opens(
    shop: Shop, coordinator: undoubt.sync.Coordinator
) -> None:
    """Broken if a message is sent, or a row stays, whose savepoint was rolled back: ``tx.publish`` and
    ``tx.branch`` open branches too."""
    for name, dsn in shop.dsns.items():
        asyncio.run(migrate(name, ParticipantSettings(dsn=dsn)))
    with transaction.manager:
        manager = join(coordinator)
        before = transaction.savepoint()
        manager.tx.publish("orders", "never")
        manager.tx.branches("payments")[0].execute("insert into payments (id, account) values (1, 1)")
        before.rollback()
        manager.tx.publish("orders", "kept")
    assert [
        row[0].tobytes() if isinstance(row[0], memoryview) else row[0]
        for row in shop.rows("orders", "select payload from undoubt.undoubt_outbox")
    ] == [b"kept"]
    assert shop.ids() == ([], [])


def test_outcomes_are_told(
    shop: Shop, coordinator: undoubt.sync.Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown outcome is raised as one, and no ``attempts`` runs the transaction again."""
    monkeypatch.setattr("undoubt.coordinator.transaction.VOTING_GRACE_S", 0.0)
    shop.hold_at = "before_decide"
    manager = join(coordinator, timeout=1.0)
    write(manager, 1)
    with pytest.raises(undoubt.OutcomeUnknown) as raised:
        transaction.commit()
    assert not manager.should_retry(raised.value)
    transaction.abort()
    shop.go_on.set()
    shop.wait_for(lambda: shop.ids() == ([1], [1]))


def test_deadlocks_may_be_tried_again(shop: Shop, coordinator: undoubt.sync.Coordinator) -> None:
    manager = join(coordinator)
    deadlock = DistributedDeadlock(manager.tx.id, ["1"], ["orders"])
    assert manager.should_retry(undoubt.TransactionAborted(manager.tx.id, deadlock))
    assert not manager.should_retry(undoubt.TransactionAborted(manager.tx.id, "another"))


def test_a_deadlock_that_another_process_ends_is_tried_again(
    shop: Shop, coordinator: undoubt.sync.Coordinator
) -> None:
    """Broken if its victim hears of a cancelled statement, and ``attempts`` gives up."""
    tries = 0
    for attempt in transaction.manager.attempts(3):
        with attempt:
            tries += 1
            manager = join(coordinator)
            write(manager, tries)
            if tries == 1:
                found = DistributedDeadlock(manager.tx.id, ["1", "orders/2"], ["orders", "payments"])
                coordinator.portal.call(coordinator.engine.ledger.doom, manager.tx.id, str(found))
                manager.branch("orders").execute(
                    b"do $$ begin perform pg_cancel_backend(pg_backend_pid()); perform pg_sleep(600); end $$"
                )
    assert (tries, shop.ids()) == (2, ([2], [2]))


def test_two_coordinators_are_refused(shop: Shop, coordinator: undoubt.sync.Coordinator) -> None:
    join(coordinator)
    with pytest.raises(UsageError, match="another coordinator"):
        join(object.__new__(undoubt.sync.Coordinator))


def test_pyramid_answers_after_the_commit(shop: Shop, coordinator: undoubt.sync.Coordinator) -> None:
    """By pyramid_tm; what its commit raises becomes an error of the application."""

    def view(request: Any) -> Response:
        account = int(request.matchdict["account"])
        write(join(coordinator, request.tm), int(request.matchdict["number"]), account)
        return Response("placed")

    with Configurator(settings={"tm.manager_hook": "pyramid_tm.explicit_manager"}) as config:
        config.include("pyramid_tm")
        config.add_route("place", "/{number}/{account}")
        config.add_view(view, route_name="place")
        client = Client(config.make_wsgi_app())
    assert client.get("/1/1").data == b"placed"
    with pytest.raises(undoubt.TransactionAborted):
        client.get(f"/2/{NOBODY}")
    assert shop.ids() == ([1], [1])


@pytest.mark.parametrize("account", [1, NOBODY])
def test_applications_of_zope_sqlalchemy_change_a_line(
    shop: Shop, coordinator: undoubt.sync.Coordinator, account: int
) -> None:
    """The class of their sessions; ``register`` and ``transaction.commit()`` stay."""
    engines = {
        name: create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
        for name, dsn in shop.dsns.items()
    }
    options: dict[str, Any] = {
        "participants": {engine: name for name, engine in engines.items()},
        "coordinator": coordinator,
    }
    made: Any = scoped_session(sessionmaker(class_=Session, **options))
    zope.sqlalchemy.register(made)
    for name, statement in statements(1, account).items():
        made.execute(text(statement), bind_arguments={"bind": engines[name]})
    zope.sqlalchemy.mark_changed(made())
    if account == NOBODY:
        with pytest.raises(undoubt.TransactionAborted):
            transaction.commit()
        transaction.abort()
    else:
        transaction.commit()
    assert shop.ids() == (([], []) if account == NOBODY else ([1], [1]))
    assert "before_prepare" in shop.seen
    made.remove()
    for engine in engines.values():
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        engine.dispose()


@pytest.fixture
def engines(shop: Shop) -> Iterator[dict[str, sa.Engine]]:
    made = {
        name: sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
        for name, dsn in shop.dsns.items()
    }
    yield made
    transaction.abort()
    for engine in made.values():
        engine.dispose()


@pytest.mark.parametrize("kind", ["undoubt's", "plain"])
@pytest.mark.parametrize("first", ["orders", "payments"])
def test_a_second_session_that_writes_is_refused_before_any_vote(
    shop: Shop, coordinator: undoubt.sync.Coordinator, engines: dict[str, sa.Engine], kind: str, first: str
) -> None:
    """Each session would commit alone, and the second could fail after the first has committed."""
    other = Other("aaa")
    own: Any = sessionmaker(
        class_=Session,
        coordinator=coordinator,
        participants={engines["orders"]: "orders"},
        bind=engines["orders"],
    )
    options: Any = {"bind": engines["payments"]}
    if kind == "undoubt's":
        options |= {"class_": Session, "coordinator": coordinator}
        options["participants"] = {engines["payments"]: "payments"}
    made: dict[str, Any] = {"orders": own, "payments": sessionmaker(**options)}
    for each in made.values():
        zope.sqlalchemy.register(each)
    transaction.get().join(other)
    sessions = {name: made[name]() for name in sorted(made, reverse=first == "payments")}
    for name, session in sessions.items():
        session.execute(text(statements(1)[name]))
        zope.sqlalchemy.mark_changed(session)
    with pytest.raises(UsageError, match="each commits by itself"):
        transaction.commit()
    transaction.abort()
    assert "tpc_vote" not in other.calls
    assert (shop.ids(), shop.prepared()) == (([], []), [])


def test_a_session_that_only_reads_may_be_beside_one_that_writes(
    shop: Shop, coordinator: undoubt.sync.Coordinator, engines: dict[str, sa.Engine]
) -> None:
    """And beside ``join``. It has nothing that could fail."""
    own: Any = sessionmaker(
        class_=Session,
        coordinator=coordinator,
        participants={engines["orders"]: "orders"},
        bind=engines["orders"],
    )
    reader: Any = sessionmaker(bind=engines["payments"])
    for each in (own, reader):
        zope.sqlalchemy.register(each)
    for number in (1, 2):
        with transaction.manager:
            reading = reader()
            assert reading.execute(text("select count(*) from payments")).scalar() == 0
            if number == 1:
                session = own()
                before = transaction.savepoint()
                session.execute(text(statements(99)["orders"]))
                before.rollback()
                session = own()
                session.execute(text(statements(1)["orders"]))
                zope.sqlalchemy.mark_changed(session)
            else:
                join(coordinator).branch("orders").execute(statements(2)["orders"].encode())
    assert shop.ids() == ([1, 2], [])
