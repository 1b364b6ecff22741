"""Runs the process ``undoubt sidecar``: its sockets, TLS, signals, and its end.

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
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvicorn

from undoubt import wiring
from undoubt.config import Settings
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.protocols.steps import Observer
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.recovery.service import RecoveryService
from undoubt.serve.notify import notify
from undoubt.serve.sidecar.agency import Agency
from undoubt.serve.sidecar.app import Door
from undoubt.serve.sidecar.book import Book
from undoubt.serve.sidecar.connection import SidecarProtocol
from undoubt.serve.sidecar.handlers import Sidecar
from undoubt.serve.sidecar.health import SidecarHealth
from undoubt.serve.sidecar.lookup import session_name
from undoubt.serve.sidecar.openapi import describe
from undoubt.serve.sidecar.operations import OPERATIONS
from undoubt.serve.sidecar.peers import OtherSidecars, is_loopback
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.tokens import Doorkeeper

log = logging.getLogger(__name__)

BACKLOG = 1024
SOCKET_PATH_BYTES_MAX = 107
"""Of the address of a unix socket, without the byte that ends it (unix(7)); clients have the same limit."""
CLOSE_S = 5
"""The longest wait for requests that are still being answered at the end."""


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
        reloading = asyncio.create_task(_keep_reloading(load, reload, doorkeeper))
        try:
            async with listening(Door(sidecar, doorkeeper), settings.sidecar) as places:
                say(f"the sidecar serves {' and '.join(places)}")
                notify("READY=1", f"STATUS=serving {' and '.join(places)}")
                await stop.wait()
                notify("STOPPING=1")
                await asyncio.gather(
                    sidecar.book.drain(settings.sidecar.drain_s),
                    sidecar.agents().drain(settings.sidecar.drain_s),
                )
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
    async with contextlib.AsyncExitStack() as stack:
        peers = OtherSidecars(settings.sidecar)
        stack.push_async_callback(peers.close)
        ledger = await open_ledger(settings.ledger, create=lambda: wiring.nothing_left(settings))
        stack.push_async_callback(ledger.close)
        ledger = health.metrics.timed(ledger)
        participants = wiring.registry(with_psycopg(settings), ledger.ledger_id)
        stack.push_async_callback(participants.close)
        coordinator = Coordinator(
            ledger, participants, named(settings), observe=observe, meter=health.metrics, records_all=True
        )
        service = RecoveryService(
            ledger,
            participants,
            settings.recovery,
            observe=observe,
            cancel=coordinator.cancel,
            meter=health.metrics,
        )
        await service.start()
        stack.push_async_callback(service.close)
        await stack.enter_async_context(coordinator)
        book = Book(coordinator, settings.sidecar)
        stack.push_async_callback(book.close)
        health.watch(book)
        own_sql = frozenset(name for name, each in settings.participants.items() if each.sidecar.sql)
        document = msgspec.json.encode(describe(OPERATIONS))
        agency = Agency(coordinator, settings.sidecar, peers)
        stack.push_async_callback(agency.close)
        yield Sidecar(settings.sidecar, book, health, document, own_sql, peers=peers, agency=agency)


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
        else:
            log.info("%d tokens were read again", len(settings.sidecar.tokens))


# Sockets.


@contextlib.asynccontextmanager
async def listening(door: Door, settings: SidecarSettings) -> AsyncIterator[list[str]]:
    """Serve at every address in the settings. The value is a list of these addresses for messages."""
    async with contextlib.AsyncExitStack() as stack:
        places = []
        if settings.socket:
            path = _free_socket(Path(settings.socket))
            config = _config(door, settings, uds=str(path))
            await stack.enter_async_context(_serving(config, f"unix socket {path}"))
            path.chmod(0o600)
            stack.callback(path.unlink, missing_ok=True)
            places.append(f"unix:{path}")
        if settings.listen:
            host, port = settings.address
            config = _config(door, settings, host=host, port=port)
            if settings.tls_cert:
                config.ssl = _tls(settings)
            bound = await stack.enter_async_context(_serving(config, settings.listen))
            shown = f"[{host}]" if ":" in host else host
            places.append(f"{'https' if settings.tls_cert else 'http'}://{shown}:{bound or port}")
        yield places


def _config(door: Door, settings: SidecarSettings, **where: object) -> uvicorn.Config:
    class Timed(SidecarProtocol):
        head_timeout_s = settings.body_timeout_s

    config = uvicorn.Config(
        door,
        http=Timed,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=CLOSE_S,
        **where,  # type: ignore[arg-type]
    )
    config.load()
    return config


def _tls(settings: SidecarSettings) -> ssl.SSLContext:
    """Raises ``UsageError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.tls_ca:
            context.load_verify_locations(settings.tls_ca)
            context.verify_mode = ssl.CERT_OPTIONAL  # a client without one sends a token
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"sidecar.tls_cert, tls_key or tls_ca cannot be used: {error}") from error
    return context


def _free_socket(path: Path) -> Path:
    """Prepare the path of the unix socket: make its folder, which only this user can enter, and remove the
    socket of an earlier process. Raises ``UsageError``, also if another process serves the socket."""
    if (size := len(os.fsencode(path))) > SOCKET_PATH_BYTES_MAX:
        raise UsageError(
            f"sidecar.socket is too long: {path} has {size} bytes, and the path of a unix socket has at most"
            f" {SOCKET_PATH_BYTES_MAX}; choose a shorter one"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_uid != os.getuid():
            raise UsageError(f"the folder of sidecar.socket, {path.parent}, belongs to another user")
        path.parent.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                path.unlink(missing_ok=True)
            else:
                raise UsageError(f"another process serves {path}")
    except OSError as error:
        raise UsageError(f"cannot listen at {path}: {error.strerror or error}") from error
    return path


@contextlib.asynccontextmanager
async def _serving(config: uvicorn.Config, where: str) -> AsyncIterator[int | None]:
    """The port, of TCP."""
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    try:
        # The socket is bound here, because uvicorn ends the process if it cannot bind.
        await server.startup(sockets=None if config.uds else [_bound(config.host, config.port)])
    except OSError as error:
        raise UsageError(f"cannot listen at {where}: {error.strerror or error}") from error
    port = None if config.uds else server.servers[0].sockets[0].getsockname()[1]
    ticking = asyncio.create_task(server.main_loop())
    try:
        yield port
    finally:
        server.should_exit = True
        await ticking
        await server.shutdown()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
    except BaseException:
        door.close()
        raise
    return door
