"""Connections to the ledger's server: one statement, one transaction, and what became of it.

SQLAlchemy reads the URL; statements go to psycopg's connection itself, which takes half the processor time. A
statement runs in a task of its own: a caller that is cancelled does not break it off, and
one that gets no answer in time has its socket shut down, so that nobody waits for a server that says nothing.
A connection that was idle has to answer once before its statement is sent: a firewall may have forgotten it.
"""

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
from undoubt.coordinator.ledger.postgres import address, errors, opening
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.uncancellable import uncancellable
from undoubt.participants.redact import redact

log = logging.getLogger(__name__)

T = TypeVar("T")
SqlRow = tuple[Any, ...]

RETRY_S = 0.02
CONNECTIONS_MAX, IDLE_MAX = 6, 2
SESSION_SKIP = 1_000_000_000
"""A new incarnation's session numbers begin so much higher. A backup that is a year old would be too old only
for a ledger on which 30 sessions were opened every second of that year."""
PROBE_AFTER_S = 1.0
"""How long a connection is idle before it has to answer once before its next statement."""
PROBE_S = 3.0
"""How long it may take over that, before a new connection is made."""
PROBE_SHARE = 3
"""And no more than that part of the statement's time."""
JUDGED_S = 60.0
"""How long what was found out about the server and the schema is believed: power over the schema can be given
to others while connections are open."""


class LedgerConnection:
    """One connection, for one statement at a time."""

    def __init__(self, driver: opening.Driver) -> None:
        self._driver = driver
        self._warnings: list[str] = []
        self.idle_since = 0.0
        self.judged_at = asyncio.get_running_loop().time()
        """Both by the event loop's clock."""
        driver.add_notice_handler(lambda notice: self._warnings.append(notice.sqlstate or ""))

    @property
    def broken(self) -> bool:
        return bool(self._driver.closed)

    async def run(self, sql: str, parameters: dict[str, Any], timeout_s: float | None = None) -> list[SqlRow]:
        """The rows. Raises the driver's errors, and ``Unconfirmed``."""
        self._warnings.clear()
        with self._alarm(timeout_s):
            cursor = await self._driver.execute(sql, parameters)
            rows: list[SqlRow] = await cursor.fetchall() if cursor.description is not None else []
        if errors.UNCONFIRMED.intersection(self._warnings):
            raise errors.Unconfirmed("its synchronous standbys did not confirm what is committed there")
        return rows

    async def judge(self, owners: Sequence[str], timeout_s: float) -> None:
        """Look again at the server and at the schema. Raises the driver's errors, and what
        :func:`opening.check` raises."""
        with self._alarm(timeout_s):
            intro = await opening.introduce(self._driver, owners)
        opening.check(intro, owners)
        self.judged_at = asyncio.get_running_loop().time()

    async def close(self) -> None:
        with contextlib.suppress(psycopg.Error, OSError):
            await self._driver.close()

    @contextlib.contextmanager
    def _alarm(self, timeout_s: float | None) -> Iterator[None]:
        alarm = None
        if timeout_s is not None:
            alarm = asyncio.get_running_loop().call_later(timeout_s, self._hang_up)
        try:
            yield
        finally:
            if alarm is not None:
                alarm.cancel()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._driver.fileno())) as door:
            door.shutdown(socket.SHUT_RDWR)


class Connections:
    """See the module. Belongs to one event loop."""

    def __init__(self, settings: LedgerSettings) -> None:
        """Connects to nobody yet. Raises ``LedgerUnusable`` if the URL cannot be read."""
        self.url = redact(settings.url)
        self._timeout_s = settings.request_timeout_s
        self._parameters = address.parameters(settings)
        self._owners = settings.schema_owners
        self._errors = (psycopg.Error, OSError)
        self._idle: list[LedgerConnection] = []
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)
        self._running: set[asyncio.Task[Any]] = set()

    async def ask(self, name: str, /, **parameters: Any) -> list[SqlRow]:
        """The rows of a statement that begins with {here}, without that column. Where this is not the server
        that the ledger knew, a new incarnation begins first. Raises as :meth:`run`."""
        while True:
            rows = await self.run(name, **parameters)
            if not rows:
                raise LedgerUnusable(f"ledger {self.url} has lost its own row; restore it from a backup")
            if rows[0][0]:
                return [row[1:] for row in rows]
            await self._begin_incarnation()

    async def run(self, name: str, /, **parameters: Any) -> list[SqlRow]:
        """The rows of the statement called ``name``, which is repeated while that may help. Raises
        ``LedgerUnavailable`` (it may or may not have been carried out) or ``LedgerUnusable``."""
        return await self.work(lambda line, left_s: line.run(query(name), parameters, left_s))

    async def work(self, work: Callable[[LedgerConnection, float], Awaitable[T]]) -> T:
        """``work`` is given a connection and the seconds that are left. Errors as of :meth:`run`."""
        task = uncancellable(self._repeat(work), name="undoubt-ledger-statement")
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is under way, which takes no longer than a request may, and hang up."""
        while self._running:
            await asyncio.wait(self._running)
        await self._drop_idle()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have been cancelled: then nobody else looks at it

    async def _repeat(self, work: Callable[[LedgerConnection, float], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        while True:
            try:
                async with self._places:
                    return await self._once(work, end)
            except (errors.Unconfirmed, errors.Unsuitable, errors.Standby) as error:
                raise errors.told(error, self.url) from error
            except self._errors as error:
                if loop.time() + RETRY_S >= end:
                    raise LedgerUnavailable(
                        f"no answer from ledger {self.url} within {self._timeout_s} s:"
                        f" {errors.words_of(error)}"
                    ) from error
                if not errors.may_repeat(error):
                    raise errors.told(error, self.url) from error
            await asyncio.sleep(RETRY_S)

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
                await self._drop_idle()  # most likely their server is gone as well
            elif len(self._idle) < IDLE_MAX:
                line.idle_since = loop.time()
                self._idle.append(line)
            else:
                await line.close()

    async def _idle_line(self, left_s: float) -> LedgerConnection | None:
        """One that is there already, and alive; None if there is none: then a new one has to be made."""
        if not self._idle:
            return None
        line = self._idle.pop()
        fresh = asyncio.get_running_loop().time() - line.idle_since < PROBE_AFTER_S
        if await self._believed(line, left_s) and (
            fresh or await self._lives(line, min(PROBE_S, left_s / PROBE_SHARE))
        ):
            return line
        # Its neighbours are most likely lost as well: each of them would cost another statement its time.
        await line.close()
        await self._drop_idle()
        return None

    async def _believed(self, line: LedgerConnection, left_s: float) -> bool:
        """False if it is lost. Raises what :func:`opening.check` raises, and then nothing is left open."""
        if asyncio.get_running_loop().time() - line.judged_at < JUDGED_S:
            return True
        try:
            await line.judge(self._owners, min(PROBE_S, left_s / PROBE_SHARE))
        except self._errors:
            return False
        except BaseException:
            await line.close()
            await self._drop_idle()
            raise
        return True

    async def _lives(self, line: LedgerConnection, timeout_s: float) -> bool:
        """Whether the server answers on it in time."""
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
            raise TimeoutError("connecting takes too long")
        return opening.result()

    async def _open(self) -> LedgerConnection:
        return LedgerConnection(await opening.connect(self._parameters, self._owners))

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for line in idle:
            await line.close()

    async def set_back(self, issued: int) -> None:
        """Session ``issued``, of which the ledger knows nothing, has given names: a new incarnation begins.
        Raises as :meth:`run`."""
        for incarnation, closed, *_ in await self.run("set_back", issued=issued, skip=SESSION_SKIP):
            log.error(
                "ledger %s was set back: it has given names in session %d, of which it knows nothing."
                " Incarnation %d begins; %d sessions were closed, and what they had undecided is left to an"
                " operator",
                self.url,
                issued,
                incarnation,
                closed,
            )

    async def _begin_incarnation(self) -> None:
        for incarnation, closed, *_ in await self.run("new_incarnation", skip=SESSION_SKIP):
            log.warning(
                "ledger %s was restored, copied or failed over: incarnation %d begins; %d sessions were"
                " closed, and what they had undecided is left to an operator",
                self.url,
                incarnation,
                closed,
            )
