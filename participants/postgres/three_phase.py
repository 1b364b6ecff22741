"""Implements the rows of three-phase commit, :class:`undoubt.participants.three_phase.States`, in PostgreSQL.

Each change is one statement and one transaction on a separate session, never inside a branch. A row counts as
changed only if the command tag says so and no warning weakens it: a change that no synchronous standby has
confirmed may be lost with this server, so it is reported as a missing answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from undoubt.participants.errors import ParticipantError, ParticipantRefused, ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.participants.invariant import invariant
from undoubt.participants.postgres.admin_pool import AdminPool, refuse_standby
from undoubt.participants.postgres.session import NoAnswer, NotSent, Row, ServerError
from undoubt.participants.postgres.sql import fill, query
from undoubt.participants.postgres.sqlstate import participant_error
from undoubt.participants.three_phase import (
    BranchState,
    Charter,
    Event,
    StateRow,
    Termination,
    read_members,
    sources,
    write_members,
)

_NO_TABLE = frozenset({"42P01", "3F000", "42883", "42703"})
"""undefined_table, invalid_schema_name, undefined_function; undefined_column if the tables are older."""

NOTE_BYTES = 32

_AFTER = {Event.TRY_COMMIT: BranchState.PRECOMMIT, Event.TRY_ABORT: BranchState.WAIT}


class PostgresStates:
    """The rows in one database: see the module."""

    def __init__(self, admin_pool: AdminPool) -> None:
        self._admin_pool = admin_pool

    async def enlist(self, gid: Gid, charter: Charter, note: bytes = b"") -> bool:
        # If a row had no hash, its branch could commit without any termination noticing.
        invariant(
            len(note) == NOTE_BYTES, "a branch of three-phase commit is enlisted with the hash of its proof"
        )
        return await self._write("state_enlist", **_row(gid, charter), note=f"\\x{note.hex()}")

    async def read(self, gid: Gid) -> StateRow | None:
        [row] = await self._rows(_filled("state_read"), str(gid))
        refuse_standby(self._admin_pool.participant, row)
        return None if row["state"] is None else self._read(gid, row)

    async def elect(self, gid: Gid, election: int, charter: Charter) -> StateRow | None:
        if not await self._write("state_elect", **_row(gid, charter), election=str(election)):
            return None
        row = await self.read(gid)
        return row if row is not None and row.last_elected == election else None

    async def attempt(self, gid: Gid, election: int, event: Event) -> bool:
        return await self._write(
            "state_attempt",
            gid=str(gid),
            election=str(election),
            before="".join(sorted(sources(event))),
            after=_AFTER[event],
        )

    async def bury(self, gid: Gid, charter: Charter) -> bool:
        return await self._write("state_bury", **_row(gid, charter))

    async def unfinished(self) -> Sequence[tuple[Gid, StateRow]]:
        rows = await self._rows(_filled("state_unfinished"))
        named = [(Gid.parse(row["gid"]), row) for row in rows]
        return [(gid, self._read(gid, row)) for gid, row in named if isinstance(gid, Gid)]

    async def stale(self, older_than_s: float, buried_s: float) -> Sequence[Gid]:
        rows = await self._rows(query("state_stale"), older_than_s, buried_s)
        return [gid for row in rows if isinstance(gid := Gid.parse(row["gid"]), Gid)]

    async def forget(self, gids: Sequence[Gid]) -> None:
        await self._rows(query("state_forget"), [str(gid) for gid in gids])

    async def _write(self, name: str, **literals: str) -> bool:
        """Execute one change of a row; True if a row was changed."""
        sql = _filled(name, **literals)
        try:
            async with self._admin_pool.session() as session:
                answer = await self._admin_pool.change(session, sql)
        except (NoAnswer, NotSent) as error:
            raise participant_error(self._admin_pool.participant, error) from error
        except ServerError as error:
            raise self._refused(error) from error
        if (warning := answer.unconfirmed) is not None:
            raise ParticipantUnavailable(
                self._admin_pool.participant,
                f"no synchronous standby confirmed a state of three-phase commit: {warning.message}",
                sqlstate=warning.sqlstate,
            )
        return not answer.tag.endswith(" 0")

    async def _rows(self, sql: str, *args: object) -> Sequence[Row]:
        try:
            return await self._admin_pool.ask(sql, *args)
        except ServerError as error:
            raise self._refused(error) from error

    def _read(self, gid: Gid, row: Row) -> StateRow:
        try:
            members = read_members(row["members"], gid)
            rule = Termination(row["rule"])
        except ValueError as error:
            raise ParticipantRefused(
                self._admin_pool.participant, f"its row of three-phase commit is damaged: {error}"
            ) from error
        state = BranchState.COMMIT if row["committed"] else BranchState(row["state"])
        return StateRow(state, row["last_elected"], row["last_attempt"], Charter(members, rule))

    def _refused(self, error: ServerError) -> ParticipantError:
        if error.sqlstate in _NO_TABLE:
            return ParticipantRefused(
                self._admin_pool.participant,
                "its database has no tables for three-phase commit, or older ones: run undoubt"
                f" participants migrate {self._admin_pool.participant}",
                sqlstate=error.sqlstate,
            )
        return participant_error(self._admin_pool.participant, error)


def _filled(name: str, **literals: str) -> str:
    sql = fill(name, **literals)
    return sql.replace("{durable}", query("durable")).replace("{committed}", query("committed"))


def _row(gid: Gid, charter: Charter) -> dict[str, str]:
    return {
        "gid": str(gid),
        "txid": str(gid.txid),
        "participant": gid.participant,
        "members": write_members(charter.members),
        "rule": charter.rule,
    }
