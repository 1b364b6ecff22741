"""The application of Starlette."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import undoubt
from tests.undoubt.integrations.web.client import Client, Handled, Reply, act
from tests.undoubt.integrations.web.shop import Shop
from undoubt.integrations.asgi import CommitBeforeResponse, transaction

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer ones want another client than httpx, and work with httpx
    from starlette.testclient import TestClient


def application(shop: Shop, **options: Any) -> Starlette:
    async def handler(request: Request) -> Response:
        what, number = request.path_params["what"], request.path_params["number"]
        await act(await transaction(), what, number)
        if what == "redirects":
            raise HTTPException(303, headers={"location": "/idle"})
        if what == "stream":
            return StreamingResponse(late_body(number))
        task = BackgroundTask(shop.after.append, number) if what.startswith("background") else None
        placed: Any = object() if what == "unserializable" else number
        status = 422 if what in {"refuses", "commits-422"} else 200
        return JSONResponse({"placed": placed}, status, background=task)

    async def idle(_: Request) -> Response:
        return JSONResponse({})

    routes = [
        Route("/{what}/{number:int}", handler, methods=["POST"]),
        Route("/idle", idle, methods=["POST"]),
    ]
    middleware = [Middleware(CommitBeforeResponse, **options)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={Handled: handled})


async def handled(request: Request, _: Exception) -> Response:
    return JSONResponse({"handled": request.url.path})


async def late_body(number: int) -> AsyncIterator[str]:
    try:
        await act(await transaction(), "order", number + 1000)
    except undoubt.UndoubtError as error:
        yield type(error).__name__
    else:
        yield "written"


@contextmanager
def run(shop: Shop) -> Iterator[Client]:
    with serve(application(shop, source=shop.settings, timeout=shop.timeout_s)) as client:
        yield client


@contextmanager
def serve(app: Any) -> Iterator[Client]:
    """By Starlette's test client, with the application's lifespan."""
    with TestClient(app, raise_server_exceptions=False) as client:

        def post(path: str) -> Reply:
            answered = client.post(path, follow_redirects=False)
            return Reply(answered.status_code, answered.headers, answered.content)

        yield post
