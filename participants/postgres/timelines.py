"""Reads from which histories a server comes that was promoted or restored to a point in time.

A server writes a *history file* for each new timeline; it is not removed from ``pg_wal``
(https://www.postgresql.org/docs/current/continuous-archiving.html, section Timelines). Each of its lines has
an ancestor's number, the position at which that ancestor was left, and a reason; it may have empty lines and
comments (``readTimeLineHistory`` in ``src/backend/access/transam/timeline.c``)."""

from __future__ import annotations

from undoubt.participants.contract import TimelineHistory
from undoubt.participants.postgres.admin_pool import AdminPool, refuse_standby
from undoubt.participants.postgres.session import Row, ServerError
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import NO_RIGHT, participant_error

FIRST = "00000001"
"""The timeline that ``initdb`` begins. It has no history file."""


async def timeline_history(admin_pool: AdminPool) -> TimelineHistory | None:
    """See :meth:`undoubt.participants.contract.Participant.timeline_history`."""
    place = query("system_and_timeline")
    row = await _ask(admin_pool, query("timeline").replace("{place}", place))
    if row is None:
        return None
    system, timeline = int(row["system"]), str(row["timeline"])
    if timeline == FIRST:
        return TimelineHistory(system, timeline, {})
    row = await _ask(admin_pool, query("timeline_history").replace("{place}", place))
    if row is None or (int(row["system"]), row["timeline"]) != (system, timeline):
        return TimelineHistory(system, timeline, None)
    return TimelineHistory(system, timeline, ancestors(row["ancestors"] or ""))


async def _ask(admin_pool: AdminPool, sql: str) -> Row | None:
    """The row; None if the role has no right to it."""
    try:
        [row] = await admin_pool.ask(sql)
    except ServerError as error:
        if error.sqlstate == NO_RIGHT:
            return None
        raise participant_error(admin_pool.participant, error) from error
    refuse_standby(admin_pool.participant, row)
    return row


def ancestors(text: str) -> dict[str, int] | None:
    """The ancestors in a history file. None if it has none, or has a line that is not understood."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        high, slash, low = fields[1].partition("/") if len(fields) > 1 else ("", "", "")
        try:
            number, left_at = int(fields[0]), (int(high, 16) << 32) + int(low, 16)
        except ValueError:
            return None
        if not slash:
            return None
        found[f"{number:08X}"] = left_at
    return found or None
