"""Ends a prepared branch by COMMIT PREPARED or ROLLBACK PREPARED, as a role that may do so, and reads
evidence.

https://www.postgresql.org/docs/current/sql-commit-prepared.html; the server checks in the order
of ``LockGXact`` in ``src/backend/access/transam/twophase.c``: no such gid 42704, busy 55000, not the owner's
42501, another database's 0A000.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undoubt.participants.contract import Decision, Evidence, PreparedBranch, Settled, XactStatus, judge
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.ids import Foreign, Gid
from undoubt.participants.postgres.admin_pool import AdminPool, refuse_standby
from undoubt.participants.postgres.end_prepared import end_prepared
from undoubt.participants.postgres.history import lsn
from undoubt.participants.postgres.roles import missing_grant, owned
from undoubt.participants.postgres.session import (
    NoAnswer,
    NotSent,
    Row,
    ServerError,
    ServerSession,
)
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import (
    FUTURE_XID,
    IN_USE,
    NO_RIGHT,
    OTHER_DATABASE,
    UNDEFINED_OBJECT,
    participant_error,
)
from undoubt.participants.sql import identifier, literal

log = logging.getLogger(__name__)


class _NoSuchRole(Exception):
    """The session may not change to the role."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """The transaction that is prepared under a gid, and its owner.

    ``owned``: the owner is a role that prepares branches of ours. ``superuser``: the owner is a superuser, so
    that the server does not prevent a session in this role from ending branches of other roles. ``gone``: the
    owner has been dropped, and it is no longer known whether the role prepared branches of ours.
    """

    owner: str
    owned: bool
    superuser: bool
    gone: bool
    xid: int
    database: str
    here: str
    me: str
    login: str
    login_is_superuser: bool
    version: int


class Settler:
    """Settles prepared branches of one participant. ``owners`` come from the settings."""

    def __init__(self, admin_pool: AdminPool, owners: Sequence[str]) -> None:
        self._admin_pool = admin_pool
        self._owners = list(owners)

    async def settle(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        """End a prepared branch, see :meth:`undoubt.participants.contract.Participant.settle`.

        A gid is public from its PREPARE on, and after the end of its branch any role may prepare a
        transaction under it: a transaction of a role that prepares no branches of ours counts as absent. The
        server prevents an ordinary role from ending it. A superuser looks up the owner first, and then
        changes to that role."""
        settled, final = await self._settle(gid, order, evidence)
        return settled if final else await self._in_the_books(settled, order, evidence)

    async def _settle(
        self, gid: Gid, order: Decision, evidence: Evidence | None, holder: _Holder | None = None
    ) -> tuple[Settled, bool]:
        """The result, and whether :meth:`settle` needs no look at the status of the transaction id. That look
        comes after this call, when the session is back in the pool: to wait for a second session while
        holding one could be a deadlock. ``holder`` is what a look has just shown."""
        try:
            async with self._admin_pool.session() as session:
                if not session.intro.superuser:
                    return await end_prepared(session, gid, order, self._admin_pool.timeout_s), True
                return await self._as_superuser(session, gid, order, evidence, holder)
        except ServerError as error:
            return await self._refused(gid, order, evidence, error), True
        except (NoAnswer, NotSent) as error:
            raise participant_error(self._admin_pool.participant, error) from error

    async def settle_alone(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        """End a branch that another program has prepared. That program may end it and prepare another
        transaction under its name at any time: only the transaction with the transaction id of ``evidence``
        is the branch or, without evidence, a transaction that a role of ours has prepared in this database.

        PostgreSQL does not accept COMMIT PREPARED in a transaction with other statements, so that another
        transaction may get the name between the look and the end. The status of the transaction id shows
        afterwards which transaction was ended."""
        holder = _holder(self._admin_pool.participant, await self._admin_pool.read(*self._who(gid)))
        if holder is None or not _is_branch(holder, evidence):
            return await self._absent(order, evidence)
        settled, final = await self._settle(gid, order, evidence, holder)
        if final and settled is not Settled.APPLIED:
            return settled
        return await self._in_the_books(settled, order, evidence)

    async def _in_the_books(self, settled: Settled, order: Decision, evidence: Evidence | None) -> Settled:
        """The outcome of a branch that is absent, or whose name may have belonged to another transaction when
        it was ended, by the status of its transaction id."""
        if settled is Settled.ABSENT:
            return await self._absent(order, evidence)
        xact_status = XactStatus.UNKNOWN if evidence is None else await self.evidence(evidence)
        return settled if xact_status is XactStatus.UNKNOWN else judge(order, xact_status)

    async def _refused(
        self, gid: Gid, order: Decision, evidence: Evidence | None, error: ServerError
    ) -> Settled:
        if error.sqlstate == UNDEFINED_OBJECT:
            return await self._absent(order, evidence)
        if error.sqlstate not in {IN_USE, NO_RIGHT, OTHER_DATABASE}:
            raise participant_error(self._admin_pool.participant, error) from error
        rows = await self._admin_pool.read(*self._who(gid))
        holder = _holder(self._admin_pool.participant, rows)
        if holder is None:
            return Settled.BUSY  # it has ended between the two statements: try again
        if not self._ours(gid, holder, order, evidence):
            return await self._absent(order, evidence)
        if error.sqlstate == IN_USE or holder.owner == holder.me:
            return Settled.BUSY
        return await self._as_owner(holder, gid, order, evidence)

    async def _absent(self, order: Decision, evidence: Evidence | None) -> Settled:
        return judge(order, XactStatus.UNKNOWN if evidence is None else await self.evidence(evidence))

    def _who(self, gid: Gid | Foreign) -> tuple[str, str, list[str]]:
        return owned("holder", "p.owner", "$2"), str(gid), self._owners

    def _ours(self, gid: Gid, holder: _Holder, order: Decision, evidence: Evidence | None) -> bool:
        """Whether the transaction of ``holder`` is the branch ``gid``. Raises ``ParticipantRefused`` if it
        is, but this participant's role may not end it."""
        participant = self._admin_pool.participant
        # Only the branch whose vote was recorded, or that has just been listed, has that transaction id.
        proved = evidence is not None and evidence.xid % _XID_MODULUS == holder.xid
        if not holder.owned and not proved:
            log.warning(
                "participant %r: %s was prepared by role %r, which prepares no branches of ours",
                participant,
                gid,
                holder.owner,
            )
            return False
        if holder.database != holder.here:
            raise ParticipantRefused(
                participant,
                f"{gid} was prepared in database {holder.database!r}, but this dsn names {holder.here!r}:"
                f" only a session in {holder.database!r} can finish it",
                sqlstate=OTHER_DATABASE,
            )
        if holder.gone and not holder.login_is_superuser:
            raise ParticipantRefused(
                participant,
                f"{gid}: its role is gone; only a superuser can finish it, in database {holder.database!r}:"
                f" {'COMMIT' if order is Decision.COMMIT else 'ROLLBACK'} PREPARED {literal(str(gid))};",
                sqlstate=NO_RIGHT,
            )
        if not holder.owned and not holder.gone:
            raise self._may_not_become(gid, holder)
        return True

    def _may_not_become(self, gid: Gid, holder: _Holder) -> ParticipantRefused:
        participant = self._admin_pool.participant
        why = (
            f"and {holder.login!r} may not become it: run"
            f" {missing_grant(holder.owner, holder.login, holder.version)}"
        )
        if holder.login_is_superuser:
            setting = f"participants.{participant}.owners"
            why = f"which prepares no branches of ours: if it should, name it in {setting}"
        return ParticipantRefused(
            participant, f"{gid} was prepared by role {holder.owner!r}, {why}", sqlstate=NO_RIGHT
        )

    async def _as_superuser(
        self,
        session: ServerSession,
        gid: Gid,
        order: Decision,
        evidence: Evidence | None,
        holder: _Holder | None,
    ) -> tuple[Settled, bool]:
        """The result, and whether it is final without the status of the transaction id."""
        if holder is None:
            sql, *values = self._who(gid)
            rows = await session.rows(sql, *values, timeout_s=self._admin_pool.timeout_s)
            holder = _holder(self._admin_pool.participant, rows)
        if holder is None or not self._ours(gid, holder, order, evidence):
            return Settled.ABSENT, False
        if not holder.superuser and not holder.gone and not session.intro.pooled:
            try:
                return await self._with_role(session, holder.owner, gid, order), True
            except ServerError as error:
                if error.sqlstate == NO_RIGHT:
                    return Settled.BUSY, True  # it belongs to another role now: try again
                raise
        settled = await end_prepared(session, gid, order, self._admin_pool.timeout_s)
        # Another transaction may have had the name by then: the status of the transaction id shows the
        # outcome of our branch.
        return settled, settled is not Settled.APPLIED

    async def _as_owner(
        self, holder: _Holder, gid: Gid, order: Decision, evidence: Evidence | None
    ) -> Settled:
        """End the branch as the role that prepared it, since no other role may."""
        try:
            async with self._admin_pool.session() as session:
                if session.intro.pooled:
                    raise ParticipantRefused(
                        self._admin_pool.participant,
                        f"{gid} was prepared by role {holder.owner!r}, and behind a pooler SET ROLE and"
                        " COMMIT PREPARED could be sent to two servers: connect recovery to the server"
                        f" itself, or finish it as {holder.owner!r}",
                        sqlstate=NO_RIGHT,
                    )
                return await self._with_role(session, holder.owner, gid, order)
        except _NoSuchRole as error:
            raise self._may_not_become(gid, holder) from error
        except ServerError as error:
            if error.sqlstate == NO_RIGHT:
                return Settled.BUSY  # it belongs to another role now: try again
            return await self._refused(gid, order, evidence, error)
        except (NoAnswer, NotSent) as error:
            raise participant_error(self._admin_pool.participant, error) from error

    async def _with_role(
        self, session: ServerSession, owner: str, gid: Gid | Foreign, order: Decision
    ) -> Settled:
        """End the branch in role ``owner``. Raises :class:`_NoSuchRole` if the session may not change to that
        role."""
        clean = False
        timeout_s = self._admin_pool.timeout_s
        try:
            try:
                await session.script(f"set role {identifier(owner)}", timeout_s=timeout_s)
            except ServerError as error:
                clean = not error.fatal
                if error.sqlstate == NO_RIGHT:
                    raise _NoSuchRole from error
                raise
            try:
                return await end_prepared(session, gid, order, self._admin_pool.timeout_s)
            finally:
                await session.script("set role none", timeout_s=timeout_s)
                clean = True
        finally:
            if not clean:
                session.discard()

    async def end_impostor(self, branch: PreparedBranch) -> Settled:
        """Roll back an impostor, see :meth:`undoubt.participants.contract.Participant.end_impostor`. The
        session works as the owner that was seen: then the server does not let it end a transaction of another
        role, or in another database.

        PostgreSQL does not accept ROLLBACK PREPARED in a transaction with other statements, so that another
        transaction may get the name between the look and the end. If the status of the transaction id shows
        afterwards that the listed transaction had been committed by then, another one was ended, and that is
        logged."""
        try:
            async with self._admin_pool.session() as session:
                settled = await self._end_impostor(session, branch)
        except ServerError as error:
            if error.sqlstate == IN_USE:
                return Settled.BUSY
            if error.sqlstate in {UNDEFINED_OBJECT, NO_RIGHT, OTHER_DATABASE}:
                return Settled.ABSENT  # the name belongs to another transaction now
            raise participant_error(self._admin_pool.participant, error) from error
        except (NoAnswer, NotSent) as error:
            raise participant_error(self._admin_pool.participant, error) from error
        if settled is not Settled.APPLIED or branch.evidence is None:
            return settled
        if await self.evidence(branch.evidence) is not XactStatus.COMMITTED:
            return settled
        log.warning(
            "participant %r: transaction %s, which was shown as %s, had been committed already; another"
            " transaction of that name was rolled back",
            self._admin_pool.participant,
            branch.xid,
            branch.gid,
        )
        return Settled.ABSENT

    async def _end_impostor(self, session: ServerSession, branch: PreparedBranch) -> Settled:
        gid = branch.gid
        sql, *values = self._who(gid)
        rows = await session.rows(sql, *values, timeout_s=self._admin_pool.timeout_s)
        holder = _holder(self._admin_pool.participant, rows)
        if holder is None or not _is_it(holder, branch):
            return Settled.ABSENT
        if holder.owner == holder.me:
            return await end_prepared(session, gid, Decision.ABORT, self._admin_pool.timeout_s)
        if not holder.gone and not holder.superuser and not session.intro.pooled:
            with contextlib.suppress(_NoSuchRole):
                return await self._with_role(session, holder.owner, gid, Decision.ABORT)
        elif holder.login_is_superuser:
            return await end_prepared(session, gid, Decision.ABORT, self._admin_pool.timeout_s)
        who = "a superuser" if holder.gone else f"role {holder.owner!r} or a superuser"
        raise ParticipantRefused(
            self._admin_pool.participant,
            f"only {who} may end it: rollback prepared {literal(str(gid))}, in database {holder.database!r}",
            sqlstate=NO_RIGHT,
        )

    async def evidence(self, evidence: Evidence) -> XactStatus:
        """The status of a branch, see :meth:`undoubt.participants.contract.Participant.evidence`."""
        participant = self._admin_pool.participant
        asked = question(evidence)
        if asked is None:
            return XactStatus.UNKNOWN
        try:
            [row] = await self._admin_pool.ask(*asked)
        except ServerError as error:
            if error.sqlstate == FUTURE_XID:
                return XactStatus.NEVER_ASSIGNED
            if error.sqlstate in _NOT_REPORTED:
                return XactStatus.UNKNOWN
            raise participant_error(participant, error) from error
        refuse_standby(participant, row)
        if row["here"] and row["behind"]:
            return self._set_back(evidence)
        return XACT_STATUSES.get(row["status"], XactStatus.UNKNOWN)

    def _set_back(self, evidence: Evidence) -> XactStatus:
        """The status if the server matches the evidence, but its WAL does not reach the position of the
        PREPARE: what the server reports about the transaction id now refers to another transaction."""
        if evidence.history is None:
            return XactStatus.UNKNOWN  # it may be another server, promoted independently or cloned
        log.warning(
            "participant %r was set back to a moment before transaction %d was prepared there: run undoubt"
            " participants restored %s",
            self._admin_pool.participant,
            evidence.xid,
            self._admin_pool.participant,
        )
        return XactStatus.NEVER_ASSIGNED


def question(
    evidence: Evidence, xids: Sequence[int] | None = None
) -> tuple[str, *tuple[str | list[str], ...]] | None:
    """The statement that looks up ``evidence``, and its parameters; None if it is not known which server can
    be asked. ``xids``: look up these transaction ids instead, of the same history."""
    position = [] if evidence.position is None else [lsn(evidence.position)]
    asked = str(evidence.xid) if xids is None else list(map(str, xids))
    if evidence.history is not None:
        values: list[str | list[str]] = [asked, evidence.history, *position]
        sql = query("evidence_of_history")
    elif evidence.system is not None and evidence.timeline is not None:
        values = [asked, str(evidence.system), evidence.timeline, *position]
        sql = query("evidence")
    else:
        return None
    # Without a position the role does not need the right to read the server's position.
    behind = query("behind").replace("{position}", f"${len(values)}") if position else "false"
    status = query("status" if xids is None else "status_each")
    return (sql.replace("{behind}", behind).replace("{status}", status), *values)


def _holder(participant: str, rows: Sequence[Row]) -> _Holder | None:
    """The transaction that is prepared under the gid, None if there is none. Raises ``ParticipantRefused`` on
    a standby, which does not show prepared transactions."""
    return next(iter(holders(participant, rows).values()), None)


def holders(participant: str, rows: Sequence[Row]) -> Mapping[str, _Holder]:
    """The transactions that are prepared, by gid. Raises ``ParticipantRefused`` on a standby."""
    refuse_standby(participant, rows[0])
    return {row["gid"]: _of(row) for row in rows if row["gid"] is not None}


def _of(row: Row) -> _Holder:
    return _Holder(
        owner=row["owner"],
        owned=row["owned"],
        superuser=bool(row["superuser"]),
        gone=row["gone"],
        xid=int(row["xid"]),
        database=row["database"],
        here=row["here"],
        me=row["me"],
        login=row["login"],
        login_is_superuser=row["login_is_superuser"],
        version=row["version"],
    )


def _is_branch(holder: _Holder, evidence: Evidence | None) -> bool:
    if holder.database != holder.here:
        return False
    return holder.owned if evidence is None else evidence.xid % _XID_MODULUS == holder.xid


def _is_it(holder: _Holder, branch: PreparedBranch) -> bool:
    """Whether the transaction that has the name now is the one that was listed as ``branch``."""
    same_id = branch.xid is not None and branch.xid % _XID_MODULUS == holder.xid
    same_place = holder.database == holder.here == branch.database
    return same_id and same_place and holder.owner == branch.owner


_XID_MODULUS = 2**32
"""The list of prepared transactions shows only the lower 32 bits of a transaction id."""

_NOT_REPORTED = frozenset({NO_RIGHT, "42883", "3F000"})
"""No right, or a database without undoubt's tables, which reports no history: undefined_function,
invalid_schema_name."""

XACT_STATUSES = {
    "committed": XactStatus.COMMITTED,
    "aborted": XactStatus.ABORTED,
    "in progress": XactStatus.IN_PROGRESS,
}
