"""A branch that another program runs and prepares: a service with its own driver, in any language.

The service receives the statements that begin and prepare the branch; they contain the gid. The service does
not report the vote: the vote is what this participant's database shows when the transaction commits. A
prepared transaction counts as the branch only if it has the gid, is in this database, and was prepared by a
role that prepares branches of ours. From then on its transaction id identifies it as well: another
transaction with the same gid is an impostor, which is neither committed nor rolled back.

An entry in the list proves only that PREPARE is on the disk of its server: a server lists the transaction
before its synchronous standbys have confirmed it (``EndPrepare`` in ``src/backend/access/transam/twophase.c``
of PostgreSQL). If there are synchronous standbys, this process writes a commit behind it in the same WAL, and
the standbys confirm that commit."""

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
from undoubt.participants.hardened_session import ALONE_WRITING
from undoubt.participants.ids import Gid, SessionKey
from undoubt.participants.invariant import InvariantViolation
from undoubt.participants.outbox import Publication, dedupe_id
from undoubt.participants.postgres.admin_pool import AdminPool, refuse_standby
from undoubt.participants.postgres.guard import commit_guard, confirmation
from undoubt.participants.postgres.history import columns, place_in
from undoubt.participants.postgres.in_doubt import widen
from undoubt.participants.postgres.outbox import publish_statement
from undoubt.participants.postgres.roles import owned
from undoubt.participants.postgres.session import NoAnswer, NotSent, Row, ServerError, ServerParameters
from undoubt.participants.postgres.session_setup import branch_name, local_statements, marker, timeouts_ms
from undoubt.participants.postgres.settle import Settler
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import participant_error
from undoubt.participants.sql import literal


class BranchScripts(NamedTuple):
    """The statements that begin and those that prepare the branch. Each list can be sent as one simple query,
    joined by semicolons, or one statement after another in one session."""

    begin: tuple[str, ...]
    prepare: tuple[str, ...]


def scripts_of(gid: Gid, key: SessionKey, timeout_s: float, intro: ServerParameters) -> BranchScripts:
    """The scripts of a branch that should end within ``timeout_s`` seconds; ``intro`` is that of any session
    of the database. The server process that will run the branch is not known, so the application_name is
    believed only of roles that prepare branches of ours."""
    name = branch_name(gid, key, 0)
    begin = ["begin", *local_statements(gid, name, intro, timeouts_ms(timeout_s, intro))]
    prepare = [
        query("guard_deferred"),
        " ".join(commit_guard(marker(gid)).split()),
        f"prepare transaction {literal(str(gid))}",
    ]
    return BranchScripts(tuple(begin), tuple(prepare))


class AnnouncedBranch:
    """A branch that another program runs: :class:`undoubt.participants.contract.Branch` without a
    connection."""

    def __init__(
        self,
        admin_pool: AdminPool,
        settler: Settler,
        owners: Sequence[str],
        gid: Gid,
        scripts: BranchScripts,
        *,
        name: str,
    ) -> None:
        """``owners`` come from the settings; ``name`` is the application_name of the session that runs the
        branch."""
        self.scripts = scripts
        self._admin_pool = admin_pool
        self._settler = settler
        self._owners = list(owners)
        self._gid = gid
        self._name = name
        self._evidence: Evidence | None = None
        self._over: Settled | None = None
        self._published = 0
        """How many messages have a statement."""

    @property
    def gid(self) -> Gid:
        return self._gid

    @property
    def connection(self) -> NoReturn:
        """Raises ``UsageError``: the branch has no connection."""
        raise UsageError(
            f"branch {self._label} is run by the program that announced it, and has no connection"
        )

    @property
    def prepares(self) -> bool:
        return True

    @property
    def surely_writes(self) -> bool:
        return True

    def publication(self, message: Publication) -> tuple[str, str]:
        """The dedupe id of ``message``, and the statement by which the program that runs the branch puts it
        into the outbox, once."""
        self._published += 1
        published = dedupe_id(self._gid, self._published)
        return published, publish_statement(message, published, marker(self._gid))

    def break_off(self, why: Callable[[], Exception]) -> None:
        """Does nothing: the session belongs to another program, and ends by the timeouts that ``begin`` has
        set."""

    async def poll(self) -> Work:
        return Work.WRITES

    async def prepare(self) -> PrepareResult:
        """Look whether the branch is prepared. If it is not, it may still be prepared later: so every other
        result is a missing answer (``PrepareUnanswered``)."""
        try:
            row = await self._look()
            if row["synchronous"] and row["gid"] is not None:
                row = await self._look_durably()
        except ParticipantError as error:
            raise PrepareUnanswered(error) from error
        if (failure := self._judge(row)) is not None:
            raise PrepareUnanswered(failure)
        intro = await self._admin_pool.who()
        xid = widen(int(row["xid"]), int(row["next_xid"]))
        position = None if row["position"] is None else int(row["position"])
        place = place_in(row, intro)
        self._evidence = Evidence(xid) if place is None else Evidence(xid, *place, position)
        return PrepareResult(Vote.PREPARED, self._evidence)

    def _judge(self, row: Row) -> BranchFailed | None:
        """Why the prepared transaction of ``row`` is not the branch; None if it is the branch."""
        participant = self._gid.participant
        if row["gid"] is None:
            return BranchFailed(
                participant, f"branch {self._label} was announced, but is not prepared: {self._gid}"
            )
        if row["database"] != row["here"]:
            return BranchFailed(
                participant,
                f"branch {self._label} is not prepared; the transaction with its name, {self._gid}, is in"
                f" database {row['database']!r}, not in {row['here']!r}",
            )
        if not row["owned"]:
            return BranchFailed(
                participant,
                f"branch {self._label} is not prepared; the transaction with its name, {self._gid}, was"
                f" prepared by role {row['owner']!r}, which prepares no branches of ours",
            )
        return None

    async def _look(self) -> Row:
        """The row of query ``announced``. Raises ``ParticipantError``, also on a standby."""
        intro = await self._admin_pool.who()
        [row] = await self._admin_pool.read(self._statement(intro), str(self._gid), self._owners)
        refuse_standby(self._admin_pool.participant, row)
        return row

    def _statement(self, intro: ServerParameters) -> str:
        position = query("flushed_position" if intro.reports_position else "no_position")
        statement = owned("announced", "p.owner", "$2").replace("{whereabouts}", columns(intro))
        return statement.replace("{position}", position)

    async def _look_durably(self) -> Row:
        """The row of :meth:`_look`, read in a transaction whose commit the synchronous standbys confirm. Also
        behind a pooler one server executes the whole transaction."""
        timeout_s = self._admin_pool.timeout_s
        try:
            async with self._admin_pool.session() as session:
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
            raise participant_error(self._admin_pool.participant, error) from error
        refuse_standby(self._admin_pool.participant, row)
        if (warning := answer.unconfirmed) is not None:
            raise ParticipantUnavailable(
                self._admin_pool.participant,
                f"branch {self._label} is prepared, but no synchronous standby confirmed it:"
                f" {warning.message}",
                sqlstate=warning.sqlstate,
            )
        return row

    async def commit_one_phase(self) -> Settled:
        raise InvariantViolation(f"another program prepares {self._gid}: it cannot commit in one phase")

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
        """Whether a session of the database shows the application_name of the branch now, as a session does
        after ``begin`` of the scripts. Raises ``ParticipantError``."""
        [row] = await self._admin_pool.read(query("in_branch"), self._name)
        return bool(row["there"])

    async def forget(self) -> None:
        """PostgreSQL keeps no record of heuristic outcomes: nothing to do."""

    async def release(self) -> None:
        """Does nothing: the branch has no connection."""

    @property
    def _label(self) -> str:
        return f"{self._gid.branch}:{self._gid.participant}"
