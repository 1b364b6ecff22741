"""Runs the application's hook on each new connection of branches: it sets codecs, adapters, row factories
once.

The hook is called with the driver's connection before the first branch uses it. Changes of the connection
object last as long as the session; changes of the database session (SET, PREPARE, temporary tables, locks, a
transaction that is left open) are undone before the first branch begins.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable, UsageError
from undoubt.participants.postgres.connection_proxy import LendingSession
from undoubt.participants.postgres.session import NoAnswer, NotSent, ServerError
from undoubt.participants.postgres.sql import query
from undoubt.participants.sql import identifier

OnConnect = Callable[[Any], Any]
"""The hook: called with an asyncpg or psycopg connection. The result of a coroutine function is awaited if
branches are asynchronous; if they are synchronous, the hook runs in a separate thread and must be a plain
function."""


class Hook:
    """The hook ``function`` or, if None, the function that ``init`` of the settings names, which is imported
    when it is first needed."""

    def __init__(self, participant: str, init: str | None, function: OnConnect | None) -> None:
        self._participant = participant
        self._init = init
        self._function = function
        self._called = f"init = {init!r}" if function is None else f"on_connect ({_name(function)})"

    def __bool__(self) -> bool:
        return self._function is not None or self._init is not None

    async def run(self, session: LendingSession, timeout_s: float) -> None:
        """Call the hook with the connection of ``session``. Raises ``ParticipantRefused`` if the hook fails,
        or leaves the connection in use, and ``ParticipantUnavailable`` if it takes too long or the connection
        is lost; then the session is discarded."""
        done = False
        try:
            await self._run(session, timeout_s)
            done = True
        except (ServerError, NoAnswer, NotSent) as error:
            raise ParticipantRefused(
                self._participant, f"its {self._called} left the connection unusable: {error}"
            ) from error
        finally:
            if not done:
                session.discard()

    async def _run(self, session: LendingSession, timeout_s: float) -> None:
        function = _checked(self._function or self._load())
        try:
            async with asyncio.timeout(timeout_s) as limit:
                await session.set_up(function)
        except Exception as error:  # the application's code may raise any error
            if limit.expired():
                raise ParticipantUnavailable(
                    self._participant,
                    f"its {self._called} did not end within connect_timeout_s = {timeout_s:g} s",
                ) from error
            kind = ParticipantUnavailable if session.broken else ParticipantRefused
            message = f"its {self._called} failed on a new connection: {type(error).__name__}: {error}"
            raise kind(self._participant, message) from error
        if session.in_transaction:
            await session.script("rollback", timeout_s=timeout_s)
        for row in await session.rows(query("prepared_by_sql"), timeout_s=timeout_s):
            await session.script(f"deallocate {identifier(row['name'])}", timeout_s=timeout_s)
        await session.script(query("reset"), timeout_s=timeout_s)

    def _load(self) -> OnConnect:
        module, _, name = (self._init or "").partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:  # the import of an application's module may raise any error
            raise ParticipantRefused(
                self._participant,
                f"its {self._called} cannot be imported: {type(error).__name__}: {error}",
            ) from error
        if not callable(found):
            raise ParticipantRefused(self._participant, f"its {self._called} is not a function")
        self._function = found
        return self._function


def _checked(function: OnConnect) -> OnConnect:
    """``function``, which fails if it returns a generator: nothing of the hook has run then."""

    def called(connection: Any) -> Any:
        result = function(connection)
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise UsageError("it returned a generator, of which nothing has run: it must be a plain function")
        return result

    return called


def _name(function: OnConnect) -> str:
    return str(getattr(function, "__qualname__", None) or repr(function))
