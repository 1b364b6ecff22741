"""Reads the edges of the wait graph of one database, for the detector of deadlocks that span databases.

https://www.postgresql.org/docs/current/view-pg-locks.html. A prepared transaction has no process; the server
reports it as blocker 0. The prepared transaction is found as the holder, in a conflicting mode, of the lock
that the waiter waits for, mostly the lock on its own transaction id.

The name of a session alone proves nothing: every session may set any ``application_name``, and can read those
of all others. So the name is returned as a claim, with the real process id of the session. Only behind a
pooler, where the process that set the name does not know that id, the role of the session counts instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from undoubt.participants.contract import Claim, Waiting, WaitNode
from undoubt.participants.ids import NUMBER_MAX, Gid, InvalidName, Protocol, TxId
from undoubt.participants.postgres.admin_pool import AdminPool
from undoubt.participants.postgres.roles import is_owned
from undoubt.participants.postgres.session import Row
from undoubt.participants.postgres.session_setup import BY_PID, BY_ROLE, ledger_name
from undoubt.participants.postgres.sql import query

_STRENGTH = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
_CONFLICTS = {
    # https://www.postgresql.org/docs/current/explicit-locking.html, "Conflicting Lock Modes"
    "AccessShareLock": frozenset(_STRENGTH[7:]),
    "RowShareLock": frozenset(_STRENGTH[6:]),
    "RowExclusiveLock": frozenset(_STRENGTH[4:]),
    "ShareUpdateExclusiveLock": frozenset(_STRENGTH[3:]),
    "ShareLock": frozenset(_STRENGTH[2:]) - {"ShareLock"},
    "ShareRowExclusiveLock": frozenset(_STRENGTH[2:]),
    "ExclusiveLock": frozenset(_STRENGTH[1:]),
    "AccessExclusiveLock": frozenset(_STRENGTH),
}

WAITSTART_SINCE_VERSION = 140000

_CLAIM = re.compile(rf"([1-9][0-9]{{0,18}})\.([1-9][0-9]{{0,18}})([{BY_PID}{BY_ROLE}])([A-Za-z0-9_-]{{8}})")

_ROLES = {"{waiter_owned}": "w.usename", "{holder_owned}": "b.usename", "{prepared_owned}": "p.owner"}
"""The columns of the roles at the ends of a wait, by their placeholders in the queries."""


class WaitGraph:
    """Reads the wait edges of one participant's database, and cancels a waiting statement."""

    def __init__(
        self,
        admin_pool: AdminPool,
        ledger_id: str,
        names: Callable[[], frozenset[str]],
        owners: Sequence[str],
    ) -> None:
        """``names`` returns the names of the participant, see
        :class:`undoubt.participants.contract.Participant`; ``owners`` come from the settings."""
        self._admin_pool = admin_pool
        self._ledger_id = ledger_id
        self._names = names
        self._owners = list(owners)
        self._prefix = ledger_name(ledger_id) + ":"

    async def edges(self) -> Sequence[Waiting]:
        """All edges at this moment, see :meth:`undoubt.participants.contract.Participant.waits`."""
        rows = await self._admin_pool.read(await self._statement("waits"), self._owners)
        return [
            Waiting(
                waiter=self._session_node(row["name"], row["pid"], ours=row["ours"]),
                holder=self._holder_node(row),
                since=row["since"],
                pid=row["pid"],
                xid=None if row["xid"] is None else int(row["xid"]),
                holder_pid=row["holder_pid"] or 0,
            )
            for row in rows
            if row["holder_mode"] is None or row["holder_mode"] in _CONFLICTS.get(row["mode"], ())
        ]

    async def cancel(self, waiting: Waiting) -> bool:
        """Cancel a waiting statement, see :meth:`undoubt.participants.contract.Participant.cancel_waiter`.
        One SQL statement cancels only if it is still the same wait of the same claim, since the process id
        may now belong to another session."""
        rows = await self._admin_pool.read(
            await self._statement("cancel_waiter"),
            waiting.pid,
            waiting.since,
            None if waiting.xid is None else str(waiting.xid),
            self._name_of(waiting.waiter),
        )
        return any(row["sent"] for row in rows)

    async def _statement(self, name: str) -> str:
        """The query ``name`` for this server. ``waitstart`` exists since version 14; before, the start of the
        statement is used."""
        async with self._admin_pool.session() as session:
            has_waitstart = session.intro.version >= WAITSTART_SINCE_VERSION
        since = "l.waitstart" if has_waitstart else "a.query_start"
        statement = query(name).replace("{since_column}", since)
        for end, role in _ROLES.items():
            statement = statement.replace(end, is_owned(role, "$1"))
        return statement

    def _holder_node(self, row: Row) -> WaitNode:
        if row["holder_gid"] is None:
            return self._session_node(row["holder_name"], row["holder_pid"], ours=row["holder_ours"])
        gid = Gid.parse(row["holder_gid"])
        if (
            isinstance(gid, Gid)
            and gid.ledger == self._ledger_id
            and gid.participant in self._names()
            and row["holder_ours"]
        ):
            return gid
        return f"{self._admin_pool.participant}/{gid}"

    def _session_node(self, application_name: str | None, pid: int, *, ours: bool | None) -> WaitNode:
        """The node for a session. ``ours``: the session works in a role that prepares our branches; None if
        the role is not reported."""
        unknown = f"{self._admin_pool.participant}/{pid}"
        if application_name is None or not application_name.startswith(self._prefix):
            return unknown
        # After a '#' comes the report of PREPARE.
        claimed = application_name.removeprefix(self._prefix).partition("#")[0]
        if (match := _CLAIM.fullmatch(claimed)) is not None:
            session, seq, pooled = int(match[1]), int(match[2]), match[3] == BY_ROLE
            if max(session, seq) > NUMBER_MAX or (pooled and not ours):
                return unknown
            return Claim(session, seq, 0 if pooled else pid, match[4])
        try:
            txid = TxId.parse(claimed)
        except InvalidName:
            return unknown
        # A name of version 0.1.0, which contains no branch: the ledger is asked about the session.
        return Gid(self._ledger_id, Protocol.TWO_PHASE, txid, 1, self._admin_pool.participant)

    def _name_of(self, waiter: WaitNode) -> str | None:
        """The application_name, up to a '#', of a session with the claim ``waiter``; None if ``waiter`` is no
        claim."""
        if isinstance(waiter, Claim):
            how = BY_PID if waiter.pid else BY_ROLE
            return f"{self._prefix}{waiter.session}.{waiter.seq}{how}{waiter.proof}"
        return f"{self._prefix}{waiter.txid}" if isinstance(waiter, Gid) else None
