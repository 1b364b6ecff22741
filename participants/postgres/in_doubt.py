"""Lists the prepared transactions of one database."""

from __future__ import annotations

from collections.abc import Sequence

from undoubt.participants.contract import PreparedBranch
from undoubt.participants.ids import Gid
from undoubt.participants.postgres.admin_pool import AdminPool, refuse_standby
from undoubt.participants.postgres.history import Place, columns, evidence_at, place_in
from undoubt.participants.postgres.roles import owned, owning
from undoubt.participants.postgres.session import Row, ServerParameters

_EPOCH = 2**32


async def list_prepared(admin_pool: AdminPool, owners: Sequence[str]) -> Sequence[PreparedBranch]:
    """The prepared transactions of the database, oldest first; ``owners`` come from the settings. Raises
    ``ParticipantRefused`` on a standby, whose list is always empty."""
    intro = await admin_pool.who()
    statement = owned("in_doubt", "p.owner", "$1").replace("{whereabouts}", columns(intro))
    rows = await admin_pool.read(statement, list(owners))
    refuse_standby(admin_pool.participant, rows[0])
    place = place_in(rows[0], intro)
    return [_branch(row, place, intro, owners) for row in rows if row["gid"] is not None]


def _branch(row: Row, place: Place | None, intro: ServerParameters, owners: Sequence[str]) -> PreparedBranch:
    xid = widen(int(row["xid"]), int(row["next_xid"]))
    evidence = None if place is None else evidence_at(place, xid)
    mend = None
    # An operator is never advised to trust a role that untrusted roles created, or may grant.
    if not row["owned"] and not row["gone"] and not row["strange"]:
        mend = owning(row["owner"], row["login"], intro.version, superuser=intro.superuser, owners=owners)
    return PreparedBranch(
        gid=Gid.parse(row["gid"]),
        owner=row["owner"],
        database=row["database"],
        prepared_at=row["prepared_at"],
        age_s=row["age_s"],
        xid=xid,
        evidence=evidence,
        age_xids=row["age_xids"],
        owned=row["owned"],
        owner_fix=mend,
        owner_gone=row["gone"] and not intro.superuser,
        owner_dropped=row["gone"],
    )


def widen(xid: int, next_xid: int) -> int:
    """The 64-bit transaction id (xid8) whose lower half is ``xid``.

    ``next_xid`` is a 64-bit id from about the same moment. A transaction that still exists is at most 2**31
    before or after it (https://www.postgresql.org/docs/current/routine-vacuuming.html, "Preventing
    Transaction ID Wraparound Failures"), so there is exactly one such id."""
    ahead = (xid - next_xid) % _EPOCH
    return next_xid + ahead - (_EPOCH if ahead >= _EPOCH // 2 else 0)
