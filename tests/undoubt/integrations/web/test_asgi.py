"""The middleware under a server: lifespans, clients that go away, applications that are set up wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI

import undoubt
from tests.undoubt.integrations.web import quart_app
from tests.undoubt.integrations.web.client import act, act_in_thread
from tests.undoubt.integrations.web.shop import Shop
from tests.undoubt.integrations.web.starlette_app import application, serve
from undoubt.errors import CoordinatorClosed, UsageError
from undoubt.integrations.asgi import (
    CommitBeforeResponse,
    coordinator,
    on_commit,
    session,
    sync_transaction,
    transaction,
)

SCOPE = {"type": "http", "method": "POST", "path": "/order/1", "headers": [], "query_string": b""}
Sent = list[dict[str, Any]]


async def nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def request(app: Any, sent: Sent) -> None:
    async def send(message: Any) -> None:
        sent.append(message)

    await app(dict(SCOPE), nothing, send)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not what():
            await asyncio.sleep(0.01)


async def test_a_request_that_is_cancelled_in_its_handler_changes_nothing(shop: Shop) -> None:
    """Servers cancel requests whose client has gone."""
    at_work = asyncio.Event()

    async def app(*_: Any) -> None:
        await act(await transaction(), "order", 1)
        at_work.set()
        await asyncio.Event().wait()

    async with undoubt.connect(shop.settings) as opened:
        sent: Sent = []
        task = asyncio.create_task(request(CommitBeforeResponse(app, coordinator=opened), sent))
        await at_work.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (sent, shop.ids(), shop.prepared()) == ([], ([], []), [])


@pytest.mark.parametrize("threads", [False, True])
async def test_a_request_that_is_cancelled_in_its_commit_is_committed(
    shop: Shop, threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that was begun is finished, and its client is told nothing."""
    shop.hold_at = "before_decide"

    async def app(_: Any, __: Any, send: Any) -> None:
        if threads:
            await asyncio.to_thread(lambda: act_in_thread(sync_transaction(), "order", 1))
        else:
            await act(await transaction(), "order", 1)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: Sent = []
    middleware: list[Any] = []

    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)
            return
        middleware.append(scope)
        task = asyncio.create_task(request(whole, sent))
        await until(shop.held.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        shop.go_on.set()

    whole = CommitBeforeResponse(lifespan, shop.settings, threads=threads)
    await whole({"type": "lifespan"}, nothing, _ignored)
    assert middleware
    await until(lambda: shop.ids() == ([1], [1]))
    assert sent == []


async def test_a_hook_is_not_called_where_the_application_has_rolled_back(shop: Shop) -> None:
    """Broken if a request that rolled back by itself, and answers, tells others of a commit."""

    async def app(_: Any, __: Any, send: Any) -> None:
        tx = await transaction()
        await act(tx, "order", 1)
        on_commit(lambda: shop.after.append(1))
        await tx.rollback()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async with undoubt.connect(shop.settings) as opened:
        sent: Sent = []
        await request(CommitBeforeResponse(app, coordinator=opened), sent)
    assert [message["status"] for message in sent] == [200]
    assert (shop.after, shop.ids()) == ([], ([], []))


async def test_outer_middleware_reads_what_the_application_puts_into_the_scope(shop: Shop) -> None:
    """Metrics and traces are labelled with the route, which Starlette puts there."""
    seen: list[Any] = []

    async def app(scope: Any, _: Any, send: Any) -> None:
        scope.update({"endpoint": act}, path_params={})
        scope["route"] = scope.setdefault("state", "/order")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async with undoubt.connect(shop.settings) as opened:
        scope: dict[str, Any] = dict(SCOPE)

        async def send(_: Any) -> None:
            seen.extend(scope.get(name) for name in ("endpoint", "path_params", "state", "route"))

        await CommitBeforeResponse(app, coordinator=opened)(scope, nothing, send)
    assert seen == [act, {}, "/order", "/order"]


async def test_a_failure_after_the_handler_that_is_answered_as_a_success(shop: Shop) -> None:
    """Quart handles it where the handler's own errors are not."""
    async with undoubt.connect(shop.settings) as opened:
        app = quart_app.application(shop, coordinator=opened)

        @app.after_request
        async def fails(_: Any) -> Any:
            raise ZeroDivisionError

        @app.errorhandler(500)
        async def failed(_: Exception) -> str:
            return "sorry"

        answered = await app.test_client().post("/order/1")
    assert (answered.status_code, answered.headers["Undoubt-Outcome"]) == (200, "aborted")
    assert shop.ids() == ([], [])


async def _ignored(_: Any) -> None:
    pass


async def test_the_end_of_the_lifespan_is_told_when_the_coordinator_is_closed(shop: Shop) -> None:
    """The server may stop the loop then, and with it a commit that is still going on."""
    opened: list[Any] = []
    told: list[str] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        opened.append(whole.coordinator)
        await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message: Any) -> None:
        if message["type"] == "lifespan.shutdown.complete":
            with pytest.raises(CoordinatorClosed):
                opened[0].transaction()
        told.append(message["type"])

    whole = CommitBeforeResponse(app, shop.settings)
    await whole({"type": "lifespan"}, nothing, send)
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_server_is_told_why_the_application_cannot_start(tmp_path: Path) -> None:
    """An exception would be taken for an application without a lifespan, and the server would go on."""
    told: Sent = []

    async def send(message: Any) -> None:
        told.append(message)

    await CommitBeforeResponse(_unreachable, {"ledger": {"url": f"sqlite:///{tmp_path}/nowhere/x"}})(
        {"type": "lifespan"}, nothing, send
    )
    assert [each["type"] for each in told] == ["lifespan.startup.failed"]
    assert "nowhere" in told[0]["message"]


async def _unreachable(*_: Any) -> None:
    raise AssertionError


async def test_mistakes_are_told_with_the_way_out(shop: Shop) -> None:
    for function in (sync_transaction, session, coordinator):
        with pytest.raises(UsageError, match="no request here"):
            function()
    with pytest.raises(UsageError, match="no request here"):
        await transaction()
    with pytest.raises(UsageError, match="run the application with its lifespan"):
        await request(application(shop, source=shop.settings), [])
    sent: Sent = []

    async def app(*_: Any) -> None:
        with pytest.raises(UsageError, match=r"undoubt\.sync\.connect and sync_transaction"):
            sync_transaction()
        with pytest.raises(UsageError, match="sessions=sessionmaker"):
            session()
        await transaction()
        assert await transaction() is await transaction()
        with pytest.raises(UsageError, match="in a transaction already"):
            session()
        assert coordinator() is opened

    async with undoubt.connect(shop.settings) as opened:
        await request(CommitBeforeResponse(app, coordinator=opened), sent)
        assert opened.live == {}  # it sent no response, and so nothing of it is left
    assert sent == []


def test_a_dependency_with_yield_commits_after_the_response(shop: Shop) -> None:
    """What docs/frameworks.md says of FastAPI without the middleware: 200 for what is aborted."""
    app = FastAPI()
    raised: list[BaseException] = []

    async def too_late() -> AsyncIterator[undoubt.Transaction]:
        async with undoubt.connect(shop.settings) as opened:
            try:
                async with opened.transaction() as tx:
                    yield tx
            except undoubt.TransactionAborted as error:
                raised.append(error)
                raise

    dependency = Depends(too_late)

    @app.post("/late")
    async def late(tx: undoubt.Transaction = dependency) -> dict[str, int]:
        await act(tx, "late", 1)
        return {"placed": 1}

    with serve(app) as client:
        answered = client("/late")
    assert (answered.status, answered.told) == (200, {"placed": 1})
    assert len(raised) == 1
    assert shop.ids() == ([], [])
