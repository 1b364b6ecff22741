"""The second phase: COMMIT PREPARED and ROLLBACK PREPARED, by whoever may, and what a "no" means.

https://www.postgresql.org/docs/current/sql-commit-prepared.html; the order of the server's checks is that
of ``LockGXact`` in ``src/backend/access/transam/twophase.c``: no such gid 42704, busy 55000, not the owner's
42501, another database's 0A000.
"""

from __future__ import annotations

import logging

from participants.contract import Evidence, Fate, Order, Settled, judge
from participants.errors import ParticipantRefused
from participants.ids import Gid
from participants.postgres.history import lsn
from participants.postgres.management import Management, refuse_standby
from participants.postgres.roles import missing_grant
from participants.postgres.session import Late, NoAnswer, NotSent, ServerError, Session
from participants.postgres.sql import identifier, literal, query
from participants.postgres.verdicts import (
    FUTURE_XID,
    IN_USE,
    NO_RIGHT,
    OTHER_DATABASE,
    UNDEFINED_OBJECT,
    participant_error,
)

log = logging.getLogger(__name__)


_POOL_USED_UP = (
    "participant %r: the second phase of %s got no answer within %g s through the pooler; where all servers"
    " of its pool are taken by branches that wait for this one, only timeouts help: give it more servers than"
    " connections_max of all processes together, or lower connections_max"
)


class Settler:
    """Settles prepared branches of one participant."""

    def __init__(self, management: Management) -> None:
        self._management = management

    async def quick(self, session: Session, gid: Gid, order: Order) -> Settled | None:
        """On the session that prepared it, in one round trip. None: it takes :meth:`settle` to know more."""
        try:
            return await self._tell(session, gid, order)
        except ServerError as error:
            return Settled.BUSY if error.sqlstate == IN_USE else None
        except (NoAnswer, NotSent) as error:
            if isinstance(error, Late) and session.intro.pooled:
                log.warning(_POOL_USED_UP, self._management.participant, gid, self._management.timeout_s)
            return None

    async def settle(self, gid: Gid, order: Order, evidence: Evidence | None) -> Settled:
        """See :meth:`participants.contract.Participant.settle`."""
        try:
            async with self._management.session() as session:
                return await self._tell(session, gid, order)
        except ServerError as error:
            return await self._refused(gid, order, evidence, error)
        except (NoAnswer, NotSent) as error:
            raise participant_error(self._management.participant, error) from error

    async def _refused(
        self, gid: Gid, order: Order, evidence: Evidence | None, error: ServerError
    ) -> Settled:
        if error.sqlstate == UNDEFINED_OBJECT:
            fate = Fate.UNKNOWN if evidence is None else await self.evidence(evidence)
            return judge(order, fate)
        if error.sqlstate == IN_USE:
            return Settled.BUSY
        if error.sqlstate == NO_RIGHT:
            return await self._as_owner(gid, order, evidence)
        if error.sqlstate == OTHER_DATABASE:
            return await self._elsewhere(gid, error)
        raise participant_error(self._management.participant, error) from error

    async def _tell(self, session: Session, gid: Gid, order: Order) -> Settled:
        verb = "commit" if order is Order.COMMIT else "rollback"
        answer = await session.script(
            f"{verb} prepared {literal(str(gid))}", timeout_s=self._management.timeout_s
        )
        if (warning := answer.unconfirmed()) is not None and order is Order.COMMIT:
            # Committed on this server, and perhaps on no other: not final. Who asks again gets evidence.
            log.warning("%s is committed, but no synchronous standby confirmed it: %s", gid, warning.message)
            return Settled.BUSY
        return Settled.APPLIED

    async def _as_owner(self, gid: Gid, order: Order, evidence: Evidence | None) -> Settled:
        """Only the role that prepared it may finish it, or a superuser."""
        participant = self._management.participant
        [row] = await self._management.read(query("owner"), str(gid))
        refuse_standby(participant, row)
        owner, me, login = row["owner"], row["me"], row["login"]
        if owner is None or owner == me:
            return Settled.BUSY  # it changed between the two statements: look again
        try:
            return await self._with_role(owner, gid, order)
        except ServerError as error:
            if error.sqlstate != NO_RIGHT:
                return await self._refused(gid, order, evidence, error)
            raise ParticipantRefused(
                participant,
                f"{gid} was prepared by role {owner!r}, and {login!r} may not become it: run"
                f" {missing_grant(owner, login, row['version'])}",
                sqlstate=NO_RIGHT,
            ) from error
        except (NoAnswer, NotSent) as error:
            raise participant_error(participant, error) from error

    async def _with_role(self, owner: str, gid: Gid, order: Order) -> Settled:
        async with self._management.session() as session:
            if session.intro.pooled:
                raise ParticipantRefused(
                    self._management.participant,
                    f"{gid} was prepared by role {owner!r}, and behind a pooler SET ROLE and COMMIT PREPARED"
                    " could be sent to two servers: connect recovery to the server itself, or finish it as"
                    f" {owner!r}",
                    sqlstate=NO_RIGHT,
                )
            clean = False
            try:
                timeout_s = self._management.timeout_s
                await session.script(f"set role {identifier(owner)}", timeout_s=timeout_s)
                try:
                    return await self._tell(session, gid, order)
                finally:
                    await session.script("set role none", timeout_s=timeout_s)
                    clean = True
            finally:
                if not clean:
                    session.discard()

    async def _elsewhere(self, gid: Gid, error: ServerError) -> Settled:
        [row] = await self._management.read(query("owner"), str(gid))
        where = row["database"]
        if where is None or where == row["here"]:
            return Settled.BUSY
        raise ParticipantRefused(
            self._management.participant,
            f"{gid} was prepared in database {where!r}, and this dsn names {row['here']!r}: only a session in"
            f" {where!r} can finish it",
            sqlstate=error.sqlstate,
        ) from error

    async def evidence(self, evidence: Evidence) -> Fate:
        """See :meth:`participants.contract.Participant.evidence`."""
        participant = self._management.participant
        asked = _question(evidence)
        if asked is None:
            return Fate.UNKNOWN
        try:
            [row] = await self._management.ask(*asked)
        except ServerError as error:
            if error.sqlstate == FUTURE_XID:
                return Fate.NEVER_ASSIGNED
            if error.sqlstate in _NOT_TOLD:
                return Fate.UNKNOWN
            raise participant_error(participant, error) from error
        refuse_standby(participant, row)
        if row["here"] and row["behind"]:
            return self._set_back(evidence)
        return _FATES.get(row["status"], Fate.UNKNOWN)

    def _set_back(self, evidence: Evidence) -> Fate:
        """The server is the evidence's own, as far as that tells, and its WAL does not reach where the
        PREPARE was written. What it says of the transaction id now is said of somebody else's."""
        if evidence.history is None:
            return Fate.UNKNOWN  # it may be another server, promoted apart or cloned
        log.warning(
            "participant %r was set back to a moment before transaction %d was prepared there: run undoubt"
            " participants restored %s",
            self._management.participant,
            evidence.xid,
            self._management.participant,
        )
        return Fate.NEVER_ASSIGNED


def _question(evidence: Evidence) -> tuple[str, *tuple[str, ...]] | None:
    """The statement that looks it up, and its parameters; None if nobody can know whom to ask."""
    position = [] if evidence.position is None else [lsn(evidence.position)]
    if evidence.history is not None:
        values = [str(evidence.xid), evidence.history, *position]
        sql = query("evidence_of_history")
    elif evidence.system is not None and evidence.timeline is not None:
        values = [str(evidence.xid), str(evidence.system), evidence.timeline, *position]
        sql = query("evidence")
    else:
        return None
    # Without a position the role need not have the right to ask for the server's.
    behind = query("behind").replace("{position}", f"${len(values)}") if position else "false"
    return (sql.replace("{behind}", behind), *values)


_NOT_TOLD = frozenset({NO_RIGHT, "42883", "3F000"})
"""Nor does a database without undoubt's tables tell its history: undefined_function, invalid_schema_name."""

_FATES = {
    "committed": Fate.COMMITTED,
    "aborted": Fate.ABORTED,
    "in progress": Fate.IN_PROGRESS,
}
