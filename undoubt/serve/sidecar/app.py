"""Takes a request from its bounds to its answer: bounds, client, body, key, operation, answer.

All checks are made here, in this order, so that a refusal reveals nothing about later checks: a request that
is not allowed does not learn whether its body was valid. Starlette reads the head and the body of a request;
its router and middleware are not used, since they need as much time as the rest of a short request."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.types import Receive, Scope, Send

from undoubt.serve.console.app import ConsoleApp
from undoubt.serve.sidecar import capability, joining
from undoubt.serve.sidecar.access import Access, span, trace_of
from undoubt.serve.sidecar.connection import PEER, Peer
from undoubt.serve.sidecar.handlers import JudgedRequest, Sidecar
from undoubt.serve.sidecar.idempotency import Answer, KeyedAnswers, fingerprint, key_of
from undoubt.serve.sidecar.operations import OPERATIONS, Operation
from undoubt.serve.sidecar.problems import MEDIA_TYPE, RequestRefused, busy, refusal_of
from undoubt.serve.sidecar.routes import Routes
from undoubt.serve.sidecar.shares import may_take
from undoubt.serve.sidecar.tokens import Client, Doorkeeper
from undoubt.serve.sidecar.types import PublishRequest, StatementRequest

NOBODY = Client("", frozenset(), frozenset())
"""The client of operations that need no authentication."""
_WAIT = re.compile(r"(?:^|[,;]\s*)wait\s*=\s*\"?([0-9]{1,9})\"?\s*(?:[,;]|$)", re.IGNORECASE)
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


_SINGLE = frozenset(
    {
        b"host",
        b"origin",
        b"authorization",
        b"content-type",
        b"content-length",
        b"idempotency-key",
    }
)


class _Parameters(msgspec.Struct):
    """The parameters in the body of a statement, not decoded: a number keeps its digits."""

    params: tuple[msgspec.Raw, ...] = ()


class _Payload(msgspec.Struct):
    """The payload in the body of a message, not decoded; empty if there is none."""

    payload: msgspec.Raw = msgspec.Raw()


class Door:
    """The application that uvicorn calls. It does what every request needs, also one without a route."""

    def __init__(self, sidecar: Sidecar, doorkeeper: Doorkeeper, console: ConsoleApp | None = None) -> None:
        self._sidecar = sidecar
        self._console = console
        self._doorkeeper = doorkeeper
        self._keyed = KeyedAnswers(sidecar.settings)
        self._working = 0
        self._routes = Routes(OPERATIONS)
        self._working_for: Counter[str] = Counter()
        """The number of requests by client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served here, not {scope['type']}")
        if self._console is not None and self._console.serves(scope["path"]):
            await self._console(scope, receive, send)
            return
        access = Access(scope["method"], "", trace=trace_of(_header(scope, b"traceparent")))
        self._working += 1
        try:
            answer = await self._answer(scope, receive, access)
            access.status, access.sent_bytes = answer.status, len(answer.body)
            await _write(answer, send)
        except ClientDisconnect:
            access.status = 400  # the client is gone
        finally:
            self._working -= 1
            access.write()

    async def _answer(self, scope: Scope, receive: Receive, access: Access) -> Answer:
        """The answer to one request. Raises ``ClientDisconnect``."""
        try:
            self._check_room(scope)
            _check_single(scope)
            http = HttpRequest(scope, receive)
            self._doorkeeper.check_host(_peer(scope), http.headers)
            operation, scope["path_params"] = self._routes.find(scope["method"], scope["path"])
            access.operation = operation.path
            access.transaction = scope["path_params"].get("id", "")[:100]
            with span(f"{operation.method} {operation.path}", http.headers):
                return await self._work(operation, http, access)
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes an answer; a bug becomes 500
            return _problem(access, error)

    def _check_room(self, scope: Scope) -> None:
        """Raises :class:`RequestRefused`. ``/livez`` is answered under any load: a supervisor asks it whether
        to kill this process."""
        if self._working > self._sidecar.settings.requests_max and scope["path"] != "/livez":
            raise busy("TooManyRequests", "too many requests are being served")

    async def _work(self, operation: Operation, http: HttpRequest, access: Access) -> Answer:
        client = self._client(operation, http)
        access.client = client.name
        most = self._sidecar.settings.requests_max
        if operation.guarded and not may_take(self._working_for[client.name], self._working - 1, most):
            raise busy("TooManyRequests", "too many requests of this client are being worked on")
        self._working_for[client.name] += 1
        try:
            return await self._judged(operation, http, access, client)
        finally:
            self._working_for[client.name] -= 1
            self._working_for += Counter()  # without those that have none

    async def _judged(
        self, operation: Operation, http: HttpRequest, access: Access, client: Client
    ) -> Answer:
        body = await self._body(http)
        key = key_of(http.headers.get("idempotency-key")) if operation.keyed else None

        async def work() -> Answer:
            try:
                request = self._request(operation, http, client, body, access.trace)
                return await self._joined(operation, http, request, body)
            except Exception as error:  # noqa: BLE001 - as above; the answer may be kept for its key
                return _problem(access, error)

        if key is None:
            return await work()
        print_ = fingerprint(operation.method, http.scope["path"], body)
        answer, access.replayed = await self._keyed.once(client.name, key, print_, work)
        return answer

    async def _joined(
        self, operation: Operation, http: HttpRequest, request: JudgedRequest, body: bytes
    ) -> Answer:
        """Carry out the operation here, or at the sidecar that began the transaction."""
        shown = http.headers.getlist(capability.HEADER)
        if shown:
            if len(shown) > 1:
                raise RequestRefused(400, "BadCapability", "send Undoubt-Transaction once")
            sealed = capability.parse(shown[0])
            return await joining.work(self._sidecar, operation, request, sealed, joining.Sent.of(http, body))
        id_ = "" if operation.orders else request.path.get("id", "")
        if id_ and self._sidecar.book.find(id_) is None:
            return await joining.work_elsewhere(
                self._sidecar, operation, request, joining.Sent.of(http, body)
            )
        return await operation.handle(self._sidecar, request)

    def _client(self, operation: Operation, http: HttpRequest) -> Client:
        try:
            return self._doorkeeper.client(_peer(http.scope), http.headers)
        except RequestRefused:
            if operation.guarded or "verbose" in http.query_params:
                raise
            return NOBODY

    async def _body(self, http: HttpRequest) -> bytes:
        settings = self._sidecar.settings
        announced = http.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced[:18]) > settings.body_bytes_max:
            raise _too_large(settings.body_bytes_max)
        if announced == "0" and "transfer-encoding" not in http.headers:
            return b""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(settings.body_timeout_s):
                async for part in http.stream():
                    size += len(part)
                    if size > settings.body_bytes_max:
                        raise _too_large(settings.body_bytes_max)
                    parts.append(part)
        except TimeoutError:
            raise RequestRefused(408, "BodyTooSlow", headers={"Connection": "close"}) from None
        return b"".join(parts)

    def _request(
        self, operation: Operation, http: HttpRequest, client: Client, body: bytes, trace: str
    ) -> JudgedRequest:
        raw: tuple[msgspec.Raw, ...] = ()
        decoded = None
        if operation.takes is not None:
            decoded = _decoded(operation, http, body)
            if operation.takes is StatementRequest:
                raw = msgspec.json.decode(body, type=_Parameters).params
            elif operation.takes is PublishRequest:
                payload = msgspec.json.decode(body, type=_Payload).payload
                raw = (payload,) if bytes(payload) else ()
        elif body.strip() not in {b"", b"{}"}:
            raise RequestRefused(422, "UsageError", "this request takes no body")
        wait_s = 0.0
        if operation.waits and (match := _WAIT.search(http.headers.get("prefer", ""))) is not None:
            wait_s = min(float(match[1]), self._sidecar.settings.wait_max_s)
        query = dict(http.query_params) if http.scope["query_string"] else {}
        return JudgedRequest(client, dict(http.path_params), query, decoded, raw, wait_s, trace)


def _decoded(operation: Operation, http: HttpRequest, body: bytes) -> msgspec.Struct:
    if operation.takes is None:
        raise TypeError(operation.name)
    if not body.strip() and operation.may_be_empty:
        return msgspec.convert({}, operation.takes)
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestRefused(415, "NotJson", "send Content-Type: application/json (curl --json)")
    try:
        decoded: msgspec.Struct = msgspec.json.decode(body, type=operation.takes)
    except msgspec.ValidationError as error:
        raise RequestRefused(422, "UsageError", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(400, "NotJson", str(error)) from None
    return decoded


def _too_large(most: int) -> RequestRefused:
    return RequestRefused(
        413, "BodyTooLarge", f"at most {most} bytes (sidecar.body_bytes_max)", headers={"Connection": "close"}
    )


def _peer(scope: Scope) -> Peer:
    peer: Peer = scope.get(PEER) or Peer()
    return peer


def _header(scope: Scope, name: bytes) -> str | None:
    found = next((value for key, value in scope["headers"] if key == name), None)
    return None if found is None else found.decode("latin-1")


def _check_single(scope: Scope) -> None:
    """Raises :class:`RequestRefused` for two of a header of which one counts: another server on the request's
    way may have judged the other one."""
    names = [name for name, _ in scope["headers"] if name in _SINGLE]
    if len(names) != len({*names}):
        raise RequestRefused(400, "DoubledHeader", "a header that may be there once is there twice")


def _problem(access: Access, error: Exception) -> Answer:
    refusal = refusal_of(error)
    access.problem = refusal.problem.name
    headers = {name.lower(): value for name, value in refusal.headers.items()}
    return Answer(refusal.status, refusal.body(), {"content-type": MEDIA_TYPE, **headers})


async def _write(answer: Answer, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    headers += ((b"content-length", str(len(answer.body)).encode()), *_HEADERS)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
