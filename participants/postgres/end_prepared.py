"""COMMIT PREPARED and ROLLBACK PREPARED in one session, and what its answer proves."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from undoubt.participants.contract import Decision, Settled
from undoubt.participants.ids import Foreign, Gid
from undoubt.participants.postgres.guard import unconfirmed_behind_pooler
from undoubt.participants.postgres.session import ServerSession, Step, standby_warning
from undoubt.participants.sql import literal

log = logging.getLogger(__name__)


async def end_prepared(
    session: ServerSession,
    gid: Gid | Foreign,
    order: Decision,
    timeout_s: float,
    *,
    behind: Sequence[Step] = (),
) -> Settled:
    """COMMIT PREPARED or ROLLBACK PREPARED of ``gid`` in the current role of the session, and the steps
    ``behind`` it, which are not waited for. Raises the errors of ``session``."""
    verb = "commit" if order is Decision.COMMIT else "rollback"
    command = f"{verb} prepared {literal(str(gid))}"
    if behind:
        answers = await session.pipeline([Step(command)], behind=behind, timeout_s=timeout_s)
        warning = standby_warning(answers.notices)
    else:
        warning = (await session.script(command, timeout_s=timeout_s)).unconfirmed
    if order is Decision.ABORT:
        return Settled.APPLIED
    why = None if warning is None else warning.message
    if why is None and session.intro.pooled:
        why = await unconfirmed_behind_pooler(session, timeout_s)
    return Settled.APPLIED if why is None else not_confirmed(gid, why)


def not_confirmed(gid: Gid | Foreign, why: str) -> Settled:
    """The result of a COMMIT PREPARED that has succeeded, but that no synchronous standby has confirmed."""
    # Committed on this server, but perhaps on no other: not final. A repeated call gets evidence.
    log.warning("%s is committed, but no synchronous standby confirmed it: %s", gid, why)
    return Settled.BUSY
