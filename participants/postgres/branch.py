"""One branch: from the marker to COMMIT PREPARED.

Each answer is believed only as far as it goes. The tag must say what was asked (a failed transaction answers
PREPARE and COMMIT with ``ROLLBACK``), the marker must still be there (the application may have typed
``commit``), and a warning that a synchronous standby did not confirm makes the answer an open question
(https://www.postgresql.org/docs/current/sql-prepare-transaction.html, and warm-standby.html of that manual).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from undoubt.participants.contract import (
    CommitNotSent,
    Decision,
    Evidence,
    PrepareResult,
    PrepareUnanswered,
    Settled,
    Vote,
    Work,
)
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol, SessionKey
from undoubt.participants.invariant import invariant
from undoubt.participants.postgres.connection_proxy import Handle, Surroundings
from undoubt.participants.postgres.history import columns, evidence_at, place_in, place_of, read_report
from undoubt.participants.postgres.one_phase import Lost, note_script
from undoubt.participants.postgres.pool import Slot
from undoubt.participants.postgres.session import CommandResult, NoAnswer, NotSent, ServerError, ServerSession
from undoubt.participants.postgres.session_setup import (
    branch_name,
    commit_guard,
    guard_script,
    known_pid,
    marker,
    report_head,
)
from undoubt.participants.postgres.sql import literal, query
from undoubt.participants.postgres.sqlstate import (
    ENDED_BY_APPLICATION,
    branch_failure,
    lost,
    participant_error,
    schema_changed,
    swallowed,
    unanswered,
)

STILL_RUNNING = (
    "a statement of the application is still running in this branch (or a pipeline, stream or COPY is open):"
    " finish it before commit"
)


class PostgresBranch:
    """See :class:`undoubt.participants.contract.Branch`."""

    def __init__(
        self,
        around: Surroundings,
        slot: Slot[Any],
        handle: Handle,
        gid: Gid,
        timeout_s: float,
        *,
        key: SessionKey,
    ) -> None:
        self._around = around
        self._slot = slot
        self._session: ServerSession = slot.session
        self._handle = handle
        self._gid = gid
        self._proof = key.proof(gid)
        self._name = branch_name(gid, key, known_pid(slot.session))
        self._timeout_s = max(timeout_s, around.statement_timeout_s)
        """Of what runs the application's own triggers and constraints: PREPARE and COMMIT."""
        self._evidence: Evidence | None = None
        self._xid: int | None = None
        self._place = place_of(slot.session.intro)
        """Of the server that it is open in; behind a pooler known from ``poll`` on."""
        self._asked = False
        """PREPARE was sent: from then on the branch may outlive its session."""
        self._released = False
        self._over: Settled | None = None
        """Nothing is left of it, or all of it is committed."""

    @property
    def gid(self) -> Gid:
        return self._gid

    @property
    def connection(self) -> Any:
        return self._handle

    @property
    def surely_writes(self) -> bool:
        return self._handle.undoubt_wrote

    def break_off(self, why: Callable[[], Exception]) -> None:
        self._handle.undoubt_why = why
        self._handle.undoubt_end()

    async def poll(self) -> Work:
        """Ends the application's use of the connection: what it wrote after the answer would go unnoticed."""
        self._stop_application()
        intro = self._session.intro
        statement = query("poll")
        if intro.pooled:
            statement = query("poll_pooled").replace("{whereabouts}", columns(intro))
        try:
            [row] = await self._session.rows(statement, timeout_s=self._around.statement_timeout_s)
        except ServerError as error:
            raise self._refused(error) from error
        except (NoAnswer, NotSent) as error:
            raise self._lost("", error) from error
        if row["marker"] != marker(self._gid):
            raise self._failed(ENDED_BY_APPLICATION)
        self._xid = None if row["xid"] is None else int(row["xid"])
        if intro.pooled:
            self._place = place_in(row, intro)
        # A SERIALIZABLE branch that wrote nothing can still be the one that has to fail: predicate locks.
        if self._xid is None and row["isolation"] != "serializable":
            return Work.READ_ONLY
        return Work.WRITES

    async def prepare(self) -> PrepareResult:
        try:
            self._stop_application()
        except BranchFailed as error:
            return PrepareResult(Vote.ABORT, reason=error)
        intro = self._session.intro
        head = report_head(self._name, pooler=intro.pooled)
        # The note makes a three-phase branch's commit visible, exactly when it commits.
        note = note_script(self._proof, intro) if self._gid.protocol is Protocol.THREE_PHASE else ""
        script = guard_script(
            self._gid, head, intro, self._around.owners, lent=self._slot.timeouts_ms is not None
        )
        script += f"; {note}prepare transaction {literal(str(self._gid))}"
        before = self._session.application_name
        self._asked = True
        try:
            answer = await self._session.script(script, timeout_s=self._timeout_s)
        except ServerError as error:
            return self._prepare_refused(error)
        except NotSent as error:
            self._asked = False
            return PrepareResult(Vote.ABORT, reason=self._lost(" before PREPARE", error))
        except NoAnswer as error:
            raise PrepareUnanswered(participant_error(self._around.name, error)) from error
        if (failure := self._look_at_prepared(answer)) is not None:
            self._asked = False
            return PrepareResult(Vote.ABORT, reason=failure)
        report = self._session.application_name
        if report != before:  # else a pooler kept the new one to itself
            self._evidence = await self._reported(report, head)
        return PrepareResult(Vote.PREPARED, self._evidence)

    async def _reported(self, report: str, head: str) -> Evidence | None:
        intro = self._session.intro
        evidence = read_report(report, head, intro)
        if evidence is not None and evidence.history is None and intro.tells_history and intro.pooled:
            # Behind the pooler is another server by now, which nobody has connected to directly.
            await self._around.draw_history()
        return evidence

    def _prepare_refused(self, error: ServerError) -> PrepareResult:
        if error.fatal:
            raise PrepareUnanswered(participant_error(self._around.name, error)) from error
        self._asked = False
        return PrepareResult(Vote.ABORT, reason=self._refused(error))

    def _look_at_prepared(self, answer: CommandResult) -> BranchFailed | None:
        """None if it is prepared; what is wrong, if it is not."""
        if answer.tag != "PREPARE TRANSACTION":
            return self._swallowed(f"PREPARE answered {answer.tag}")
        if (warning := answer.unconfirmed()) is not None:
            raise PrepareUnanswered(
                ParticipantUnavailable(
                    self._around.name,
                    f"prepared, but no synchronous standby confirmed it: {warning.message}",
                    sqlstate=warning.sqlstate,
                )
            )
        return None

    async def commit_one_phase(self) -> Settled:
        self._stop_application()
        guard = f"{query('guard_deferred')}; {commit_guard(self._gid)}"
        proof = self._proof if self._session.intro.notes_commits else b""
        script = f"{guard}; {note_script(proof, self._session.intro)}commit"
        try:
            answer = await self._session.script(script, timeout_s=self._timeout_s)
        except ServerError as error:
            if error.fatal:
                return await self._ask_books(proof, error)
            raise self._refused(error) from error
        except NotSent as error:
            raise self._lost(" before COMMIT", error) from error
        except NoAnswer as error:
            return await self._ask_books(proof, error)
        if answer.tag != "COMMIT":
            raise self._swallowed(f"COMMIT answered {answer.tag}")
        # Unconfirmed by a standby it is still committed here, and the row of the commit would prove no more.
        self._over = Settled.APPLIED if answer.unconfirmed() is None else Settled.HEURISTIC_HAZARD
        return self._over

    async def _ask_books(self, proof: bytes, error: ServerError | NoAnswer) -> Settled:
        """What became of a COMMIT that was answered by ``error``. Where the server has said why it ended the
        session, whatever is raised says it as well."""
        evidence = None
        if self._xid is not None and self._place is not None:
            evidence = evidence_at(self._place, self._xid)
        wrote = self._handle.undoubt_wrote or self._xid is not None
        asked = Lost(self._session, self._gid, proof, evidence, wrote)
        self._over = await self._around.one_phase.look_up(asked)
        if error.sqlstate is not None and self._over is Settled.ABSENT:
            raise self._lost(" during COMMIT", error) from error
        if error.sqlstate is not None and self._over is Settled.HEURISTIC_HAZARD:
            raise unanswered(self._around.name, error) from error
        return self._over

    async def commit(self) -> Settled:
        if self._over is None:
            self._over = await (self._settle(Decision.COMMIT) if self._asked else self._end_reading())
        return self._final()

    async def rollback(self) -> Settled:
        if self._over is None:
            self._over = await (self._settle(Decision.ABORT) if self._asked else self._undo())
        return self._final()

    def _final(self) -> Settled:
        over = self._over
        invariant(over is not None, "a branch ended without saying how")
        if over is Settled.BUSY or (over is Settled.ABSENT and self._evidence is None and self._asked):
            self._over = None  # to be asked again
        return over or Settled.BUSY

    async def _settle(self, order: Decision) -> Settled:
        """On its own session first: the one that prepared is there already, and mostly is the owner."""
        settled = await self._around.settler.quick(self._session, self._gid, order)
        if settled is None:
            settled = await self._around.settler.settle(self._gid, order, self._evidence)
        return settled

    async def _end_reading(self) -> Settled:
        script = commit_guard(self._gid) + "; commit"
        try:
            answer = await self._session.script(script, timeout_s=self._timeout_s)
        except ServerError as error:
            if error.fatal:
                raise unanswered(self._around.name, error) from error
            raise self._refused(error) from error
        except NotSent as error:
            raise CommitNotSent(self._lost(" before COMMIT", error)) from error
        except NoAnswer as error:
            raise unanswered(self._around.name, error) from error
        if answer.tag != "COMMIT":
            raise self._swallowed(f"COMMIT answered {answer.tag}")
        return Settled.APPLIED

    async def _undo(self) -> Settled:
        """No PREPARE was sent: whatever happens to the session now, its server rolls the branch back."""
        if self._handle.undoubt_end():
            self._session.discard()
        elif self._session.in_transaction and not self._session.broken:
            try:
                await self._session.script("rollback", timeout_s=self._around.statement_timeout_s)
            except (ServerError, NoAnswer, NotSent):
                self._session.discard()
        return Settled.APPLIED

    async def forget(self) -> None:
        """PostgreSQL keeps no record of heuristic outcomes: nothing to do."""

    async def release(self) -> None:
        if self._released:
            return  # somebody else may have the session by now
        self._released = True
        busy = self._handle.undoubt_end()
        # Behind a pooler a reset would reach another server process than the one that was used.
        self._slot.used = self._handle.undoubt_used and not self._session.intro.pooled
        self._slot.stale = self._handle.undoubt_stale
        if busy or not self._handle.undoubt_reusable:
            self._session.discard()
        self._around.give_back(self._slot)

    def _stop_application(self) -> None:
        if self._handle.undoubt_end():
            # What it does is not known before it is done, and the answer belongs to somebody else.
            self._session.discard()
            raise self._failed(STILL_RUNNING)

    def _swallowed(self, how: str) -> BranchFailed:
        return swallowed(self._around.name, self._handle.undoubt_failure, how)

    def _lost(self, when: str, error: ServerError | NoAnswer | NotSent) -> BranchFailed:
        return lost(self._around.name, when, error, self._handle.undoubt_failure)

    def _refused(self, error: ServerError) -> BranchFailed:
        if schema_changed(error):
            self._session.discard()  # the next one is introduced to the schema as it is now
        return branch_failure(self._around.name, error, self._handle.undoubt_failure)

    def _failed(self, message: str) -> BranchFailed:
        return BranchFailed(self._around.name, message)
