"""The application of Flask: plain views, and views that are coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flask

import undoubt.sync
from tests.undoubt.integrations.web.client import Client, Handled, Reply, act_in_thread, headers
from tests.undoubt.integrations.web.shop import Shop
from undoubt.integrations.flask import Undoubt


def application(shop: Shop, **options: Any) -> tuple[flask.Flask, Undoubt]:
    app = flask.Flask(__name__)
    extension = Undoubt(app, **options)

    def respond(what: str, number: int) -> Any:
        if what == "redirects":
            flask.abort(flask.redirect("/idle", 303))
        if what == "stream":
            return flask.Response(flask.stream_with_context(late_body(number)))
        placed: Any = object() if what == "unserializable" else number
        return {"placed": placed}, 422 if what in {"refuses", "commits-422"} else 200

    def late_body(number: int) -> Iterator[str]:
        try:
            act_in_thread(extension.transaction(), "order", number + 1000)
        except undoubt.UndoubtError as error:
            yield type(error).__name__
        else:
            yield "written"

    @app.post("/<what>/<int:number>")
    def handler(what: str, number: int) -> Any:
        act_in_thread(extension.transaction(), what, number)
        if what.startswith("background"):
            extension.on_commit(lambda: shop.after.append(number))
        return respond(what, number)

    @app.post("/async/<what>/<int:number>")
    async def coroutine(what: str, number: int) -> Any:
        await asyncio.to_thread(lambda: act_in_thread(extension.transaction(), what, number))
        if what.startswith("background"):
            extension.on_commit(lambda: shop.after.append(number))
        return respond(what, number)

    @app.errorhandler(Handled)
    def handled(_: Handled) -> dict[str, str]:
        return {"handled": ""}

    @app.post("/idle")
    def idle() -> dict[str, int]:
        return {}

    return app, extension


@contextmanager
def run(shop: Shop, prefix: str = "") -> Iterator[Client]:
    with undoubt.sync.connect(shop.settings) as coordinator:
        app, _ = application(shop, coordinator=coordinator, timeout=shop.timeout_s)
        yield lambda path: post(app, path if path == "/idle" else prefix + path)


def run_coroutines(shop: Shop) -> Any:
    return run(shop, "/async")


def post(app: flask.Flask, path: str) -> Reply:
    answered = app.test_client().post(path)
    return Reply(answered.status_code, headers(answered.headers), answered.data)
