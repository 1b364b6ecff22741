"""Undoubt's own statements as steps of a pipeline: sent in the extended protocol without waiting for each
other's answers, with one Sync behind the last
(https://www.postgresql.org/docs/current/protocol-flow.html, "Pipelining").

A step runs only if all steps before it, since the last Sync, have succeeded. So a guard protects the steps
behind it, as in a script of one simple query; but a step has parameters and rows, and may be kept prepared in
its session.

What enters: a branch, and what its session knows of the server. What leaves: the steps of each of its round
trips; :mod:`undoubt.participants.postgres.session_setup` and :mod:`undoubt.participants.postgres.branch`
build the same round trips as scripts, for sessions that cannot pipeline."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from undoubt.participants.ids import Gid
from undoubt.participants.postgres.roles import ADMIN_OF_ITSELF_BEFORE_VERSION, guard_role
from undoubt.participants.postgres.schema_check import same_schema
from undoubt.participants.postgres.session import (
    ServerParameters,
    Step,
)
from undoubt.participants.postgres.session_setup import mark_statements, setting_statements
from undoubt.participants.postgres.sql import query

GUARD_COLUMNS = 4
"""Of the row of PREPARE's guard: transaction id, position in the WAL, and two that only have effects."""

BEGIN = Step("begin")
"""Not kept prepared: if a function of the database had replaced it, the statements of the application behind
it would run outside the branch. Of the other statements the tag is checked, or the guard stops them."""
COMMIT = Step("commit", keep=True)
ROLLBACK = Step("rollback", keep=True)


def begin_steps(gid: Gid, name: str, intro: ServerParameters) -> list[Step]:
    """Begin and marker, which may travel ahead of the application's first statement. They take no snapshot,
    so that the application can still choose its isolation level."""
    role = [Step("set local role none")] if intro.as_login else []
    return [BEGIN, *role, *map(Step, mark_statements(gid, name))]


@functools.lru_cache(maxsize=64)
def setting_steps(synchronous_commit: str, timeouts_ms: tuple[int, int] | None) -> tuple[Step, ...]:
    """The settings that last as long as the session; ``synchronous_commit`` is the server's own value."""
    if timeouts_ms is None:
        return ()
    return tuple(Step(each, keep=True) for each in setting_statements(synchronous_commit, timeouts_ms, "set"))


@functools.lru_cache(maxsize=64)
def reset_steps(synchronous_commit: str, timeouts_ms: tuple[int, int] | None) -> tuple[Step, ...]:
    """Removes what the application of a branch may have left in the session, and sets the session's settings
    again."""
    reset = (Step(each.strip(), keep=True) for each in query("reset").split(";"))
    return (*reset, *setting_steps(synchronous_commit, timeouts_ms))


@functools.lru_cache(maxsize=64)
def guards_of_prepare(
    intro: ServerParameters, owners: tuple[str, ...], noted: bool, keep: bool
) -> tuple[tuple[Step, ...], str]:
    """The steps before the guard of PREPARE TRANSACTION, and the guard, whose parameter is the marker.
    ``noted``: a note is written behind the guard (:func:`note_steps`). ``keep`` is False if the application
    may have replaced what the session keeps prepared. The same for all branches of a session."""
    steps = [Step(query("guard_deferred"), keep=keep)]
    if noted:
        steps.append(Step(query("note_of_changes"), keep=keep))
    if intro.strays or intro.superuser or intro.version < ADMIN_OF_ITSELF_BEFORE_VERSION:
        role = guard_role(intro.role, owners, pooled=False, superuser=intro.superuser)
        steps.append(Step(role, keep=keep))
    position = "pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text"
    guard = _guard("guard_row", local=False).replace(
        "{position}", position if intro.reports_position else "null"
    )
    return tuple(steps), guard


def one_phase_steps(
    marked: str, proof: bytes, intro: ServerParameters, *, certain: bool, keep: bool
) -> list[Step]:
    """The guard, the note, then COMMIT; ``certain``: not without the note."""
    steps = [Step(query("guard_deferred"), keep=keep), _commit_guard(marked, keep)]
    if certain:
        steps += [Step(each.strip(), keep=keep) for each in query("note_certain").split(";")]
    return [*steps, *(note_steps(proof, intro) if proof else ()), COMMIT]


def end_reading_steps(marked: str, *, keep: bool) -> list[Step]:
    """The guard, then COMMIT of a branch that only read."""
    return [_commit_guard(marked, keep), COMMIT]


def _commit_guard(marked: str, keep: bool) -> Step:
    return Step(_guard("guard_commit", local=True), (marked,), keep)


@functools.lru_cache(maxsize=8)
def _guard(name: str, *, local: bool) -> str:
    durable = query("guard_durable").replace("{local}", "true" if local else "false")
    return query(name).replace("{marker}", "$1::pg_catalog.text").replace("{durable}", durable)


def note_steps(proof: bytes, intro: ServerParameters) -> Sequence[Step]:
    """Write the note; fails if the schema of its function has been replaced."""
    schema = same_schema(intro).removesuffix("; ")
    return (Step(schema), Step(query("note_commit").replace("{proof}", "$1"), (f"\\x{proof.hex()}",)))
