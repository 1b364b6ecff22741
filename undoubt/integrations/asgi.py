"""Middleware for applications of ASGI (Starlette, FastAPI, Quart): the transaction of a request ends before
its response begins.

::

    app = Starlette(routes=[…], middleware=[Middleware(CommitBeforeResponse, "undoubt.toml")])

    async def order(request):
        tx = await transaction()
        orders, payments = await tx.branch("orders"), await tx.branch("payments")
        …
        return JSONResponse({"placed": True})    # not sent unless the transaction has committed

A response is held back at its first message: its body has been made by then, so a response that cannot be
made commits nothing. A status below 400 commits; another status, an exception or a cancelled request rolls
back, also an exception that an exception handler answers with a status below 400. If the commit does not
return, the client gets :mod:`.answers` instead, and background tasks of the response do not run. A request
that asks for no transaction costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import undoubt.sync
from undoubt.connect import connect
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.transaction import Transaction
from undoubt.integrations import answers, validation
from undoubt.integrations.answers import WebAnswer, WebAnswering
from undoubt.integrations.per_process import Source
from undoubt.integrations.request_work import AsyncRequestWork, RequestWork, in_thread
from undoubt.integrations.starlette import App, Receive, Scope, Send
from undoubt.participants.bounds import flag, having
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.sync import Coordinator as SyncCoordinator
from undoubt.sync import Transaction as SyncTransaction

log = logging.getLogger(__name__)

_current: ContextVar[AsyncRequestWork | None] = ContextVar("undoubt_request", default=None)


class _Noticing(dict[Any, Any]):
    """Exception handlers of Starlette, which are looked up only for an exception that was raised."""

    def __init__(self, handlers: Any, work: RequestWork) -> None:
        super().__init__(handlers)
        self._work = work

    def __contains__(self, kind: object) -> bool:
        self._work.raised = True
        return super().__contains__(kind)

    def get(self, status: Any, default: Any = None) -> Any:
        self._work.raised = True
        return super().get(status, default)


class _NoticingScope(dict[str, Any]):
    """The scope of a request, which notices exceptions of its handler although Starlette and FastAPI make
    responses of them. They find their exception handlers in the scope, within the middleware. What is put
    into it is put into the scope of the outer middleware too, which may read the route there."""

    def __init__(self, scope: Scope, work: RequestWork) -> None:
        super().__init__(scope)
        self._outer, self._work = scope, work

    def __setitem__(self, name: str, value: Any) -> None:
        self._outer[name] = value
        if name == "starlette.exception_handlers":
            value = tuple(_Noticing(handlers, self._work) for handlers in value)
        super().__setitem__(name, value)

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *found: Any, **named: Any) -> None:
        for name, value in dict(*found, **named).items():
            self[name] = value


class _Unanswered(Exception):
    """Stops the application once another answer than the application's was sent."""


def below_400(status: int) -> bool:
    """The statuses that commit."""
    return status < 400


class CommitBeforeResponse:
    """The middleware. ``source`` is that of ``undoubt.connect``: the coordinator is open during the
    application's lifespan. ``threads``: it is that of ``undoubt.sync``, for handlers that are plain
    functions. ``coordinator``: one that the application opens itself. ``sessions`` makes SQLAlchemy's
    sessions (``sessionmaker``, ``async_sessionmaker``) for :func:`session`. ``commits``: the statuses that
    commit. ``answer`` makes the response for what a commit has raised. ``timeout``, ``protocol`` and
    ``agent`` are those of ``coordinator.transaction``. Raises ``UsageError`` for wrong values."""

    def __init__(
        self,
        app: App,
        source: Source = None,
        *,
        threads: bool = False,
        coordinator: Coordinator | SyncCoordinator | None = None,
        sessions: Callable[[], Any] | None = None,
        commits: Callable[[int], bool] = below_400,
        answer: WebAnswering = answers.answer,
        timeout: float | None = None,
        protocol: str | None = None,
        agent: str | None = None,
    ) -> None:
        validation.source(source)
        if coordinator is not None:
            validation.instance("coordinator", coordinator, Coordinator, SyncCoordinator)
        validation.of_requests(sessions, commits, answer)
        having("app", app, "an application of ASGI")
        flag("threads", threads)
        self.app = app
        self._source = source
        self._threads = threads
        self._opens = coordinator is None and (source is not None or sessions is None)
        self.coordinator = coordinator
        """None outside of the lifespan."""
        self._sessions = sessions
        self._commits = commits
        self._answer = answer
        self._options = validation.options(timeout, protocol, agent)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and self._opens:
            await self._live(scope, receive, send)
        elif scope["type"] == "http":
            work = AsyncRequestWork(self._opened_one, self._sessions, self._options)
            token = _current.set(work)
            try:
                await _Exchange(self.app, work, self._commits, self._answer, send).run(scope, receive)
            finally:
                _current.reset(token)
        else:
            await self.app(scope, receive, send)

    def _opened_one(self) -> Coordinator | SyncCoordinator:
        if self.coordinator is None:
            raise UsageError(
                "the application's coordinator is not open: run the application with its lifespan (with"
                " TestClient(app), uvicorn --lifespan on), or pass coordinator="
            )
        return self.coordinator

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's lifespan, inside that of the coordinator. The server is told of the end of the
        shutdown only when the coordinator is closed: the server may end the loop then."""
        first = await receive()
        held: list[Any] = []

        async def receive_again() -> Any:
            return waiting.pop() if waiting else await receive()

        async def hold_the_end(message: Any) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                held.append(message)
            else:
                await send(message)

        waiting = [first]
        async with contextlib.AsyncExitStack() as stack:
            try:
                self.coordinator = await stack.enter_async_context(self._opened())
            except UndoubtError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            try:
                await self.app(scope, receive_again, hold_the_end)
            finally:
                self.coordinator = None
        for message in held:
            await send(message)

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Coordinator | SyncCoordinator]:
        if not self._threads:
            async with connect(self._source) as coordinator:
                yield coordinator
            return
        opened = await in_thread(undoubt.sync.connect, self._source)
        try:
            yield opened
        finally:
            await in_thread(opened.close)


class _Exchange:
    """One request and its response."""

    def __init__(
        self,
        app: App,
        work: AsyncRequestWork,
        commits: Callable[[int], bool],
        answer: WebAnswering,
        send: Send,
    ) -> None:
        self._app = app
        self._work = work
        self._commits = commits
        self._answer = answer
        self._send = send
        self._started = False
        """The application has begun its response."""
        self._answered = False
        """A response was sent to the client."""
        self._failure: BaseException | None = None
        """What the commit has raised; the client has been answered then."""

    async def run(self, scope: Scope, receive: Receive) -> None:
        try:
            await self._app(_NoticingScope(scope, self._work), receive, self._send_after_the_end)
        except BaseException as error:  # also a cancelled request is rolled back
            if self._failure is None or not isinstance(error, Exception):
                await self._failed(error)
                raise
        if not self._answered:
            await self._failed(None)  # it gave no response, or something in it has stopped the commit's wait
        if self._failure is not None and not isinstance(self._failure, UndoubtError):
            raise self._failure  # for the server's log, after the answer

    async def _send_after_the_end(self, message: Any) -> None:
        if self._failure is not None:
            raise _Unanswered
        if message["type"] == "http.response.start" and not self._started:
            self._started = True
            await self._end(message["status"])
            message = {**message, "headers": [*message.get("headers", ()), *await self._marks(message)]}
            self._answered = True
        await self._send(message)

    async def _end(self, status: int) -> None:
        if self._work.raised or not self._commits(status):
            await self._undo(None)
            return
        try:
            await self._work.commit()
        except Exception as error:  # whatever it is, the client must not read the application's answer
            self._failure = error
            answers.note(error)
            await self._say(await self._instead(error))
            raise _Unanswered from error

    async def _instead(self, error: Exception) -> WebAnswer:
        """The answer in place of the application's, whose commit has raised ``error``."""
        if isinstance(error, answers.OUTCOMES) or not self._work.may_have_committed:
            return self._answer(error)
        return answers.failed_after_commit(await self._work.outcome(), self._work.txid)

    async def _failed(self, error: BaseException | None) -> None:
        """The application has raised ``error``, or has not answered. Without an answer from here the server
        says 500."""
        await self._undo(error)
        cancelled = error is not None and not isinstance(error, Exception)
        if self._answered or cancelled or not self._work.may_have_committed:
            return
        outcome = await self._work.outcome()
        if outcome != "aborted":
            await self._say(answers.failed_after_commit(outcome, self._work.txid))

    async def _undo(self, error: BaseException | None) -> None:
        try:
            await self._work.undo(error)
        except UndoubtError as failure:
            log.debug("the transaction had ended before its rollback: %s", failure)

    async def _marks(self, message: Any) -> list[tuple[bytes, bytes]]:
        """Headers of an answer whose status does not tell what became of the transaction: it says that the
        request failed, and the transaction may have committed; or the reverse, since the application has
        rolled back by itself."""
        commits = self._commits(message["status"])
        if self._work.may_have_committed and (self._work.raised or not commits):
            told = answers.marks(await self._work.outcome(), self._work.txid)
        elif self._work.rolled_back and commits:
            told = answers.marks("aborted", self._work.txid)
        else:
            return []
        return [(name.lower().encode(), value.encode()) for name, value in told]

    async def _say(self, answer: WebAnswer) -> None:
        self._answered = True
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
        headers.append((b"content-length", str(len(answer.body)).encode()))
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": answer.body})


async def transaction() -> Transaction:
    """The transaction of the current request, for coroutines; it begins at the first call. Raises
    ``UsageError`` outside of a request and once the response has begun, ``LedgerUnavailable``."""
    return await _work().transaction()


def sync_transaction() -> SyncTransaction:
    """The same for handlers in threads, with ``threads=True``."""
    return _work().sync_transaction()


def session() -> Any:
    """The session of the current request, made by ``sessions``. Raises the same."""
    return _work().session()


def on_commit(function: Callable[[], object]) -> None:
    """Call ``function`` once the current request's transaction has committed, before the response. Raises the
    same."""
    _work().on_commit(function)


def coordinator() -> Coordinator | SyncCoordinator:
    """The application's coordinator, for what runs after the response in a transaction of its own."""
    return _work().coordinator


def note_raised() -> None:
    """Note that the handler of the current request has raised an error, of which the framework makes a
    response: nothing is committed."""
    if (work := _current.get()) is not None:
        work.raised = True


def _work() -> AsyncRequestWork:
    found = _current.get()
    if found is None:
        raise UsageError("there is no request here that the middleware CommitBeforeResponse has seen")
    return found
