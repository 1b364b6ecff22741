"""Runs the process ``undoubt sidecar``: what it opens, its signals, and its end.

SIGTERM and SIGINT end the process: no further transaction is begun; open transactions have some time to end;
then those whose commit has not begun are aborted, and running commits are finished. SIGHUP reads the tokens
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import msgspec

from undoubt import wiring
from undoubt.config import Settings
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.protocols.steps import Observer
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.coordinator.supervision import Supervised
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.serve.console.app import ConsoleApp
from undoubt.serve.console.console import of_sidecar
from undoubt.serve.console.traces import Traces, also
from undoubt.serve.console.watch import SidecarWatch
from undoubt.serve.notify import reporting
from undoubt.serve.sidecar.agency import Agency
from undoubt.serve.sidecar.app import Door
from undoubt.serve.sidecar.book import Book
from undoubt.serve.sidecar.handlers import Sidecar
from undoubt.serve.sidecar.health import SidecarHealth
from undoubt.serve.sidecar.lookup import session_name
from undoubt.serve.sidecar.openapi import describe
from undoubt.serve.sidecar.operations import OPERATIONS
from undoubt.serve.sidecar.peers import OtherSidecars, is_loopback
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.sockets import listening
from undoubt.serve.sidecar.tokens import Doorkeeper

log = logging.getLogger(__name__)


async def run(
    load: Callable[[], Settings],
    stop: asyncio.Event,
    reload: asyncio.Event,
    say: Callable[[str], None],
    *,
    observe: Observer | None = None,
) -> None:
    """Serve until ``stop`` is set; when ``reload`` is set, read the tokens again with ``load``. ``say`` is
    called with one line once the sidecar serves. Raises ``UsageError``, ``LedgerError``."""
    settings = load()
    check(settings.sidecar)
    async with opened(settings, observe) as sidecar:
        doorkeeper = Doorkeeper(settings.sidecar)
        reloading = start_reloading(load, reload, doorkeeper)
        try:
            console = None if sidecar.console is None else ConsoleApp(sidecar.console, doorkeeper)
            async with listening(Door(sidecar, doorkeeper, console), settings.sidecar) as places:
                say(f"the sidecar serves {' and '.join(places)}")
                async with reporting(f"serving {' and '.join(places)}"):
                    await stop.wait()
                await asyncio.gather(
                    sidecar.book.drain(settings.sidecar.drain_s),
                    sidecar.agents().drain(settings.sidecar.drain_s),
                )
                if sidecar.console is not None:
                    sidecar.console.feed.end()
        finally:
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)


def check(settings: SidecarSettings) -> None:
    """Raise ``UsageError`` if with these settings clients need no authentication, or nothing can connect."""
    if not settings.socket and not settings.listen:
        raise UsageError("the sidecar listens nowhere: set sidecar.socket or sidecar.listen")
    if settings.listen:
        host, _ = settings.address
        if not settings.tokens:
            raise UsageError(
                "sidecar.listen without sidecar.tokens: TCP does not identify the client. Make a token:"
                " undoubt sidecar --new-token NAME"
            )
        if not is_loopback(host) and not settings.tls_cert:
            raise UsageError(
                f"sidecar.listen = {settings.listen!r} is open to other machines: it needs sidecar.tls_cert"
                " and tls_key"
            )
    if settings.url:
        parts = urlsplit(settings.url)
        if not settings.listen:
            raise UsageError("sidecar.url needs sidecar.listen: other sidecars connect over TCP")
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise UsageError("sidecar.url must be https://… unless it is a loopback address")


@contextlib.asynccontextmanager
async def opened(settings: Settings, observe: Observer | None = None) -> AsyncIterator[Sidecar]:
    """Open the coordinator, recovery if this process owns the ledger, and the book. Raises
    ``LedgerError``."""
    health = SidecarHealth()
    watch = SidecarWatch(Traces())
    observe = also(observe, watch.traces)
    async with contextlib.AsyncExitStack() as stack:
        peers = OtherSidecars(settings.sidecar)
        stack.push_async_callback(peers.close)
        ledger = await open_ledger(settings.ledger, create=lambda: wiring.nothing_left(settings), serves=True)
        stack.push_async_callback(ledger.close)
        ledger = health.metrics.timed(ledger)
        participants = wiring.registry(with_psycopg(settings), ledger.ledger_id)
        stack.push_async_callback(participants.close)
        coordinator = Coordinator(
            ledger, participants, named(settings), observe=observe, meter=health.metrics, records_all=True
        )
        service = wiring.recovery(
            settings, ledger, participants, coordinator, observe=observe, meter=health.metrics
        )
        await service.start()
        stack.push_async_callback(service.close)
        await stack.enter_async_context(coordinator)
        book = Book(coordinator, settings.sidecar, watch)
        stack.push_async_callback(book.close)
        health.watch(book)
        own_sql = frozenset(name for name, each in settings.participants.items() if each.sidecar.sql)
        document = msgspec.json.encode(describe(OPERATIONS))
        agency = Agency(coordinator, settings.sidecar, peers)
        stack.push_async_callback(agency.close)
        console = of_sidecar(settings, ledger, book, service, watch)
        stack.push_async_callback(console.close)
        console.start()
        yield Sidecar(
            settings.sidecar, book, health, document, own_sql, peers=peers, agency=agency, console=console
        )


def with_psycopg(settings: Settings) -> Settings:
    """The settings with psycopg as the driver of participants in which statements of clients run: psycopg
    returns values as the text that the server has sent."""
    participants = {
        name: msgspec.structs.replace(each, driver="psycopg") if each.sidecar.sql else each
        for name, each in settings.participants.items()
    }
    return msgspec.structs.replace(settings, participants=participants)


def named(settings: Settings) -> CoordinatorSettings:
    """The settings with a session name that contains the address for other sidecars."""
    own = settings.coordinator.name or f"{socket.gethostname()}:{os.getpid()}"
    return msgspec.structs.replace(settings.coordinator, name=session_name(settings.sidecar.url, own))


def start_reloading(
    load: Callable[[], Settings], reload: asyncio.Event, doorkeeper: Doorkeeper
) -> asyncio.Task[None]:
    """Give ``doorkeeper`` the tokens of ``load()`` each time ``reload`` is set, in a task that the caller has
    to cancel. After a bug the tokens are read again: otherwise a token that was taken away would be valid
    until the process ends."""
    loop = Supervised("sidecar tokens", lambda: _keep_reloading(load, reload, doorkeeper))
    return loop.start("undoubt-sidecar-tokens")


async def _keep_reloading(
    load: Callable[[], Settings], reload: asyncio.Event, doorkeeper: Doorkeeper
) -> None:
    while True:
        await reload.wait()
        reload.clear()
        try:
            settings = await asyncio.to_thread(load)
            doorkeeper.reload(settings.sidecar)
        except UndoubtError as error:
            log.warning("the tokens were not changed: %s", error)
        except Exception:
            reload.set()  # the loop is started again, and reads them then
            raise
        else:
            log.info("%d tokens were read again", len(settings.sidecar.tokens))
