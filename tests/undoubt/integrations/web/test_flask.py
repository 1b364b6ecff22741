"""The extension of Flask: what fails around the view, sessions, processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import flask
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

import undoubt.sync
from tests.undoubt.integrations.web.flask_app import post
from tests.undoubt.integrations.web.shop import NOBODY, Shop, statements
from undoubt.errors import AlreadyCommitted, UsageError
from undoubt.integrations.flask import Undoubt
from undoubt.integrations.per_process import PerProcess
from undoubt.integrations.sqlalchemy import Session


def write(extension: Undoubt, number: int = 1, account: int = 1) -> None:
    for name, statement in statements(number, account).items():
        extension.transaction().branch(name).execute(statement.encode())


def test_a_failure_of_a_function_after_the_view_rolls_back(shop: Shop) -> None:
    """The functions of ``after_request`` run before the commit: what they raise becomes 500."""
    with undoubt.sync.connect(shop.settings) as coordinator:
        app = flask.Flask(__name__)
        extension = Undoubt(coordinator=coordinator)
        extension.init_app(app)

        @app.after_request
        def fails(_: flask.Response) -> flask.Response:
            raise ZeroDivisionError

        @app.post("/")
        def view() -> str:
            write(extension)
            return "placed"

        answered = post(app, "/")
    assert (answered.status, answered.outcome, shop.ids()) == (500, None, ([], []))


def test_a_failure_after_the_view_that_is_answered_as_a_success_changes_nothing(shop: Shop) -> None:
    """It is handled where the view's own errors are not."""
    with undoubt.sync.connect(shop.settings) as coordinator:
        app = flask.Flask(__name__)
        extension = Undoubt(app, coordinator=coordinator)

        @app.after_request
        def fails(_: flask.Response) -> flask.Response:
            raise ZeroDivisionError

        @app.errorhandler(500)
        def failed(_: Exception) -> str:
            return "sorry"

        @app.post("/")
        def view() -> str:
            write(extension)
            return "placed"

        answered = post(app, "/")
    assert (answered.status, answered.outcome, shop.ids()) == (200, "aborted", ([], []))


def test_the_extension_names_the_last_agent(shop: Shop) -> None:
    """Broken if one application of a process cannot choose its agent."""
    shop.make_last_agent("payments")
    with undoubt.sync.connect(shop.settings) as coordinator:
        app = flask.Flask(__name__)
        extension = Undoubt(app, coordinator=coordinator, agent="orders")

        @app.post("/")
        def view() -> str:
            write(extension)
            lease = extension.transaction().engine.lease
            return "" if lease.agent is None else lease.agent.participant

        answered = post(app, "/")
    assert (answered.status, answered.body, shop.ids()) == (200, b"orders", ([1], [1]))


def test_a_failure_after_the_commit_is_told_as_one(shop: Shop) -> None:
    """Functions of ``teardown_request`` run after it: a bare 500 would have the order placed again."""
    with undoubt.sync.connect(shop.settings) as coordinator:
        app = flask.Flask(__name__)
        extension = Undoubt(app, coordinator=coordinator)

        @app.teardown_request
        def fails(_: BaseException | None) -> None:
            raise ZeroDivisionError

        @app.post("/")
        def view() -> str:
            write(extension)
            return "placed"

        answered = post(app, "/")
    assert (answered.status, answered.outcome, shop.ids()) == (500, "committed", ([1], [1]))


def test_sessions_of_sqlalchemy_commit_before_the_response(shop: Shop) -> None:
    engines = {
        name: create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
        for name, dsn in shop.dsns.items()
    }
    with undoubt.sync.connect(shop.settings) as coordinator:
        sessions: Any = sessionmaker(
            class_=Session,
            coordinator=coordinator,
            participants={engine: name for name, engine in engines.items()},
        )
        app = flask.Flask(__name__)
        extension = Undoubt(app, coordinator=coordinator, sessions=sessions)

        @app.post("/<int:number>/<int:account>")
        def view(number: int, account: int) -> str:
            session = extension.session()
            for name, statement in statements(number, account).items():
                session.execute(text(statement), bind_arguments={"bind": engines[name]})
            return "placed"

        statuses = [post(app, f"/1/{NOBODY}").status, post(app, "/2/1").status]
        assert statuses == [409, 200]
        for engine in engines.values():
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            engine.dispose()
    assert shop.ids() == ([2], [2])


def test_a_repetition_in_a_session_is_not_told_as_an_abort(shop: Shop) -> None:
    """Broken if a view that finds its key used, rolls its session back and answers with the first result, is
    marked as one that has changed nothing: the first one has committed."""
    engine = create_engine(shop.dsns["orders"].replace("postgresql:", "postgresql+psycopg:"))
    with undoubt.sync.connect(shop.settings) as coordinator:
        options: Any = {"coordinator": coordinator, "participants": {engine: "orders"}, "key": "order-1"}
        app = flask.Flask(__name__)
        extension = Undoubt(
            app, coordinator=coordinator, sessions=sessionmaker(engine, class_=Session, **options)
        )

        @app.post("/")
        def view() -> str:
            session = extension.session()
            try:
                session.execute(text("insert into orders (id) values (1)"))
                session.undoubt_result = "placed"
            except AlreadyCommitted as error:
                session.rollback()
                assert session.undoubt_repeated
                return str(error.result)
            assert not session.undoubt_repeated
            return "placed"

        answers = [post(app, "/") for _ in range(2)]
        engine.dispose()
    assert [(each.status, each.body, each.outcome) for each in answers] == [(200, b"placed", None)] * 2
    assert shop.ids()[0] == [1]


def test_mistakes_are_told(shop: Shop) -> None:
    extension = Undoubt(flask.Flask(__name__), shop.settings)
    for function in (extension.transaction, extension.session):
        with pytest.raises(UsageError, match="no request here"):
            function()
    with pytest.raises(UsageError, match=r"undoubt\.sync\.connect"):
        Undoubt(coordinator=object())  # type: ignore[arg-type]


def test_a_hook_that_fails_does_not_hide_the_commit(shop: Shop) -> None:
    with undoubt.sync.connect(shop.settings) as coordinator:
        app = flask.Flask(__name__)
        extension = Undoubt(app, coordinator=coordinator)

        @app.post("/")
        def view() -> str:
            write(extension)
            extension.on_commit(lambda: 1 / 0)
            extension.on_commit(lambda: shop.after.append(1))
            return "placed"

        assert (post(app, "/").status, shop.after, shop.ids()) == (200, [1], ([1], [1]))


def test_a_hook_is_not_called_where_the_application_has_rolled_back(shop: Shop) -> None:
    """Broken if a request that rolled back by itself, and answers, tells others of a commit."""
    with undoubt.sync.connect(shop.settings) as coordinator:
        app = flask.Flask(__name__)
        extension = Undoubt(app, coordinator=coordinator)

        @app.post("/<int:number>")
        def view(number: int) -> str:
            write(extension, number)
            extension.on_commit(lambda: shop.after.append(number))
            if number == 1:
                extension.transaction().rollback()
            return "answered"

        assert [post(app, f"/{number}").status for number in (1, 2)] == [200, 200]
    assert (shop.after, shop.ids()) == ([2], ([2], [2]))


def test_each_process_opens_its_own_coordinator(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that used its parent's would speak for the parent's transactions; a server forks its workers."""
    process = PerProcess(shop.settings)
    parents = process.get()
    assert process.get() is parents
    with monkeypatch.context() as forked:
        forked.setattr("undoubt.integrations.per_process.os", SimpleNamespace(getpid=lambda: -1))
        forked.setattr("undoubt.sync.connect", lambda _: "another")
        assert str(process.get()) == "another"
    parents.close()


def test_a_coordinator_is_closed_with_its_process(shop: Shop) -> None:
    process = PerProcess(shop.settings)
    first = process.get()
    process.close()
    assert process.get() is not first
    process.close()


def test_a_hook_that_nothing_would_await_is_refused(shop: Shop) -> None:
    """Broken if a coroutine function is taken, called, and does nothing."""
    refused = []

    async def coroutine() -> None: ...

    with undoubt.sync.connect(shop.settings) as coordinator:
        app = flask.Flask(__name__)
        extension = Undoubt(app, coordinator=coordinator)

        @app.post("/")
        def view() -> str:
            for hook in (coroutine, None, "x"):
                with pytest.raises(UsageError, match=r"on_commit\(\)") as told:
                    extension.on_commit(hook)  # type: ignore[arg-type]
                refused.append(told.value)
            return "placed"

        assert post(app, "/").status == 200
    assert len(refused) == 3


def test_what_fails_behind_a_commit_is_not_told_as_aborted(shop: Shop) -> None:
    """Broken if the client of a request that has committed reads that it has changed nothing."""
    engines = {
        name: create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
        for name, dsn in shop.dsns.items()
    }

    class Closing(Session):
        def close(self) -> None:
            super().close()
            raise ZeroDivisionError

    with undoubt.sync.connect(shop.settings) as coordinator:
        participants = {engine: name for name, engine in engines.items()}
        app = flask.Flask(__name__)
        extension = Undoubt(
            app,
            coordinator=coordinator,
            sessions=lambda: Closing(coordinator=coordinator, participants=participants),
        )

        @app.post("/")
        def view() -> str:
            session = extension.session()
            for name, statement in statements(1, 1).items():
                session.execute(text(statement), bind_arguments={"bind": engines[name]})
            return "placed"

        answered = post(app, "/")
        assert (answered.status, answered.outcome) == (500, "unknown")
        for engine in engines.values():
            engine.dispose()
    assert shop.ids() == ([1], [1])
