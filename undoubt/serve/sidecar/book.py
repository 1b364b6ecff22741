"""Keeps the transactions that were begun here, with their outcomes.

A transaction is in the book from its beginning until some time after its end. The end (a commit, a rollback,
or the deadline) runs once, also if the request that began it is cancelled; repeated requests get the result
of the first one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import HeuristicOutcome, LedgerError, OutcomeUnknown, TransactionAborted
from undoubt.coordinator.host import Opener
from undoubt.coordinator.locks import Lock
from undoubt.coordinator.settings import PROTOCOL_NAMES, ProtocolName
from undoubt.coordinator.supervision import Supervised
from undoubt.coordinator.transaction import CommitResult, Transaction
from undoubt.participants.backoff import pauses
from undoubt.participants.contract import Branch
from undoubt.participants.errors import UndoubtError
from undoubt.participants.ids import NO_KEY, Gid, SessionKey, TxId
from undoubt.participants.plural import plural
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.announced import AnnouncedBranch
from undoubt.participants.postgres.psycopg.connection import AsyncBranchConnection
from undoubt.serve.sidecar import statements
from undoubt.serve.sidecar.lookup import look_up
from undoubt.serve.sidecar.problems import RequestRefused, busy, reason_of
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.shares import may_take
from undoubt.serve.sidecar.types import BranchInfo, State, TransactionShown

log = logging.getLogger(__name__)

SWEEP_S = 0.5
ENDED_MAX = 20_000
"""The maximum number of ended transactions in the book; the outcomes of older ones are read from the
ledger."""
LOOK_S = 0.02
"""The pause between two looks at a transaction while a request waits for its end."""
ROLLBACK_S = 5.0
"""The longest wait for the confirmation of a rollback; that the transaction is aborted is certain before."""

Outcome = CommitResult | TransactionAborted | HeuristicOutcome | OutcomeUnknown


@dataclass(frozen=True, slots=True)
class Announcer:
    """An :class:`undoubt.coordinator.transaction.Opener` that announces a branch of ``participant``."""

    participant: PostgresParticipant

    @property
    def name(self) -> str:
        return self.participant.name

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> Branch:
        return await self.participant.announce(gid, timeout_s=timeout_s, key=key)


@dataclass(slots=True)
class OpenTransaction:
    """One entry of the book. ``owner`` is the name of the client that began the transaction."""

    transaction: Transaction
    owner: str
    expires_at: datetime
    trace: str = ""
    """The id of the trace in which the transaction was begun."""
    announced: dict[int, AnnouncedBranch] = field(default_factory=dict)
    joined: dict[int, str] = field(default_factory=dict)
    """The names of the clients that announced branches with a capability, by the number of the branch."""
    branches: dict[int, BranchInfo] = field(default_factory=dict)
    running: dict[str, asyncio.Lock] = field(default_factory=dict)
    """By participant: held while a statement runs, so that statements run one at a time."""
    locks: dict[int, Lock] = field(default_factory=dict)
    """The locks that are held until the transaction ends, by their tokens."""
    ending: asyncio.Task[Outcome] | None = None
    found: Outcome | None = None
    """The outcome that was learnt after the commit had ended with an unknown outcome."""
    ended_s: float = 0.0
    """When the outcome became known, on the event loop's clock, in seconds."""
    begun_at: float = field(default_factory=time.time)
    """In seconds since 1970."""
    undone_by: str = ""
    """The name of the client that asked for the rollback."""
    commit_s: float | None = None
    """When the commit was requested, on the event loop's clock, in seconds; None before."""

    @property
    def id(self) -> str:
        return str(self.transaction.id)

    @property
    def protocol(self) -> ProtocolName:
        return PROTOCOL_NAMES[self.transaction.protocol]

    @property
    def active(self) -> bool:
        return self.transaction.active and self.ending is None

    @property
    def run_here(self) -> frozenset[str]:
        """Participants in which this sidecar runs statements."""
        return frozenset(each.participant for each in self.branches.values() if each.run_by == "sidecar")

    def check_active(self) -> None:
        """Raise the outcome, or :class:`RequestRefused`, if the transaction is no longer active."""
        if self.active:
            return
        outcome = self.outcome
        if isinstance(outcome, UndoubtError) and not isinstance(outcome, OutcomeUnknown):
            raise outcome
        raise RequestRefused(
            409,
            "TransactionEnded",
            "its commit has begun: it can no longer be changed",
            transaction=self.id,
            outcome="committed" if isinstance(outcome, CommitResult) else "",
        )

    @property
    def outcome(self) -> Outcome | None:
        """The outcome as far as it is known; None while the transaction is active or its commit runs."""
        if self.found is not None:
            return self.found
        if self.ending is not None:
            return self.ending.result() if self.ending.done() and not self.ending.cancelled() else None
        if self.transaction.active:
            return None
        return TransactionAborted(self.transaction.id, self.transaction.interruption or self._undone())

    def _undone(self) -> str:
        if self.undone_by in ("", self.owner):
            return "it was rolled back by its client"
        return f"it was rolled back by client {self.undone_by!r}, which may end the transactions of others"

    @property
    def final(self) -> bool:
        return self.outcome is not None and not isinstance(self.outcome, OutcomeUnknown)

    def info(self) -> TransactionShown:
        outcome = self.outcome
        state: State = "active" if self.active else "committing"
        reason = ""
        pending: tuple[str, ...] = ()
        heuristics: dict[str, str] = {}
        match outcome:
            case CommitResult():
                state, pending = "committed", tuple(map(str, outcome.pending))
            case TransactionAborted():
                state, reason = "aborted", reason_of(outcome.cause)
            case OutcomeUnknown():
                state, reason = "unknown", outcome.why
            case HeuristicOutcome():
                state, reason = "heuristic", str(outcome.kind)
                heuristics = {str(gid): str(kind) for gid, kind in outcome.branches.items()}
            case None:
                pass
        return TransactionShown(
            self.id,
            state,
            self.protocol,
            instant(self.expires_at),
            tuple(self.branches[n] for n in sorted(self.branches)),
            reason,
            pending,
            heuristics,
        )


def instant(moment: datetime) -> str:
    """``moment`` as RFC 3339 text, in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def wait_while(condition: Callable[[], bool], seconds: float) -> None:
    """Return once ``condition()`` is false, at most after so many seconds."""
    end = asyncio.get_running_loop().time() + seconds
    while condition() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(LOOK_S)


class BookWatcher(Protocol):
    """Hears of the transactions of a book. Its methods return at once and do not raise."""

    def begun(self, entry: OpenTransaction) -> None: ...

    def joined(self, gid: Gid) -> None:
        """The transaction has a branch of that name."""
        ...

    def committing(self, entry: OpenTransaction) -> None:
        """Its commit was requested."""
        ...

    def ended(self, entry: OpenTransaction, took_s: float | None) -> None:
        """Its outcome is known, ``took_s`` seconds after its commit was requested; None if it was not."""
        ...


class Book:
    """The transactions of one sidecar; see the module."""

    def __init__(
        self, coordinator: Coordinator, settings: SidecarSettings, watcher: BookWatcher | None = None
    ) -> None:
        self.coordinator = coordinator
        self._settings = settings
        self._watcher = watcher
        self._live: dict[str, OpenTransaction] = {}
        self._ended: dict[str, OpenTransaction] = {}
        """The ended transactions, in the order in which they have ended."""
        self._beginning = 0
        self._held: Counter[str] = Counter()
        """Transactions that have not ended, by their owners."""
        self._draining = False
        self._sweeping = Supervised("sidecar", self._keep_sweeping).start("undoubt-sidecar-sweep")
        self._following: set[asyncio.Task[None]] = set()

    @property
    def draining(self) -> bool:
        """Whether no further transactions are begun."""
        return self._draining

    @property
    def open(self) -> int:
        """The number of transactions that have not ended."""
        return self._beginning + len(self._live)

    def __iter__(self) -> Iterator[OpenTransaction]:
        return iter([*self._live.values(), *self._ended.values()])

    def find(self, id_: str) -> OpenTransaction | None:
        return self._live.get(id_) or self._ended.get(id_)

    async def begin(
        self,
        owner: str,
        timeout_s: float | None,
        protocol: str | None,
        trace: str,
        *,
        key: str | None = None,
        key_wait_s: float = 0.0,
        agent: str | None = None,
    ) -> OpenTransaction | Transaction:
        """Begin a transaction; or return one that is ``repeated``, if another one has committed with ``key``
        before. ``key_wait_s``: how long to wait while another one is undecided. ``agent``: of last-agent
        commit.

        Raises :class:`RequestRefused` if too many are open or the sidecar is about to end, and the errors of
        ``Transaction.start``."""
        if self._draining:
            raise busy("Draining", "this sidecar is about to end: use another one", status=503)
        if not may_take(self._held[owner], self.open, self._settings.transactions_max):
            raise busy(
                "TooManyTransactions",
                f"{plural(self.open, 'transaction is', 'transactions are')} open; yours: {self._held[owner]}",
            )
        chosen = self.coordinator.settings.timeout_s if timeout_s is None else timeout_s
        chosen = min(chosen, self._settings.timeout_max_s)
        self._beginning += 1
        self._held[owner] += 1
        try:
            transaction = self.coordinator.transaction(
                timeout=chosen, protocol=protocol, key=key, agent=agent
            )
            await transaction.start(key_wait_s=key_wait_s)
        except BaseException:
            self._held[owner] -= 1
            raise
        finally:
            self._beginning -= 1
        if transaction.repeated:
            self._held[owner] -= 1
            return transaction
        entry = OpenTransaction(transaction, owner, datetime.now(UTC) + timedelta(seconds=chosen), trace)
        self._live[entry.id] = entry
        if self._watcher is not None:
            self._watcher.begun(entry)
        return entry

    async def announce(self, entry: OpenTransaction, participant: PostgresParticipant) -> AnnouncedBranch:
        """Announce a branch that the caller runs. Raises the errors of ``Transaction.announce``."""
        self._check_branches(entry)
        _check_no_agent(entry, participant.name)
        opener: Opener = Announcer(participant)
        branch = await entry.transaction.announce(opener)
        if not isinstance(branch, AnnouncedBranch):
            raise TypeError(type(branch))
        entry.announced[branch.gid.branch] = branch
        self._note(entry, branch.gid, "caller")
        return branch

    async def add_agent(self, entry: OpenTransaction, opener: Opener) -> Gid:
        """A branch that another sidecar runs. Raises what ``Transaction.announce`` raises."""
        self._check_branches(entry)
        _check_no_agent(entry, opener.name)
        branch = await entry.transaction.announce(opener)
        self._note(entry, branch.gid, "agent")
        return branch.gid

    async def connection(self, entry: OpenTransaction, participant: str) -> AsyncBranchConnection:
        """The connection of the branch that the sidecar runs in ``participant``; the first call begins it."""
        known = entry.run_here
        if participant not in known:
            self._check_branches(entry)
        connection: object = await entry.transaction.branch(participant)
        if participant not in known:
            for gid in entry.transaction.gids:
                if gid.participant == participant and gid.branch not in entry.branches:
                    self._note(entry, gid, "sidecar")
        if not isinstance(connection, AsyncBranchConnection):
            raise TypeError(type(connection))
        if participant not in known:
            await statements.begin(connection, participant)
        return connection

    def _check_branches(self, entry: OpenTransaction) -> None:
        if len(entry.branches) >= self._settings.branches_max:
            raise RequestRefused(
                422, "TooManyBranches", f"a transaction has at most {self._settings.branches_max}"
            )

    def _note(self, entry: OpenTransaction, gid: Gid, run_by: Literal["caller", "sidecar", "agent"]) -> None:
        entry.branches[gid.branch] = BranchInfo(gid.branch, gid.participant, str(gid), run_by)
        if self._watcher is not None:
            self._watcher.joined(gid)

    async def commit(self, entry: OpenTransaction) -> Outcome:
        """Commit, once; return the outcome. Later calls return the same outcome, or the outcome that was
        learnt meanwhile if the first one was unknown."""
        if entry.ending is None:
            if not entry.active:
                return entry.outcome or OutcomeUnknown(entry.transaction.id, "it has ended")
            entry.commit_s = asyncio.get_running_loop().time()
            if self._watcher is not None:
                self._watcher.committing(entry)
            entry.ending = asyncio.create_task(_outcome(entry.transaction, begin=True))
            entry.ending.add_done_callback(lambda _: self._committed(entry))
        await asyncio.wait([entry.ending])
        return entry.outcome or OutcomeUnknown(entry.transaction.id, "the sidecar ends")

    def _committed(self, entry: OpenTransaction) -> None:
        """The commit has ended. If its outcome is unknown, look for the outcome until it is known."""
        self._retire(entry)
        if isinstance(entry.outcome, OutcomeUnknown):
            self._in_background(self._follow(entry))

    def _in_background(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self, entry: OpenTransaction) -> None:
        txid = entry.transaction.id
        for pause_s in pauses(0.05, 1.0):
            await asyncio.sleep(pause_s)
            known = await _outcome(entry.transaction, begin=False)
            if isinstance(known, OutcomeUnknown):
                known = await self._recorded(txid) or known
            if not isinstance(known, OutcomeUnknown):
                entry.found = known
                return

    async def _recorded(self, txid: TxId) -> Outcome | None:
        try:
            recorded = await look_up(self.coordinator.ledger, txid)
        except LedgerError as error:
            log.info("the outcome of %s is still unknown: %s", txid, error)
            return None
        if recorded is not None and recorded.state == "committed":
            return CommitResult(txid)
        if recorded is not None and recorded.state == "aborted":
            return TransactionAborted(txid, recorded.reason)
        return None

    async def roll_back(self, entry: OpenTransaction, client: str) -> None:
        """Roll the transaction back for ``client``; after that it can never commit. Raises
        :class:`RequestRefused` if its commit has begun."""
        if entry.ending is not None:
            entry.check_active()
        entry.undone_by = entry.undone_by or client
        undoing = asyncio.create_task(_rolled_back(entry.transaction))
        await asyncio.wait([undoing], timeout=ROLLBACK_S)
        if undoing.done():
            undoing.result()
        self._retire(entry)

    async def wait_for_end(self, entry: OpenTransaction, seconds: float) -> None:
        """Wait until the outcome is known, at most for so many seconds."""
        await wait_while(lambda: not entry.final, seconds)

    async def drain(self, seconds: float) -> None:
        """Begin no further transactions, and wait until none is open, at most for so many seconds."""
        self._draining = True
        await wait_while(lambda: self.open > 0, seconds)

    async def close(self) -> None:
        """Stop the background tasks. The coordinator ends the transactions that are still open."""
        self._draining = True
        tasks = [self._sweeping, *self._following]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, max(self._settings.kept_s, LOOK_S)))
            for entry in list(self._live.values()):
                self._retire(entry)
            too_old_s = asyncio.get_running_loop().time() - self._settings.kept_s
            while self._ended:
                oldest = next(iter(self._ended.values()))
                if oldest.ended_s > too_old_s and len(self._ended) <= ENDED_MAX:
                    break
                del self._ended[oldest.id]

    def _retire(self, entry: OpenTransaction) -> None:
        """Move the entry to the ended transactions if its outcome is known."""
        if entry.final and self._live.pop(entry.id, None) is not None:
            self._held[entry.owner] -= 1
            entry.ended_s = asyncio.get_running_loop().time()
            self._ended[entry.id] = entry
            if entry.locks:
                self._in_background(_release(entry))
            if self._watcher is not None:
                took_s = None if entry.commit_s is None else entry.ended_s - entry.commit_s
                self._watcher.ended(entry, took_s)


def _check_no_agent(entry: OpenTransaction, participant: str) -> None:
    agent = entry.transaction.lease.agent
    if agent is not None and agent.participant == participant:
        raise RequestRefused(
            409,
            "LastAgent",
            f"{participant!r} is the agent of this last-agent commit, and this sidecar commits it in one"
            " phase: send its statements to /v1/transactions/{id}/statements",
        )


async def _release(entry: OpenTransaction) -> None:
    """Give back the locks of a transaction that has ended; what fails is given back by the lock's session."""
    locks, entry.locks = entry.locks, {}
    await asyncio.gather(*(lock.release() for lock in locks.values()), return_exceptions=True)


async def _outcome(transaction: Transaction, *, begin: bool) -> Outcome:
    """Commit, and return the result or the error. Without ``begin``: return the present state of a commit
    that was begun before."""
    try:
        return await (transaction.commit() if begin else transaction.committed())
    except (TransactionAborted, HeuristicOutcome, OutcomeUnknown) as error:
        return error
    except Exception as error:  # a bug of undoubt or of a driver: the outcome is unknown
        log.exception("the commit of %s failed unexpectedly", transaction.id)
        return OutcomeUnknown(transaction.id, f"{type(error).__name__}: {error}")


async def _rolled_back(transaction: Transaction) -> None:
    try:
        await transaction.rollback()
    except TransactionAborted:
        log.debug("%s was aborted already", transaction.id)
