"""The loop of a relay: read, deliver, remove.

There is no high-water mark: what is in the outbox was not acknowledged, whatever its id. A lane (the messages
of one topic and key) is delivered by one task, one message after another. Its messages are read again only
after those that were acknowledged are removed. After a failure, whatever the receiver raises, the lane rests,
for longer each time, and its messages are read anew. A delivery that was too long is cancelled. If it goes on
for as long again, its lane is overdue: it takes no place of other lanes any more, and nothing is delivered in
it before that delivery has ended."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from undoubt.participants import bounds
from undoubt.participants.backoff import limit_s
from undoubt.participants.errors import ParticipantError, ParticipantUnavailable
from undoubt.participants.outbox import NAME_BYTES_MAX, Lane, Message, OutboxReader
from undoubt.relay.meter import RelayMeter
from undoubt.relay.sink import Sink

log = logging.getLogger(__name__)

POLL_S = 0.2
"""How often an idle relay looks for messages."""
BATCH = 100
"""Messages that are read at once, of at most 1 MiB each."""
RETRY_S, RETRY_S_MAX = 0.2, 60.0
"""The first and the longest rest of a lane whose message was not acknowledged."""
RECONNECT_S_MAX = 10.0
LOOK_S = 10.0
"""How often the backlog is measured, which reads the whole outbox."""
OVERDUE_MAX = 1_000
"""With so many overdue lanes nothing more is read until one of them has ended."""


@dataclass(slots=True)
class _Rest:
    """A lane whose last delivery has failed. ``until`` is in seconds of the event loop's clock."""

    attempts: int
    until: float


class Relay:
    """Delivers the messages of ``outbox`` to ``sink``; both are closed at the end of :meth:`run`.

    ``topics``: only these; by default all that no other relay has claimed. ``concurrency``: how many lanes
    are delivered at once. ``timeout``: after how many seconds a delivery counts as failed. ``metrics``:
    ``undoubt.metrics.Metrics().relay(name)``."""

    def __init__(
        self,
        outbox: OutboxReader,
        sink: Sink,
        *,
        topics: Iterable[str] = (),
        concurrency: int = 16,
        timeout: float = 30.0,
        metrics: RelayMeter | None = None,
    ) -> None:
        bounds.having("outbox", outbox, "an outbox", "claim", "read", "remove")
        bounds.having("sink", sink, "a sink", "deliver", "close")
        if metrics is not None:
            bounds.having("metrics", metrics, "metrics of a relay", "delivered", "failed", "outbox")
        self._meter = metrics
        self._look_at = 0.0
        """When the backlog is measured next, on the event loop's clock."""
        self._outbox = outbox
        self._sink = sink
        self._topics = bounds.texts("topics", tuple(topics), most=NAME_BYTES_MAX)
        self._concurrency = bounds.count("concurrency", concurrency, least=1, most=1_000)
        self._timeout_s = bounds.seconds("timeout", timeout, zero=False)
        self._slots = asyncio.Semaphore(self._concurrency)
        self._lanes: dict[Lane, asyncio.Task[None]] = {}
        """The lanes with messages that were read and are not removed yet."""
        self._overdue: set[Lane] = set()
        """Those of them whose delivery goes on long after it was cancelled."""
        self._resting: dict[Lane, _Rest] = {}
        self._acknowledged: list[str] = []
        """Dedupe ids of messages that have to be removed, and must not be delivered again before."""
        self._wake = asyncio.Event()
        self._stopped = self._halted = False
        self.delivered = 0
        """Deliveries that were acknowledged."""
        self.failed = 0
        """Deliveries that were not."""

    def stop(self) -> None:
        """Have :meth:`run` finish the deliveries that are under way, and return. For a handler of signals."""
        self._stopped = True
        self._wake.set()

    async def run(self, *, once: bool = False) -> None:
        """Deliver until :meth:`stop`; with ``once`` until each message was delivered, or has failed once.

        A database that does not answer is tried again; with ``once``, and if it refuses the first call, its
        ``ParticipantError`` is raised."""
        losses, worked = 0, False
        try:
            while not self._stopped:
                try:
                    if await self._turn(once=once):
                        return
                    losses, worked = 0, True
                except ParticipantError as error:
                    if once or not (worked or isinstance(error, ParticipantUnavailable)):
                        raise
                    log.warning("the outbox does not answer: %s", error)
                    if self._meter is not None:
                        self._meter.outbox_failed()
                    await self._halt()  # another relay may have claimed the topics meanwhile
                    await self._outbox.close()
                    await self._pause(limit_s(POLL_S, RECONNECT_S_MAX, losses) * (0.5 + random.random()))  # noqa: S311 - no secret
                    losses += 1
        finally:
            await self._finish()

    async def _turn(self, *, once: bool) -> bool:
        """Remove what was acknowledged, read, and wait. True if nothing is left to do, with ``once``."""
        self._wake.clear()
        await self._remove()
        read: Sequence[Message] = ()
        overdue = len(self._overdue)
        if len(self._lanes) - overdue < 2 * self._concurrency and overdue < OVERDUE_MAX:
            read = await self._read(once=once)
        for lane, messages in _by_lane(read).items():
            self._lanes[lane] = asyncio.create_task(self._deliver(lane, messages), name="undoubt-lane")
        await self._look()
        if once and self._overdue.issuperset(self._lanes) and not self._acknowledged:
            return True
        await self._pause(POLL_S)
        return False

    async def _read(self, *, once: bool) -> Sequence[Message]:
        topics = await self._outbox.claim(self._topics)
        now = asyncio.get_running_loop().time()
        resting = [lane for lane, rest in self._resting.items() if once or rest.until > now]
        if not topics:
            return ()
        read = await self._outbox.read(topics, without=[*self._lanes, *resting], limit=BATCH)
        if len(read) < BATCH:  # all that there is: a lane of which nothing was read has nothing any more
            known = {*self._lanes, *resting, *(message.lane for message in read)}
            self._resting = {lane: rest for lane, rest in self._resting.items() if lane in known}
        return read

    async def _look(self) -> None:
        """Measure the backlog, now and then."""
        now = asyncio.get_running_loop().time()
        if self._meter is not None and now >= self._look_at:
            self._meter.outbox(await self._outbox.backlog(self._topics), blocked=len(self._resting))
            self._look_at = now + LOOK_S

    async def _deliver(self, lane: Lane, messages: Sequence[Message]) -> None:
        try:
            for message in messages:
                async with self._slots:
                    if self._stopped or self._halted:
                        return
                    began = asyncio.get_running_loop().time()
                    attempt = _delivered(self._sink, message, self._timeout_s)
                    delivery = asyncio.create_task(attempt, name="undoubt-delivery")
                    overdue = not await _ended(delivery, 2 * self._timeout_s)
                if overdue:
                    self._rest(lane, message, TimeoutError("it has not ended since its timeout"))
                    await self._overrun(lane, delivery)
                failure = asyncio.CancelledError() if delivery.cancelled() else delivery.result()
                if failure is None:
                    self._acknowledge(lane, message, asyncio.get_running_loop().time() - began)
                elif not overdue:
                    self._rest(lane, message, failure)
                if failure is not None or overdue:  # later messages may be of another relay by now
                    return
        finally:
            self._wake.set()

    async def _overrun(self, lane: Lane, delivery: asyncio.Task[BaseException | None]) -> None:
        """Wait, in no slot, for the end of a delivery that hangs: the next one of its key must not begin
        beside it, and those of other keys need not wait."""
        self._overdue.add(lane)
        self._wake.set()
        try:
            await _ended(delivery, None)
        finally:
            self._overdue.discard(lane)

    def _acknowledge(self, lane: Lane, message: Message, seconds: float) -> None:
        self.delivered += 1
        if self._meter is not None:
            self._meter.delivered(message.topic, seconds)
        self._resting.pop(lane, None)
        self._acknowledged.append(message.dedupe_id)
        self._wake.set()

    def _rest(self, lane: Lane, message: Message, error: BaseException) -> None:
        self.failed += 1
        if self._meter is not None:
            self._meter.failed(message.topic)
        rest = self._resting.setdefault(lane, _Rest(0, 0.0))
        pause_s = limit_s(RETRY_S, RETRY_S_MAX, rest.attempts) * (0.5 + random.random())  # noqa: S311 - no secret
        rest.attempts += 1
        rest.until = asyncio.get_running_loop().time() + pause_s
        log.warning(
            "message %s (topic %r, key %r) was not delivered, attempt %d: %s",
            message.dedupe_id,
            message.topic,
            message.key,
            rest.attempts,
            _told(error),
        )

    async def _remove(self) -> None:
        """Remove what was acknowledged; then lanes that have ended may be read again."""
        ended = [lane for lane, task in self._lanes.items() if task.done()]
        if acknowledged := list(self._acknowledged):
            await self._outbox.remove(acknowledged)
            del self._acknowledged[: len(acknowledged)]
        for lane in ended:
            del self._lanes[lane]

    async def _halt(self) -> None:
        """Wait for the deliveries that are under way; none begins meanwhile. What was acknowledged is still
        to be removed. Overdue lanes are left as they are: they may never end."""
        self._halted = True
        while tasks := [
            task for lane, task in self._lanes.items() if lane not in self._overdue and not task.done()
        ]:
            await asyncio.wait(tasks, timeout=POLL_S)  # one of them may become overdue
        self._lanes = {lane: task for lane, task in self._lanes.items() if not task.done()}
        self._halted = False

    async def _finish(self) -> None:
        try:
            await self._halt()
            if self._acknowledged:
                await self._outbox.remove(self._acknowledged)
        except ParticipantError as error:
            log.warning("%d messages will be delivered again: %s", len(self._acknowledged), error)
        finally:
            for task in self._lanes.values():
                task.cancel()
            await self._outbox.close()
            await self._sink.close()

    async def _pause(self, seconds: float) -> None:
        """Wait until something is to be done, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return


async def _ended(delivery: asyncio.Task[BaseException | None], within_s: float | None) -> bool:
    """Wait for the end of ``delivery``, a task of its own, which the receiver may cancel without cancelling
    the relay. False if it has not ended in time."""
    try:
        done, _ = await asyncio.wait({delivery}, timeout=within_s)
    except asyncio.CancelledError:  # the relay's own, never the receiver's
        delivery.cancel()
        raise
    return bool(done)


async def _delivered(sink: Sink, message: Message, within_s: float) -> BaseException | None:
    """What the sink has raised; None if it has acknowledged ``message``. Cancelled after ``within_s``."""
    limit = asyncio.timeout(within_s)
    try:
        async with limit:
            await sink.deliver(message)
    except BaseException as error:  # noqa: BLE001 - asyncio would end the event loop with a SystemExit
        if isinstance(error, TimeoutError) and limit.expired():
            return TimeoutError(f"it was not acknowledged within {within_s:g} s")
        return error
    return None


def _told(error: BaseException) -> str:
    """What a log tells of a receiver's error, which may be of any class."""
    try:
        text = str(error) if isinstance(error, Exception) else ""
    except Exception:  # noqa: BLE001 - of a __str__ of the application
        text = ""
    return text or type(error).__name__


def _by_lane(messages: Iterable[Message]) -> dict[Lane, list[Message]]:
    found = dict[Lane, list[Message]]()
    for message in messages:
        found.setdefault(message.lane, []).append(message)
    return found
