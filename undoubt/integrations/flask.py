"""Flask: the transaction of a request ends before its response begins.

::

    undoubt = Undoubt(app, "undoubt.toml")

    @app.post("/orders")
    def order():
        tx = undoubt.transaction()
        tx.branch("orders").execute(…)
        tx.branch("payments").execute(…)
        return {"placed": True}      # not sent unless the transaction has committed

The commit is not in an ``after_request`` function, because others may run and fail after it, but around
``app.wsgi_app``: at the moment when the response is ready and begins. A status below 400 commits; another
one, or an exception, rolls back, also an exception that an error handler answers with a status below 400. If
the commit does not return, the client gets :mod:`.answers` instead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from undoubt.integrations import answers, validation
from undoubt.integrations.answers import WebAnswer, WebAnswering
from undoubt.integrations.asgi import below_400
from undoubt.integrations.extras import needs
from undoubt.integrations.per_process import PerProcess, Source
from undoubt.integrations.request_work import ThreadRequestWork
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.sync import Coordinator, Transaction

with needs("flask"):
    from flask import Flask

log = logging.getLogger(__name__)

_current: ContextVar[ThreadRequestWork | None] = ContextVar("undoubt_flask_request", default=None)

Environ = dict[str, Any]
Start = Callable[..., Any]
Wsgi = Callable[[Environ, Start], Iterable[bytes]]


class Undoubt:
    """The extension. ``source`` is that of ``undoubt.sync.connect``: each process opens a coordinator at its
    first transaction. ``coordinator``: one that the application opens itself. ``sessions``, ``commits``,
    ``answer``, ``timeout``, ``protocol`` and ``agent`` are those of
    :class:`~undoubt.integrations.asgi.CommitBeforeResponse`. Raises ``UsageError`` for wrong values."""

    def __init__(
        self,
        app: Flask | None = None,
        source: Source = None,
        *,
        coordinator: Coordinator | None = None,
        sessions: Callable[[], Any] | None = None,
        commits: Callable[[int], bool] = below_400,
        answer: WebAnswering = answers.answer,
        timeout: float | None = None,
        protocol: str | None = None,
        agent: str | None = None,
    ) -> None:
        self._process = PerProcess(source, coordinator)
        validation.of_requests(sessions, commits, answer)
        self._sessions = sessions
        self._commits = commits
        self._answer = answer
        self._options = validation.options(timeout, protocol, agent)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the extension around ``app``."""
        validation.instance("app", app, Flask)
        app.extensions["undoubt"] = self
        inner: Wsgi = app.wsgi_app

        def noticing(handle: Any) -> Any:
            def noticed(e: Exception) -> Any:
                if (work := _current.get()) is not None:
                    work.raised = True
                return handle(e)

            return noticed

        def around(environ: Environ, start_response: Start) -> Iterable[bytes]:
            work = ThreadRequestWork(self._process.get, self._sessions, self._options)
            token = _current.set(work)
            try:
                return _Exchange(inner, work, self._commits, self._answer, start_response).run(environ)
            finally:
                _current.reset(token)

        app.wsgi_app = around  # type: ignore[method-assign]
        app.handle_user_exception = noticing(app.handle_user_exception)  # type: ignore[method-assign]
        # What is raised after the view, for example by a function of after_request, is handled only here.
        app.handle_exception = noticing(app.handle_exception)  # type: ignore[method-assign]

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator of this process."""
        return self._process.get()

    def transaction(self) -> Transaction:
        """The transaction of the current request; it begins at the first call. Raises ``UsageError`` outside
        of a request and once the response has begun, ``LedgerUnavailable``."""
        return _work().sync_transaction()

    def session(self) -> Any:
        """The session of the current request, made by ``sessions``. Raises the same."""
        return _work().session()

    def on_commit(self, function: Callable[[], object]) -> None:
        """Call ``function`` once the request's transaction has committed, before the response. Raises the
        same."""
        _work().on_commit(function)


def _work() -> ThreadRequestWork:
    found = _current.get()
    if found is None:
        raise UsageError(
            "there is no request here, or its response has begun: the transaction has ended then"
        )
    return found


class _Exchange:
    """One request and its response."""

    def __init__(
        self,
        app: Wsgi,
        work: ThreadRequestWork,
        commits: Callable[[int], bool],
        answer: WebAnswering,
        start: Start,
    ) -> None:
        self._app = app
        self._work = work
        self._commits = commits
        self._answer = answer
        self._start_response = start
        self._failure: BaseException | None = None
        """What the commit has raised: the client gets another answer than the application's."""
        self._held: tuple[Any, ...] | None = None
        """The application's answer, until the application has returned: it may fail after it has begun it."""
        self._returned = False

    def run(self, environ: Environ) -> Iterable[bytes]:
        try:
            body = self._app(environ, self._start)
        except BaseException as error:  # whatever it is, nothing is left open
            self._undo(error)
            if self._failure is None and not (isinstance(error, Exception) and self._work.may_have_committed):
                raise
            log.exception("the application failed after the commit of its transaction had begun")
            return self._say(self._instead())
        self._returned = True
        if self._failure is None:
            if self._held is not None:
                self._start_response(*self._held)
            return body
        if close := getattr(body, "close", None):
            close()
        return self._say(self._instead())

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        code = int(status.split(maxsplit=1)[0])
        if self._commits(code) and not self._work.raised:
            try:
                self._work.commit()
            except Exception as error:  # noqa: BLE001 - the client must not read the application's answer
                self._failure = error
                answers.note(error)
                return _no_body
        else:
            self._undo(None)
            if self._work.may_have_committed:
                headers = [*headers, *answers.marks(self._work.outcome(), self._work.txid)]
        if self._commits(code) and self._work.rolled_back:
            headers = [*headers, *answers.marks("aborted", self._work.txid)]
        self._held = (status, headers, *(() if exc_info is None else (exc_info,)))
        return self._start_response(*self._held) if self._returned else _no_body

    def _undo(self, error: BaseException | None) -> None:
        try:
            self._work.undo(error)
        except UndoubtError as failure:
            log.debug("the transaction had ended before its rollback: %s", failure)

    def _instead(self) -> WebAnswer:
        told = isinstance(self._failure, answers.OUTCOMES) or not self._work.may_have_committed
        if self._failure is not None and told:
            return self._answer(self._failure)
        return answers.failed_after_commit(self._work.outcome(), self._work.txid)

    def _say(self, answer: WebAnswer) -> Iterable[bytes]:
        headers = [*answer.headers, ("content-length", str(len(answer.body)))]
        status = f"{answer.status} {HTTPStatus(answer.status).phrase}"
        self._start_response(status, headers)
        return [answer.body]


def _no_body(_: bytes) -> None:
    """The old way to write, without an iterable: not supported."""
    raise UsageError("an application that calls write() cannot be answered after its commit")
