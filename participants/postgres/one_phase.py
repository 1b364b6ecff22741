"""A plain COMMIT whose answer was lost: did it happen?

An unprepared branch leaves less behind than a prepared one. Its transaction id can be given out again after a
crash, if nothing of it had reached the log, so "committed" may be said of somebody else's transaction;
"aborted", and an id of the future, are true of ours either way. Proof of a commit is a note that was
written inside the branch (``undoubt.undoubt_note``, see :mod:`undoubt.participants.postgres.schema`), where a
database has that table; and if the session is over and the note is not there, proof of the contrary.
Without either the honest answer is a hazard. Everybody may write notes, so a branch's is made of a secret,
without which it can be neither written nor looked up.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice

from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Evidence, Settled, XactStatus
from undoubt.participants.errors import ParticipantError
from undoubt.participants.postgres.admin_pool import Management
from undoubt.participants.postgres.branch import Lost
from undoubt.participants.postgres.history import columns, place_in, place_of
from undoubt.participants.postgres.session import ServerSession
from undoubt.participants.postgres.settle import Settler
from undoubt.participants.postgres.sql import query

log = logging.getLogger(__name__)

LOOKS_MAX = 8
"""How often the books are asked (after 20, 40, 80 … ms): COMMIT may still run, a server may be restarting."""


class OnePhase:
    """The evidence of one-phase commits at one participant."""

    def __init__(self, management: Management, settler: Settler) -> None:
        self._management = management
        self._settler = settler

    async def look_up(self, lost: Lost) -> Settled:
        """APPLIED, ABSENT or HEURISTIC_HAZARD."""
        for pause_s in islice(pauses(0.02), LOOKS_MAX):
            await asyncio.sleep(pause_s)
            try:
                settled = await self._look(lost)
            except ParticipantError as error:
                log.info("what became of the one-phase commit of %s: %s", lost.gid.txid, error)
                continue
            if settled is not Settled.BUSY:
                return settled
        return Settled.HEURISTIC_HAZARD

    async def _look(self, lost: Lost) -> Settled:
        if lost.proof:
            settled = await self._look_for_note(lost.session, lost.proof, lost.wrote)
            if settled is not Settled.BUSY:
                return settled
        if lost.evidence is None:
            # Without an id only the note can tell, and while its session lives it may still appear.
            return Settled.BUSY if lost.proof else Settled.HEURISTIC_HAZARD
        return await self._look_for_xid(lost.evidence)

    async def _look_for_note(self, session: ServerSession, proof: bytes, wrote: bool) -> Settled:
        # The session first: a note that is not there after its end will never be.
        gone = False
        if not session.intro.pooled:
            [row] = await self._management.read(
                query("backend_gone"), session.pid, session.intro.backend_start
            )
            gone = row["gone"]
        [row] = await self._management.read(query("noted"), proof)
        if row["noted"]:
            return Settled.APPLIED
        if not gone or not await self._same_history(session):
            return Settled.BUSY
        return Settled.ABSENT if wrote else Settled.HEURISTIC_HAZARD

    async def _same_history(self, session: ServerSession) -> bool:
        """In another history the note may be missing because it was lost with the old one."""
        before = place_of(session.intro)
        if before is None:
            return False
        [row] = await self._management.read(f"select {columns(session.intro)}")
        return place_in(row, session.intro) == before

    async def _look_for_xid(self, evidence: Evidence) -> Settled:
        match await self._settler.evidence(evidence):
            case XactStatus.ABORTED | XactStatus.NEVER_ASSIGNED:
                return Settled.ABSENT
            case XactStatus.IN_PROGRESS:
                return Settled.BUSY
            case XactStatus.COMMITTED | XactStatus.UNKNOWN:
                return Settled.HEURISTIC_HAZARD
