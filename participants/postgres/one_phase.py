"""Finds out whether a plain COMMIT happened whose answer was lost.

An unprepared branch leaves less evidence than a prepared branch. The server can assign its transaction id
again after a crash, if no record of the branch had reached the log, so "committed" may refer to another
transaction. "Aborted", and an id that is not assigned yet, are true of our branch in both cases. The proof of
a commit is a note that was written inside the branch (``undoubt.undoubt_note``, see
:mod:`undoubt.participants.postgres.schema`), if the database has that table. If the session has ended and
there is no note, that proves the contrary, but only of a branch whose COMMIT could not run without its note.
Without either proof the result is a hazard. Every role may write notes, so the note of a branch is made of a
secret, without which it can be neither written nor looked up."""

from __future__ import annotations

import asyncio
import logging
from itertools import islice

from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Evidence, Settled, XactStatus
from undoubt.participants.errors import ParticipantError
from undoubt.participants.postgres.admin_pool import AdminPool
from undoubt.participants.postgres.branch_context import Lost
from undoubt.participants.postgres.history import columns, place_in, place_of
from undoubt.participants.postgres.session import Row, ServerSession
from undoubt.participants.postgres.settle import Settler
from undoubt.participants.postgres.sql import query

log = logging.getLogger(__name__)

LOOKS_MAX = 8
"""How often the database is asked (after 20, 40, 80 … ms): COMMIT may still run, or the server may be
restarting."""


class OnePhase:
    """Looks up the outcome of one-phase commits at one participant."""

    def __init__(self, admin_pool: AdminPool, settler: Settler) -> None:
        self._admin_pool = admin_pool
        self._settler = settler

    async def look_up(self, lost: Lost) -> Settled:
        """The outcome of ``lost``: APPLIED, ABSENT or HEURISTIC_HAZARD."""
        for pause_s in islice(pauses(0.02), LOOKS_MAX):
            await asyncio.sleep(pause_s)
            try:
                settled = await self._look(lost)
            except ParticipantError as error:
                log.info(
                    "the one-phase commit of %s could not be looked up: %s",
                    lost.gid.txid,
                    error,
                )
                continue
            if settled is not Settled.BUSY:
                return settled
        return Settled.HEURISTIC_HAZARD

    async def _look(self, lost: Lost) -> Settled:
        if lost.proof:
            settled = await self._look_for_note(lost.session, lost.proof, lost.certain)
            if settled is not Settled.BUSY:
                return settled
        if lost.evidence is None:
            # Without an id only the note decides, and while its session lives the note may still appear.
            return Settled.BUSY if lost.proof else Settled.HEURISTIC_HAZARD
        return await self._look_for_xid(lost.evidence)

    async def _look_for_note(self, session: ServerSession, proof: bytes, certain: bool) -> Settled:
        # Look at the session first: if there is no note after the session's end, there never will be.
        gone = False
        if not session.intro.pooled:
            row = await self._row("backend_gone", session, session.pid, session.intro.backend_start)
            gone = row["gone"] and _same_place(row, session)
        row = await self._row("noted", session, proof)
        if row["noted"]:
            return Settled.APPLIED
        if not gone or not _same_place(row, session):
            return Settled.BUSY
        return Settled.ABSENT if certain else Settled.HEURISTIC_HAZARD

    async def _row(self, name: str, session: ServerSession, *args: object) -> Row:
        sql = query(name).replace("{whereabouts}", columns(session.intro))
        [row] = await self._admin_pool.read(sql, *args)
        return row

    async def _look_for_xid(self, evidence: Evidence) -> Settled:
        match await self._settler.evidence(evidence):
            case XactStatus.ABORTED | XactStatus.NEVER_ASSIGNED:
                return Settled.ABSENT
            case XactStatus.IN_PROGRESS:
                return Settled.BUSY
            case XactStatus.COMMITTED | XactStatus.UNKNOWN:
                return Settled.HEURISTIC_HAZARD


def _same_place(row: Row, session: ServerSession) -> bool:
    """Whether the server that answered with ``row`` is in the history of ``session``. On another server, or
    in another history, the session and its note may be missing although the branch has committed."""
    place = place_of(session.intro)
    return place is not None and place_in(row, session.intro) == place
