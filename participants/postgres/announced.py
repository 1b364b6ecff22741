"""A branch that somebody else runs and prepares: a service with a driver of its own, in any language.

It is given the statements that begin and prepare the branch, with its name in them. What it did is not asked
of it: the vote is what this participant's own database shows when the transaction commits. A prepared
transaction counts as the branch only if it has the branch's name, lies in this database, and was prepared by
a role that prepares branches of ours. From then on its transaction id names it as well: the same name on
another transaction is an impostor, which is neither committed nor rolled back.

That it is listed proves that its PREPARE is on the disk of its server, and no more: a server lists it before
its synchronous standbys have confirmed it (``EndPrepare`` in ``src/backend/access/transam/twophase.c`` of
PostgreSQL). Where there are any, a commit of this process's own that they confirm comes behind it in the same
WAL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from undoubt.participants.contract import (
    Decision,
    Evidence,
    PrepareResult,
    PrepareUnanswered,
    Settled,
    Vote,
    Work,
)
from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantUnavailable,
    UsageError,
)
from undoubt.participants.foreign_ground import ALONE_WRITING
from undoubt.participants.ids import Gid, SessionKey
from undoubt.participants.invariant import InvariantViolation
from undoubt.participants.postgres.admin_pool import Management, refuse_standby
from undoubt.participants.postgres.branch import commit_guard, confirmation
from undoubt.participants.postgres.history import columns, place_in
from undoubt.participants.postgres.in_doubt import widen
from undoubt.participants.postgres.roles import owned
from undoubt.participants.postgres.session import NoAnswer, NotSent, Row, ServerError, ServerParameters
from undoubt.participants.postgres.session_setup import branch_name, local_statements, marker, timeouts_ms
from undoubt.participants.postgres.settle import Settler
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import participant_error
from undoubt.participants.sql import literal


class BranchScripts(NamedTuple):
    """What runs and prepares the branch, each a list of statements: one simple query of all of them, joined
    by semicolons, or one after the other in one session."""

    begin: tuple[str, ...]
    prepare: tuple[str, ...]


def scripts_of(gid: Gid, key: SessionKey, timeout_s: float, intro: ServerParameters) -> BranchScripts:
    """For a branch that is meant to end within ``timeout_s`` seconds; ``intro`` is of any session there. The
    process that will run it is not known: the name that it shows is believed of roles that prepare branches
    of ours alone."""
    name = branch_name(gid, key, 0)
    begin = ["begin", *local_statements(gid, name, intro, timeouts_ms(timeout_s, intro))]
    prepare = [
        query("guard_deferred"),
        " ".join(commit_guard(marker(gid)).split()),
        f"prepare transaction {literal(str(gid))}",
    ]
    return BranchScripts(tuple(begin), tuple(prepare))


class AnnouncedBranch:
    """See :class:`undoubt.participants.contract.Branch`; it has no connection."""

    def __init__(
        self,
        management: Management,
        settler: Settler,
        owners: Sequence[str],
        gid: Gid,
        scripts: BranchScripts,
        *,
        name: str,
    ) -> None:
        """``owners`` are the settings'; ``name`` is the application_name of the session that runs it."""
        self.scripts = scripts
        self._management = management
        self._settler = settler
        self._owners = list(owners)
        self._gid = gid
        self._name = name
        self._evidence: Evidence | None = None
        self._over: Settled | None = None

    @property
    def gid(self) -> Gid:
        return self._gid

    @property
    def connection(self) -> NoReturn:
        """Raises ``UsageError``."""
        raise UsageError(f"branch {self._label} is run by whoever announced it: it has no connection here")

    @property
    def surely_writes(self) -> bool:
        return True

    def break_off(self, why: Callable[[], Exception]) -> None:
        """Its session belongs to somebody else, and ends by the timeouts that its begin has set."""

    async def poll(self) -> Work:
        return Work.WRITES

    async def prepare(self) -> PrepareResult:
        """Look whether it is prepared. Whatever speaks against it, it may be prepared later all the same:
        that is an answer that is missing."""
        try:
            row = await self._look()
            if row["synchronous"] and row["gid"] is not None:
                row = await self._look_durably()
        except ParticipantError as error:
            raise PrepareUnanswered(error) from error
        if (failure := self._judge(row)) is not None:
            raise PrepareUnanswered(failure)
        intro = await self._management.who()
        xid = widen(int(row["xid"]), int(row["next_xid"]))
        position = None if row["position"] is None else int(row["position"])
        place = place_in(row, intro)
        self._evidence = Evidence(xid) if place is None else Evidence(xid, *place, position)
        return PrepareResult(Vote.PREPARED, self._evidence)

    def _judge(self, row: Row) -> BranchFailed | None:
        """Why what is there is not the branch; None if it is."""
        participant = self._gid.participant
        if row["gid"] is None:
            return BranchFailed(
                participant, f"branch {self._label} was announced, and is not prepared: {self._gid}"
            )
        if row["database"] != row["here"]:
            return BranchFailed(
                participant,
                f"branch {self._label} is not prepared; what has its name, {self._gid}, lies in database"
                f" {row['database']!r} and not in {row['here']!r}",
            )
        if not row["owned"]:
            return BranchFailed(
                participant,
                f"branch {self._label} is not prepared; what has its name, {self._gid}, was prepared by role"
                f" {row['owner']!r}, which prepares no branches of ours",
            )
        return None

    async def _look(self) -> Row:
        """Raises ``ParticipantError``, on a standby too."""
        intro = await self._management.who()
        [row] = await self._management.read(self._statement(intro), str(self._gid), self._owners)
        refuse_standby(self._management.participant, row)
        return row

    def _statement(self, intro: ServerParameters) -> str:
        position = query("flushed_position" if intro.tells_position else "untold_position")
        statement = owned("announced", "p.owner", "$2").replace("{whereabouts}", columns(intro))
        return statement.replace("{position}", position)

    async def _look_durably(self) -> Row:
        """The same inside a transaction whose commit the synchronous standbys confirm: behind a pooler, too,
        one server carries out all of it."""
        timeout_s = self._management.timeout_s
        try:
            async with self._management.session() as session:
                await session.script(ALONE_WRITING, timeout_s=timeout_s)
                try:
                    statement = self._statement(session.intro)
                    [row] = await session.rows(statement, str(self._gid), self._owners, timeout_s=timeout_s)
                    answer = await session.script(f"{confirmation()}; commit", timeout_s=timeout_s)
                except ServerError as error:
                    if not error.fatal:
                        await session.script("rollback", timeout_s=timeout_s)
                    raise
        except (ServerError, NoAnswer, NotSent) as error:
            raise participant_error(self._management.participant, error) from error
        refuse_standby(self._management.participant, row)
        if (warning := answer.unconfirmed) is not None:
            raise ParticipantUnavailable(
                self._management.participant,
                f"branch {self._label} is prepared, but no synchronous standby confirmed it:"
                f" {warning.message}",
                sqlstate=warning.sqlstate,
            )
        return row

    async def commit_one_phase(self) -> Settled:
        raise InvariantViolation(f"{self._gid} is prepared by somebody else, and cannot commit in one phase")

    async def commit(self) -> Settled:
        return await self._settle(Decision.COMMIT)

    async def rollback(self) -> Settled:
        return await self._settle(Decision.ABORT)

    async def _settle(self, order: Decision) -> Settled:
        if self._over is None:
            settled = await self._settler.settle_alone(self._gid, order, self._evidence)
            if settled is Settled.BUSY or (settled is Settled.ABSENT and self._evidence is None):
                return settled  # to be asked again
            self._over = settled
        return self._over

    async def has_session(self) -> bool:
        """Whether a session of its database is in the branch now, as far as it has run ``begin`` as given.
        Raises ``ParticipantError``."""
        [row] = await self._management.read(query("in_branch"), self._name)
        return bool(row["there"])

    async def forget(self) -> None:
        """PostgreSQL keeps no record of heuristic outcomes: nothing to do."""

    async def release(self) -> None:
        """It has no connection."""

    @property
    def _label(self) -> str:
        return f"{self._gid.branch}:{self._gid.participant}"
