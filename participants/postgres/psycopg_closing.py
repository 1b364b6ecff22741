"""Closing a libpq connection in which something is still going on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING

import psycopg
from psycopg import generators, waiting
from psycopg.pq import ConnStatus

from undoubt.participants.postgres.closing import CLOSE_TIMEOUT_S

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

log = logging.getLogger(__name__)


async def cancel_and_finish(pgconn: PGconn) -> None:
    """For a statement of the engine's own, whose answer nobody waits for any more."""
    try:
        await _cancel(pgconn)
    finally:
        pgconn.finish()


async def interrupt(pgconn: PGconn) -> None:
    """For a statement of the application's, in whatever thread: it fails, there and on the server. The
    connection is not freed: that is for whoever is inside."""
    door = _duplicate(pgconn)
    try:
        await _cancel(pgconn)
    finally:
        if door is not None:
            with door, contextlib.suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)


def _duplicate(pgconn: PGconn) -> socket.socket | None:
    """Of our own: the connection's may be closed meanwhile, and its number given out again."""
    try:
        return socket.socket(fileno=os.dup(pgconn.socket))
    except (OSError, psycopg.Error):
        return None  # closed already


async def _cancel(pgconn: PGconn) -> None:
    if pgconn.status != ConnStatus.OK:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            cancelling = pgconn.cancel_conn()
            cancelling.start()
            await waiting.wait_conn_async(generators.cancel(cancelling), interval=CLOSE_TIMEOUT_S)
    except (psycopg.Error, OSError, TimeoutError) as error:
        log.debug("a cancellation was not delivered: %s", error)
