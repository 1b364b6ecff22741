"""The application of FastAPI: with coroutines, with threads, and with sessions of SQLAlchemy."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import undoubt
import undoubt.sync
from tests.undoubt.integrations.web.client import (
    Client,
    Handled,
    account_of,
    act,
    act_in_thread,
    raise_as_told,
)
from tests.undoubt.integrations.web.shop import Shop, statements
from tests.undoubt.integrations.web.starlette_app import handled, late_body, serve
from undoubt.integrations.fastapi import CommitBeforeResponse, SyncTx, Tx, WorkSession
from undoubt.integrations.sqlalchemy import AsyncSession


def respond(shop: Shop, what: str, number: int, tasks: BackgroundTasks) -> Any:
    if what in {"refuses", "commits-422"}:
        raise HTTPException(422)
    if what == "redirects":
        raise HTTPException(303, headers={"location": "/idle"})
    if what.startswith("background"):
        tasks.add_task(shop.after.append, number)
    return {"placed": "a lamp" if what == "unserializable" else number}


def idle() -> dict[str, int]:
    return {}


@contextmanager
def run(shop: Shop) -> Iterator[Client]:
    app = FastAPI()
    app.add_middleware(CommitBeforeResponse, source=shop.settings, timeout=shop.timeout_s)
    app.post("/idle")(idle)
    app.add_exception_handler(Handled, handled)

    @app.post("/stream/{number}")
    async def stream(number: int, tx: Tx) -> StreamingResponse:
        await act(tx, "stream", number)
        return StreamingResponse(late_body(number))

    @app.post("/{what}/{number}")
    async def handler(what: str, number: int, tx: Tx, tasks: BackgroundTasks) -> dict[str, int]:
        await act(tx, what, number)
        return respond(shop, what, number, tasks)  # type: ignore[no-any-return]

    with serve(app) as client:
        yield client


@contextmanager
def run_threads(shop: Shop) -> Iterator[Client]:
    app = FastAPI()
    app.add_middleware(CommitBeforeResponse, source=shop.settings, threads=True, timeout=shop.timeout_s)
    app.post("/idle")(idle)
    app.add_exception_handler(Handled, handled)

    @app.post("/stream/{number}")
    def stream(number: int, tx: SyncTx) -> StreamingResponse:
        act_in_thread(tx, "stream", number)

        def body() -> Iterator[str]:
            try:
                act_in_thread(tx, "order", number + 1000)
            except undoubt.UndoubtError:
                yield "UsageError"
            else:
                yield "written"

        return StreamingResponse(body())

    @app.post("/{what}/{number}")
    def handler(what: str, number: int, tx: SyncTx, tasks: BackgroundTasks) -> dict[str, int]:
        act_in_thread(tx, what, number)
        return respond(shop, what, number, tasks)  # type: ignore[no-any-return]

    with serve(app) as client:
        yield client


async def act_in_session(session: AsyncSession, what: str, number: int) -> None:
    async def execute(name: str, statement: str) -> None:
        await session.execute(text(statement), bind_arguments={"bind": session.info[name]})

    for name, statement in statements(number, account_of(what)).items():
        await execute(name, statement)
    if what == "swallows":
        with contextlib.suppress(SQLAlchemyError):
            await execute("payments", "select 1/0")
    if what == "rolls-back":
        await session.rollback()
    if what.startswith("commits"):
        await session.commit()
    raise_as_told(what)


@contextmanager
def run_sessions(shop: Shop) -> Iterator[Client]:
    """The application opens coordinator and engines by itself."""
    engines = {
        create_async_engine(dsn.replace("postgresql:", "postgresql+asyncpg:")): name
        for name, dsn in shop.dsns.items()
    }
    sessions: Any = async_sessionmaker(
        class_=AsyncSession,
        participants=engines,
        timeout=shop.timeout_s,
        info={name: engine.sync_engine for engine, name in engines.items()},
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with undoubt.connect(shop.settings, observe=shop.observe, recover=False) as coordinator:
            sessions.configure(coordinator=coordinator)
            yield
            for engine in engines:
                await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(CommitBeforeResponse, sessions=sessions)
    app.post("/idle")(idle)
    app.add_exception_handler(Handled, handled)

    @app.post("/stream/{number}")
    async def stream(number: int, session: WorkSession) -> StreamingResponse:
        await act_in_session(session, "stream", number)
        return StreamingResponse(late_body(number))

    @app.post("/{what}/{number}")
    async def handler(what: str, number: int, session: WorkSession, tasks: BackgroundTasks) -> dict[str, int]:
        await act_in_session(session, what, number)
        return respond(shop, what, number, tasks)  # type: ignore[no-any-return]

    with serve(app) as client:
        yield client
