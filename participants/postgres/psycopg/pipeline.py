"""Undoubt's own statements in libpq's pipeline mode
(https://www.postgresql.org/docs/current/libpq-pipeline-mode.html), by the public interface of ``psycopg.pq``.

Every statement is unnamed: psycopg's own bookkeeping may send DEALLOCATE ALL."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.waiting import Ready, Wait

from undoubt.participants.postgres.session import Answers, NoAnswer, Notice, Step

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult


def send(pgconn: PGconn, pipelines: Sequence[Sequence[Step]]) -> None:
    """Queue ``pipelines``, each with a Sync; raises the errors of libpq. The connection is in pipeline mode
    then, until ``exit_pipeline_mode``."""
    pgconn.enter_pipeline_mode()
    for steps in pipelines:
        for step in steps:
            pgconn.send_query_params(step.sql.encode(), [value.encode() for value in step.values] or None)
        pgconn.pipeline_sync()


def read_to_sync(pgconn: PGconn) -> Generator[Wait, Ready | int, list[PGresult]]:
    """Send what is queued, and return the results up to the next Sync. For psycopg's ``wait_async``. Raises
    the errors of libpq, and ``NoAnswer``."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            if not (yield Wait.R):
                continue
            try:
                pgconn.consume_input()
            except psycopg.OperationalError:
                if any(each.status == ExecStatus.FATAL_ERROR for each in results):
                    return results  # the server's reason for ending the session
                raise
        result = pgconn.get_result()  # None stands between the results of two statements
        if result is None:
            if pgconn.status != ConnStatus.OK:
                raise NoAnswer("the connection was lost")
        elif result.status == ExecStatus.PIPELINE_SYNC:
            return results
        else:
            results.append(result)


def answers(results: Sequence[PGresult], notices: list[Notice]) -> Answers:
    """The answers to steps that have all succeeded."""
    tags = [(result.command_status or b"").decode("ascii", "replace") for result in results]
    return Answers(tags, [_rows(result) for result in results], notices)


def _rows(result: PGresult) -> list[tuple[str | None, ...]]:
    columns = range(result.nfields)
    return [tuple(_text(result.get_value(row, each)) for each in columns) for row in range(result.ntuples)]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")
