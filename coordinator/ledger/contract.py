"""The contract of the ledger: the durable record of sessions, decisions and heuristic outcomes.

All guarantees depend on two rules:

1. **The first decision recorded for a transaction is the only one.**
2. **A session that was closed or has expired can no longer record a COMMIT.**

With them an abort in two-phase commit needs no record: a transaction without a decision whose session is gone
is aborted, for ever (presumed abort: Mohan, Lindsay and Obermarck, *Transaction Management in the R\\*
Distributed Database Management System*, 1986, §3).

All calls are linearizable. Each may fail with :class:`~undoubt.coordinator.errors.LedgerError`: then a
command may or may not have been recorded. All calls may be repeated; a repeated ``open_session`` opens
another session. All calls except those that name a session of the caller may be made after a restart.

Order for recovery: *first* list prepared branches at a participant, *then* ask ``outcomes``, *then* act.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from undoubt.coordinator.ledger.agents import AgentBinding, AgentLedger
from undoubt.coordinator.ledger.keys import KeyHolder
from undoubt.coordinator.ledger.locks import LockLedger
from undoubt.participants.contract import Claim, Decision, Evidence, Settled
from undoubt.participants.ids import Gid, SessionKey, TxId
from undoubt.participants.ids import Protocol as GidProtocol
from undoubt.participants.invariant import invariant

Create = bool | Callable[[], Awaitable[None]]
"""Whether opening a ledger that does not exist may create it. A function is called before the ledger is
created, and raises ``LedgerMissing`` if it must not be."""


class Verdict(enum.StrEnum):
    """The answer to recovery about a transaction that has a *prepared* branch somewhere."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    """ABORT is recorded, or no other decision is possible: the session is stored as closed or expired, or the
    sequence number is below the session's floor."""
    ACTIVE = "active"
    """The session is open and may still decide: the branch must not be changed."""
    ASK_PROTOCOL = "ask_protocol"
    """No decision is recorded, and the protocol has its own termination; an abort is never presumed."""
    FORGOTTEN = "forgotten"
    """The ledger gave that name, and no longer has the session (dropped, or lost by a restore from a backup):
    an operator decides."""
    IMPOSTOR = "impostor"
    """The ledger did not give that name: another process has prepared the branch. It is never changed."""


CAUSE_CHARACTERS_MAX = 2_000
UNFINISHED_MAX = 1_000
"""The default number of records in a page of :meth:`Ledger.unfinished`."""

ACTS_MAX = 5_000
"""Most acts of operators that a ledger keeps; the oldest are dropped first."""
ACT_CHARACTERS_MAX = 1_000

TERMINATES_BY_ITSELF = frozenset({GidProtocol.THREE_PHASE, GidProtocol.PAXOS, GidProtocol.LAST})
"""Protocols whose undecided transactions are never presumed aborted."""
ABORTS_BY_ABSENCE = frozenset({GidProtocol.LAST})
"""Protocols of :data:`TERMINATES_BY_ITSELF` whose ABORT follows from a row that is not there. In a session
from before a restore of the ledger no ABORT is recorded for them: the row may have been deleted, because the
ledger held the COMMIT before it was set back."""


class RecordedDecision(enum.StrEnum):
    """The answer to callers, which may ask about a transaction that has no record."""

    COMMIT = "commit"
    ABORT = "abort"
    NOT_RECORDED = "not_recorded"
    """No decision is recorded: the transaction is running, or aborted, or it committed in one phase. It must
    not be taken for aborted."""


class BranchRecord(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One prepared branch as recorded with a decision: the parts of its gid other than the transaction's
    protocol and id, and its evidence (:class:`undoubt.participants.contract.Evidence`), of which each field
    may be None."""

    number: int
    participant: str
    xid: int | None = None
    system: int | None = None
    timeline: str | None = None
    tag: str = ""
    history: str | None = None
    position: int | None = None

    def gid(self, ledger_id: str, protocol: GidProtocol, txid: TxId) -> Gid:
        """The gid under which the branch was prepared."""
        return Gid(ledger_id, protocol, txid, self.number, self.participant, self.tag)


def record_of(gid: Gid, evidence: Evidence | None = None) -> BranchRecord:
    """The record of one branch. For a gid without a tag it has only the fields of version 0.1.0, since the
    cluster may have members of that version."""
    if evidence is None:
        return BranchRecord(gid.branch, gid.participant, tag=gid.tag)
    if not gid.tag:
        return BranchRecord(gid.branch, gid.participant, evidence.xid, evidence.system, evidence.timeline)
    return BranchRecord(
        gid.branch,
        gid.participant,
        evidence.xid,
        evidence.system,
        evidence.timeline,
        gid.tag,
        evidence.history,
        evidence.position,
    )


def is_newer(branch: BranchRecord) -> bool:
    """Whether ``branch`` has fields that version 0.1.0 does not have."""
    return bool(branch.tag) or branch.history is not None or branch.position is not None


def without_newer(branch: BranchRecord) -> BranchRecord:
    """``branch`` with only the fields of version 0.1.0."""
    return BranchRecord(branch.number, branch.participant, branch.xid, branch.system, branch.timeline)


class DecisionRecord(msgspec.Struct, frozen=True, gc=False):
    """A recorded decision that is not finished.

    ``decided_at`` is the wall clock of the process that recorded it, in seconds since 1970, for operators
    only."""

    txid: TxId
    protocol: GidProtocol
    decision: Decision
    branches: tuple[BranchRecord, ...]
    decided_at: float
    coordinator: str
    cause: str = ""
    """The reason of an ABORT, as text for operators."""


class SessionState(enum.StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    EXPIRED = "expired"
    RESTORED = "restored"
    """Closed by a restore: its undecided transactions are FORGOTTEN."""


class Session(msgspec.Struct, frozen=True):
    """A lease on the ledger. Each new session gets a higher ``id``; ``ttl_s`` is in seconds of the ledger's
    own clock."""

    id: int
    nonce: str
    name: str
    ttl_s: float
    acceptors: tuple[int, ...] = ()
    """The nodes that decide the session's transactions of Paxos Commit. They stay the same if the members of
    the cluster change later. Empty unless :meth:`Acceptors.open_session` opened the session."""
    key: bytes = b""
    """The bytes of :class:`~undoubt.participants.ids.SessionKey`. Only the process that opened the session
    has them. Empty if the ledger gives no keys."""

    def __repr__(self) -> str:
        return f"Session(id={self.id}, nonce={self.nonce!r}, name={self.name!r}, acceptors={self.acceptors})"

    @property
    def public(self) -> Session:
        """The session without its key."""
        return msgspec.structs.replace(self, key=b"")

    def txid(self, seq: int) -> TxId:
        return TxId(self.id, self.nonce, seq)


class Lease:
    """One ledger session with the transactions that run under it in this process. The floor does not pass a
    transaction before the transaction has ended in this process."""

    def __init__(self, session: Session, agent: AgentBinding | None = None) -> None:
        self.session = session
        self.agent = agent
        """The agent of last-agent commit to which the session is bound, if it is."""
        self.key = SessionKey(session.key) if session.key else SessionKey.drawn()
        self._last_seq = 0
        self._active: dict[int, None] = {}  # insertion order is ascending: the first key is the floor
        self._when_idle: asyncio.Event | None = None

    @property
    def begun(self) -> int:
        return self._last_seq

    @property
    def floor(self) -> int:
        return next(iter(self._active), self._last_seq + 1)

    @property
    def idle(self) -> bool:
        return not self._active

    def begin(self) -> TxId:
        self._last_seq += 1
        self._active[self._last_seq] = None
        return self.session.txid(self._last_seq)

    def end(self, txid: TxId) -> None:
        """Remove ``txid``, which has ended in this process."""
        invariant(txid.session == self.session.id, f"{txid} was not begun under session {self.session.id}")
        self._active.pop(txid.seq, None)
        if self._when_idle is not None and not self._active:
            self._when_idle.set()

    def retire(self, when_idle: asyncio.Event) -> None:
        """Mark the lease as replaced. ``when_idle`` is set once none of its transactions is left."""
        self._when_idle = when_idle
        if self.idle:
            when_idle.set()


class SessionInfo(msgspec.Struct, frozen=True):
    """The state of a session. No transaction with a number below ``floor`` is undecided."""

    id: int
    nonce: str
    name: str
    state: SessionState
    floor: int
    ttl_s: float
    acceptors: tuple[int, ...] = ()


class Heuristic(msgspec.Struct, frozen=True):
    """A branch whose database did something else than was decided, or may have.

    ``decision`` is the recorded decision, None if none was recorded (then an operator acted, and ``note``
    says so). ``found_at`` is a wall clock, in seconds since 1970."""

    gid: Gid
    kind: Settled
    decision: Decision | None
    found_at: float
    note: str = ""
    forgotten: bool = False
    forgotten_by: str = ""
    """The id of the request that forgot it; empty if the request had none."""


class Act(msgspec.Struct, frozen=True, array_like=True):
    """What an operator did, or tried. An act is recorded before it is carried out, with an empty ``result``,
    and again with its result. If the process ends in between, ``result`` stays empty.

    ``id`` is drawn by the acting process and identifies the act. ``at`` is a wall clock, in seconds since
    1970. ``who`` is the system user of the process and its machine, as far as the ledger can know it.
    ``certificate`` is the name in the certificate of the connection over which a cluster received the act,
    empty if there is none."""

    id: str
    verb: str
    subject: str
    at: float
    who: str
    note: str = ""
    result: str = ""
    certificate: str = ""

    def clipped(self) -> Act:
        """The act with all texts cut to at most :data:`ACT_CHARACTERS_MAX` characters."""
        most = ACT_CHARACTERS_MAX
        return Act(
            self.id[:64],
            self.verb[:most],
            self.subject[:most],
            self.at,
            self.who[:most],
            self.note[:most],
            self.result[:most],
            self.certificate[:most],
        )


class TransactionInfo(msgspec.Struct, frozen=True):
    """What the ledger knows about one transaction, as long as its history is kept. If only the decision is
    still known, ``protocol`` is None and ``branches`` is empty."""

    txid: TxId
    record: RecordedDecision
    verdict: Verdict
    letter: str = msgspec.field(name="protocol")
    """The letter of ``protocol``, as it is sent; empty for None."""
    branches: tuple[BranchRecord, ...]
    decided_at: float | None
    coordinator: str
    finished: bool
    heuristics: tuple[Heuristic, ...]
    precommitted: bool = False
    """Whether the transaction is undecided and all its branches have voted PREPARED (three-phase commit)."""
    cause: str = ""
    """Why ABORT was recorded, as text for operators; empty if no reason was given."""
    key: str = ""
    """The idempotency key with which the transaction has committed, as long as the key is kept."""

    @property
    def protocol(self) -> GidProtocol | None:
        return GidProtocol(self.letter) if self.letter else None


class LedgerInfo(msgspec.Struct, frozen=True):
    """Identity and size of a ledger. ``ledger_time_s`` advances while the ledger runs, independent of wall
    clocks."""

    ledger_id: str
    incarnation: int
    url: str
    backend: str
    schema: str
    ledger_time_s: float
    sessions_open: int
    sessions_kept: int
    unfinished: int
    decisions_kept: int
    heuristics_open: int


class Settlement(msgspec.Struct, frozen=True):
    """The outcome that the acceptors have chosen. ``branches`` contains their evidence; it is empty if the
    branches cannot be known, which is possible only for an ABORT."""

    decision: Decision
    branches: tuple[BranchRecord, ...]


class Acceptors(Protocol):
    """The acceptors that decide the transactions of Paxos Commit: :mod:`undoubt.coordinator.paxos` over the
    nodes of a cluster.

    ``vote`` and ``settle`` raise ``LedgerUnavailable`` if no quorum answers in time; this decides nothing,
    and the call may be repeated. They raise ``OutcomeUnknown`` if the acceptors have dropped the transaction,
    or are not known: then the ledger has the outcome, or it is lost."""

    async def open_session(self, name: str, ttl_s: float) -> Session:
        """As :meth:`Ledger.open_session`, with the session bound to the present acceptors: only transactions
        of such a session may be voted on. While the session is open, the nodes that it needs cannot be
        removed from the cluster. Raises ``VersionHeldBack`` if a member of the cluster is too old for it."""
        ...

    async def current(self) -> Sequence[int]:
        """The present acceptors: those to which a session would be bound if it was opened now."""
        ...

    async def vote(self, txid: TxId, branches: Sequence[BranchRecord]) -> Decision:
        """Have the acceptors accept that all of ``branches`` are prepared and that there are no other
        branches, in the coordinator's own ballot (0). After the first call only the answer says how the
        transaction ended. May be repeated by the same coordinator with the same branches, but not after a
        restart."""
        ...

    async def settle(self, txid: TxId) -> Settlement:
        """For recovery: find the outcome, and have one chosen if there is none yet. Any process may call it,
        at any time; concurrent calls return the same outcome."""
        ...


class Ledger(LockLedger, AgentLedger, Protocol):
    """The contract that all ledgers implement; the module describes its rules.
    ``coordinator.ledger.open_ledger`` opens an implementation."""

    @property
    def ledger_id(self) -> str: ...

    @property
    def leads(self) -> bool:
        """Whether this process should run background recovery now (it owns the ledger, or leads the cluster).
        It is harmless if this is True in two processes. May change at any time."""
        ...

    @property
    def acceptors(self) -> Acceptors | None:
        """The acceptors of Paxos Commit. None unless the ledger is a cluster of nodes (``raft://``)."""
        ...

    async def open_session(self, name: str, ttl_s: float, *, agent: AgentBinding | None = None) -> Session:
        """Open a new session. ``name`` tells operators which process opened it. With ``agent`` the session is
        bound to that agent of last-agent commit for ever; raises ``VersionHeldBack`` if a member of a cluster
        is too old for that."""
        ...

    async def keep_alive(self, session: Session, floor: int) -> None:
        """Renew the lease, and promise that from now on no transaction below ``floor`` is decided COMMIT.
        Raises ``SessionLost`` if the session is gone. A lower floor than before has no effect."""
        ...

    async def close_session(self, session: Session) -> None:
        """End the lease; undecided transactions of the session are aborted. Closing a session that is gone is
        no error."""
        ...

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: GidProtocol = GidProtocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        """Record a decision, and return the decision that is durably recorded; the first one recorded stays.

        ``branches`` with ``txid`` and ``protocol`` form gids, and these are verified: in a session whose gids
        have tags, a wrong tag raises ``Impostor``, and so does a COMMIT in which one tag is missing, or an
        ABORT in which all are missing. So no decision can be recorded under another protocol than that of the
        gids. ``cause`` is kept with an ABORT.

        If a decision is recorded already, ``branches`` is compared with the recorded list, by number and
        participant: another list raises ``BranchListMismatch`` and is never answered COMMIT. (For ABORT by
        recovery or an operator, which may know only some branches, a subset of the recorded list is no
        mismatch.) COMMIT in a session that is gone, or below its floor, records and returns ABORT. For a
        dropped or unknown session, or another nonce, the call raises ``OutcomeUnknown``. Any process may
        record ABORT.

        The outcome of a ``protocol`` in :data:`TERMINATES_BY_ITSELF` is fixed elsewhere before it is recorded
        here: it is recorded as given, in whatever state the session is. An exception is ABORT for one in
        :data:`ABORTS_BY_ABSENCE`: in a session from before a restore it raises ``OutcomeUnknown``.
        """
        ...

    async def precommit(
        self,
        txid: TxId,
        branches: Sequence[BranchRecord],
        *,
        protocol: GidProtocol = GidProtocol.THREE_PHASE,
    ) -> None:
        """Record that all branches of an undecided transaction have voted PREPARED, so that its session is
        kept until the transaction is decided. Decides nothing: the protocol's own termination does. Raises
        ``SessionLost`` if the session is gone or the transaction below its floor: then precommit must be sent
        to no branch."""
        ...

    async def claim_key(self, txid: TxId, key: str, proof: str) -> KeyHolder:
        """Claim the idempotency key ``key`` for an undecided transaction, if the key is free; returns the
        transaction that has the key then. ``proof`` is
        :meth:`~undoubt.participants.ids.SessionKey.key_proof`. A transaction has one key at most.

        Raises ``SessionLost`` if the transaction can no longer commit, ``Impostor`` for a wrong proof,
        ``UsageError`` for a key that is out of bounds, and ``VersionHeldBack`` if a member of a cluster is
        too old for keys."""
        ...

    async def key_holder(self, key: str) -> KeyHolder | None:
        """The transaction that has ``key``. None: the key is free, because no transaction has claimed it, the
        last one is aborted, or its result is older than the retention."""
        ...

    async def commit_key(
        self, txid: TxId, key: str, proof: str, result: bytes, branches: Sequence[BranchRecord]
    ) -> Decision:
        """As :meth:`decide` with COMMIT in two-phase commit, and keep ``result`` with the key in the same
        command. Records and returns ABORT if the transaction has not claimed ``key``. ``branches`` may be
        empty: then only the key and the result are recorded."""
        ...

    async def free_key(self, txid: TxId, key: str, proof: str) -> Decision:
        """Abort a transaction that has claimed ``key`` and has no prepared branch, so that another one can
        claim the key. Returns the decision: COMMIT if that is recorded already, and then the key is not
        free."""
        ...

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        """The verdicts for recovery. ABORTED is answered only after the record that makes it final is stored.
        A gid with a right tag whose session number was never issued proves that the ledger was set back: then
        a new incarnation begins."""
        ...

    async def backends(self, claims: Iterable[Claim]) -> Sequence[TxId | None]:
        """The transactions that database sessions claim to work in; None for each claim that is not
        proved."""
        ...

    async def doom(self, txid: TxId, cause: str) -> None:
        """Record, for its coordinator, why an undecided transaction is being aborted from outside; at most
        :data:`CAUSE_CHARACTERS_MAX` characters. Decides nothing, and has no effect on a transaction that is
        decided."""
        ...

    async def doomed(self, txid: TxId) -> str | None:
        """The ``cause`` that :meth:`doom` has recorded, as long as the transaction is undecided and its
        session open; otherwise None."""
        ...

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        """The recorded decisions, for callers."""
        ...

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        """A page of the recorded decisions that some branch may not have applied yet: in ascending order of
        their ids, those after ``after``, at most ``limit``, fewer if the records are large. An empty page is
        the end. :func:`undoubt.coordinator.ledger.pages.every_unfinished` reads all pages."""
        ...

    async def finish(self, txids: Iterable[TxId]) -> None:
        """Mark transactions as finished: all their branches have applied the decision, or a heuristic is
        recorded for them. Details move to history; the decision itself can be read until the session is
        dropped. A transaction that is unknown or already finished is no error."""
        ...

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        """Record a heuristic outcome, to be kept until it is forgotten. A second one for the same gid is
        ignored, unless the first is a hazard and the second is not. A forgotten one stays forgotten, whatever
        is recorded later."""
        ...

    async def forget_heuristic(self, gid: Gid) -> bool:
        """Mark the heuristic of ``gid`` as seen by an operator. False if there was none that was not
        forgotten."""
        ...

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]: ...

    async def record_act(self, act: Act) -> None:
        """Record an act of an operator. A second call with the same ``id`` records its result; the last
        result counts. The newest :data:`ACTS_MAX` acts are kept. Raises ``VersionHeldBack`` if a member of a
        cluster is too old for it."""
        ...

    async def acts(self, *, limit: int) -> Sequence[Act]:
        """The acts, the one that was begun last first."""
        ...

    async def sessions(self) -> Sequence[SessionInfo]: ...

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        """What the ledger knows about one transaction. None if the ledger has no record of it."""
        ...

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        """Decided transactions, newest first, by time of decision."""
        ...

    async def info(self) -> LedgerInfo: ...

    async def close(self) -> None:
        """Release the ledger. Does not close sessions: the caller closes them first."""
        ...
