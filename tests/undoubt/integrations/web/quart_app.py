"""The application of Quart."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from quart import Quart, Response, abort, redirect
from quart.testing import TestApp

from tests.undoubt.integrations.web.client import Client, Handled, Reply, act, headers
from tests.undoubt.integrations.web.shop import Shop
from tests.undoubt.integrations.web.starlette_app import late_body
from undoubt.integrations.quart import commit_before_response, on_commit, transaction

T = TypeVar("T")


def application(shop: Shop, **options: Any) -> Quart:
    app = Quart(__name__)
    commit_before_response(app, **options)

    @app.post("/<what>/<int:number>")
    async def handler(what: str, number: int) -> Any:
        await act(await transaction(), what, number)
        if what == "redirects":
            abort(redirect("/idle", 303))  # type: ignore[arg-type]
        if what == "stream":
            return Response(late_body(number))
        if what.startswith("background"):
            on_commit(lambda: app.add_background_task(shop.after.append, number))
        placed: Any = object() if what == "unserializable" else number
        return {"placed": placed}, 422 if what in {"refuses", "commits-422"} else 200

    @app.errorhandler(Handled)
    async def handled(_: Handled) -> dict[str, str]:
        return {"handled": ""}

    @app.post("/idle")
    async def idle() -> dict[str, int]:
        return {}

    return app


@contextmanager
def run(shop: Shop) -> Iterator[Client]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    app = application(shop, source=shop.settings, timeout=shop.timeout_s)
    tested = TestApp(app, startup_timeout=60, shutdown_timeout=60)

    def run_there(coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    async def posted(path: str) -> Reply:
        answered = await app.test_client().post(path)
        return Reply(answered.status_code, headers(answered.headers), await answered.get_data(as_text=False))

    run_there(tested.startup())
    try:
        yield lambda path: run_there(posted(path))
    finally:
        run_there(tested.shutdown())
        run_there(loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
