"""The ASGI application of the console: the page, the stream of events, one transaction, and the two acts.

The checks of a request are those of the sidecar, in the same order: its bounds, its Host and Origin, its
client, the client's role, its body. The page itself has no data and needs no client. Whatever is read needs
the role ``observe`` or ``operate``; the acts need ``operate``. Nothing that a request brings is in an address
except ids, and a browser adds no credential by itself but a client's certificate, for which Origin counts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.types import Receive, Scope, Send

from undoubt.serve.console import acts, picture
from undoubt.serve.console.console import Console
from undoubt.serve.console.page import page
from undoubt.serve.sidecar.access import Access
from undoubt.serve.sidecar.connection import PEER, Peer
from undoubt.serve.sidecar.idempotency import Answer
from undoubt.serve.sidecar.problems import MEDIA_TYPE, RequestRefused, busy, refusal_of
from undoubt.serve.sidecar.tokens import Client, Doorkeeper

PREFIX = "/v1/console/"
STREAMS_MAX = 32
STREAMS_OF_CLIENT_MAX = 8
"""One client's share: others can still open a page."""
WORKING_MAX = 32
BODY_BYTES_MAX = 16 * 1024
BODY_S = 10.0
RECHECK_S = 5.0
"""How often the client of an open stream is authenticated again: its token may have been removed, or have
expired."""

_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
_SEES = ("observe", "operate")

T = TypeVar("T", bound=msgspec.Struct)
_Handler = Callable[[HttpRequest, Client], Awaitable[Answer]]


class ConsoleApp:
    """The application. In a sidecar it serves the paths for which :meth:`serves` is true."""

    def __init__(self, console: Console, doorkeeper: Doorkeeper) -> None:
        self._console = console
        self._doorkeeper = doorkeeper
        self._working = 0
        self._handlers: dict[str, tuple[str, _Handler | None]] = {
            "/": ("GET", None),
            f"{PREFIX}events": ("GET", None),
            f"{PREFIX}me": ("GET", self._me),
            f"{PREFIX}clock": ("GET", self._clock),
            f"{PREFIX}transaction": ("GET", self._transaction),
            f"{PREFIX}branch": ("GET", self._branch),
            f"{PREFIX}key": ("GET", self._key),
            f"{PREFIX}doctor": ("POST", self._doctor),
            f"{PREFIX}resolve": ("POST", self._resolve),
            f"{PREFIX}forget": ("POST", self._forget),
        }
        self._acting: set[asyncio.Task[dict[str, object]]] = set()

    @staticmethod
    def serves(path: str) -> bool:
        """Whether ``path`` is the console's."""
        return path == "/" or path.startswith(PREFIX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served here, not {scope['type']}")
        access = Access(scope["method"], scope["path"] if self.serves(scope["path"]) else "")
        http = HttpRequest(scope, receive)
        streams = False
        try:
            try:
                self._doorkeeper.check_host(_peer(scope), http.headers)
                streams = (scope["method"], scope["path"]) == ("GET", f"{PREFIX}events")
                answer = self._check_stream(http, access) if streams else await self._answer(http, access)
            except ClientDisconnect:
                access.status = 400
                return
            except Exception as error:  # noqa: BLE001 - every error becomes an answer
                streams, answer = False, _problem(access, error)
            access.status = answer.status
            if streams:
                await self._stream(answer, http, send)
            else:
                access.sent_bytes = len(answer.body)
                await _write(answer, send, head=scope["method"] == "HEAD")
        finally:
            access.write()

    async def _answer(self, http: HttpRequest, access: Access) -> Answer:
        method = "GET" if http.method == "HEAD" else http.method
        path: str = http.scope["path"]
        if (method, path) == ("GET", "/"):
            return page()
        allowed, handler = self._handlers.get(path, ("", None))
        if not allowed:
            raise RequestRefused(404, "NoSuchPath")
        if handler is None or method != allowed:
            raise RequestRefused(405, "NoSuchMethod", headers={"Allow": allowed})
        client = self._client(http, access)
        if self._working >= WORKING_MAX:
            raise busy("TooManyRequests", "too many requests of consoles are being worked on")
        self._working += 1
        try:
            return await handler(http, client)
        finally:
            self._working -= 1

    def _client(self, http: HttpRequest, access: Access) -> Client:
        client = self._doorkeeper.client(_peer(http.scope), http.headers)
        access.client = client.name
        client.needs(*_SEES)
        return client

    # Reading.

    async def _me(self, _: HttpRequest, client: Client) -> Answer:
        return _json(_of_client(client))

    async def _clock(self, _: HttpRequest, client: Client) -> Answer:
        """What time it is here. A page compares it with the moment at which an event was sent: on a network
        that is slow the stream may lag behind."""
        del client
        return _json({"now": time.time()})

    async def _transaction(self, http: HttpRequest, client: Client) -> Answer:
        del client
        txid = acts.transaction_id(_query(http, "id"))
        console = self._console
        return _json(await picture.picture(console.ledger, console.participants, console.traces, txid))

    async def _branch(self, http: HttpRequest, client: Client) -> Answer:
        del client
        console, name = self._console, (_query(http, "participant"), _query(http, "gid"))
        return _json(await picture.branch_of(console.ledger, console.participants, *name))

    async def _key(self, http: HttpRequest, client: Client) -> Answer:
        """The transaction that has an idempotency key."""
        del client
        holder = await self._console.ledger.key_holder(_query(http, "key"))
        if holder is None:
            return _json({"id": None, "state": "free"})
        return _json({"id": str(holder.txid), "state": str(holder.state)})

    async def _doctor(self, http: HttpRequest, client: Client) -> Answer:
        del http, client
        await self._console.check_now()
        return _json({})

    # Acting.

    async def _resolve(self, http: HttpRequest, client: Client) -> Answer:
        client.needs("operate")
        wanted = await _body(http, acts.ResolveRequest)
        console = self._console
        return await self._act(
            lambda: acts.resolve(console.ledger, console.participants, wanted, client.name)
        )

    async def _forget(self, http: HttpRequest, client: Client) -> Answer:
        client.needs("operate")
        wanted = await _body(http, acts.ForgetRequest)
        console = self._console
        return await self._act(lambda: acts.forget(console.ledger, console.participants, wanted, client.name))

    async def _act(self, work: Callable[[], Awaitable[dict[str, object]]]) -> Answer:
        """Carry out an act to its end, also if its client goes away meanwhile."""

        async def run() -> dict[str, object]:
            return await work()

        task = asyncio.create_task(run())
        self._acting.add(task)
        task.add_done_callback(self._acting.discard)
        return _json(await asyncio.shield(task))

    # The stream.

    def _check_stream(self, http: HttpRequest, access: Access) -> Answer:
        client = self._client(http, access)
        open_ = self._console.feed.clients()
        if open_.total() >= STREAMS_MAX:
            raise busy("TooManyConsoles", f"{STREAMS_MAX} consoles are open here")
        if open_[client.name] >= STREAMS_OF_CLIENT_MAX:
            raise busy("TooManyConsoles", f"{open_[client.name]} consoles of {client.name} are open here")
        headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
        return Answer(200, b"", headers)

    async def _stream(self, answer: Answer, http: HttpRequest, send: Send) -> None:
        client = self._doorkeeper.client(_peer(http.scope), http.headers)
        subscription = self._console.feed.subscribe(_of_client(client))  # at once: it counts for the limits
        gone = asyncio.create_task(_gone(http))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _encoded(answer)})
            async with contextlib.aclosing(subscription.events()) as events:
                await self._send(http, events, gone, send)
        finally:
            self._console.feed.unsubscribe(subscription)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    async def _send(
        self, http: HttpRequest, events: AsyncIterator[bytes], gone: asyncio.Task[None], send: Send
    ) -> None:
        loop = asyncio.get_running_loop()
        checked_s = loop.time()
        async for event in events:
            if gone.done():
                return
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if loop.time() - checked_s >= RECHECK_S:
                checked_s = loop.time()
                try:
                    self._doorkeeper.client(_peer(http.scope), http.headers).needs(*_SEES)
                except RequestRefused:
                    return  # the page connects again, and is told why it may not


async def _gone(http: HttpRequest) -> None:
    """Return once the client has closed its connection."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _of_client(client: Client) -> dict[str, object]:
    return {"client": client.name, "roles": sorted(client.roles), "operates": "operate" in client.roles}


def _query(http: HttpRequest, name: str) -> str:
    """Raises :class:`RequestRefused`."""
    query: bytes = http.scope["query_string"]
    found = parse_qs(query.decode("latin-1"), keep_blank_values=True).get(name, [])
    if len(found) != 1 or not 0 < len(found[0]) <= 1000:
        raise RequestRefused(422, "UsageError", f"send {name} once")
    return found[0]


async def _body(http: HttpRequest, kind: type[T]) -> T:
    """Raises :class:`RequestRefused`."""
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestRefused(415, "NotJson", "send Content-Type: application/json")
    body = b""
    try:
        async with asyncio.timeout(BODY_S):
            async for part in http.stream():
                body += part
                if len(body) > BODY_BYTES_MAX:
                    raise RequestRefused(413, "BodyTooLarge", headers={"Connection": "close"})
    except TimeoutError:
        raise RequestRefused(408, "BodyTooSlow", headers={"Connection": "close"}) from None
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestRefused(422, "UsageError", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(400, "NotJson", str(error)) from None


def _json(document: object) -> Answer:
    return Answer(200, msgspec.json.encode(document), {"content-type": "application/json"})


def _peer(scope: Scope) -> Peer:
    peer: Peer = scope.get(PEER) or Peer()
    return peer


def _problem(access: Access, error: Exception) -> Answer:
    refusal = refusal_of(error)
    access.problem = refusal.problem.name
    headers = {name.lower(): value for name, value in refusal.headers.items()}
    return Answer(refusal.status, refusal.body(), {"content-type": MEDIA_TYPE, **headers})


def _encoded(answer: Answer) -> list[tuple[bytes, bytes]]:
    named = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    return [*named, *_HEADERS]


async def _write(answer: Answer, send: Send, *, head: bool) -> None:
    length = (b"content-length", str(len(answer.body)).encode())
    headers = [*_encoded(answer), length]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})
