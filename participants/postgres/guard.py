"""Builds the scripts that guard the end of a branch, each for one simple query, and reads what the guard of
PREPARE reports; asks whether the standbys have confirmed a COMMIT PREPARED behind a pooler.
:mod:`undoubt.participants.postgres.pipeline` builds the same guards for pipelines."""

from __future__ import annotations

import base64
import re

from undoubt.participants.contract import Evidence
from undoubt.participants.hardened_session import ALONE_WRITING
from undoubt.participants.postgres.history import Place, place_at
from undoubt.participants.postgres.roles import ADMIN_OF_ITSELF_BEFORE_VERSION, guard_role
from undoubt.participants.postgres.schema_check import same_schema
from undoubt.participants.postgres.session import ServerError, ServerParameters, ServerSession
from undoubt.participants.postgres.session_setup import APPLICATION_NAME_BYTES_MAX
from undoubt.participants.postgres.sql import fill, query

REPORT_BYTES_MAX = 18
"""``#``, twelve bytes in base64, and a full stop, which shows that the report was not cut."""


def report_head(name: str, *, pooler: bool) -> str:
    """The text that PREPARE's guard writes into application_name before the transaction id that it reports
    (:func:`read_report`).

    ``name`` is the application_name of the branch's session. The text contains it if there is room for both,
    so that the detector of deadlocks still recognizes a PREPARE that waits for a lock; behind a pooler the
    server's history needs the room.
    """
    fits = len(name) + REPORT_BYTES_MAX <= APPLICATION_NAME_BYTES_MAX
    return f"{name}#" if fits and not pooler else "xid#"


def guard_script(
    marked: str, head: str, intro: ServerParameters, owners: tuple[str, ...], *, lent: bool, noted: bool
) -> str:
    """The statements before PREPARE TRANSACTION in its round trip; ``marked`` is the branch's marker,
    ``head`` comes from :func:`report_head`, ``owners`` from the settings. ``lent``: the session was opened by
    undoubt, and is reset before its next use. ``noted``: a note is written behind these statements."""
    script = fill("guard_prepare", marker=marked, report=head)
    script = _durable(script, local=intro.pooled or not lent)
    position = query("guard_position" if intro.reports_position else "guard_no_position")
    script = script.replace("{position}", position).replace("{place}", _place(intro))
    if intro.pooled and intro.reports_history:
        script = same_schema(intro) + script
    may_stray = intro.strays or intro.superuser or intro.version < ADMIN_OF_ITSELF_BEFORE_VERSION
    if intro.pooled or may_stray:
        # Without these conditions a session can only change to roles that were granted to the login role.
        guard = guard_role(intro.role, owners, pooled=intro.pooled, superuser=intro.superuser)
        script = f"{guard}; {script}"
    if noted:
        script = f"{query('note_of_changes')}; {script}"
    return f"{query('guard_deferred')}; {script}"


def commit_guard(marked: str) -> str:
    """The statement before a plain COMMIT in its round trip."""
    return _durable(fill("guard_commit", marker=marked), local=True)


async def unconfirmed_behind_pooler(session: ServerSession, timeout_s: float) -> str | None:
    """Why no standby has confirmed a COMMIT PREPARED behind a pooler; None if the standbys have. Raises the
    errors of ``session``.

    Such a COMMIT PREPARED runs with the settings of the database or the role, and cannot share a script with
    a SET. These settings may hide its warning, or skip its wait, so a second commit is made to find out: it
    waits for the standbys, and its answer has a warning if they do not confirm it."""
    try:
        answer = await session.script(f"{ALONE_WRITING}; {confirmation()}; commit", timeout_s=timeout_s)
    except ServerError as error:
        if not error.fatal:
            await session.script("rollback", timeout_s=timeout_s)
        return error.message
    warning = answer.unconfirmed
    return None if warning is None else warning.message


def confirmation() -> str:
    """The statement of a transaction whose COMMIT waits for the synchronous standbys: if they confirm the
    COMMIT, everything before it in the WAL has reached them as well."""
    return _durable(query("confirm"), local=True)


def _durable(guard: str, *, local: bool) -> str:
    return guard.replace("{durable}", query("guard_durable").replace("{local}", "true" if local else "false"))


def _place(intro: ServerParameters) -> str:
    """The SQL expression for the place that PREPARE reports. It is an empty string if the session knows the
    place already, or if the role has no right to read it: PREPARE must not fail for lack of that right."""
    if not intro.pooled or (intro.system is None and not intro.reports_history):
        return "''"
    return query("guard_place_history" if intro.reports_history else "guard_place_system")


def note_script(proof: bytes, intro: ServerParameters) -> str:
    """The script before PREPARE or COMMIT in its round trip that writes the note, empty without a proof. It
    fails if the schema of its function has been replaced."""
    if not proof:
        return ""
    return same_schema(intro) + fill("note_commit", proof=f"\\x{proof.hex()}") + "; "


def lock_script(guard: str, number: int, marked: str) -> str:
    """``guard`` shows the token of a lock, as the branch's guard ``number``; behind it that is noted for
    :func:`still_locked`. ``marked`` is the branch's marker."""
    return f"{guard}; {fill('guard_locked', setting=_locked(number), marker=marked)}"


def still_locked(count: int, marked: str) -> list[str]:
    """The statements before the end of a branch, in its round trip, that fail unless all its ``count`` guards
    are in effect. A savepoint that was rolled back has undone a guard inside of it: another holder may have
    been there since, and nothing in the row of the lock would show a former one."""
    return [fill("still_locked", setting=_locked(number), marker=marked) for number in range(count)]


def _locked(number: int) -> str:
    return f"undoubt.locked_{number}"


_REPORT = re.compile(r"([A-Za-z0-9+/]{16})\.(?:((?:[A-Za-z0-9+/]{4}){0,4})\.)?")
_SYSTEM_AND_TIMELINE_BYTES = 12


def read_report(report: str, head: str, intro: ServerParameters, own: Place | None) -> Evidence | None:
    """The evidence that PREPARE's guard reported in application_name.

    The report is ``<head><id and position>.[<place>.]``, each part in base64. ``id and position`` are six
    bytes each, the transaction id (xid8) and the position in the WAL divided by 256. ``place`` is a history
    id, or eight bytes of the system identifier and four of the timeline.

    If there is no ``place``, the place is ``own``, that of the session. None if a pooler did not pass the
    report on.
    """
    match = _REPORT.fullmatch(report.removeprefix(head)) if report.startswith(head) else None
    if match is None:
        return None
    numbers = base64.b64decode(match[1])
    xid, position = int.from_bytes(numbers[:6]), int.from_bytes(numbers[6:]) << 8
    place = own if match[2] is None else _reported_place(match[2], intro)
    return Evidence(xid) if place is None else Evidence(xid, *place, position or None)


def _reported_place(text: str, intro: ServerParameters) -> Place | None:
    if intro.reports_history:
        return place_at(intro, None, None, text or None)
    decoded = base64.b64decode(text)
    if len(decoded) != _SYSTEM_AND_TIMELINE_BYTES:
        return None
    return Place(int.from_bytes(decoded[:8], signed=True), decoded[8:].hex().upper(), None)
