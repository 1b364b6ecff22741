"""The contract between a transaction manager and a resource manager.

A :class:`Participant` is one database. The coordinator calls ``begin`` to open a :class:`Branch`,
``poll`` to learn what the application did in it, then either ``commit_one_phase`` or ``prepare``
followed by ``commit`` or ``rollback``. Whoever comes after a crash has no :class:`Branch` any more:
it calls ``in_doubt``, ``settle`` and ``evidence`` of the participant, which need only the gid.

Three questions are answered for each call, in this order: may it fail, may it be repeated, may it be called
after a restart of the caller. "Fails" means one of :mod:`undoubt.participants.errors`; whatever a driver
raises is translated. Cancelling any of these calls leaves the participant usable; what the cancelled call
asked for may or may not have happened."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from undoubt.participants.errors import ParticipantError
from undoubt.participants.findings import Finding
from undoubt.participants.ids import NO_KEY, Foreign, Gid, SessionKey
from undoubt.participants.ids import Protocol as GidProtocol
from undoubt.participants.three_phase import States


class Work(enum.StrEnum):
    """What a branch has done so far, in its participant's own view."""

    WRITES = "writes"
    """It has a transaction id, or it must be prepared whatever it did (SERIALIZABLE)."""
    READ_ONLY = "read_only"
    """Nothing to make durable. It stays open until its transaction is decided: it may hold locks."""


class Vote(enum.StrEnum):
    """A participant's answer to prepare (X/Open XA: XA_OK, XA_RDONLY, XA_RB*)."""

    PREPARED = "prepared"
    READ_ONLY = "read_only"
    ABORT = "abort"


class Decision(enum.StrEnum):
    """What is decided about a transaction, once and for all: the ledger holds it, and the second phase of its
    branches carries it out."""

    COMMIT = "commit"
    ABORT = "abort"

    @property
    def verb(self) -> str:
        """``commit`` or ``rollback``: what a prepared branch is told."""
        return "commit" if self is Decision.COMMIT else "rollback"


class Settled(enum.StrEnum):
    """What became of a branch that was told to commit or roll back."""

    APPLIED = "applied"
    """It has done what was asked, now or before. Final."""
    ABSENT = "absent"
    """Only in answer to ROLLBACK: no prepared branch of that gid, and nothing shows that it ever committed.

    Final if its PREPARE is known to have been answered, or never sent; otherwise the branch may still
    appear (a PREPARE behind a slow deferred trigger), and the caller must record ABORT.
    """
    BUSY = "busy"
    """Somebody else is at it (55000), or its transaction is still running: look again. Not final."""
    HEURISTIC_COMMIT = "heuristic_commit"
    """ROLLBACK was asked, and somebody had committed it."""
    HEURISTIC_ROLLBACK = "heuristic_rollback"
    """COMMIT was asked, and it is proved that somebody rolled it back, or that its prepare was lost."""
    HEURISTIC_MIXED = "heuristic_mixed"
    """Part of the branch did one, part the other (participants that are themselves composed)."""
    HEURISTIC_HAZARD = "heuristic_hazard"
    """COMMIT was asked, no such branch exists, and what became of it cannot be known."""


HEURISTICS = frozenset(
    {
        Settled.HEURISTIC_COMMIT,
        Settled.HEURISTIC_ROLLBACK,
        Settled.HEURISTIC_MIXED,
        Settled.HEURISTIC_HAZARD,
    }
)


class XactStatus(enum.StrEnum):
    """What a participant's own books say about a transaction id (``pg_xact_status``)."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    """Rolled back, by whomever."""
    IN_PROGRESS = "in_progress"
    """Open, or prepared: list again."""
    NEVER_ASSIGNED = "never_assigned"
    """An id of the future (22023): the server forgot the branch, its prepare was lost."""
    UNKNOWN = "unknown"
    """No evidence was given, another system or timeline answers, or the id is too old."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where to look, later, for what became of a branch whose PREPARE was acknowledged.

    ``xid`` is PostgreSQL's 64-bit transaction id (xid8), ``system`` the system identifier of
    ``pg_control_system()``, ``timeline`` the eight hexadecimal digits at the head of the current WAL
    file's name: the one thing about the timeline that does not lag behind a promotion.

    System and timeline do not name a history: two standbys that were promoted apart share both, and so do
    clones. So ``history`` is a random id that the database draws for itself (``undoubt.history()``); evidence
    that has one counts only under it. ``position`` is a place in the WAL, in bytes, before the record of the
    PREPARE: a server of the same history that has not come as far was set back.

    All but ``xid`` are None where the database does not tell them. With neither a history nor both system and
    timeline it is never known whose books could be asked; the id still tells one prepared branch from
    another of the same name."""

    xid: int
    system: int | None = None
    timeline: str | None = None
    history: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """A vote and what comes with it.

    ``evidence`` only with PREPARED (None from participants that keep no books); ``reason`` only with
    ABORT: the error that the application should see as the cause.
    """

    vote: Vote
    evidence: Evidence | None = None
    reason: BaseException | None = None


class PrepareUnanswered(Exception):
    """PREPARE was sent and nothing came back: it may have happened, or may yet happen.

    Control flow between a participant and a protocol, never shown to users: ``cause`` is.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class CommitNotSent(Exception):
    """COMMIT of a branch that only read was never sent, so the branch has rolled back, or will.

    Control flow between a participant and a protocol, never shown to users: ``cause`` is.
    """

    def __init__(self, cause: ParticipantError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class HeuristicAtPrepare(Exception):
    """The branch ended by itself while it was asked to prepare; ``kind`` is one of HEURISTICS."""

    def __init__(self, kind: Settled) -> None:
        super().__init__(str(kind))
        self.kind = kind


@dataclass(frozen=True, slots=True)
class PreparedBranch:
    """One row of a participant's list of prepared transactions, of its own database.

    ``prepared_at`` is the participant's wall clock in seconds since 1970 and for people only; ``age_s`` is by
    how much its own clock has gone on since, ``age_xids`` how many transaction ids it has given out since
    that of the branch. ``evidence`` tells later what became of it, None from participants that keep no books.
    ``owned``: ``owner`` is a role that this participant's branches are prepared by (its login role, a role
    that was granted to that, or one that its settings name). Whoever else prepared it, it is no branch of
    ours. ``owner_fix``: the statement, or the line of the settings, after which ``owner`` is one of those
    roles; None if it is one, or nothing would help. ``owner_dropped``: its role has been dropped, so that
    only a recorded transaction id can tell whose it is; ``owner_gone``: so it is, and this participant's role
    is no superuser, so that it cannot be ended from here."""

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


class Claim(NamedTuple):
    """What a database session says of itself: that it works in transaction ``seq`` of session ``session``.

    Every session may say so. It is believed once the ledger has verified ``proof``, which is
    :meth:`~undoubt.participants.ids.SessionKey.backend` for that transaction and ``pid``; ``pid`` is 0 behind
    a pooler, and then the participant gives a claim only of sessions of the roles that prepare its branches.
    """

    session: int
    seq: int
    pid: int
    proof: str

    def __str__(self) -> str:
        """For people; no transaction's id."""
        return f"{self.session}.{self.seq}"


WaitNode = Claim | Gid | str
"""One end of a wait: a claim; a prepared branch that lies where its gid says and is ``owned``; a gid without
a tag, of branch 1, for a session that names its transaction without proof, as those of version 0.1.0 do; or a
name for which the participant vouches, ``str(txid)`` of a transaction and ``"<participant>/<pid>"`` or
``"<participant>/<gid>"`` of anything else."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One edge of a participant's wait graph: ``waiter`` waits for a lock that ``holder`` has or wants first.

    ``since`` is an opaque token that stays equal as long as the waiter has been waiting for
    one and the same lock. ``pid`` and ``xid`` are the waiting backend's; ``xid`` None while it has none.
    ``holder_pid`` is the holding backend's, 0 for a prepared branch, None where it is not told.
    """

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
        """What the application works with. Any use after the branch ended raises ``UsageError``."""
        ...

    @property
    def surely_writes(self) -> bool:
        """True only if ``poll`` is known to answer WRITES or to fail; spares its round trip."""
        ...

    def break_off(self, why: Callable[[], Exception]) -> None:
        """The transaction is aborted while the application works: every use of ``connection`` raises
        ``why()`` from now on, also a statement that is running, as far as it can be told so. Does not wait,
        and never fails; ``rollback`` follows."""
        ...

    async def poll(self) -> Work:
        """What the application did. Fails with ``BranchFailed`` if the branch is broken or was ended by
        the application. May be repeated."""
        ...

    async def prepare(self) -> PrepareResult:
        """Vote. After PREPARED the branch no longer needs its connection. After ABORT it has rolled back,
        or will have once ``rollback`` is called. Once only. Raises :class:`PrepareUnanswered` if no answer
        came, :class:`HeuristicAtPrepare` from participants that end branches by themselves; nothing else:
        errors that say "no" are ABORT votes."""
        ...

    async def commit_one_phase(self) -> Settled:
        """Plain COMMIT of an unprepared branch, then nothing is left of it. Once only.

        APPLIED: it is committed. ABSENT: it is rolled back, for certain. HEURISTIC_HAZARD: the answer
        was lost and evidence does not tell. Raises ``BranchFailed`` if it was rolled back with a reason, and
        ``ParticipantUnavailable``, for a hazard as well, where the participant said why it gave no answer.
        """
        ...

    async def commit(self) -> Settled:
        """COMMIT PREPARED after PREPARED; or ends a READ_ONLY branch, whose locks and notifications go out
        with it. May be repeated until the answer is final. Of a READ_ONLY branch ``BranchFailed`` says that
        its COMMIT was answered with no: then what it did in places that the participant does not see is
        lost. Raises :class:`CommitNotSent` if it cannot have committed because nobody asked it to; any other
        error leaves open whether it has."""
        ...

    async def rollback(self) -> Settled:
        """Undo the branch in whatever state it is: open, failed, prepared, or its PREPARE unanswered. Called
        for every branch of an aborted transaction, also for one that voted ABORT (which then answers
        APPLIED without a round trip). May be repeated until the answer is final."""
        ...

    async def forget(self) -> None:
        """The heuristic outcome that this branch reported has been recorded. May be repeated."""
        ...

    async def release(self) -> None:
        """Give the connection back, or close it if anything is open in it. Never fails; may be repeated.
        Whatever is prepared stays prepared."""
        ...


class Participant(Protocol):
    """One database, by name. All of it may be called after a restart, at any time, by several processes."""

    @property
    def name(self) -> str: ...

    @property
    def names(self) -> frozenset[str]:
        """The names whose branches are this database's: its own, and those that it had before."""
        ...

    @property
    def other_ledgers(self) -> frozenset[str]:
        """Ids of other ledgers whose branches may have one of ``names`` and be ``owned``."""
        ...

    @property
    def states(self) -> States:
        """The rows of three-phase commit; its calls fail with ``ParticipantRefused`` where a database has no
        tables for them."""
        ...

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch:
        """Open a branch that is meant to end within ``timeout_s`` seconds. ``key`` is that of the gid's
        session. Fails; on failure nothing is left open. Not to be repeated with the same gid."""
        ...

    async def in_doubt(self) -> Sequence[PreparedBranch]:
        """All prepared transactions of this database, ours and foreign ones alike. Fails, in particular
        with ``ParticipantRefused`` on a standby, whose list is always empty. May be repeated."""
        ...

    async def settle(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        """COMMIT PREPARED or ROLLBACK PREPARED of whoever's branch, as its owner. Fails; may be repeated
        until the answer is final. ``evidence`` decides what "does not exist" means."""
        ...

    async def end_impostor(self, branch: PreparedBranch) -> Settled:
        """ROLLBACK PREPARED of what this participant listed as ``branch``, for a person who has looked at it:
        as its owner, and only if owner, database and transaction id are still those. ``APPLIED``; ``ABSENT``
        if it has ended, whatever has its name now; or ``BUSY``. Fails, in particular with
        ``ParticipantRefused`` where this participant's role may not; may be repeated."""
        ...

    async def evidence(self, evidence: Evidence) -> XactStatus:
        """What became of a *prepared* branch with that evidence. Fails; may be repeated."""
        ...

    async def forget(self, gid: Gid) -> None:
        """The heuristic outcome of that branch has been recorded. May be repeated."""
        ...

    async def waits(self) -> Sequence[Waiting]:
        """Who waits for whom in this database now. Fails; may be repeated."""
        ...

    async def cancel_waiter(self, waiting: Waiting) -> bool:
        """Cancel the statement that waits there, if that very backend still runs that very transaction.
        True if a cancel was sent. Fails; may be repeated."""
        ...

    async def check(self, *, protocol: GidProtocol = GidProtocol.TWO_PHASE) -> Sequence[Finding]:
        """Everything that was looked at to learn whether this participant can do its part in transactions
        that are committed by ``protocol``, in a stable order. Changes nothing; never fails, since what does
        not answer is a finding; may be repeated."""
        ...

    async def close(self) -> None:
        """Close every connection. Open branches are lost (their databases roll them back)."""
        ...


def judge(order: Decision, fate: XactStatus) -> Settled:
    """What "no such prepared branch" means, given the participant's own books.

    For COMMIT only proof counts: committed is done, aborted or never assigned is a heuristic rollback,
    no proof is a hazard. For ROLLBACK, only a proved commit is news.
    """
    if fate is XactStatus.IN_PROGRESS:
        return Settled.BUSY
    table = _ABSENT_AT_COMMIT if order is Decision.COMMIT else _ABSENT_AT_ROLLBACK
    return table[fate]


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
