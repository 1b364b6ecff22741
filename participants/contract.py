"""The contract between a transaction manager and a resource manager.

A :class:`Participant` is one database. The coordinator calls ``begin`` to open a :class:`Branch`,
``poll`` to learn what the application did in it, then either ``commit_one_phase`` or ``prepare``
followed by ``commit`` or ``rollback``. After a crash no process has the :class:`Branch`: recovery calls
``in_doubt``, ``settle`` and ``evidence`` of the participant, which need only the gid.

Each call's docstring says, in this order: may it fail, may it be repeated, may it be called after a restart
of the caller. "Fails" means that it raises an error of :mod:`undoubt.participants.errors`; errors of a driver
are translated. Cancelling any of these calls leaves the participant usable; the action of the cancelled call
may or may not have happened."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from undoubt.participants.errors import ParticipantError
from undoubt.participants.findings import Finding
from undoubt.participants.ids import NO_KEY, Foreign, Gid, SessionKey
from undoubt.participants.ids import Protocol as GidProtocol
from undoubt.participants.three_phase import States


class Work(enum.StrEnum):
    """Whether a branch has written so far, as its participant sees it."""

    WRITES = "writes"
    """The branch has a transaction id, or must be prepared whatever it did (SERIALIZABLE)."""
    READ_ONLY = "read_only"
    """The branch has nothing to make durable. It stays open until its transaction is decided, since it may
    hold locks."""


class Vote(enum.StrEnum):
    """A participant's answer to prepare (X/Open XA: XA_OK, XA_RDONLY, XA_RB*)."""

    PREPARED = "prepared"
    READ_ONLY = "read_only"
    ABORT = "abort"


class Decision(enum.StrEnum):
    """The final decision about a transaction: the ledger records it, and the second phase of the branches
    carries it out."""

    COMMIT = "commit"
    ABORT = "abort"

    @property
    def verb(self) -> str:
        """``commit`` or ``rollback``: the command for a prepared branch."""
        return "commit" if self is Decision.COMMIT else "rollback"


class Settled(enum.StrEnum):
    """The result of a COMMIT or ROLLBACK of one branch."""

    APPLIED = "applied"
    """The branch has done what was asked, now or before. Final."""
    ABSENT = "absent"
    """Only in answer to ROLLBACK: no branch is prepared under that gid, and nothing shows that it committed.

    Final if its PREPARE is known to have been answered, or never sent. Otherwise the branch may still
    appear (a PREPARE behind a slow deferred trigger), and the caller must record ABORT.
    """
    BUSY = "busy"
    """Another session is ending the branch (55000), or its transaction is still running: try again. Not
    final."""
    HEURISTIC_COMMIT = "heuristic_commit"
    """ROLLBACK was asked, but the branch had been committed."""
    HEURISTIC_ROLLBACK = "heuristic_rollback"
    """COMMIT was asked, but it is proved that the branch was rolled back, or that its prepare was lost."""
    HEURISTIC_MIXED = "heuristic_mixed"
    """Part of the branch committed and part rolled back (in participants that consist of several)."""
    HEURISTIC_HAZARD = "heuristic_hazard"
    """COMMIT was asked, no such branch exists, and its outcome cannot be known."""


HEURISTICS = frozenset(
    {
        Settled.HEURISTIC_COMMIT,
        Settled.HEURISTIC_ROLLBACK,
        Settled.HEURISTIC_MIXED,
        Settled.HEURISTIC_HAZARD,
    }
)


class XactStatus(enum.StrEnum):
    """What a participant's database reports about a transaction id (``pg_xact_status``)."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    """Rolled back, by any session."""
    IN_PROGRESS = "in_progress"
    """Open, or prepared: read the list of prepared transactions again."""
    NEVER_ASSIGNED = "never_assigned"
    """An id that the server has not assigned yet (22023): the server lost the prepared branch."""
    UNKNOWN = "unknown"
    """No evidence was given, another system or timeline answers, or the id is too old."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is needed to look up later the outcome of a branch whose PREPARE was acknowledged.

    ``xid`` is PostgreSQL's 64-bit transaction id (xid8), ``system`` the system identifier of
    ``pg_control_system()``, ``timeline`` the eight hexadecimal digits at the head of the current WAL
    file's name: nothing else about the timeline is up to date immediately after a promotion.

    System and timeline do not identify a history: two standbys that were promoted independently share both,
    and so do clones. So ``history`` is a random id that the database draws for itself
    (``undoubt.history()``); evidence with a history counts only in that history. ``position`` is a position
    in the WAL, in bytes, before the record of the PREPARE: a server of the same history whose WAL does not
    reach that position was set back.

    All fields but ``xid`` are None where the database does not report them. Without a history, and without
    both system and timeline, it is not known which server could be asked; the id still distinguishes one
    prepared branch from another branch of the same name."""

    xid: int
    system: int | None = None
    timeline: str | None = None
    history: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """Where the history of a server that was promoted, or restored to a point in time, left the histories
    before it (https://www.postgresql.org/docs/current/continuous-archiving.html, section Timelines).

    ``ancestors`` has for each former timeline the position in the WAL, in bytes, up to which its records are
    part of this history; None if the database does not let this role read that."""

    system: int
    timeline: str
    ancestors: Mapping[str, int] | None

    def lost(self, evidence: Evidence) -> bool | None:
        """Whether the PREPARE of ``evidence`` is certainly not part of this history. False: everything
        before it is. None if that is not known, and for evidence of the present timeline."""
        if self.ancestors is None or evidence.timeline is None or evidence.system != self.system:
            return None
        if evidence.timeline >= self.timeline:
            return None  # of a later one, this server may be a former primary that should not be asked
        left_at = self.ancestors.get(evidence.timeline)
        if left_at is None:
            return True  # of a server that was promoted beside an ancestor of this one
        return None if evidence.position is None else evidence.position >= left_at


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """A vote, with its evidence or its reason.

    ``evidence`` is set only with PREPARED (None from participants that keep no record of outcomes);
    ``reason`` is set only with ABORT: the error that the application gets as the cause.
    """

    vote: Vote
    evidence: Evidence | None = None
    reason: BaseException | None = None


class PrepareUnanswered(Exception):
    """PREPARE was sent and no answer came: it may have happened, or may still happen.

    Control flow between a participant and a protocol; users are shown ``cause``, never this exception.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class CommitNotSent(Exception):
    """COMMIT of a branch that only read was never sent, so the branch has rolled back, or will.

    Control flow between a participant and a protocol; users are shown ``cause``, never this exception.
    """

    def __init__(self, cause: ParticipantError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class HeuristicAtPrepare(Exception):
    """The participant ended the branch by its own decision during prepare; ``kind`` is one of HEURISTICS."""

    def __init__(self, kind: Settled) -> None:
        super().__init__(str(kind))
        self.kind = kind


@dataclass(frozen=True, slots=True)
class PreparedBranch:
    """One row of a participant's list of the prepared transactions in its database.

    ``prepared_at`` is the time of the participant's wall clock in seconds since 1970, for display only;
    ``age_s`` is the time since then by the same clock, ``age_xids`` the number of transaction ids that the
    server has assigned since that of the branch. ``evidence`` is what is needed to look up the outcome later;
    None from participants that keep no record of outcomes.

    ``owned``: ``owner`` is a role that prepares this participant's branches (its login role, a role that was
    granted to the login role, or a role that the settings name). A branch that another role prepared is not
    ours. ``owner_fix``: the statement, or the line of the settings, that makes ``owner`` one of those roles;
    None if it is one already, or if nothing would help. ``owner_dropped``: the owner's role has been dropped,
    so that only a recorded transaction id can show whose branch it is. ``owner_gone``: the role has been
    dropped and this participant's role is no superuser, so that this participant cannot end the branch."""

    gid: Gid | Foreign
    owner: str
    database: str
    prepared_at: float
    age_s: float
    xid: int | None = None
    evidence: Evidence | None = None
    age_xids: int | None = None
    owned: bool = True
    owner_fix: str | None = None
    owner_gone: bool = False
    owner_dropped: bool = False


class Ending(NamedTuple):
    """An order to end one prepared branch, and the evidence that says what became of it if it is absent."""

    gid: Gid
    order: Decision
    evidence: Evidence | None


class Claim(NamedTuple):
    """The claim of a database session that it works in transaction ``seq`` of session ``session``.

    Every session can make this claim. The claim is believed after the ledger has verified ``proof``, which is
    :meth:`~undoubt.participants.ids.SessionKey.backend` for that transaction and ``pid``. Behind a pooler
    ``pid`` is 0, and the participant returns claims only from sessions of the roles that prepare its
    branches.
    """

    session: int
    seq: int
    pid: int
    proof: str

    def __str__(self) -> str:
        """A text for messages; it is not the id of a transaction."""
        return f"{self.session}.{self.seq}"


WaitNode = Claim | Gid | str
"""One end of a wait: a claim; the gid of a prepared branch that is in the database that its gid names and is
``owned``; a gid without a tag, of branch 1, for a session that names its transaction without proof, as
sessions of version 0.1.0 do; or a name that the participant has verified, ``str(txid)`` for a transaction and
``"<participant>/<pid>"`` or ``"<participant>/<gid>"`` for anything else."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One edge of a participant's wait graph: ``waiter`` waits for a lock that ``holder`` has, or
    is queued for ahead of ``waiter``.

    ``since`` is an opaque token that stays equal while the waiter waits for the same lock. ``pid`` and
    ``xid`` are those of the waiting backend; ``xid`` is None while the backend has none. ``holder_pid`` is
    the process id of the holding backend, 0 for a prepared branch, None where it is not known."""

    waiter: WaitNode
    holder: WaitNode
    since: str
    pid: int
    xid: int | None
    holder_pid: int | None = None


class Branch(Protocol):
    """A branch in the process that began it, with its live connection.

    Every method fails with :class:`~undoubt.participants.errors.ParticipantError` unless it says otherwise.
    None may be called after a restart. They are called one at a time, in this order."""

    @property
    def gid(self) -> Gid: ...

    @property
    def connection(self) -> Any:
        """The connection for the application. Any use after the end of the branch raises ``UsageError``."""
        ...

    @property
    def surely_writes(self) -> bool:
        """True only if ``poll`` would certainly return WRITES or fail; the caller then saves its round
        trip."""
        ...

    @property
    def prepares(self) -> bool:
        """False only if its database certainly cannot prepare a transaction."""
        ...

    def break_off(self, why: Callable[[], Exception]) -> None:
        """End the application's use of the branch, because the transaction is aborted: from now on every use
        of ``connection`` raises ``why()``, also a running statement if its driver can be interrupted. Does
        not wait, and never fails; ``rollback`` follows."""
        ...

    async def poll(self) -> Work:
        """Whether the application has written. Fails with ``BranchFailed`` if the branch is broken or the
        application has ended it. May be repeated."""
        ...

    def prepare(self) -> Awaitable[PrepareResult]:
        """Vote. After PREPARED the branch no longer needs its connection. After ABORT it has rolled back,
        or will when ``rollback`` is called. Call it once only. Raises :class:`PrepareUnanswered` if no
        answer came, :class:`HeuristicAtPrepare` if the participant ended the branch by its own decision, and
        nothing else: a refusal is an ABORT vote."""
        ...

    async def commit_one_phase(self) -> Settled:
        """Plain COMMIT of a branch that is not prepared. Call it once only.

        APPLIED: the branch is committed. ABSENT: the branch is certainly rolled back. HEURISTIC_HAZARD: the
        answer was lost, and evidence does not decide. Raises ``BranchFailed`` if the branch was rolled back
        for a known reason. Raises ``ParticipantUnavailable``, which also means a hazard, if the participant
        reported why it gave no answer.
        """
        ...

    def commit(self) -> Awaitable[Settled]:
        """COMMIT PREPARED after PREPARED; or COMMIT of a READ_ONLY branch, which releases its locks and sends
        its notifications. May be repeated until the answer is final. For a READ_ONLY branch ``BranchFailed``
        says that its COMMIT was refused: then its effects in places that the participant does not see are
        lost. Raises :class:`CommitNotSent` if the branch cannot have committed because no COMMIT was sent;
        after any other error the branch may or may not have committed."""
        ...

    async def rollback(self) -> Settled:
        """Undo the branch in any state: open, failed, prepared, or with an unanswered PREPARE. Called for
        every branch of an aborted transaction, also for a branch that voted ABORT (which then returns APPLIED
        without a round trip). May be repeated until the answer is final."""
        ...

    async def forget(self) -> None:
        """Drop the heuristic outcome that this branch reported: the ledger has recorded it. May be
        repeated."""
        ...

    async def release(self) -> None:
        """Return the connection to the pool, or close it if a transaction is open in it. Never fails; may be
        repeated. A prepared branch stays prepared."""
        ...


@runtime_checkable
class GuardingBranch(Protocol):
    """A branch whose database can refuse the former holders of a lock."""

    async def guard_lock(self, ledger: str, name: str, token: int) -> None:
        """Show the token of lock ``name`` of ``ledger``, in the transaction of the branch. Fails with
        ``StaleLock`` if the database has seen a higher one, and then the branch cannot commit. Until the
        branch has ended, other tokens of the lock wait. May be repeated; not after a restart."""
        ...


class Participant(Protocol):
    """One database, by name. All calls may be made after a restart, at any time, by several processes."""

    @property
    def name(self) -> str: ...

    @property
    def names(self) -> frozenset[str]:
        """The participant names in the gids of this database's branches: the current name and all former
        names."""
        ...

    @property
    def other_ledgers(self) -> frozenset[str]:
        """Ids of other ledgers whose branches may have a name of ``names`` and be ``owned``."""
        ...

    @property
    def states(self) -> States:
        """The rows of three-phase commit; all calls fail with ``ParticipantRefused`` where the database has
        no tables for them."""
        ...

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch:
        """Open a branch that should end within ``timeout_s`` seconds. ``key`` is the key of the gid's
        session. Fails; on failure nothing is left open. Must not be repeated with the same gid."""
        ...

    async def in_doubt(self) -> Sequence[PreparedBranch]:
        """All prepared transactions of this database, also foreign ones. Fails, in particular with
        ``ParticipantRefused`` on a standby, whose list is always empty. May be repeated."""
        ...

    async def settle(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        """COMMIT PREPARED or ROLLBACK PREPARED of the branch ``gid`` of any process, as the role that owns
        the branch. Fails; may be repeated until the answer is final. If no such branch exists, ``evidence``
        decides what that means."""
        ...

    async def settle_each(self, endings: Sequence[Ending]) -> Sequence[Settled | ParticipantError] | None:
        """:meth:`settle` for all of ``endings`` at once. Returns the results in their order: an error about
        one branch is that branch's result. If the connection is lost, each branch without an answer has a
        ``ParticipantUnavailable``: it may have ended. None: this participant cannot do that now, and nothing
        was done. Fails; may be repeated."""
        ...

    async def end_impostor(self, branch: PreparedBranch) -> Settled:
        """ROLLBACK PREPARED of ``branch`` as this participant listed it, by order of an operator: as its
        owner, and only if owner, database and transaction id are unchanged. Returns ``APPLIED``; ``ABSENT``
        if the branch has ended, even if another branch has its name now; or ``BUSY``. Fails, in particular
        with ``ParticipantRefused`` where this participant's role has no right to do it; may be repeated."""
        ...

    async def evidence(self, evidence: Evidence) -> XactStatus:
        """The outcome of the *prepared* branch with that evidence. Fails; may be repeated."""
        ...

    async def timeline_history(self) -> TimelineHistory | None:
        """From which histories the database comes. None if it has no timelines, or does not let this role
        read the one that it is on. Fails, in particular with ``ParticipantRefused`` on a standby; may be
        repeated."""
        ...

    async def forget(self, gid: Gid) -> None:
        """Drop the heuristic outcome of that branch: the ledger has recorded it. May be repeated."""
        ...

    async def waits(self) -> Sequence[Waiting]:
        """The edges of this database's wait graph at this moment. Fails; may be repeated."""
        ...

    async def cancel_waiter(self, waiting: Waiting) -> bool:
        """Cancel the waiting statement, if the same backend still runs the same transaction. True if a cancel
        was sent. Fails; may be repeated."""
        ...

    async def check(self, *, protocol: GidProtocol = GidProtocol.TWO_PHASE) -> Sequence[Finding]:
        """The findings of all checks whether this participant can take part in transactions that are
        committed by ``protocol``, in a stable order. Changes nothing; never fails, since a missing answer is
        a finding; may be repeated."""
        ...

    async def close(self) -> None:
        """Close every connection. Open branches are lost (their databases roll them back)."""
        ...


def judge(order: Decision, xact_status: XactStatus) -> Settled:
    """The result of ``order`` if no such prepared branch exists, given the status of its transaction id.

    For COMMIT only proof counts: committed means applied, aborted or never assigned is a heuristic rollback,
    no proof is a hazard. For ROLLBACK only a proved commit is a heuristic outcome.
    """
    if xact_status is XactStatus.IN_PROGRESS:
        return Settled.BUSY
    table = _ABSENT_AT_COMMIT if order is Decision.COMMIT else _ABSENT_AT_ROLLBACK
    return table[xact_status]


_ABSENT_AT_COMMIT = {
    XactStatus.COMMITTED: Settled.APPLIED,
    XactStatus.ABORTED: Settled.HEURISTIC_ROLLBACK,
    XactStatus.NEVER_ASSIGNED: Settled.HEURISTIC_ROLLBACK,
    XactStatus.UNKNOWN: Settled.HEURISTIC_HAZARD,
}
_ABSENT_AT_ROLLBACK = {
    XactStatus.COMMITTED: Settled.HEURISTIC_COMMIT,
    XactStatus.ABORTED: Settled.APPLIED,
    XactStatus.NEVER_ASSIGNED: Settled.ABSENT,
    XactStatus.UNKNOWN: Settled.ABSENT,
}
