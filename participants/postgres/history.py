"""Where a transaction id counts: the place whose books are asked later, and whether they still are its books.

A transaction id is one server's, and only as long as that server goes on from where it was. System identifier
and timeline name that nearly: they are the same in a clone, and in two standbys that were promoted apart. So
a database with undoubt's tables draws a random *history id* (``migrations/participants``), whenever system or
timeline are not those that stand beside the last one. Where a database has such tables, system and timeline
alone say nothing: an id that has not been drawn yet is an unknown place, and not an old kind of known one.

A history is drawn in a transaction of its own, and not used by this session if no standby confirmed it where
one should. Others may read it all the same. That does no harm: what is prepared under it comes later in the
same WAL, and an acknowledged PREPARE is evidence that everything before is as durable."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from undoubt.participants.contract import Evidence
from undoubt.participants.foreign_ground import ALONE, ALONE_WRITING
from undoubt.participants.postgres.belief import same_schema
from undoubt.participants.postgres.session import Row, ServerError, ServerParameters, ServerSession
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import NO_RIGHT

LOCK_TIMEOUT_MS = 2000
"""For somebody else who draws at the same moment."""

_SYNCHRONOUS = frozenset({"on", "remote_apply"})


class Place(NamedTuple):
    """One history of one server. ``history`` is None where the database draws none; then ``system`` and
    ``timeline`` are not None."""

    system: int | None
    timeline: str | None
    history: str | None


def place_of(intro: ServerParameters) -> Place | None:
    """Where a session that no pooler moves is, from beginning to end: a server that is promoted, restored or
    restarted breaks its connections. None if the database does not tell."""
    return place_at(intro, intro.system, intro.timeline, intro.history)


def place_in(row: Row, intro: ServerParameters) -> Place | None:
    """The same from the columns of :func:`columns`."""
    system = None if row["system"] is None else int(row["system"])
    return place_at(intro, system, row["timeline"], row["history"])


def place_at(
    intro: ServerParameters, system: int | None, timeline: str | None, history: str | None
) -> Place | None:
    if history is None and (intro.tells_history or system is None or timeline is None):
        return None
    if history is not None and history == intro.history:
        system, timeline = intro.system, intro.timeline  # they stand beside it
    return Place(system, timeline, history)


def evidence_at(place: Place | None, xid: int) -> Evidence:
    """Of a branch with that transaction id; without a place the id alone is left."""
    if place is None:
        return Evidence(xid)
    return Evidence(xid, *place)


def columns(intro: ServerParameters) -> str:
    """SQL of three columns: ``system``, ``timeline`` and ``history`` of the server that answers, null where
    it does not tell them to everybody."""
    if intro.tells_history:
        return f"null as system, null as timeline, {query('current_history')} as history"
    system_and_timeline = "null as system, null as timeline"
    if intro.system is not None:
        system_and_timeline = query("system_and_timeline")
    return f"{system_and_timeline}, null as history"


async def with_history(
    session: ServerSession, intro: ServerParameters, timeout_s: float, *, draws: bool
) -> ServerParameters:
    """``intro`` with the history that the session is in, drawn if need be and allowed. ``draws`` is for
    sessions with nothing open. Raises what the session raises."""
    if not intro.tells_history:
        return intro
    try:
        row = await _read(session, timeout_s)
        if row["history"] is None and row["may_draw"] and draws and await draw(session, intro, timeout_s):
            row = await _read(session, timeout_s)
    except ServerError as error:
        if error.fatal:
            raise
        # Whoever may not ask has no histories; after any other error this session is in an unknown one.
        return replace(intro, tells_history=error.sqlstate != NO_RIGHT)
    return replace(intro, history=row["history"])


async def _read(session: ServerSession, timeout_s: float) -> Row:
    """In a transaction of its own, since the role's defaults may keep a plain SELECT waiting; in an adopted
    session's, if one is open."""
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
    """Draw another history id, if this server's system or timeline are not those beside the last one. False
    if it could not be done, or no standby confirmed it. Raises what the session raises if it is lost."""
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
    """A place in the WAL as PostgreSQL writes it (pg_lsn)."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
