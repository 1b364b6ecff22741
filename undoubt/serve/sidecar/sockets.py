"""The sockets at which HTTP is served: the unix socket, TCP, and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from undoubt.participants.errors import UsageError
from undoubt.serve.sidecar.connection import SidecarProtocol
from undoubt.serve.sidecar.settings import SidecarSettings

BACKLOG = 1024
SOCKET_PATH_BYTES_MAX = 107
"""Of the address of a unix socket, without the byte that ends it (unix(7)); clients have the same limit."""
CLOSE_S = 5
"""The longest wait for requests that are still being answered at the end."""


@contextlib.asynccontextmanager
async def listening(
    door: ASGIApp, settings: SidecarSettings, section: str = "sidecar"
) -> AsyncIterator[list[str]]:
    """Serve at every address in the settings, which stand in ``section``. The value is a list of these
    addresses for messages."""
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
                config.ssl = _tls(settings, section)
            bound = await stack.enter_async_context(_serving(config, settings.listen))
            shown = f"[{host}]" if ":" in host else host
            places.append(f"{'https' if settings.tls_cert else 'http'}://{shown}:{bound or port}")
        yield places


def _config(door: ASGIApp, settings: SidecarSettings, **where: object) -> uvicorn.Config:
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


def _tls(settings: SidecarSettings, section: str) -> ssl.SSLContext:
    """Raises ``UsageError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.tls_ca:
            context.load_verify_locations(settings.tls_ca)
            context.verify_mode = ssl.CERT_OPTIONAL  # a client without one sends a token
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{section}.tls_cert, tls_key or tls_ca cannot be used: {error}") from error
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
