"""Checks schema ``undoubt`` in a participant's database before it is used
(:mod:`undoubt.participants.schema_trust`).

A session checks the schema when it is opened, and keeps the schema's number (oid). A role that was not
trusted then can change nothing in the schema; but the schema can be dropped, and that role can create another
one. So every use first checks that the schema is still the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.postgres.session import ServerError, ServerParameters, ServerSession
from undoubt.participants.postgres.sql import fill, query
from undoubt.participants.schema_trust import PARTICIPANT, Fault, faults_of, faults_query, refusal

NO_SCHEMA = "3F000"
_USES = re.compile(r"(?<![\w.'])undoubt\.\w")
"""Matches a table or function of the schema in a statement, but not the setting ``undoubt.tx`` in a
string."""


def uses_schema(sql: str) -> bool:
    return _USES.search(sql) is not None


def same_schema(intro: ServerParameters) -> str:
    """A statement to put before one that uses the schema, in the same script: fails with 22P02 and the text
    :data:`~undoubt.participants.postgres.sqlstate.SCHEMA_TEXT` unless the schema is the one that was
    believed."""
    return fill("same_schema", schema=str(intro.schema or 0)) + "; "


async def look(session: ServerSession, owners: Sequence[str], timeout_s: float) -> tuple[Fault, ...]:
    """The reasons not to believe the schema; none if there is no schema. Raises the errors of ``session``."""
    rows = await session.rows(faults_query(PARTICIPANT, owners), timeout_s=timeout_s)
    return faults_of((row["kind"], row["name"], row["role"]) for row in rows)


async def believe(participant: str, session: ServerSession, owners: Sequence[str], timeout_s: float) -> None:
    """Raise ``ParticipantRefused`` if the schema is not to be believed, ``ServerError`` if there is no
    schema, and the errors of ``session``."""
    [row] = await session.rows(query("schema"), timeout_s=timeout_s)
    number = row["schema_oid"]
    if number is None:
        raise ServerError(NO_SCHEMA, f'schema "{PARTICIPANT.name}" does not exist')
    if number == session.intro.schema:
        return
    if faults := await look(session, owners, timeout_s):
        raise refused(participant, faults)
    session.intro = replace(session.intro, schema=number)


def refused(participant: str, faults: Sequence[Fault]) -> ParticipantRefused:
    return ParticipantRefused(
        participant,
        f"{refusal(PARTICIPANT, faults)}; undoubt doctor prints the line that corrects it",
    )
