"""Sends statements in libpq's pipeline mode, each followed by a Sync of its own: an error ends one statement,
and the server executes the next. https://www.postgresql.org/docs/current/libpq-pipeline-mode.html

COMMIT PREPARED and ROLLBACK PREPARED are not accepted in a pipeline behind another statement without a Sync
(``PreventInTransactionBlock`` in ``src/backend/access/transam/xact.c``)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.waiting import Ready, Wait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

IN_FLIGHT_MAX = 16
"""The most statements without an answer. While the server executes one, the others are on their way."""


def exchange(
    pgconn: PGconn,
    statements: Sequence[str],
    answered: Callable[[PGresult], None],
    progressed: Callable[[], None],
) -> Generator[Wait, Ready | int, None]:
    """Send ``statements``, and call ``answered`` with the result of each, in their order, and ``progressed``
    whenever some have been answered. The connection is in pipeline mode. Raises ``psycopg.Error`` if the
    connection is lost: then the statements without a result may have been executed."""
    waiting = iter(statements)
    in_flight = _send(pgconn, waiting, IN_FLIGHT_MAX)
    result: PGresult | None = None
    try:
        while in_flight:
            while pgconn.flush():
                if (yield Wait.RW) & Ready.R:
                    pgconn.consume_input()
            yield Wait.R
            pgconn.consume_input()
            synced = 0
            while synced < in_flight and not pgconn.is_busy():
                found = pgconn.get_result()
                if found is None:  # the end of one statement's results
                    _check(pgconn)
                elif found.status != ExecStatus.PIPELINE_SYNC:
                    result = found
                    _check(pgconn)
                elif result is not None:
                    answered(result)
                    result = None
                    synced += 1
                else:
                    raise psycopg.OperationalError("the server gave no answer to a statement")
            if synced:
                progressed()
                in_flight += _send(pgconn, waiting, synced) - synced
    except psycopg.Error:
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            answered(result)  # the server's reason for ending the session; no Sync is answered after it
        raise


def _check(pgconn: PGconn) -> None:
    if pgconn.status != ConnStatus.OK:
        raise psycopg.OperationalError("the connection was lost")


def _send(pgconn: PGconn, statements: Iterator[str], count: int) -> int:
    sent = 0
    while sent < count and (statement := next(statements, None)) is not None:
        pgconn.send_query_params(statement.encode(), None)
        pgconn.pipeline_sync()
        sent += 1
    return sent
