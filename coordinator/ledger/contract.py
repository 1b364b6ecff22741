"""The contract of the ledger: the durable record of sessions, decisions and heuristic outcomes.

Everything rests on two rules:

1. **The first decision recorded for a transaction is the only one.**
2. **A session that has been closed or has expired can record no COMMIT any more.**

With them a transaction of two-phase commit needs no record to be aborted: no decision and session gone
means aborted, for ever (presumed abort: Mohan, Lindsay and Obermarck, *Transaction Management in the R\\*
Distributed Database Management System*, 1986, §3).

All calls are linearizable. Each may fail with :class:`~undoubt.coordinator.errors.LedgerError`: then a
command may or may not have been recorded, and all of them may be repeated; ``open_session`` repeated by its
caller opens another one. All of them but those that name a session of the caller's make sense after a
restart.

Order for recovery: *first* list prepared branches at a participant, *then* ask ``outcomes``, *then* act.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from undoubt.participants.contract import Claim, Decision, Evidence, Settled
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.ids import Protocol as GidProtocol

Create = bool | Callable[[], Awaitable[None]]
"""Whether a ledger may be made where there is none, when it is opened; a function raises ``LedgerMissing`` if
it may not."""


class Verdict(enum.StrEnum):
    """The answer to recovery about a transaction that has a *prepared* branch somewhere."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    """ABORT is recorded, or it never can be anything else: its session is stored as gone, or its seq is
    below the session's floor."""
    ACTIVE = "active"
    """Its session lives and may still decide: leave it alone."""
    ASK_PROTOCOL = "ask_protocol"
    """No decision, and its protocol has a termination of its own; never presumed."""
    FORGOTTEN = "forgotten"
    """The ledger gave that name, and knows nothing of such a session any more (dropped, or restored from a
    backup): an operator decides."""
    IMPOSTOR = "impostor"
    """The ledger did not give that name: whoever prepared the branch made it up. Never touched."""


CAUSE_CHARACTERS_MAX = 2_000
UNFINISHED_MAX = 1_000
"""Records in a page of :meth:`Ledger.unfinished`, unless its caller wants others."""

ACTS_MAX = 5_000
"""Acts of operators that a ledger keeps; the oldest go first."""
ACT_CHARACTERS_MAX = 1_000

TERMINATES_BY_ITSELF = frozenset({GidProtocol.THREE_PHASE, GidProtocol.PAXOS})
"""Protocols whose undecided transactions are never presumed aborted."""


class RecordedDecision(enum.StrEnum):
    """The answer to callers, who may ask about a transaction that left no record."""

    COMMIT = "commit"
    ABORT = "abort"
    NOT_RECORDED = "not_recorded"
    """No decision: it is running, or aborted, or it committed in one phase. Never read this as aborted."""


class BranchRecord(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """One prepared branch as recorded with a decision: what its gid has beside the transaction's protocol and
    id, and its evidence (:class:`undoubt.participants.contract.Evidence`), of which each field may be
    None."""

    number: int
    participant: str
    xid: int | None = None
    system: int | None = None
    timeline: str | None = None
    tag: str = ""
    history: str | None = None
    position: int | None = None

    def gid(self, ledger_id: str, protocol: GidProtocol, txid: TxId) -> Gid:
        """The name that it was prepared under."""
        return Gid(ledger_id, protocol, txid, self.number, self.participant, self.tag)


def record_of(gid: Gid, evidence: Evidence | None = None) -> BranchRecord:
    """A branch as it is recorded. Without a tag as version 0.1.0 knows it: there may be members of it."""
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
    """Whether it has fields that version 0.1.0 does not know."""
    return bool(branch.tag) or branch.history is not None or branch.position is not None


def without_newer(branch: BranchRecord) -> BranchRecord:
    """As version 0.1.0 knows it."""
    return BranchRecord(branch.number, branch.participant, branch.xid, branch.system, branch.timeline)


class DecisionRecord(msgspec.Struct, frozen=True, gc=False):
    """A recorded decision that is not finished.

    ``decided_at`` is the wall clock of whoever recorded it, in seconds since 1970, for people only.
    """

    txid: TxId
    protocol: GidProtocol
    decision: Decision
    branches: tuple[BranchRecord, ...]
    decided_at: float
    coordinator: str
    cause: str = ""
    """Of ABORT: why, for people."""


class SessionState(enum.StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    EXPIRED = "expired"
    RESTORED = "restored"
    """Closed by a restore: what it had undecided is FORGOTTEN."""


class Session(msgspec.Struct, frozen=True):
    """A lease on the ledger. ``id`` counts up; ``ttl_s`` is in seconds of the ledger's own clock."""

    id: int
    nonce: str
    name: str
    ttl_s: float
    acceptors: tuple[int, ...] = ()
    """The nodes that decide its transactions of Paxos Commit, for good, whoever becomes a member later. Empty
    unless :meth:`Acceptors.open_session` opened it."""
    key: bytes = b""
    """Of :class:`~undoubt.participants.ids.SessionKey`, for the process that opened the session and for
    nobody else. Empty where the ledger gives none."""

    def __repr__(self) -> str:
        return f"Session(id={self.id}, nonce={self.nonce!r}, name={self.name!r}, acceptors={self.acceptors})"

    @property
    def public(self) -> Session:
        """The same without the key."""
        return msgspec.structs.replace(self, key=b"")

    def txid(self, seq: int) -> TxId:
        return TxId(self.id, self.nonce, seq)


class SessionInfo(msgspec.Struct, frozen=True):
    """A session as the ledger sees it. ``floor``: below it nothing is undecided any more."""

    id: int
    nonce: str
    name: str
    state: SessionState
    floor: int
    ttl_s: float
    acceptors: tuple[int, ...] = ()


class Heuristic(msgspec.Struct, frozen=True):
    """A branch whose database did other than what was decided, or may have.

    ``decision`` is what the ledger held, None where it held none (then an operator acted, and says so in
    ``note``). ``found_at`` is a wall clock, seconds since 1970.
    """

    gid: Gid
    kind: Settled
    decision: Decision | None
    found_at: float
    note: str = ""
    forgotten: bool = False
    forgotten_by: str = ""
    """The request that did so, where it named itself."""


class Act(msgspec.Struct, frozen=True, array_like=True):
    """What an operator did, or tried. It is recorded before it is done, with an empty ``result``, and again
    with what came of it; an act whose process died in between keeps the empty one.

    ``id`` is drawn by whoever acts and names the act. ``at`` is a wall clock, seconds since 1970. ``who`` is
    the system user of the process and its machine, as far as the ledger can know it; ``certificate`` the name
    in the certificate of the connection over which a cluster was told, empty where there is none."""

    id: str
    verb: str
    subject: str
    at: float
    who: str
    note: str = ""
    result: str = ""
    certificate: str = ""

    def clipped(self) -> Act:
        """With texts of at most :data:`ACT_CHARACTERS_MAX` characters each."""
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
    """What the ledger can tell about one transaction, for as long as history says. ``protocol`` is None,
    and ``branches`` are empty, where nothing but the decision is known any more."""

    txid: TxId
    record: RecordedDecision
    verdict: Verdict
    letter: str = msgspec.field(name="protocol")
    """Of ``protocol``, as it is sent: empty for None."""
    branches: tuple[BranchRecord, ...]
    decided_at: float | None
    coordinator: str
    finished: bool
    heuristics: tuple[Heuristic, ...]
    precommitted: bool = False
    """Not decided yet, and every branch had voted PREPARED (three-phase commit)."""
    cause: str = ""
    """Why ABORT was recorded, for people; empty where nobody said so."""

    @property
    def protocol(self) -> GidProtocol | None:
        return GidProtocol(self.letter) if self.letter else None


class LedgerInfo(msgspec.Struct, frozen=True):
    """Identity and size. ``ledger_time_s`` counts while the ledger runs; no wall clock moves it."""

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
    """What the acceptors have chosen. ``branches`` with their evidence; empty if nobody can know them, which
    only happens to an ABORT."""

    decision: Decision
    branches: tuple[BranchRecord, ...]


class Acceptors(Protocol):
    """Who decides the transactions of Paxos Commit: :mod:`undoubt.coordinator.paxos` over the nodes of a
    cluster.

    Both calls raise ``LedgerUnavailable`` if no quorum answers in time, which decides nothing: ask again. And
    ``OutcomeUnknown`` if the acceptors have let the transaction go, or are not known: then the ledger holds
    the outcome, or nobody does.
    """

    async def open_session(self, name: str, ttl_s: float) -> Session:
        """As the ledger's, and bound to the acceptors of now: only its transactions may be voted on. Nodes
        that it needs are not let go from the cluster while it is open. Raises ``VersionHeldBack`` while a
        member of the cluster is too old for it."""
        ...

    async def current(self) -> Sequence[int]:
        """The acceptors of now: what a session that was opened at this moment would be bound to."""
        ...

    async def vote(self, txid: TxId, branches: Sequence[BranchRecord]) -> Decision:
        """Every one of ``branches`` is prepared, and there are no others: have that accepted, in the one
        ballot that is the coordinator's. From the first call on only the answer tells what became of the
        transaction. May be repeated, with the same branches, by the same coordinator; not after a restart.
        """
        ...

    async def settle(self, txid: TxId) -> Settlement:
        """For recovery: find the outcome, and bring it about if there is none yet. By anybody, at any time;
        several at once agree."""
        ...


class Ledger(Protocol):
    """See the module. Implementations: ``coordinator.ledger.open_ledger(url)``."""

    @property
    def ledger_id(self) -> str: ...

    @property
    def leads(self) -> bool:
        """Whether background recovery belongs in this process now (it owns the ledger, or leads the
        cluster). Two processes that both believe so do no harm. May change at any time."""
        ...

    @property
    def acceptors(self) -> Acceptors | None:
        """None where there are none: only a cluster of nodes (``raft://``) can do Paxos Commit."""
        ...

    async def open_session(self, name: str, ttl_s: float) -> Session:
        """A new lease. ``name`` is for people: whose it is."""
        ...

    async def keep_alive(self, session: Session, floor: int) -> None:
        """Renew the lease, and promise that nothing below ``floor`` will be decided COMMIT any more.
        Raises ``SessionLost`` if the session is gone. Floors only rise."""
        ...

    async def close_session(self, session: Session) -> None:
        """End the lease; undecided transactions of it are aborted. Closing a gone session is no error."""
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
        """Record a decision and return the one that is recorded, durably; the first writer wins.

        ``branches`` with ``txid`` and ``protocol`` spell gids, and these are verified: in a session whose
        gids carry tags, a wrong tag raises ``Impostor``, and so does a COMMIT that lacks one, or an ABORT
        that lacks all. So nobody can record a decision of another protocol than the names'. ``cause`` is kept
        with an ABORT.

        A recorded decision is looked for first; then ``branches`` is compared, by number and participant:
        another list raises ``BranchListMismatch`` and is never answered COMMIT. (For ABORT by recovery or
        an operator, who may know only some branches, a subset of the recorded list is no mismatch.)
        COMMIT for a session that is gone, or below its floor, records and returns ABORT. For a dropped or
        unknown session, or another nonce, it raises ``OutcomeUnknown``. ABORT may come from anybody.

        Of a ``protocol`` in :data:`TERMINATES_BY_ITSELF` the outcome is fixed elsewhere before it is
        recorded here: it is recorded as given, whatever has become of the session.
        """
        ...

    async def precommit(
        self,
        txid: TxId,
        branches: Sequence[BranchRecord],
        *,
        protocol: GidProtocol = GidProtocol.THREE_PHASE,
    ) -> None:
        """Remember that every branch of an undecided transaction has voted PREPARED, so that its session is
        kept for as long as it is not decided. Decides nothing: its protocol's own termination does. Raises
        ``SessionLost`` if the session is gone or the transaction below its floor: tell no branch then."""
        ...

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        """For recovery. ABORTED is answered only once what makes it final is stored. A gid with a right tag
        whose session number was never issued proves that the ledger was set back: a new incarnation
        begins."""
        ...

    async def backends(self, claims: Iterable[Claim]) -> Sequence[TxId | None]:
        """The transactions that database sessions say they work in; None for each claim that is not
        proved."""
        ...

    async def doom(self, txid: TxId, cause: str) -> None:
        """Remember why an undecided transaction is being aborted from outside, for its coordinator; at most
        :data:`CAUSE_CHARACTERS_MAX` characters. Decides nothing, and does nothing for one that is not
        undecided."""
        ...

    async def doomed(self, txid: TxId) -> str | None:
        """The ``cause`` that :meth:`doom` was given, for as long as the transaction is undecided and its
        session open; None if there is none."""
        ...

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        """For callers."""
        ...

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        """A page of the recorded decisions some branch of which may not have applied them yet: in ascending
        order of their ids, those behind ``after``, at most ``limit``, fewer where they are large. An empty
        page is the end. All of them: :func:`undoubt.coordinator.ledger.pages.every_unfinished`."""
        ...

    async def finish(self, txids: Iterable[TxId]) -> None:
        """Every branch of these has applied the decision (or its heuristic is recorded): details go to
        history. The decision itself stays answerable until the whole session is dropped. Never an
        error for what is unknown or already finished."""
        ...

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        """Remember it until forgotten. Repeating one for the same gid keeps the first unless the first
        was a hazard and this one knows more. One that was forgotten stays so, whatever is found of it."""
        ...

    async def forget_heuristic(self, gid: Gid) -> bool:
        """An operator has seen it. False if there was none open."""
        ...

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]: ...

    async def record_act(self, act: Act) -> None:
        """Remember what an operator does. Again with the same ``id``: what came of it, of which the last one
        counts. The newest :data:`ACTS_MAX` are kept. Raises ``VersionHeldBack`` while a member of a cluster
        is too old for it."""
        ...

    async def acts(self, *, limit: int) -> Sequence[Act]:
        """The newest first, in the order in which they were begun."""
        ...

    async def sessions(self) -> Sequence[SessionInfo]: ...

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        """None if the ledger has no record of it at all."""
        ...

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        """The newest decided transactions first, by time of decision."""
        ...

    async def info(self) -> LedgerInfo: ...

    async def close(self) -> None:
        """Let go of the ledger. Sessions stay as they are; close them first."""
        ...
