"""A plain COMMIT whose answer was lost: did it happen?

An unprepared branch leaves less behind than a prepared one. Its transaction id can be given out again after a
crash, if nothing of it had reached the log, so "committed" may be said of somebody else's transaction;
"aborted", and an id of the future, are true of ours either way. Proof of a commit is a row that was
written inside the branch (``undoubt.undoubt_commit``, see :mod:`participants.postgres.schema`), where a
database has that table; and if the session is over and the row is not there, proof of the contrary.
Without either the honest answer is a hazard.
"""

from __future__ import annotations

import asyncio
import logging

from participants.contract import Evidence, Fate, Settled
from participants.errors import ParticipantError
from participants.ids import Gid
from participants.postgres.management import Management
from participants.postgres.session import Session
from participants.postgres.settle import Settler
from participants.postgres.sql import fill, query

log = logging.getLogger(__name__)

LOOKS_MAX = 8
"""How often the books are asked (after 20, 40, 80 … ms): COMMIT may still run, a server may be restarting."""


class OnePhase:
    """The evidence of one-phase commits at one participant."""

    def __init__(self, management: Management, settler: Settler) -> None:
        self._management = management
        self._settler = settler

    def note(self, session: Session, gid: Gid) -> str:
        """What goes before COMMIT in its round trip: nothing, or the statement that writes the row."""
        if not session.intro.notes_commits:
            return ""
        return fill("note_commit", txid=str(gid.txid), participant=gid.participant) + "; "

    async def look_up(self, session: Session, gid: Gid, evidence: Evidence | None, *, wrote: bool) -> Settled:
        """APPLIED, ABSENT or HEURISTIC_HAZARD. ``session`` is the one that was lost, ``evidence`` that of the
        branch if it was known before COMMIT was sent; ``wrote`` if the branch is known to have changed
        something, and so to have left a row if it committed."""
        pause_s = 0.02
        for _ in range(LOOKS_MAX):
            await asyncio.sleep(pause_s)
            pause_s *= 2
            try:
                settled = await self._look(session, gid, evidence, wrote)
            except ParticipantError as error:
                log.info("what became of the one-phase commit of %s: %s", gid.txid, error)
                continue
            if settled is not Settled.BUSY:
                return settled
        return Settled.HEURISTIC_HAZARD

    async def _look(self, session: Session, gid: Gid, evidence: Evidence | None, wrote: bool) -> Settled:
        if session.intro.notes_commits:
            settled = await self._look_for_row(session, gid, wrote)
            if settled is not Settled.BUSY:
                return settled
        if evidence is None:
            # Without an id only the row can tell, and while its session lives it may still appear.
            return Settled.BUSY if session.intro.notes_commits else Settled.HEURISTIC_HAZARD
        return await self._look_for_xid(evidence)

    async def _look_for_row(self, session: Session, gid: Gid, wrote: bool) -> Settled:
        # The session first: a row that is not there after its end will never be.
        gone = False
        if not session.intro.pooled:
            [row] = await self._management.read(
                query("backend_gone"), session.pid, session.intro.backend_start
            )
            gone = row["gone"]
        [row] = await self._management.read(query("noted"), str(gid.txid), gid.participant)
        if row["noted"]:
            return Settled.APPLIED
        if not gone or not await self._same_history(session):
            return Settled.BUSY
        return Settled.ABSENT if wrote else Settled.HEURISTIC_HAZARD

    async def _same_history(self, session: Session) -> bool:
        """On another timeline the row may be missing because it was lost with the old one."""
        intro = session.intro
        if intro.system is None or intro.timeline is None:
            return False
        [row] = await self._management.read(query("whereabouts"))
        return (int(row["system"]), row["timeline"]) == (intro.system, intro.timeline)

    async def _look_for_xid(self, evidence: Evidence) -> Settled:
        match await self._settler.evidence(evidence):
            case Fate.ABORTED | Fate.NEVER_ASSIGNED:
                return Settled.ABSENT
            case Fate.IN_PROGRESS:
                return Settled.BUSY
            case Fate.COMMITTED | Fate.UNKNOWN:
                return Settled.HEURISTIC_HAZARD
