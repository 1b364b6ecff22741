"""Ends a prepared branch in a session: COMMIT PREPARED or ROLLBACK PREPARED, and what its answer means."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Foreign, Gid
from undoubt.participants.postgres.guard import confirm_script
from undoubt.participants.postgres.session import (
    Answers,
    CommandResult,
    ServerError,
    ServerSession,
    Step,
    standby_warning,
)
from undoubt.participants.sql import literal

log = logging.getLogger(__name__)


def last(answers: Answers) -> CommandResult:
    """The answer to the last step of a pipeline."""
    return CommandResult(answers.tags[-1], standby_warning(answers.notices) if answers.notices else None)


async def end_prepared(
    session: ServerSession,
    gid: Gid | Foreign,
    order: Decision,
    timeout_s: float,
    *,
    behind: Sequence[Step] = (),
    quoted: str = "",
) -> Settled:
    """COMMIT PREPARED or ROLLBACK PREPARED of ``gid`` in the current role of the session, and the steps
    ``behind`` it, which are not waited for. ``quoted``: the gid as SQL, if the caller has it. Raises the
    errors of ``session``."""
    command = end_command(gid, order, quoted)
    if behind:
        answer = last(await session.pipeline([Step(command)], behind=behind, timeout_s=timeout_s))
    else:
        answer = await session.script(command, timeout_s=timeout_s)
    if order is Decision.ABORT:
        return Settled.APPLIED
    warning = answer.unconfirmed
    why = None if warning is None else warning.message
    if why is None and session.intro.pooled:
        why = await _unconfirmed(session, timeout_s)
    return confirmed(gid, why)


def end_command(gid: Gid | Foreign, order: Decision, quoted: str = "") -> str:
    verb = "commit" if order is Decision.COMMIT else "rollback"
    return f"{verb} prepared {quoted or literal(str(gid))}"


def confirmed(gid: Gid | Foreign, why_not: str | None) -> Settled:
    """The result of a COMMIT PREPARED that has succeeded; ``why_not``: why no standby has confirmed it, None
    if they have."""
    if why_not is None:
        return Settled.APPLIED
    # Committed on this server, but perhaps on no other: not final. A repeated call gets evidence.
    log.warning("%s is committed, but no synchronous standby confirmed it: %s", gid, why_not)
    return Settled.BUSY


async def _unconfirmed(session: ServerSession, timeout_s: float) -> str | None:
    """Why no standby has confirmed a COMMIT PREPARED behind a pooler; None if the standbys have.

    Such a COMMIT PREPARED runs with the settings of the database or the role, and cannot share a script with
    a SET. These settings may hide its warning, or skip its wait, so a second commit is made to find out."""
    try:
        answer = await session.script(confirm_script(), timeout_s=timeout_s)
    except ServerError as error:
        if not error.fatal:
            await session.script("rollback", timeout_s=timeout_s)
        return error.message
    warning = answer.unconfirmed
    return None if warning is None else warning.message
