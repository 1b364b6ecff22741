"""Reads the parts of the page in the background, and gives each subscriber what has changed.

Each part is read by a task of its own, so that one that does not answer delays no other; it is read only
while a page is open. A subscriber first gets everything, then each part that has changed, and with every
message, at least once in :data:`BEAT_S`, when each part was read last: a page can tell how old each is.

Memory is bounded: for a slow subscriber the newest version of each part and row waits, and no older one. Of a
part with a long list only the entries that differ from what the subscriber was told are sent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.supervision import Supervised
from undoubt.participants.errors import UndoubtError
from undoubt.participants.redact import redact
from undoubt.serve.console.rows import Row, TransactionRows

log = logging.getLogger(__name__)

BEAT_S = 1.0
CHUNK_ROWS = 500
GATHER_S = 0.05
"""How long changes are gathered before they are sent."""
BUSY_SHARE = 0.25
"""The share of the time that reading one part may take: the pause is longer where reading is slow."""
PAUSE_MAX_S = 3.0
"""The longest such pause. A reading that waited for a lost node, or during which this process was stopped, is
slow once, and says nothing about the next one. Shorter than the page waits before it calls a part late."""

Read = Callable[[], Awaitable[Any]]


def pause_s(interval_s: float, took_s: float) -> float:
    """The pause after a reading that took so many seconds."""
    return max(interval_s, min(took_s * (1 / BUSY_SHARE - 1), PAUSE_MAX_S))


@dataclass(slots=True)
class _Part:
    """``event`` is the newest document as a message; ``at``: when its reading began, in seconds since 1970, 0
    before the first one; ``error``: why the last reading failed. ``listed`` is the key of its document that
    has a long list."""

    interval_s: float
    listed: str = ""
    event: bytes = b""
    document: Any = None
    at: float = 0.0
    error: str = ""


class Feed:
    """The parts, the rows, and the subscribers of one process. ``about`` is what a page is told first."""

    def __init__(self, about: Callable[[], dict[str, Any]]) -> None:
        self._about = about
        self.rows = TransactionRows(self._row_changed)
        self._parts: dict[str, _Part] = {}
        self._subscriptions: set[Subscription] = set()
        self._watched = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = False
        """Whether subscriptions end now."""

    def clients(self) -> Counter[str]:
        """How many subscriptions each client has."""
        return Counter(each.client for each in self._subscriptions)

    def follow(
        self, name: str, interval_s: float, read: Read, *, unwatched_s: float | None = None, listed: str = ""
    ) -> None:
        """Read a part in the background, in pauses of ``interval_s`` seconds; while no page is open, in
        pauses of ``unwatched_s``, or not at all. Errors of undoubt belong to the part. The list at the key
        ``listed`` is told as its changes (:class:`Told`)."""
        self._parts[name] = _Part(interval_s, listed)

        async def loop() -> None:
            while True:
                await self._when_watched(unwatched_s)
                took_s = await self._read(name, read)
                await asyncio.sleep(pause_s(interval_s, took_s))

        self._tasks.append(Supervised("console", loop).start(f"undoubt-console {name}"))

    async def _when_watched(self, otherwise_s: float | None) -> None:
        if otherwise_s is None:
            await self._watched.wait()
            return
        try:
            async with asyncio.timeout(otherwise_s):
                await self._watched.wait()
        except TimeoutError:
            pass

    async def read_now(self, name: str, read: Read) -> None:
        """Read a part once more, out of turn."""
        await self._read(name, read)

    async def _read(self, name: str, read: Read) -> float:
        """How long it took, in seconds."""
        part, began, began_s = self._parts[name], time.time(), time.perf_counter()
        try:
            document = await read()
        except (LedgerError, UndoubtError) as error:
            part.error = redact(str(error)) or type(error).__name__
        else:
            part.at, part.error = began, ""
            event = message(name, document)
            if event != part.event:
                part.event, part.document = event, document
                for each in self._subscriptions:
                    self._put(each, name, part)
        return time.perf_counter() - began_s

    def _put(self, one: Subscription, name: str, part: _Part) -> None:
        if part.listed:
            one.put_list(name, part.document, part.listed)
        else:
            one.put(name, part.event)

    def _row_changed(self, row: Row) -> None:
        for each in self._subscriptions:
            each.put_row(row)

    def beat(self) -> bytes:
        """When each part was read, and what failed."""
        parts = {
            name: {"at": part.at, "interval_s": part.interval_s, "error": part.error}
            for name, part in self._parts.items()
        }
        return message("beat", {"now": time.time(), "parts": parts})

    def subscribe(self, who: dict[str, Any]) -> Subscription:
        """A new subscription, with everything that is known. ``who``: what the page shows of its client."""
        one = Subscription(self, str(who.get("client", "")), message("hello", self._about() | who))
        for row in self.rows:
            one.put_row(row)
        for name, part in self._parts.items():
            if part.event:
                self._put(one, name, part)
        self._subscriptions.add(one)
        self._watched.set()
        return one

    def unsubscribe(self, one: Subscription) -> None:
        self._subscriptions.discard(one)
        if not self._subscriptions:
            self._watched.clear()

    def end(self) -> None:
        """End all subscriptions."""
        self.ended = True
        for each in self._subscriptions:
            each.wake()

    async def close(self) -> None:
        self.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Subscription:
    """What one page of ``client`` has still to be told."""

    def __init__(self, feed: Feed, client: str, hello: bytes) -> None:
        self._feed = feed
        self.client = client
        self._parts: dict[str, bytes] = {"hello": hello}
        self._lists: dict[str, tuple[dict[str, Any], str]] = {}
        self._told: dict[str, Told] = {}
        self._rows: dict[str, Row] = {}
        self._wake = asyncio.Event()
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def put(self, name: str, event: bytes) -> None:
        self._parts[name] = event
        self._wake.set()

    def put_list(self, name: str, document: dict[str, Any], listed: str) -> None:
        self._lists[name] = document, listed
        self._wake.set()

    def put_row(self, row: Row) -> None:
        self._rows[row["id"]] = row
        self._wake.set()

    async def events(self) -> AsyncGenerator[bytes]:
        """The messages, until the feed ends."""
        try:
            while not self._feed.ended:
                try:
                    async with asyncio.timeout(BEAT_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                else:
                    await asyncio.sleep(GATHER_S)
                self._wake.clear()
                yield b"".join([*self._take(), self._feed.beat()])
        finally:
            self._feed.unsubscribe(self)

    def _take(self) -> Iterable[bytes]:
        parts, self._parts = self._parts, {}
        if (hello := parts.pop("hello", None)) is not None:
            yield hello
        rows, self._rows = [*self._rows.values()], {}
        for first in range(0, len(rows), CHUNK_ROWS):
            yield message("rows", {"rows": rows[first : first + CHUNK_ROWS]})
        yield from parts.values()
        lists, self._lists = self._lists, {}
        for name, (document, listed) in lists.items():
            told = self._told.setdefault(name, Told())
            yield message(name, document | {listed: told.changes(document[listed])})


class Told:
    """What a page knows of a long list, whose entries have a ``gid``."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Any]] = {}

    def changes(self, entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """From what was told before to ``entries``: ``changed`` has new and other ones by name, ``gone`` the
        names of those that are no more. A second entry of one gid has a name of its own."""
        now: dict[str, dict[str, Any]] = {}
        for entry in entries:
            name, place = entry["gid"], 1
            while name in now:
                place += 1
                name = f"{entry['gid']} ({place})"
            now[name] = entry
        before, self._entries = self._entries, now
        return {
            "changed": {name: entry for name, entry in now.items() if before.get(name) != entry},
            "gone": [name for name in before if name not in now],
        }


def message(name: str, document: Any) -> bytes:
    """One server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html). JSON has no
    line break outside of its strings' escapes."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(document))
