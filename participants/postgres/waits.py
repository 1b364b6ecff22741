"""Who waits for whom, for the detector of deadlocks that span databases.

https://www.postgresql.org/docs/current/view-pg-locks.html. A prepared transaction has no process; the server
reports it as blocker 0. It is found as the holder, in a conflicting mode, of the lock that is waited for,
mostly its own transaction id.
"""

from __future__ import annotations

from collections.abc import Sequence

from participants.contract import Node, Waiting
from participants.ids import Gid, InvalidName, TxId
from participants.postgres.begin import ledger_name
from participants.postgres.management import Management
from participants.postgres.session import Row
from participants.postgres.sql import query

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


class WaitGraph:
    """The edges of one participant's database, and the way to cut one."""

    def __init__(self, management: Management, ledger_id: str) -> None:
        self._management = management
        self._ledger_id = ledger_id
        self._prefix = ledger_name(ledger_id) + ":"

    async def edges(self) -> Sequence[Waiting]:
        """See :meth:`participants.contract.Participant.waits`."""
        rows = await self._management.read(await self._by_version("waits"))
        return [
            Waiting(
                waiter=self._session_node(row["name"], row["pid"]),
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
        """See :meth:`participants.contract.Participant.cancel_waiter`."""
        rows = await self._management.read(
            await self._by_version("cancel_waiter"),
            waiting.pid,
            waiting.since,
            None if waiting.xid is None else str(waiting.xid),
            None if self._is_session(waiting.waiter) else f"{self._prefix}{waiting.waiter}",
        )
        return any(row["sent"] for row in rows)

    async def _by_version(self, name: str) -> str:
        """``waitstart`` is new in version 14; before it, a statement's start has to do."""
        async with self._management.session() as session:
            has_waitstart = session.intro.version >= WAITSTART_SINCE_VERSION
        return query(name).replace("{since_column}", "l.waitstart" if has_waitstart else "a.query_start")

    def _holder_node(self, row: Row) -> str:
        if row["holder_gid"] is None:
            return self._session_node(row["holder_name"], row["holder_pid"])
        gid = Gid.parse(row["holder_gid"])
        if isinstance(gid, Gid) and gid.ledger == self._ledger_id:
            return str(gid.txid)
        return f"{self._management.participant}/{gid}"

    def _session_node(self, application_name: str | None, pid: int) -> str:
        if application_name is not None and application_name.startswith(self._prefix):
            try:
                # After a '#' comes what PREPARE reports.
                return str(TxId.parse(application_name.removeprefix(self._prefix).partition("#")[0]))
            except InvalidName:
                pass  # not a branch of ours after all
        return f"{self._management.participant}/{pid}"

    def _is_session(self, node: Node) -> bool:
        return str(node).startswith(f"{self._management.participant}/")
