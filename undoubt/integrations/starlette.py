"""Middleware for services that join transactions of others: it takes the header ``Undoubt-Transaction``.

Example::

    app = Starlette(routes=[…], middleware=[Middleware(JoinTransaction)])

    async def pay(request):
        tx = undoubt.integrations.httpx.joined(sidecar)
        branch = await tx.announce("payments")

The service adds branches and prepares its own before it answers. It does not commit: the service that began
the transaction does. Starlette is not needed: it is a middleware of ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from undoubt.integrations.joining import HEADER, JoinedTransaction, working_in
from undoubt.participants.bounds import having
from undoubt.participants.errors import UsageError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_NAME = HEADER.lower().encode()
_REFUSAL = b'{"type":"urn:undoubt:problem:BadCapability","status":400,"name":"BadCapability"}'


class JoinTransaction:
    """Each request works in the transaction of its header, or in none. One with a header that no sidecar
    made, or with several, is answered 400."""

    def __init__(self, app: App) -> None:
        having("app", app, "an application of ASGI")
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        shown = [value for name, value in scope["headers"] if name.lower() == _NAME]
        try:
            found = JoinedTransaction.parse(_only(shown)) if shown else None
        except UsageError:
            await _refuse(send)
            return
        with working_in(found):
            await self.app(scope, receive, send)


def _only(shown: list[bytes]) -> str:
    if len(shown) > 1:
        raise UsageError(f"a request has one {HEADER}")
    return shown[0].decode("latin-1")


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"application/problem+json")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})
