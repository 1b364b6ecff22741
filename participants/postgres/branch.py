"""Implements a branch, from its first statement to COMMIT PREPARED.

Every answer is checked. The tag must be that of the command (a failed transaction answers PREPARE and COMMIT
with ``ROLLBACK``), the marker must still be set (the application may have executed ``commit``), and a warning
that a synchronous standby did not confirm leaves the outcome open
(https://www.postgresql.org/docs/current/sql-prepare-transaction.html, and warm-standby.html of that manual).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
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
from undoubt.participants.errors import BranchFailed, ParticipantRefused, StaleLock
from undoubt.participants.ids import Gid, Protocol, SessionKey
from undoubt.participants.invariant import invariant
from undoubt.participants.last_agent import AgentEntry, AgentUnanswered
from undoubt.participants.outbox import Publication, dedupe_id
from undoubt.participants.postgres.branch_context import Lost, Surroundings
from undoubt.participants.postgres.connection_proxy import Handle, after_branch
from undoubt.participants.postgres.end_prepared import end_prepared, not_confirmed
from undoubt.participants.postgres.guard import (
    commit_guard,
    guard_script,
    lock_script,
    note_script,
    read_report,
    report_head,
    still_locked,
)
from undoubt.participants.postgres.history import columns, evidence_at, place_in, place_of
from undoubt.participants.postgres.last_agent import (
    agent_script,
    agent_steps,
    buried,
    cannot_be_agent,
    unanswered_commit,
)
from undoubt.participants.postgres.outbox import publish_statement
from undoubt.participants.postgres.pipeline import (
    GUARD_COLUMNS,
    ROLLBACK,
    end_reading_steps,
    guards_of_prepare,
    note_steps,
    one_phase_steps,
    reset_steps,
)
from undoubt.participants.postgres.pool import Slot
from undoubt.participants.postgres.schema_check import same_schema
from undoubt.participants.postgres.session import (
    Answers,
    AnswerTimedOut,
    CommandResult,
    NoAnswer,
    NotSent,
    ServerError,
    ServerSession,
    Step,
    standby_warning,
)
from undoubt.participants.postgres.session_setup import branch_name, known_pid, marker
from undoubt.participants.postgres.sql import fill, query
from undoubt.participants.postgres.sqlstate import (
    ENDED_BY_APPLICATION,
    GUARD_REPLACED,
    IN_USE,
    POOL_USED_UP,
    STILL_RUNNING,
    UNDEFINED_FUNCTION,
    branch_failure,
    guard_undone,
    lost,
    note_impossible,
    participant_error,
    schema_changed,
    swallowed,
    unanswered,
    unconfirmed,
)
from undoubt.participants.sql import literal
from undoubt.participants.tasks import Answered, Continued

log = logging.getLogger(__name__)

_NO_TABLE = "it has no {} (or its schema undoubt is not to be believed): undoubt participants migrate {}"

_POLL = query("poll")


class PostgresBranch:
    """A branch in PostgreSQL: :class:`undoubt.participants.contract.Branch`."""

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
        self.session: ServerSession = slot.session
        self._handle = handle
        self._gid = gid
        self._quoted = literal(str(gid))
        self._proof = key.proof(gid)
        self._marker = marker(gid)
        self._name = branch_name(gid, key, known_pid(slot.session))
        self._timeout_s = max(timeout_s, around.statement_timeout_s)
        """The timeout of PREPARE and COMMIT, which run the application's triggers and constraints."""
        self._evidence: Evidence | None = None
        self._xid: int | None = None
        self._place = place_of(slot.session.intro)
        """The place of the server in which the branch is open; behind a pooler it is known after ``poll``."""
        self._guards: list[str] = []
        """The statements that have shown tokens of locks, or have tried to."""
        self._stale: StaleLock | None = None
        """The refusal of one of them."""
        self._published = 0
        """How many messages were published, or tried to be."""
        self._asked = False
        """Whether PREPARE was sent: from then on the branch may outlive its session."""
        self._released = False
        self._spotless = False
        """Whether no reset is needed (``reset = "tags"``)."""
        self._read_only = False
        """Whether the transaction was read only at the last ``poll``."""
        self._over: Settled | None = None
        """The final result; None while the branch may still be open or prepared."""

    @property
    def gid(self) -> Gid:
        return self._gid

    @property
    def connection(self) -> Any:
        return self._handle

    @property
    def prepares(self) -> bool:
        return self.session.intro.prepares

    @property
    def surely_writes(self) -> bool:
        return self._handle.undoubt_wrote

    def break_off(self, why: Callable[[], Exception]) -> None:
        self._handle.undoubt_why = why
        self._handle.undoubt_end()

    async def guard_lock(self, ledger: str, name: str, token: int) -> None:
        guard = fill("guard_lock", ledger=ledger, lock=name, token=str(token))
        if guard not in self._guards:
            self._guards.append(guard)
        script = lock_script(guard, self._guards.index(guard), self._marker)
        await self._call(script, "a guard", "table of locks")

    async def publish(self, publication: Publication) -> str:
        self._published += 1
        published = dedupe_id(self._gid, self._published)
        await self._call(publish_statement(publication, published, self._marker), "a message", "outbox")
        return published

    async def _call(self, statement: str, what: str, table: str) -> None:
        """Call a function of schema ``undoubt``, which belongs to ``table``, in the branch. Fails."""
        if self._released or self._asked or self._over is not None:
            raise after_branch(what, self._gid)
        intro, name = self.session.intro, self._around.name
        if intro.schema is None:
            raise ParticipantRefused(name, _NO_TABLE.format(table, name))
        try:
            await self.session.script(same_schema(intro) + statement, timeout_s=self._timeout_s)
        except ServerError as error:
            if error.sqlstate == UNDEFINED_FUNCTION:
                raise ParticipantRefused(name, _NO_TABLE.format(table, name)) from error
            raise self._refused(error) from error
        except (NoAnswer, NotSent) as error:
            raise self._lost("", error) from error

    async def poll(self) -> Work:
        """Ask the database what the branch has done. Ends the application's use of the connection first,
        since a write after the answer would not be noticed."""
        self._stop_application()
        intro = self.session.intro
        statement = _POLL
        if intro.pooled:
            statement = query("poll_pooled").replace("{whereabouts}", columns(intro))
        try:
            [row] = await self.session.rows(statement, timeout_s=self._around.statement_timeout_s)
        except ServerError as error:
            raise self._refused(error) from error
        except (NoAnswer, NotSent) as error:
            raise self._lost("", error) from error
        if row["marker"] != self._marker:
            raise self._failed(ENDED_BY_APPLICATION)
        self._xid = None if row["xid"] is None else int(row["xid"])
        self._read_only = row["read_only"]
        if intro.pooled:
            self._place = place_in(row, intro)
        # A SERIALIZABLE branch that wrote nothing may still have to fail, because of its predicate locks.
        if self._xid is None and row["isolation"] != "serializable" and not self._guards:
            return Work.READ_ONLY
        return Work.WRITES

    def prepare(self) -> Awaitable[PrepareResult]:
        if self._handle.undoubt_end() or not self._pipelines:
            return self._prepare_by_script()
        self._asked = True
        return self._prepare_in_pipeline().then(self._voted)

    def _voted(self, answered: Answered[Answers]) -> PrepareResult:
        """The vote, as the answers to the pipeline of PREPARE show it."""
        try:
            answers = answered.result()
        except (ServerError, NotSent, NoAnswer) as error:
            return self._not_prepared(error)
        if (failure := self._look_at_prepared(_last_result(answers))) is not None:
            self._asked = False
            return PrepareResult(Vote.ABORT, reason=failure)
        self._evidence = self._evidence_of(answers)
        if self._evidence is None:
            # What is prepared was not checked: ``_asked`` stays set, so that it is rolled back.
            return PrepareResult(Vote.ABORT, reason=self._failed(GUARD_REPLACED))
        return PrepareResult(Vote.PREPARED, self._evidence)

    async def _prepare_by_script(self) -> PrepareResult:
        try:
            self._stop_application()
        except BranchFailed as error:
            return PrepareResult(Vote.ABORT, reason=error)
        before, self._asked = self.session.application_name, True
        try:
            answer = await self.session.script(self._prepare_script(), timeout_s=self._timeout_s)
        except (ServerError, NotSent, NoAnswer) as error:
            return self._not_prepared(error)
        if (failure := self._look_at_prepared(answer)) is not None:
            self._asked = False
            return PrepareResult(Vote.ABORT, reason=failure)
        if (report := self.session.application_name) != before:
            # Otherwise a pooler did not pass the report on.
            self._evidence = await self._reported(report)
        return PrepareResult(Vote.PREPARED, self._evidence)

    @property
    def _pipelines(self) -> bool:
        return self.session.pipelines and not self.session.intro.pooled

    @property
    def _note_proof(self) -> bytes:
        """The proof of the note that makes the commit of a three-phase branch visible exactly when the branch
        commits; empty for other branches."""
        return self._proof if self._gid.protocol is Protocol.THREE_PHASE else b""

    def _prepare_in_pipeline(self) -> Continued[Answers]:
        intro, keep, proof = self.session.intro, self._handle.undoubt_keeps, self._note_proof
        before, guard = guards_of_prepare(intro, self._around.owners, bool(proof), keep)
        steps = [*self._still_locked(), *before, Step(guard, (self._marker,), keep)]
        if proof:
            steps += note_steps(proof, intro)
        steps.append(Step(f"prepare transaction {self._quoted}"))
        return self.session.pipeline(steps, timeout_s=self._timeout_s)

    def _evidence_of(self, answers: Answers) -> Evidence | None:
        """The evidence in the guard's row before PREPARE; None if the guard has been replaced."""
        rows = answers.rows[-4 if self._note_proof else -2]
        guard = rows[0] if len(rows) == 1 else ()
        if len(guard) != GUARD_COLUMNS or guard[0] is None or not guard[0].isdecimal():
            return None
        xid = int(guard[0])
        if self._place is None:
            return Evidence(xid)
        high, _, low = (guard[1] or "0/0").partition("/")
        return Evidence(xid, *self._place, (int(high, 16) << 32) + int(low, 16) or None)

    def _still_locked(self) -> list[Step]:
        guards = len(self._guards)
        return [Step(each) for each in still_locked(guards, self._marker)] if guards else []

    def _if_still_locked(self, script: str) -> str:
        guards = len(self._guards)
        return "; ".join([*still_locked(guards, self._marker), script]) if guards else script

    def _prepare_script(self) -> str:
        intro = self.session.intro
        lent = self._slot.timeouts_ms is not None
        head = report_head(self._name, pooler=intro.pooled)
        note = note_script(self._note_proof, intro)
        script = guard_script(self._marker, head, intro, self._around.owners, lent=lent, noted=bool(note))
        return self._if_still_locked(f"{script}; {note}prepare transaction {self._quoted}")

    async def _reported(self, report: str) -> Evidence | None:
        intro = self.session.intro
        head = report_head(self._name, pooler=intro.pooled)
        evidence = read_report(report, head, intro, None if intro.pooled else self._place)
        if evidence is not None and evidence.history is None and intro.reports_history and intro.pooled:
            # The server behind the pooler has changed, and no session has drawn a history id there yet.
            await self._around.draw_history()
        return evidence

    def _not_prepared(self, error: ServerError | NotSent | NoAnswer) -> PrepareResult:
        if isinstance(error, NoAnswer) or (isinstance(error, ServerError) and error.fatal):
            raise PrepareUnanswered(participant_error(self._around.name, error)) from error
        self._asked = False
        if isinstance(error, NotSent):
            return PrepareResult(Vote.ABORT, reason=self._lost(" before PREPARE", error))
        return PrepareResult(Vote.ABORT, reason=self._refused(error))

    def _look_at_prepared(self, answer: CommandResult) -> BranchFailed | None:
        """None if the branch is prepared, otherwise the reason why it is not."""
        if answer.tag != "PREPARE TRANSACTION":
            return self._swallowed(f"PREPARE answered {answer.tag}")
        if (warning := answer.unconfirmed) is not None:
            raise PrepareUnanswered(unconfirmed(self._around.name, "prepared", warning))
        return None

    async def commit_one_phase(self) -> Settled:
        self._stop_application()
        proof = self._proof if self.session.intro.notes_commits else b""
        # Without one of these the branch may have nothing to note, and commits in any case. A transaction
        # that the application has ended itself has no note although it has committed: poll excludes that.
        handle = self._handle
        wrote = handle.undoubt_wrote and not handle.undoubt_committed
        certain = bool(proof) and (wrote or self._xid is not None)
        try:
            return await self._commit_now(proof, certain=certain)
        except ServerError as error:
            if not (certain and note_impossible(error)):
                raise self._refused(error) from error
        await self._give_up_note()
        try:
            return await self._commit_now(b"", certain=False)
        except ServerError as error:
            raise self._refused(error) from error

    async def _give_up_note(self) -> None:
        """Continue after the error of ``note_certain``, and learn what else may prove the outcome."""
        await self._behind_answered()
        try:
            await self.session.script(query("note_given_up"), timeout_s=self._around.statement_timeout_s)
        except ServerError as error:
            raise self._refused(error) from error
        except (NoAnswer, NotSent) as error:
            raise self._lost(" before COMMIT", error) from error
        await self.poll()

    async def _commit_now(self, proof: bytes, *, certain: bool) -> Settled:
        """Send COMMIT. Raises ``ServerError`` if it was refused, and the session continues."""
        intro, keep = self.session.intro, self._handle.undoubt_keeps
        try:
            if self._pipelines:
                steps = one_phase_steps(self._marker, proof, intro, certain=certain, keep=keep)
                answer = await self._last_of([*self._still_locked(), *steps])
            else:
                note = f"{query('note_certain')}; " if certain else ""
                note += note_script(proof, intro)
                script = f"{query('guard_deferred')}; {commit_guard(self._marker)}; {note}commit"
                answer = await self.session.script(self._if_still_locked(script), timeout_s=self._timeout_s)
        except ServerError as error:
            if error.fatal:
                return await self._ask_books(proof, certain, error)
            raise
        except NotSent as error:
            raise self._lost(" before COMMIT", error) from error
        except NoAnswer as error:
            return await self._ask_books(proof, certain, error)
        if answer.tag != "COMMIT":
            raise self._swallowed(f"COMMIT answered {answer.tag}")
        # A commit without a standby's confirmation is still committed here, and its note would prove no more.
        self._over = Settled.APPLIED if answer.unconfirmed is None else Settled.HEURISTIC_HAZARD
        return self._over

    async def _ask_books(self, proof: bytes, certain: bool, error: ServerError | NoAnswer) -> Settled:
        """The outcome of a COMMIT whose answer was ``error``. If the server gave a reason for ending the
        session, an error with that reason is raised instead of ABSENT or HEURISTIC_HAZARD."""
        evidence = None
        if self._xid is not None and self._place is not None:
            evidence = evidence_at(self._place, self._xid)
        asked = Lost(self.session, self._gid, proof, evidence, certain)
        self._over = await self._around.look_up(asked)
        if error.sqlstate is not None and self._over is Settled.ABSENT:
            raise self._lost(" during COMMIT", error) from error
        if error.sqlstate is not None and self._over is Settled.HEURISTIC_HAZARD:
            raise unanswered(self._around.name, error) from error
        return self._over

    async def check_as_agent(self, entry: AgentEntry) -> None:
        if self.session.intro.pooled or not self.surely_writes:
            await self.poll()
        self._stop_application()
        why = cannot_be_agent(self._around.name, entry, self._place, read_only=self._read_only)
        if why is not None:
            raise self._failed(why)

    async def commit_as_agent(self, entry: AgentEntry, branches: bytes) -> None:
        self._stop_application()
        intro, keep = self.session.intro, self._handle.undoubt_keeps
        try:
            if self._pipelines:
                steps = agent_steps(self._marker, entry, branches, intro, keep=keep)
                answer = await self._last_of([*self._still_locked(), *steps])
            else:
                script = self._if_still_locked(agent_script(self._marker, entry, branches, intro))
                answer = await self.session.script(script, timeout_s=self._timeout_s)
        except ServerError as error:
            if not unanswered_commit(error):
                raise buried(self._around.name, error) or self._refused(error) from error
            self._over = Settled.HEURISTIC_HAZARD
            raise AgentUnanswered(unanswered(self._around.name, error)) from error
        except NotSent as error:
            raise self._lost(" before COMMIT", error) from error
        except NoAnswer as error:
            self._over = Settled.HEURISTIC_HAZARD
            raise AgentUnanswered(unanswered(self._around.name, error)) from error
        if answer.tag != "COMMIT":
            raise self._swallowed(f"COMMIT answered {answer.tag}")
        if (warning := answer.unconfirmed) is not None:
            self._over = Settled.HEURISTIC_HAZARD
            raise AgentUnanswered(unconfirmed(self._around.name, "committed", warning))
        self._over = Settled.APPLIED

    def commit(self) -> Awaitable[Settled]:
        if self._over is not None or not self._asked or not self._pipelines:
            return self._commit()
        steps = [Step(f"commit prepared {self._quoted}")]
        timeout_s = self._around.statement_timeout_s
        ended = self.session.pipeline(steps, behind=self._reset(), timeout_s=timeout_s)
        return ended.then(self._committed)

    def _committed(self, answered: Answered[Answers]) -> Settled | Coroutine[Any, Any, Settled]:
        """What the answer to the pipeline of COMMIT PREPARED means."""
        try:
            warning = _last_result(answered.result()).unconfirmed
        except ServerError as error:
            if error.sqlstate != IN_USE:
                return self._commit_elsewhere()
            self._over = Settled.BUSY
        except (NoAnswer, NotSent):
            return self._commit_elsewhere()
        else:
            self._over = Settled.APPLIED if warning is None else not_confirmed(self._gid, warning.message)
        return self._final()

    async def _commit_elsewhere(self) -> Settled:
        self._over = await self._around.settle(self._gid, Decision.COMMIT, self._evidence)
        return self._final()

    async def _commit(self) -> Settled:
        if self._over is None:
            self._over = await (self._settle(Decision.COMMIT) if self._asked else self._end_reading())
        return self._final()

    async def rollback(self) -> Settled:
        if self._over is None:
            self._over = await (self._settle(Decision.ABORT) if self._asked else self._undo())
        return self._final()

    def _final(self) -> Settled:
        over = self._over
        invariant(over is not None, "a branch ended without a result")
        if over is Settled.BUSY or (over is Settled.ABSENT and self._evidence is None and self._asked):
            self._over = None  # not final: a caller may ask again
        return over or Settled.BUSY

    async def _settle(self, order: Decision) -> Settled:
        """End the prepared branch, first on its own session, which mostly works as the owner's role."""
        timeout_s = self._around.statement_timeout_s
        try:
            return await end_prepared(self.session, self._gid, order, timeout_s, behind=self._reset())
        except ServerError as error:
            if error.sqlstate == IN_USE:
                return Settled.BUSY
        except (NoAnswer, NotSent) as error:
            if isinstance(error, AnswerTimedOut) and self.session.intro.pooled:
                log.warning(POOL_USED_UP, self._around.name, self._gid, timeout_s)
        return await self._around.settle(self._gid, order, self._evidence)

    async def _end_reading(self) -> Settled:
        try:
            if self._pipelines:
                keep = self._handle.undoubt_keeps
                answer = await self._last_of(end_reading_steps(self._marker, keep=keep))
            else:
                script = commit_guard(self._marker) + "; commit"
                answer = await self.session.script(script, timeout_s=self._timeout_s)
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
        """Roll back a branch whose PREPARE was never sent; if the session is lost, the server does."""
        if self._handle.undoubt_end():
            self.session.discard()
            return Settled.APPLIED
        self.session.drop_ahead()
        await self._behind_answered()
        timeout_s = self._around.statement_timeout_s
        if self.session.in_transaction and not self.session.broken:
            try:
                if self._pipelines:
                    await self.session.pipeline([ROLLBACK], behind=self._reset(), timeout_s=timeout_s)
                else:
                    await self.session.script("rollback", timeout_s=timeout_s)
            except (ServerError, NoAnswer, NotSent):
                self.session.discard()
        return Settled.APPLIED

    async def _last_of(self, steps: Sequence[Step]) -> CommandResult:
        """The answer to the last of ``steps``, which end the transaction; the reset goes behind them."""
        return _last_result(
            await self.session.pipeline(steps, behind=self._reset(), timeout_s=self._timeout_s)
        )

    async def _behind_answered(self) -> None:
        """Wait until the session can be used again after a pipeline that was refused: the reset behind it has
        failed as well, in the failed transaction, and has to be sent again."""
        behind, self.session.behind = self.session.behind, None
        if behind is not None:
            await asyncio.wait([behind])

    def _reset(self) -> tuple[Step, ...]:
        """The reset of the session, to be sent behind the end of the branch; nothing if the session cannot
        pipeline, or if it will be closed."""
        if not self._pipelines or not self._handle.undoubt_reusable:
            return ()
        if not self._handle.undoubt_leaves:
            self._spotless = True
            return ()
        return reset_steps(self.session.intro.synchronous_commit, self._slot.timeouts_ms)

    async def forget(self) -> None:
        """PostgreSQL keeps no record of heuristic outcomes: nothing to do."""

    async def release(self) -> None:
        if self._released:
            return  # the session may already be lent to another branch
        self._released = True
        reset, self.session.behind = self.session.behind, None
        # Where a reset was sent, the application's use had ended before.
        busy = self._handle.undoubt_end() if reset is None else False
        self.session.drop_ahead()
        # Behind a pooler a reset could reach a server process other than the one that was used.
        used = self._handle.undoubt_used and not self._spotless
        self._slot.used = used and not self.session.intro.pooled
        self._slot.reset = reset
        self._slot.stale = self._handle.undoubt_stale
        if busy or not self._handle.undoubt_reusable:
            self.session.discard()
        self._around.give_back(self._slot)

    def _stop_application(self) -> None:
        if self._handle.undoubt_end():
            # The effect of the running statement is not known yet, and its answer belongs to the application.
            self.session.discard()
            raise self._failed(STILL_RUNNING)

    def _swallowed(self, how: str) -> BranchFailed:
        return swallowed(self._around.name, self._handle.undoubt_failure, how)

    def _lost(self, when: str, error: ServerError | NoAnswer | NotSent) -> BranchFailed:
        return lost(self._around.name, when, error, self._handle.undoubt_failure)

    def _refused(self, error: ServerError) -> BranchFailed:
        if schema_changed(error):
            self.session.discard()  # the next session checks the schema anew
        failure = branch_failure(self._around.name, error, self._handle.undoubt_failure)
        if isinstance(failure, StaleLock):
            self._stale = failure
        return self._stale if self._stale is not None and guard_undone(error) else failure

    def _failed(self, message: str) -> BranchFailed:
        return BranchFailed(self._around.name, message)


def _last_result(answers: Answers) -> CommandResult:
    """The answer to the last step of a pipeline."""
    return CommandResult(answers.tags[-1], standby_warning(answers.notices) if answers.notices else None)
