"""Quart: the middleware of :mod:`.asgi` around the application.

::

    commit_before_response(app, "undoubt.toml")

    @app.post("/orders")
    async def order():
        tx = await transaction()
        …
        return {"placed": True}      # not sent unless the transaction has committed
"""

from __future__ import annotations

from typing import Any

from undoubt.integrations import validation
from undoubt.integrations.asgi import (
    CommitBeforeResponse,
    note_raised,
    on_commit,
    session,
    sync_transaction,
    transaction,
)
from undoubt.integrations.extras import needs
from undoubt.integrations.per_process import Source

with needs("quart"):
    from quart import Quart

__all__ = ["commit_before_response", "on_commit", "session", "sync_transaction", "transaction"]


def commit_before_response(app: Quart, source: Source = None, **options: Any) -> None:
    """Put :class:`~undoubt.integrations.asgi.CommitBeforeResponse` around ``app``, with its ``options``."""
    validation.instance("app", app, Quart)
    inner: Any = app.asgi_app

    def noticing(handle: Any) -> Any:
        async def noticed(error: Exception) -> Any:
            note_raised()
            return await handle(error)

        return noticed

    app.handle_user_exception = noticing(app.handle_user_exception)  # type: ignore[method-assign]
    # What is raised after the handler, for example by a function of after_request, is handled only here.
    app.handle_exception = noticing(app.handle_exception)  # type: ignore[method-assign]
    around: Any = CommitBeforeResponse(inner, source, **options)
    app.asgi_app = around  # type: ignore[method-assign]
