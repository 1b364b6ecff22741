"""A transaction as the application uses it: branches, commit, rollback.

A transaction that has begun is in one of three states. ACTIVE: branches are opened and used. COMMITTING: a
protocol runs in a separate task (:mod:`undoubt.coordinator.protocols.context`), and the caller only waits.
ENDED. An ACTIVE transaction can be doomed: by its timeout, by the resolution of a deadlock, by a lost session
or by a closing coordinator. It is then rolled back immediately, and each later use raises
``TransactionAborted`` with the reason, and so does the end of an ``async with`` block. The body of the block
is cancelled if the cancellation can reach only the block (:mod:`undoubt.coordinator.cancel_scope`).

A block ends without an error only if the transaction has committed, or the application has rolled it back.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from undoubt.coordinator.cancel_scope import CancelScope
from undoubt.coordinator.errors import OutcomeUnknown, TransactionAborted, TransactionEnded
from undoubt.coordinator.host import Host, Opener, begin, discard, join_agent
from undoubt.coordinator.key_use import KeyUse
from undoubt.coordinator.ledger.contract import Lease
from undoubt.coordinator.protocols.causes import may_come_of_a_cancellation
from undoubt.coordinator.protocols.context import (
    CERTAIN_BEFORE_THE_LEDGER,
    CommitContext,
    Phase,
    known_heuristics,
)
from undoubt.coordinator.publishing import publish
from undoubt.participants.bounds import having, text
from undoubt.participants.contract import Branch, Decision, Settled
from undoubt.participants.deadlines import Deadline, deadlines
from undoubt.participants.errors import UsageError
from undoubt.participants.ids import BRANCH_NUMBER_MAX, Gid, TxId
from undoubt.participants.ids import Protocol as GidProtocol
from undoubt.participants.tasks import Uncancellable, all_done, all_of, uncancellable

if TYPE_CHECKING:
    from asyncpg import Connection, Record

ROLLBACK_GRACE_S = 1.0
"""How much longer than the timeout ``commit`` waits until the rollbacks are confirmed."""
LEAVING_GRACE_S = 1.0
"""How long a rollback waits until the cancelled block of the transaction is left."""
VOTING_GRACE_S = 5.0
"""How much longer than the timeout ``commit`` waits until participants have cancelled their PREPARE."""


class TransactionState(enum.Enum):
    NEW = "new"
    ACTIVE = "active"
    COMMITTING = "committing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The transaction is committed. ``pending``: branches whose participant has not confirmed COMMIT yet,
    because it is down or slow; they are still prepared, and recovery will commit them. ``repeated``: another
    transaction had committed with the same key before, and ``txid`` is the id of that one."""

    txid: TxId
    pending: tuple[Gid, ...] = ()
    repeated: bool = False


class Transaction:
    """``async with coordinator.transaction() as tx``: commits at the block's end, rolls back if it raises.

    Different tasks may use different branches; otherwise only one task may use a transaction at a time.
    """

    def __init__(
        self,
        host: Host,
        *,
        timeout_s: float,
        protocol: GidProtocol,
        prepares_all: bool = False,
        key: str | None = None,
        agent: str = "",
    ) -> None:
        self._host, self._agent = host, agent
        self._timeout_s, self._protocol = timeout_s, protocol
        self.prepares_all = prepares_all
        self.key_use = None if key is None else KeyUse(key)
        self._txid: TxId | None = None
        self._lease: Lease | None = None
        self._state = TransactionState.NEW
        self._branches: dict[str, Branch] = {}
        """Branches by the participant's name; an announced branch has ``/`` and its number after the name."""
        self._announced: set[Gid] = set()  # branches that other processes prepare
        self._numbered = 0  # branch numbers that were given out
        self._opening: dict[str, asyncio.Task[Branch]] = {}
        self._deadline = 0.0
        self._timer: Deadline | None = None
        self._scope: CancelScope | None = None
        """The scope of the ``async with`` block of the transaction, while the block is entered."""
        self._left: asyncio.Future[None] | None = None
        """Made when the task in the block is cancelled; done once the block is left."""
        self._doom: BaseException | None = None
        self._interrupted = self._may_be_doomed = False
        self._context: CommitContext | None = None
        self._commit: Uncancellable[None] | None = None
        self._unasked = False
        """The transaction was rolled back without a call of ``rollback`` by the application: the end of the
        block has to raise ``TransactionAborted``."""
        self._undoing: Uncancellable[None] | None = None
        self.on_doom: set[Callable[[], None]] = set()
        """Called when the transaction is interrupted."""

    @property
    def id(self) -> TxId:
        """The transaction's id; raises ``UsageError`` before it has begun."""
        if self._txid is None:
            raise UsageError("the transaction has not begun: use 'async with', or await start()")
        return self._txid

    @property
    def lease(self) -> Lease:
        """The lease under which the transaction runs; raises the same as ``id``."""
        if self._lease is None:
            raise UsageError("the transaction has not begun: use 'async with', or await start()")
        return self._lease

    @property
    def participants(self) -> tuple[str, ...]:
        """Names of the participants in which the transaction has a branch."""
        return tuple(sorted({key.partition("/")[0] for key in (*self._branches, *self._opening)}))

    @property
    def gids(self) -> tuple[Gid, ...]:
        """The gids of the transaction's branches."""
        return tuple(branch.gid for branch in self._branches.values())

    @property
    def deadline(self) -> float:
        """When an undecided transaction is aborted, in seconds of the event loop's clock."""
        return self._deadline

    @property
    def protocol(self) -> GidProtocol:
        return self._protocol

    @property
    def began_at(self) -> float:
        """The time of ``start``, in seconds of the event loop's clock."""
        return self._deadline - self._timeout_s

    @property
    def active(self) -> bool:
        """True from ``start`` until commit or rollback begins."""
        return self._state is TransactionState.ACTIVE

    @property
    def committing(self) -> bool:
        """True while ``commit`` waits for the outcome."""
        return self._state is TransactionState.COMMITTING

    @property
    def fixed_elsewhere(self) -> bool:
        """True if COMMIT is fixed in participants or acceptors, and is not yet in the ledger."""
        return self._context is not None and self._context.state in CERTAIN_BEFORE_THE_LEDGER

    @property
    def may_have_committed(self) -> bool:
        """False until the commit begins, and once it is certain that the transaction has not committed. A
        commit whose branches are still being prepared goes on, whatever happens to the task that began it."""
        return self._context is not None and self._context.phase is not Phase.ABORTED

    @property
    def repeated(self) -> bool:
        """Whether another transaction had committed with the key of this one before. ``id`` is the id of that
        one then, ``result`` its result, and ``branch`` raises ``AlreadyCommitted``."""
        return self.key_use is not None and self.key_use.first is not None

    @property
    def result(self) -> Any:
        """The result that is stored with the key, as it is when the commit begins; can be set until then:
        ``bytes``, or what JSON can express (:mod:`undoubt.coordinator.results`), 16 KB at most."""
        return None if self.key_use is None else self.key_use.value

    @result.setter
    def result(self, value: object) -> None:
        if self.key_use is None:
            raise UsageError("a result is stored only for a transaction with a key")
        self._check_active()
        self.key_use.set(value)

    @property
    def doomed(self) -> bool:
        """True if the transaction can only abort: interrupted, or a branch could not be opened."""
        return self._doom is not None

    @property
    def interruption(self) -> BaseException | None:
        """Why it was interrupted: timeout, deadlock, lost session, closed coordinator. None if it was not."""
        return self._doom if self._interrupted else None

    async def start(self, *, key_wait_s: float | None = None) -> Transaction:
        """Begin the transaction without ``async with``; then ``commit`` or ``rollback`` has to be called.

        Raises ``LedgerUnavailable`` if the coordinator has lost its session and opens no new one within the
        transaction's timeout, which is counted again from the moment when it has begun.

        With a key: if another transaction has committed with it, this one is ``repeated`` and has ended.
        While another one is undecided, waits for ``key_wait_s``, by default as long as the timeout, then
        raises ``KeyInUse``; ``UsageError`` at once if it is called in the block of that one. Raises
        ``OutcomeUnknown`` if it is lost whether another one has committed.
        """
        if self._state is not TransactionState.NEW:
            raise UsageError("the transaction has begun already")
        self._host.check_here()
        if self.key_use is None:
            self._txid, self._lease = await self._host.new_txid(self._protocol, self._timeout_s, self._agent)
        elif (claimed := await self._host.claim_key(self.key_use, self._timeout_s, key_wait_s)) is None:
            self._txid, self._state = self.key_use.first, TransactionState.ENDED
            return self
        else:
            self._txid, self._lease = claimed
        self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        self._timer = deadlines().call_at(self._deadline, self._time_out)
        self._state = TransactionState.ACTIVE
        self._host.begun(self)
        return self

    async def branch(self, name: str) -> Connection[Record]:
        """Return the connection to participant ``name`` inside this transaction; the same connection each
        time.

        Raises ``UnknownParticipant``; ``ParticipantUnavailable`` or ``ParticipantRefused`` if the branch
        cannot be opened: the whole transaction can then only be rolled back; ``TransactionEnded``.
        """
        self._check_usable()
        text("name", name)
        branch = self._branches.get(name) or await self._open(name)
        return cast("Connection[Record]", branch.connection)

    async def publish(
        self,
        name: str,
        payload: object,
        *,
        topic: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Put a message into an outbox: see :func:`undoubt.coordinator.publishing.publish`."""
        return await publish(self, name, payload, topic=topic, key=key, headers=headers)

    async def adopt(self, opener: Opener) -> Branch:
        """Open a branch by ``opener``, which may use a connection of the application.

        There is one branch for each name. Raises the errors of :meth:`branch` and of ``opener.begin``.
        """
        self._check_usable()
        having("opener", opener, "what opens a branch", "begin")
        if opener.name in self._branches or opener.name in self._opening:
            raise UsageError(f"transaction {self.id} has a branch in participant {opener.name!r} already")
        return await self._open(opener.name, opener)

    async def announce(self, opener: Opener) -> Branch:
        """Add a branch that another process runs and prepares, under the gid of the branch that
        ``opener.begin`` returns.

        One participant may have any number of such branches. The vote of the branch is what is found in the
        participant when ``commit`` is called. The branch ends as the transaction does, also if it is prepared
        only later: an abort that finds nothing to roll back is recorded. Raises the errors of :meth:`adopt`,
        and ``UsageError`` in a transaction of three-phase commit, whose rows have to exist before PREPARE.
        """
        self._check_usable()
        having("opener", opener, "what opens a branch", "begin")
        if self._protocol is GidProtocol.THREE_PHASE:
            raise UsageError(
                "a branch that another process prepares cannot take part in three-phase commit: its row has"
                " to be in the participant before PREPARE; use 2pc or paxos"
            )
        branch = await self._open(f"{opener.name}/{self._numbered + 1}", opener)
        self._announced.add(branch.gid)
        return branch

    async def withdraw(self, gid: Gid) -> Settled:
        """Roll back one branch and remove it from the transaction. For an announced branch the result is the
        answer of its participant: ``APPLIED``, it was prepared and is rolled back; ``ABSENT``, it is not
        prepared. If it is prepared later, recovery rolls it back, as a branch that no decision names. Raises
        the errors of :meth:`adopt`, and of the rollback; then the branch stays in the transaction."""
        self._check_usable()
        key = next((key for key, branch in self._branches.items() if branch.gid == gid), None)
        if key is None:
            raise UsageError(f"transaction {self.id} has no branch {gid}")
        settled = await self._branches[key].rollback()
        if settled in {Settled.APPLIED, Settled.ABSENT} and (branch := self._branches.pop(key, None)):
            self._announced.discard(gid)
            await branch.release()
        return settled

    async def commit(self) -> CommitResult:
        """Commit the transaction in all participants, or in none.

        Returns once COMMIT is certain (recorded in the ledger; in three-phase commit, in every participant;
        in Paxos Commit, by the acceptors; in last-agent commit, by the agent) and was sent to all. Raises
        ``TransactionAborted`` (no participant has committed), ``OutcomeUnknown`` (no answer within the
        timeout: the commit goes on), or ``HeuristicOutcome``. A cancellation has a note.
        """
        self._host.check_here()
        if self.repeated:
            return CommitResult(self.id, repeated=True)
        if self._agent:
            await join_agent(self)
        await self._undone()
        self._check_active()
        if self._opening and self._doom is None:
            self._doom = UsageError("commit was called while a branch was being opened")
        self._doom = self._doom or (None if self.key_use is None else self.key_use.keep())
        if self._doom is not None:
            self._unasked = True
            await self._undo()
            self._raise_aborted(self._doom)
        return await self._watch(*self._start_commit())

    async def committed(self) -> CommitResult:
        """Wait for the outcome of a commit that was begun; returns or raises the same as ``commit``."""
        self._host.check_here()
        if self._context is None or self._commit is None:
            raise UsageError(f"the commit of transaction {self.id} has not begun")
        return await self._watch(self._context, self._commit)

    async def rollback(self) -> None:
        """Roll back all branches. Does nothing if the transaction was rolled back already."""
        self._host.check_here()
        if self._state is TransactionState.ENDED:
            await self._undone()
            return
        self._check_active()
        await self._undo()

    async def end_block(self) -> None:
        """End a ``with`` block whose body raised no error. Returns if the transaction is committed, or was
        rolled back by the application. Raises the errors of ``commit``, also those of an earlier call."""
        self._host.check_here()
        if self._state is TransactionState.ACTIVE:
            await self.commit()
        elif self._unasked:
            await self._undone()
            self._raise_aborted(self._reason)
        elif self._context is not None and self._commit is not None:
            # The body may have swallowed the outcome, or commit() may have been cancelled.
            await self.committed()

    def doom(self, cause: BaseException) -> bool:
        """Abort the transaction with ``cause``, and begin its rollback. Returns False if the transaction has
        not begun, or its commit or rollback has."""
        if self._state is not TransactionState.ACTIVE:
            return False
        self._doom = self._doom or cause
        self._interrupted = self._unasked = True
        if self._scope is not None and self._scope.cancel():
            self._left = asyncio.get_running_loop().create_future()
        for branch in self._branches.values():
            branch.break_off(self._aborted)
        for hear in list(self.on_doom):
            hear()
        self._host.in_background(self._start_undo())
        return True

    def explain(self, cause: BaseException) -> None:
        """Note ``cause``, for which a statement that a branch waits for in the first phase is about to be
        cancelled: if the transaction aborts, ``cause`` is the reported cause."""
        if self._context is not None and self._context.phase is Phase.VOTING:
            self._context.interruption = cause

    async def __aenter__(self) -> Transaction:
        scope = CancelScope.entered_from(sys._getframe(1))
        if self.key_use is not None:
            self.key_use.entered_in = asyncio.current_task()
        await self.start()
        self._scope = scope
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.check_here()
        scope, self._scope = self._scope, None
        if self._interrupted:
            await self._leave(scope, error)
        elif error is None:
            await self.end_block()
        elif self._state is TransactionState.ACTIVE:
            await self.undo_after(error)
            if self._interrupted:
                self._raise_aborted(self._reason)
        else:
            self.note_commit(error)

    def note_commit(self, error: BaseException) -> None:
        """Add a note to ``error``, unless it is the outcome, if the transaction may have committed."""
        if self._context is not None:
            self._context.note_on(error)

    async def undo_after(self, error: BaseException) -> None:
        """End a ``with`` block whose body raised ``error``: roll back. If a statement was cancelled because
        the transaction was chosen to end a deadlock, ``interruption`` is the deadlock afterwards."""
        self._host.check_here()
        self._check_active()
        self._may_be_doomed = may_come_of_a_cancellation(error)
        await self._undo()

    async def find_out(self, error: BaseException | None) -> BaseException | None:
        """Return why the transaction was interrupted, if ``error`` of a branch (None: the end of a wait for a
        lock) may come of that; else None. A cause that another process has recorded aborts it now."""
        self._host.check_here()
        if self._interrupted:
            return self._reason
        if not self.active or not (error is None or may_come_of_a_cancellation(error)):
            return None
        found = await self._host.why_doomed(self.id)
        return found if found is not None and self.doom(found) else None

    async def _leave(self, scope: CancelScope | None, error: BaseException | None) -> None:
        """End the block of a doomed transaction. Raises what has to leave the block, unless it is
        ``error``."""
        is_cancellation = isinstance(error, asyncio.CancelledError)
        cancelled = is_cancellation if scope is None else await scope.leave(error)
        if self._left is not None and not self._left.done():
            self._left.set_result(None)
        await self._undone()
        if cancelled and not is_cancellation:
            raise asyncio.CancelledError
        if not cancelled and (error is None or is_cancellation):
            self._raise_aborted(self._reason)

    def _check_active(self) -> None:
        self._host.check_here()
        if self._state is TransactionState.NEW:
            raise UsageError("the transaction has not begun: use 'async with', or await start()")
        if self._state is not TransactionState.ACTIVE:
            if self._doom is not None:
                self._raise_aborted(self._doom)
            if self.key_use is not None:
                self.key_use.check()
            raise TransactionEnded(f"transaction {self.id} is over: nothing more can be done in it")

    def _check_usable(self) -> None:
        self._check_active()
        if self._doom is not None:
            self._raise_aborted(self._doom)

    async def _open(self, name: str, opener: Opener | None = None) -> Branch:
        """Open a branch. ``name`` is its key in ``_branches``."""
        opener = opener or self._host.participant(name)
        opening = self._opening.get(name)
        if opening is None:
            number = self._numbered + 1
            if number > BRANCH_NUMBER_MAX:
                raise UsageError(f"transaction {self.id} has {BRANCH_NUMBER_MAX} branches, the maximum")
            self._numbered = number
            gid = Gid(self._host.ledger_id, self._protocol, self.id, number, name.partition("/")[0])
            gid = gid.tagged(self.lease.key)
            left_s = self._deadline - asyncio.get_running_loop().time()
            opening = asyncio.create_task(begin(opener, gid, self.lease.key, left_s), name=f"begin {name}")
            self._opening[name] = opening
            opening.add_done_callback(lambda task: self._opened(name, task))
        await all_done([opening])  # the opening goes on if the caller is cancelled
        self._opened(name, opening)  # an eager task may be done before its callbacks are called
        if opening.cancelled() or (self._interrupted and opening.exception() is None):
            # The transaction was doomed in the meantime; the caller was not cancelled.
            self._raise_aborted(self._doom or TimeoutError(f"opening branch {name!r} was cancelled"))
        return opening.result()

    def _opened(self, name: str, task: asyncio.Task[Branch]) -> None:
        if self._opening.get(name) is not task:
            return
        del self._opening[name]
        if task.cancelled():
            self._doom = self._doom or TimeoutError(f"opening the branch of {name!r} was cancelled")
        elif (error := task.exception()) is not None:
            self._doom = self._doom or error
        elif self._state is TransactionState.ACTIVE:
            self._branches[name] = task.result()
        else:
            self._host.in_background(uncancellable(discard(task.result())))

    def _start_undo(self) -> Uncancellable[None]:
        self._state = TransactionState.ENDED
        self._stop_timer()
        self._undoing = uncancellable(self._roll_back_branches(), name=f"rollback {self.id}")
        return self._undoing

    async def _undo(self) -> None:
        self._host.in_background(self._start_undo())
        await self._undone()

    async def _undone(self) -> None:
        """Wait until the rollback, if one was begun, is done: then no branch holds any lock."""
        if self._undoing is not None:
            await all_done([self._undoing])

    async def _roll_back_branches(self) -> None:
        """Roll back and release all branches. This process has prepared nothing, so none of its own branches
        can stay in doubt: a server that does not answer rolls back too."""
        if self._left is not None:
            # Until then the driver ends the cancelled statement, after which the session can be used again.
            await all_done([self._left], LEAVING_GRACE_S)
        for opening in list(self._opening.values()):
            opening.cancel()
        await all_done(list(self._opening.values()))
        try:
            if self._announced:
                await self._roll_back_announced()
            else:
                await all_of(branch.rollback() for branch in self._branches.values())
                await all_of(branch.release() for branch in self._branches.values())
            if self._may_be_doomed and (found := await self._host.why_doomed(self.id)) is not None:
                self._doom = self._doom or found
                self._interrupted = self._unasked = True
        finally:
            self._host.rolled_back(self)

    async def _roll_back_announced(self) -> None:
        """Roll back announced branches, which may become prepared, as after a PREPARE without an answer."""
        context = self._new_context()
        context.tally.asked = tuple(self._announced)
        context.tally.unanswered |= self._announced
        await self._host.roll_back(context, self._doom or UsageError("the transaction was rolled back"))

    def _new_context(self) -> CommitContext:
        branches = sorted(self._branches.values(), key=lambda each: (each.gid.participant, each.gid.branch))
        return self._host.new_context(
            self.id,
            tuple(branches),
            self._deadline,
            self._protocol,
            self.lease,
            prepares_all=self.prepares_all,
            key_use=None if self.key_use is None else self.key_use.given,
        )

    def _start_commit(self) -> tuple[CommitContext, Uncancellable[None]]:
        self._context = context = self._new_context()
        self._stop_timer()
        self._state = TransactionState.COMMITTING
        self._commit = task = self._host.start_commit(self, context)
        task.add_done_callback(lambda _: context.set_answer_ready())
        return context, task

    async def _watch(self, context: CommitContext, task: Uncancellable[None]) -> CommitResult:
        """Wait until the outcome is known or the deadline has passed; return or raise the outcome."""
        try:
            await all_done([context.answer_ready], max(context.remaining_s(), 0))
            if not task.done() and context.phase is Phase.VOTING:
                await all_done([context.answer_ready], VOTING_GRACE_S)
            if not task.done() and context.phase is Phase.ABORTED:
                await all_done([context.answer_ready], ROLLBACK_GRACE_S)
            return self._result(context, task)
        except BaseException as error:
            self.note_commit(error)
            raise

    def _result(self, context: CommitContext, task: Uncancellable[None]) -> CommitResult:
        self._state = TransactionState.ENDED
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
        if context.decision is Decision.ABORT:
            cause = context.cause or TimeoutError("aborted")
            # A branch may have a heuristic outcome already, while others are still being rolled back; then
            # "aborted" would be wrong.
            raise known_heuristics(context, Decision.ABORT) or TransactionAborted(
                self.id, cause, context.tally.votes
            ) from cause
        if context.decision is None:
            late = "no answer within the timeout; the commit goes on in the background"
            closed = "the coordinator was closed in the meantime; recovery finishes the transaction"
            raise OutcomeUnknown(self.id, closed if task.cancelled() else late)
        if (otherwise := known_heuristics(context, Decision.COMMIT)) is not None:
            raise otherwise from context.heuristic_cause
        return CommitResult(self.id, tuple(context.pending))

    def _time_out(self) -> None:
        self.doom(TimeoutError(f"the transaction's timeout of {self._timeout_s:g} s has passed"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _reason(self) -> BaseException:
        return self._doom or TimeoutError("the transaction was interrupted")

    def _aborted(self) -> TransactionAborted:
        return TransactionAborted(self.id, self._reason)

    def _raise_aborted(self, cause: BaseException) -> NoReturn:
        raise TransactionAborted(self.id, cause) from cause
