"""Identifies the history of a database in which a transaction id is valid.

A transaction id is valid on one server, and only while that server is not set back. System identifier and
timeline do not suffice to identify such a history: a clone has the same, and so have two standbys that were
promoted independently. So a database with undoubt's tables draws a random *history id*
(``migrations/participants``) if system or timeline differ from those stored with the last history id. In a
database with these tables, system and timeline alone prove nothing: as long as no history id is drawn, the
place is unknown; it is not a place of the older kind without a history.

A history id is drawn in a separate transaction. This session does not use it if a standby should have
confirmed that transaction and did not. Other sessions may still read it. That does no harm: a transaction
that is prepared under it comes later in the same WAL, and an acknowledged PREPARE proves that everything
before it is equally durable."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from undoubt.participants.contract import Evidence
from undoubt.participants.hardened_session import ALONE, ALONE_WRITING
from undoubt.participants.postgres.schema_check import same_schema
from undoubt.participants.postgres.session import Row, ServerError, ServerParameters, ServerSession
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import NO_RIGHT

LOCK_TIMEOUT_MS = 2000
"""How long to wait for the lock of another session that draws at the same time."""

_SYNCHRONOUS = frozenset({"on", "remote_apply"})


class Place(NamedTuple):
    """One history of one server. ``history`` is None if the database draws no history ids; then
    ``system`` and ``timeline`` are not None."""

    system: int | None
    timeline: str | None
    history: str | None


def place_of(intro: ServerParameters) -> Place | None:
    """The place of a session without a pooler, which is valid until the session ends: a server that is
    promoted, restored or restarted breaks its connections. None if the database does not report it."""
    return place_at(intro, intro.system, intro.timeline, intro.history)


def place_in(row: Row, intro: ServerParameters) -> Place | None:
    """The place in a row with the columns of :func:`columns`; None if the database does not report it."""
    system = None if row["system"] is None else int(row["system"])
    return place_at(intro, system, row["timeline"], row["history"])


def place_at(
    intro: ServerParameters, system: int | None, timeline: str | None, history: str | None
) -> Place | None:
    if history is None and (intro.reports_history or system is None or timeline is None):
        return None
    if history is not None and history == intro.history:
        system, timeline = intro.system, intro.timeline  # they belong to this history
    return Place(system, timeline, history)


def evidence_at(place: Place | None, xid: int) -> Evidence:
    """The evidence of a branch with transaction id ``xid``; without a place only the id."""
    if place is None:
        return Evidence(xid)
    return Evidence(xid, *place)


def columns(intro: ServerParameters) -> str:
    """SQL of three columns: ``system``, ``timeline`` and ``history`` of the server that answers, null if
    a value is not needed or the role has no right to read it."""
    if intro.reports_history:
        return f"null as system, null as timeline, {query('current_history')} as history"
    system_and_timeline = "null as system, null as timeline"
    if intro.system is not None:
        system_and_timeline = query("system_and_timeline")
    return f"{system_and_timeline}, null as history"


async def with_history(
    session: ServerSession, intro: ServerParameters, timeout_s: float, *, draws: bool
) -> ServerParameters:
    """``intro`` with the history of the session, drawn if needed and permitted. ``draws`` may be true only
    for sessions without an open transaction. Raises the errors of ``session``."""
    if not intro.reports_history:
        return intro
    try:
        row = await _read(session, timeout_s)
        if row["history"] is None and row["may_draw"] and draws and await draw(session, intro, timeout_s):
            row = await _read(session, timeout_s)
    except ServerError as error:
        if error.fatal:
            raise
        # A role without the right to ask has no histories; after any other error the history is unknown.
        return replace(intro, reports_history=error.sqlstate != NO_RIGHT)
    return replace(intro, history=row["history"])


async def _read(session: ServerSession, timeout_s: float) -> Row:
    """The row of query ``history``, read in a separate transaction, since with the role's defaults a plain
    SELECT may have to wait; in an adopted session with an open transaction, in that transaction."""
    if session.in_transaction:
        [row] = await session.rows(query("history"), timeout_s=timeout_s)
        return row
    await session.script(ALONE, timeout_s=timeout_s)
    try:
        [row] = await session.rows(query("history"), timeout_s=timeout_s)
    except ServerError as error:
        if not error.fatal:
            await session.script("rollback", timeout_s=timeout_s)
        raise
    await session.script("commit", timeout_s=timeout_s)
    return row


async def draw(session: ServerSession, intro: ServerParameters, timeout_s: float) -> bool:
    """Draw a new history id if this server's system or timeline differ from those stored with the last one.
    False if that failed, or if no standby confirmed it. Raises the errors of ``session`` if it is lost."""
    level = intro.synchronous_commit if intro.synchronous_commit in _SYNCHRONOUS else "on"
    script = "; ".join(
        [
            ALONE_WRITING,
            "set local client_min_messages = 'warning'",
            f"set local synchronous_commit = '{level}'",
            f"set local lock_timeout = '{LOCK_TIMEOUT_MS}ms'",
            same_schema(intro) + query("draw_history"),
            "commit",
        ]
    )
    try:
        answer = await session.script(script, timeout_s=timeout_s)
    except ServerError as error:
        if error.fatal:
            raise
        await session.script("rollback", timeout_s=timeout_s)
        return False
    return answer.unconfirmed is None


def lsn(position: int) -> str:
    """A position in the WAL, given in bytes, as PostgreSQL writes it (pg_lsn)."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
