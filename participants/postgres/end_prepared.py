"""COMMIT PREPARED and ROLLBACK PREPARED in one session, and what its answer proves."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Foreign, Gid
from undoubt.participants.postgres.guard import confirm_script
from undoubt.participants.postgres.session import ServerError, ServerSession, Step, last_result
from undoubt.participants.sql import literal

log = logging.getLogger(__name__)


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
    verb = "commit" if order is Decision.COMMIT else "rollback"
    command = f"{verb} prepared {quoted or literal(str(gid))}"
    if behind:
        answer = last_result(await session.pipeline([Step(command)], behind=behind, timeout_s=timeout_s))
    else:
        answer = await session.script(command, timeout_s=timeout_s)
    if order is Decision.ABORT:
        return Settled.APPLIED
    warning = answer.unconfirmed
    why = None if warning is None else warning.message
    if why is None and session.intro.pooled:
        why = await _unconfirmed(session, timeout_s)
    if why is not None:
        # Committed on this server, but perhaps on no other: not final. A repeated call gets evidence.
        log.warning("%s is committed, but no synchronous standby confirmed it: %s", gid, why)
        return Settled.BUSY
    return Settled.APPLIED


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
