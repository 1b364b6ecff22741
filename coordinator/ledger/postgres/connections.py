"""Connections to the ledger's server: each statement is one transaction, and is repeated if that is safe.

SQLAlchemy reads the URL; statements are sent with psycopg's connection directly, which takes half the
processor time. A statement runs in its own task: the cancellation of its caller does not interrupt it. If it
gets no answer in time, its socket is shut down, so that no caller waits for a server that does not answer. A
connection that was idle has to answer a probe before a statement is sent: a firewall may have dropped it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import psycopg

from undoubt.coordinator.errors import LedgerUnavailable, LedgerUnusable
from undoubt.coordinator.ledger.move_mark import MoveMark, MovePhase, check_lives
from undoubt.coordinator.ledger.postgres import address, errors, opening
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.redact import redact
from undoubt.participants.tasks import uncancellable

log = logging.getLogger(__name__)

T = TypeVar("T")
SqlRow = tuple[Any, ...]

RETRY_S = 0.02
CONNECTIONS_MAX, IDLE_MAX = 6, 2
SESSION_SKIP = 1_000_000_000
"""The session numbers of a new incarnation begin so much higher. With a backup that is a year old this would
be too little only if 30 sessions were opened in each second of that year."""
PROBE_AFTER_S = 1.0
"""A connection that was idle for longer has to answer a probe before its next statement."""
PROBE_S = 3.0
"""The time limit of the probe, after which a new connection is made."""
PROBE_SHARE = 3
"""A probe takes at most this part (one third) of the statement's time."""
CHECKED_S = 60.0
"""The checks of the server and of the schema are repeated after this time: rights on the schema can be
granted to other roles while connections are open."""


class LedgerConnection:
    """One connection, for one statement at a time."""

    def __init__(self, driver: opening.Driver) -> None:
        self._driver = driver
        self._warnings: list[str] = []
        self.idle_since = 0.0
        self.checked_at = asyncio.get_running_loop().time()
        """The time of the last check of server and schema. Both times are the event loop's."""
        driver.add_notice_handler(lambda notice: self._warnings.append(notice.sqlstate or ""))

    @property
    def broken(self) -> bool:
        return bool(self._driver.closed)

    async def run(self, sql: str, parameters: dict[str, Any], timeout_s: float | None = None) -> list[SqlRow]:
        """Run one statement; returns its rows. Raises the driver's errors, and ``Unconfirmed``."""
        self._warnings.clear()
        with self._alarm(timeout_s):
            cursor = await self._driver.execute(sql, parameters)
            rows: list[SqlRow] = await cursor.fetchall() if cursor.description is not None else []
        if errors.UNCONFIRMED.intersection(self._warnings):
            raise errors.Unconfirmed("its synchronous standbys did not confirm what is committed there")
        return rows

    async def check_again(self, owners: Sequence[str], timeout_s: float) -> None:
        """Check the server and the schema again. Raises the driver's errors, and what :func:`opening.check`
        raises."""
        with self._alarm(timeout_s):
            intro = await opening.introduce(self._driver, owners)
        opening.check(intro, owners)
        self.checked_at = asyncio.get_running_loop().time()

    async def close(self) -> None:
        with contextlib.suppress(psycopg.Error, OSError):
            await self._driver.close()

    @contextlib.contextmanager
    def _alarm(self, timeout_s: float | None) -> Iterator[None]:
        alarm = None
        if timeout_s is not None:
            alarm = asyncio.get_running_loop().call_later(timeout_s, self._shut_down_socket)
        try:
            yield
        finally:
            if alarm is not None:
                alarm.cancel()

    def _shut_down_socket(self) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._driver.fileno())) as duplicate:
            duplicate.shutdown(socket.SHUT_RDWR)


class Connections:
    """The pool of connections of one ledger. Belongs to one event loop."""

    def __init__(self, settings: LedgerSettings) -> None:
        """Does not connect yet. Raises ``LedgerMisconfigured`` if the URL is invalid."""
        self.url = redact(settings.url)
        self._timeout_s = settings.request_timeout_s
        self._parameters = address.parameters(settings)
        self._owners = settings.schema_owners
        self._errors = (psycopg.Error, OSError)
        self._idle: list[LedgerConnection] = []
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)
        self._running: set[asyncio.Task[Any]] = set()

    async def ask(self, name: str, /, **parameters: Any) -> list[SqlRow]:
        """The rows of a statement that begins with {here}, without that column. If the server is not the one
        that the ledger was on before, a new incarnation begins first. Raises as :meth:`run`."""
        while True:
            rows = await self.run(name, **parameters)
            if not rows:
                raise LedgerUnusable(f"ledger {self.url} has lost its own row; restore it from a backup")
            if rows[0][0]:
                return [row[1:] for row in rows]
            await self._begin_incarnation()

    async def run(self, name: str, /, **parameters: Any) -> list[SqlRow]:
        """The rows of the statement ``name``, which is repeated as long as that may help. Raises
        ``LedgerUnavailable`` (the statement may or may not have been carried out) or ``LedgerUnusable``."""
        return await self.work(lambda line, left_s: line.run(query(name), parameters, left_s))

    async def work(self, work: Callable[[LedgerConnection, float], Awaitable[T]]) -> T:
        """Call ``work`` with a connection and the remaining seconds. Raises as :meth:`run`."""
        task = uncancellable(self._repeat(work), name="undoubt-ledger-statement")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for running statements, at most as long as a request may take, then close all connections."""
        while self._running:
            await asyncio.wait(self._running)
        await self._drop_idle()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the waiting caller may have been cancelled

    async def _repeat(self, work: Callable[[LedgerConnection, float], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        while True:
            try:
                async with self._places:
                    return await self._once(work, end)
            except (errors.Unconfirmed, errors.Unsuitable, errors.Standby) as error:
                raise errors.as_ledger_error(error, self.url) from error
            except self._errors as error:
                if loop.time() + RETRY_S >= end:
                    raise LedgerUnavailable(
                        f"no answer from ledger {self.url} within {self._timeout_s} s:"
                        f" {errors.words_of(error)}"
                    ) from error
                if errors.is_missing(error):
                    check_lives(await self._mark(end))
                if not errors.may_repeat(error):
                    raise errors.as_ledger_error(error, self.url) from error
            await asyncio.sleep(RETRY_S)

    async def _mark(self, end: float) -> MoveMark | None:
        """The mark of a move of the ledger; None if there is none, or it cannot be read."""

        async def read(line: LedgerConnection, left_s: float) -> list[SqlRow]:
            return await line.run(query("mark"), {}, left_s)

        try:
            async with self._places:
                rows = await self._once(read, end)
        except (*self._errors, errors.Unconfirmed, errors.Unsuitable, errors.Standby):
            return None
        for ident, place, at, phase in rows:
            return MoveMark(ident, place, at, MovePhase(phase))
        return None

    async def _once(self, work: Callable[[LedgerConnection, float], Awaitable[T]], end: float) -> T:
        loop = asyncio.get_running_loop()
        line = await self._idle_line(end - loop.time()) or await self._connect(end - loop.time())
        stale = False
        try:
            return await work(line, end - loop.time())
        except self._errors as error:
            stale = errors.is_stale(error)
            raise
        finally:
            if line.broken or stale:
                await line.close()
                await self._drop_idle()  # their connections are probably lost as well
            elif len(self._idle) < IDLE_MAX:
                line.idle_since = loop.time()
                self._idle.append(line)
            else:
                await line.close()

    async def _idle_line(self, left_s: float) -> LedgerConnection | None:
        """An idle connection that works; None if there is none."""
        if not self._idle:
            return None
        line = self._idle.pop()
        fresh = asyncio.get_running_loop().time() - line.idle_since < PROBE_AFTER_S
        if await self._still_trusted(line, left_s) and (
            fresh or await self._answers(line, min(PROBE_S, left_s / PROBE_SHARE))
        ):
            return line
        # The other idle connections are probably lost as well: each would use up the time of a statement.
        await line.close()
        await self._drop_idle()
        return None

    async def _still_trusted(self, line: LedgerConnection, left_s: float) -> bool:
        """Repeat the checks of server and schema if they are due. False if the connection is lost. Raises
        what :func:`opening.check` raises; then all idle connections are closed."""
        if asyncio.get_running_loop().time() - line.checked_at < CHECKED_S:
            return True
        try:
            await line.check_again(self._owners, min(PROBE_S, left_s / PROBE_SHARE))
        except self._errors:
            return False
        except BaseException:
            await line.close()
            await self._drop_idle()
            raise
        return True

    async def _answers(self, line: LedgerConnection, timeout_s: float) -> bool:
        """Whether the server answers a probe within ``timeout_s``."""
        try:
            await line.run("select", {}, timeout_s)
        except (*self._errors, errors.Unconfirmed):
            return False
        return True

    async def _connect(self, timeout_s: float) -> LedgerConnection:
        opening = uncancellable(self._open(), name="undoubt-ledger-connect")
        await asyncio.wait([opening], timeout=max(timeout_s, 0))
        if not opening.done():
            opening.abandon()
            await asyncio.wait([opening])
        if opening.cancelled():
            raise TimeoutError("no connection in time")
        return opening.result()

    async def _open(self) -> LedgerConnection:
        return LedgerConnection(await opening.connect(self._parameters, self._owners))

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for line in idle:
            await line.close()

    async def set_back(self, issued: int) -> None:
        """Begin a new incarnation, because session ``issued`` has given names and is not in the ledger.
        Raises as :meth:`run`."""
        for incarnation, closed, *_ in await self.run("set_back", issued=issued, skip=SESSION_SKIP):
            log.error(
                "ledger %s was set back: it has given names in session %d, which it does not contain."
                " Incarnation %d begins; %d sessions were closed, and an operator has to decide their"
                " undecided transactions",
                self.url,
                issued,
                incarnation,
                closed,
            )

    async def _begin_incarnation(self) -> None:
        for incarnation, closed, *_ in await self.run("new_incarnation", skip=SESSION_SKIP):
            log.warning(
                "ledger %s was restored, copied or failed over: incarnation %d begins; %d sessions were"
                " closed, and an operator has to decide their undecided transactions",
                self.url,
                incarnation,
                closed,
            )
