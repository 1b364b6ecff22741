"""The coordinator: begins transactions, and drives each commit to its end, also if the caller is
cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from undoubt.coordinator.agent_sessions import AgentSessions, FindAgent
from undoubt.coordinator.errors import (
    CoordinatorClosed,
    HeuristicOutcome,
    OutcomeUnknown,
    SessionLost,
    TransactionAborted,
    WrongProcess,
)
from undoubt.coordinator.finisher import Finisher
from undoubt.coordinator.key_use import KeyUse, check_key, free_key
from undoubt.coordinator.ledger.contract import Lease, Ledger, RecordedDecision, Session
from undoubt.coordinator.ledger.pages import every_unfinished
from undoubt.coordinator.lock_session import LockSession
from undoubt.coordinator.locks import Lock
from undoubt.coordinator.meter import Stopwatch, TransactionMeter
from undoubt.coordinator.protocols.causes import why_doomed
from undoubt.coordinator.protocols.context import (
    COMMIT_IN_THE_LEDGER,
    FINISHED,
    NOTHING_LEFT,
    CommitContext,
    GivenKey,
    Phase,
)
from undoubt.coordinator.protocols.last_agent import last_agent_commit
from undoubt.coordinator.protocols.paxos_commit import paxos_commit
from undoubt.coordinator.protocols.second_phase import roll_back
from undoubt.coordinator.protocols.steps import Observer
from undoubt.coordinator.protocols.three_phase import three_phase_commit
from undoubt.coordinator.protocols.two_phase import two_phase_commit
from undoubt.coordinator.retries import pause_before_retry
from undoubt.coordinator.runnable import check_asynchronous, checked_awaitable
from undoubt.coordinator.session import SessionKeeper
from undoubt.coordinator.settings import PROTOCOLS, CoordinatorSettings
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.bounds import OutOfBounds, choice, count, flag, having, seconds, text
from undoubt.participants.contract import Branch, Participant
from undoubt.participants.errors import UndoubtError, UsageError, WrongLoop
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.ids import Protocol as GidProtocol
from undoubt.participants.invariant import InvariantViolation
from undoubt.participants.plural import plural
from undoubt.participants.registry import Registry
from undoubt.participants.tasks import Uncancellable, uncancellable

log = logging.getLogger(__name__)

T = TypeVar("T")


_DRIVERS: dict[str, Callable[[CommitContext], Awaitable[None]]] = {
    GidProtocol.TWO_PHASE: two_phase_commit,
    GidProtocol.THREE_PHASE: three_phase_commit,
    GidProtocol.PAXOS: paxos_commit,
    GidProtocol.LAST: last_agent_commit,
}


class ParticipantInUse(UsageError):
    """The participant cannot be removed, because it has unresolved branches; ``gids`` lists them."""

    def __init__(self, name: str, gids: list[str]) -> None:
        shown = ", ".join(gids[:5]) + (f" and {len(gids) - 5} more" if len(gids) > 5 else "")
        count = plural(len(gids), "unresolved branch", "unresolved branches")
        super().__init__(
            f"participant {name!r} has {count}: {shown}. Let recovery resolve them first (undoubt recover)"
        )
        self.gids = gids


class Coordinator:
    """Begins transactions and drives them to their end; the package's docstring lists its duties. ``observe``
    is called at each protocol step, so that tests can crash there. ``meter`` receives outcomes and durations.
    ``records_all``: every transaction ``prepares_all``, and the ledger sessions are marked so
    (:mod:`undoubt.coordinator.ledger.session_mark`).

    A coordinator belongs to the event loop and the process in which it was started: use in another loop
    raises ``WrongLoop``, use in a fork ``WrongProcess``. ``close`` does not close the ledger and the
    participants; the code that opened them has to.
    """

    def __init__(
        self,
        ledger: Ledger,
        participants: Registry,
        settings: CoordinatorSettings | None = None,
        *,
        observe: Observer | None = None,
        meter: TransactionMeter | None = None,
        records_all: bool = False,
    ) -> None:
        having("ledger", ledger, "an open ledger", "decide", "open_session")
        having("participants", participants, "a Registry", "get", "add", "find")
        if settings is not None and not isinstance(settings, CoordinatorSettings):
            raise OutOfBounds("settings", f"must be CoordinatorSettings, not {type(settings).__name__}")
        if observe is not None:
            having("observe", observe, "a function of a step and its subject")
        if meter is not None:
            having("meter", meter, "a meter of transactions", "ended")
        flag("records_all", records_all)
        self.ledger = ledger
        self.ledger_id = ledger.ledger_id
        self.participants = participants
        self.settings = settings or CoordinatorSettings()
        self._observe = observe
        self._meter = meter
        self._records_all = records_all
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.live: dict[TxId, Transaction] = {}
        """The transactions of this process that have not ended."""
        self._background: set[Uncancellable[None]] = set()
        self._finisher = Finisher(ledger, participants, observe)
        self._keeper = self._new_keeper()
        self._agents = AgentSessions(self._new_keeper, participants)
        self._locks = LockSession(
            ledger,
            f"{self.settings.name or f'{socket.gethostname()}:{self._pid}'}, locks",
            self.settings.session_ttl_s,
            self.check_here,
        )

    def _new_keeper(self, agent: FindAgent | None = None) -> SessionKeeper:
        return SessionKeeper(
            self.ledger,
            self.settings.name or f"{socket.gethostname()}:{self._pid}",
            ttl_s=self.settings.session_ttl_s,
            transactions_max=self.settings.session_transactions_max,
            on_lost=self._session_lost,
            bind=agent is None and PROTOCOLS[self.settings.protocol] is GidProtocol.PAXOS,
            marks=self._records_all,
            agent=agent,
        )

    async def start(self) -> Coordinator:
        """Open a session with the ledger; raises ``LedgerError``."""
        self._loop = asyncio.get_running_loop()
        await self._keeper.start()
        self._finisher.start()
        return self

    async def __aenter__(self) -> Coordinator:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def session(self) -> Session | None:
        """The ledger session under which a transaction would begin now; None while there is none."""
        return self._keeper.session

    def transaction(
        self,
        *,
        timeout: float | None = None,
        protocol: str | None = None,
        prepares_all: bool = False,
        key: str | None = None,
        agent: str | None = None,
    ) -> Transaction:
        """Return a new transaction, for ``async with``. If it is not decided after ``timeout`` seconds, it is
        aborted. ``protocol``: ``2pc``, ``3pc``, ``paxos`` or ``last``; None: the one in the settings.
        ``prepares_all``: every branch is prepared and every commit is recorded, also if only one branch has
        written, so that another process can read the outcome from the ledger later.

        ``agent``: with ``last``, the participant whose branch commits last, in one phase; the row that it
        writes then is the decision, so the outcome is known only while its database answers. None: the one in
        the settings, else the only participant that cannot prepare.

        ``key``: text of 1 to 200 characters. Of all transactions of the ledger with one key, whatever
        coordinator runs them, only one commits; for the others ``tx.repeated`` is true, and ``tx.result`` is
        what that one has stored. A key needs two-phase commit, whose decision is the ledger's: raises
        ``UsageError`` for the other protocols."""
        self.check_here()
        if self._closed:
            raise CoordinatorClosed
        named = choice("protocol", self.settings.protocol if protocol is None else protocol, PROTOCOLS)
        last = PROTOCOLS[named] is GidProtocol.LAST
        if agent is not None and not last:
            raise UsageError(f"agent= is for protocol='last'; the protocol here is {named!r}")
        chosen = self.settings.agent if agent is None else text("agent", agent, empty=False)
        if last and chosen:
            self._agents.agent(chosen)
        if PROTOCOLS[named] is GidProtocol.PAXOS and self.ledger.acceptors is None:
            raise UsageError(
                "protocol 'paxos' needs a cluster of nodes, which are its acceptors: ledger.url ="
                " raft://…; with any other ledger use 2pc or 3pc"
            )
        timeout_s = self.settings.timeout_s if timeout is None else seconds("timeout", timeout, zero=False)
        flag("prepares_all", prepares_all)
        if key is not None:
            check_key(key)
            if PROTOCOLS[named] is not GidProtocol.TWO_PHASE:
                raise UsageError(
                    f"a key needs a decision of the ledger, and protocol {named!r} decides elsewhere: use"
                    " protocol='2pc'"
                )
        return Transaction(
            self,
            timeout_s=timeout_s,
            protocol=PROTOCOLS[named],
            prepares_all=prepares_all or self._records_all,
            key=key,
            agent=chosen if last else "",
        )

    async def run(
        self,
        function: Callable[..., Awaitable[T]],
        *args: object,
        retries: int = 5,
        timeout: float | None = None,
        protocol: str | None = None,
        key: str | None = None,
        agent: str | None = None,
    ) -> T:
        """Run ``await function(tx, *args)`` in a new transaction; returns its result once that is committed.

        ``timeout``, ``protocol``, ``key`` and ``agent`` are those of :meth:`transaction`, for each attempt.
        With a key, what ``function`` returns is stored, and has to be a result that can be stored; if a
        transaction with this key has committed before, ``function`` is not called, and that result is
        returned. A function that returns None may have set ``tx.result`` instead.

        The transaction is repeated up to ``retries`` times, after growing random pauses, if the cause of its
        abort was a deadlock or a serialization failure. Every other error is raised immediately: above all
        ``OutcomeUnknown``, and any error that ``function`` raises after it has called ``tx.commit()``. Raises
        ``UsageError``, and commits nothing, if ``function`` is not a coroutine function or an argument is not
        within its bounds.
        """
        count("retries", retries)
        check_asynchronous(function)
        for attempt in itertools.count():
            tx = self.transaction(timeout=timeout, protocol=protocol, key=key, agent=agent)
            try:
                async with tx:
                    if tx.repeated:
                        return cast("T", tx.result)
                    result = await checked_awaitable(function, function(tx, *args))
                    if tx.key_use is None:
                        return result
                    if tx.active and result is not None:  # otherwise it has committed, or set the result
                        tx.result = result
                    return cast("T", tx.result)
            except (
                Exception
            ) as error:  # every error of the application passes through, unless it is retryable
                pause_s = pause_before_retry(error, attempt, retries)
                if pause_s is None or tx.may_have_committed:
                    raise
            await asyncio.sleep(pause_s)
        raise InvariantViolation("unreachable")

    def lock(
        self,
        name: str,
        *,
        timeout: float | None = None,
        shared: bool = False,
        tx: Transaction | None = None,
    ) -> Lock:
        """Return a distributed lock, for ``async with``. ``timeout`` is how long to wait for it, in seconds;
        0: take it only if it is free now; None: without limit. Any number of ``shared`` holders have it
        together. ``tx``: a transaction that has begun, and that waits for the lock meanwhile: the detector of
        deadlocks takes it into account."""
        self.check_here()
        if self._closed:
            raise CoordinatorClosed
        if tx is not None:
            having("tx", tx, "a transaction of this coordinator", "branch", "find_out")
        return Lock(self._locks, self.live, name, timeout=timeout, shared=shared, tx=tx)

    async def outcome(self, txid: TxId | str) -> RecordedDecision:
        """Return the decision that the ledger has recorded. NOT_RECORDED never means aborted.

        Returns COMMIT also if COMMIT is certain and is not in the ledger yet. ``txid`` may be the text of the
        id; raises ``UsageError`` if the text is not one.
        """
        self.check_here()
        txid = TxId.of(txid)
        transaction = self.live.get(txid)
        if transaction is not None and transaction.fixed_elsewhere:
            return RecordedDecision.COMMIT
        return (await self.ledger.records([txid]))[txid]

    def cancel(self, txid: TxId | str, cause: BaseException) -> bool:
        """Abort a transaction of this coordinator with ``cause``. Returns False if the transaction is not of
        this coordinator, or its commit has begun. In the second case the caller has to cancel the statement
        for which the transaction waits; if the transaction aborts then, ``cause`` is the reported cause."""
        self.check_here()
        txid = TxId.of(txid)
        if not isinstance(cause, BaseException):
            raise OutOfBounds("cause", f"must be an exception, not of type {type(cause).__name__}")
        transaction = self.live.get(txid)
        if transaction is None:
            return False
        transaction.explain(cause)
        return transaction.doom(cause)

    def add_participant(self, participant: Participant) -> None:
        """Register ``participant``, which can be used immediately. Raises ``UsageError`` if the name is
        taken."""
        self.check_here()
        self.participants.add(participant)

    async def remove_participant(self, name: str) -> None:
        """Unregister and close a participant. Raises ``ParticipantInUse`` while any branch of it is
        unresolved, and ``ParticipantUnavailable`` if it does not answer."""
        self.check_here()
        participant = self.participants.get(name)
        # Running transactions need the registration; once it is removed, no branch can begin.
        if live := [str(tx.id) for tx in self.live.values() if name in tx.participants]:
            raise ParticipantInUse(name, live)
        self.participants.remove(name)
        try:
            await self._finisher.flush()
            gids = await self._unresolved(participant)
        except BaseException:
            self.participants.add(participant)
            raise
        if gids:
            self.participants.add(participant)
            raise ParticipantInUse(name, gids)
        await participant.close()

    async def close(self) -> None:
        """Abort the transactions whose commit has not begun, wait up to ``drain_s`` for the others, end the
        session.

        Commits that are still running after that, or when this is cancelled, are left to recovery: they end
        later, and nothing is lost.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self.check_here()
        self._closed = True
        self._keeper.shut()
        self._agents.shut()
        for transaction in list(self.live.values()):
            transaction.doom(CoordinatorClosed("the coordinator was closed"))
        async with contextlib.AsyncExitStack() as stack:  # each step is done, also if this is cancelled
            stack.push_async_callback(self._locks.close)
            stack.push_async_callback(self._keeper.close)
            stack.push_async_callback(self._agents.close)
            stack.push_async_callback(self._finisher.close)
            await self._drain()

    async def _drain(self) -> None:
        end = asyncio.get_running_loop().time() + self.settings.drain_s
        try:
            while self._background and (remaining_s := end - asyncio.get_running_loop().time()) > 0:
                await asyncio.wait(set(self._background), timeout=remaining_s)
        finally:
            if self._background:
                log.warning("%d transactions are left for recovery to finish", len(self._background))
                for task in self._background:
                    task.abandon()
                await asyncio.wait(set(self._background))

    async def _unresolved(self, participant: Participant) -> list[str]:
        name = participant.name
        prepared = [
            str(row.gid)
            for row in await participant.in_doubt()
            if isinstance(row.gid, Gid) and row.gid.ledger == self.ledger_id
        ]
        recorded = [
            f"{record.txid}:{branch.number}"
            async for record in every_unfinished(self.ledger)
            for branch in record.branches
            if branch.participant == name
        ]
        return [*prepared, *recorded]

    def _session_lost(self, session: int) -> None:
        for transaction in list(self.live.values()):
            if transaction.id.session == session:
                transaction.doom(SessionLost(f"session {session} was closed or has expired"))

    # The methods that a transaction calls (undoubt.coordinator.transaction.Host).

    def check_here(self) -> None:
        """Raise ``WrongProcess`` in a fork: the session, and so the transaction ids, belong to the parent
        process. Raise ``WrongLoop`` in an event loop in which ``start`` was not called."""
        if os.getpid() != self._pid:
            raise WrongProcess(
                f"this coordinator belongs to process {self._pid}, not {os.getpid()}; open one after the fork"
            )
        running = asyncio._get_running_loop()  # None in a thread of undoubt.sync
        if running is not None and self._loop is not None and running is not self._loop:
            what = "has ended" if self._loop.is_closed() else "is another one"
            raise WrongLoop(
                f"this coordinator belongs to the event loop in which it was opened, and that {what}: open"
                " one in each loop (each asyncio.run, each loop that a test gets), and close it there"
            )

    async def new_txid(self, protocol: GidProtocol, timeout_s: float, agent: str = "") -> tuple[TxId, Lease]:
        if protocol is GidProtocol.LAST:
            return await self._agents.begin(agent, timeout_s)
        return await self._keeper.begin(timeout_s, bound=protocol is GidProtocol.PAXOS)

    async def claim_key(
        self, use: KeyUse, timeout_s: float, wait_s: float | None
    ) -> tuple[TxId, Lease] | None:
        return await use.claim(
            self.ledger,
            lambda: self.new_txid(GidProtocol.TWO_PHASE, timeout_s),
            lambda txid, lease: self._free_key(use.given, txid, lease),
            timeout_s if wait_s is None else wait_s,
            lambda holder: self._entered_by(use, holder),
        )

    def _entered_by(self, use: KeyUse, holder: TxId) -> bool:
        """Whether the task or thread that claims the key of ``use`` is in the block of ``holder``. A commit
        that has begun may go on after its block: it can be waited for."""
        transaction = self.live.get(holder)
        if transaction is None or not transaction.active or transaction.key_use is None:
            return False
        if transaction.key_use.entered_in is None:
            return False
        return transaction.key_use.entered_in is (use.entered_in or asyncio.current_task())

    def _free_key(self, given: GivenKey, txid: TxId, lease: Lease) -> None:
        """Abort ``txid``, which may have claimed a key and has no prepared branch, so that another
        transaction can claim the key; in the background. If the ledger cannot be reached, the key is free
        after the floor has passed ``txid``, or the session has ended."""
        lease.end(txid)
        self.in_background(uncancellable(free_key(self.ledger, given, txid), name=f"free the key of {txid}"))

    async def why_doomed(self, txid: TxId) -> BaseException | None:
        """The cause that another process has recorded for aborting the transaction; None if there is none."""
        return await why_doomed(self.ledger, txid)

    def participant(self, name: str) -> Participant:
        return self.participants.get(name)

    def begun(self, transaction: Transaction) -> None:
        self.live[transaction.id] = transaction

    def rolled_back(self, transaction: Transaction) -> None:
        self._ended(transaction)
        if self._meter is not None:
            self._meter.ended(transaction.protocol, "aborted" if transaction.doomed else "rolled_back", {})

    def _ended(self, transaction: Transaction) -> None:
        """The transaction has ended in this process. If the task that had to end it was abandoned, the
        transaction is left to recovery, and stays in its lease, so that no floor passes it."""
        self.live.pop(transaction.id, None)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return
        if transaction.key_use is not None and not transaction.may_have_committed:
            self._free_key(transaction.key_use.given, transaction.id, transaction.lease)
        transaction.lease.end(transaction.id)

    def new_context(
        self,
        txid: TxId,
        branches: tuple[Branch, ...],
        deadline: float,
        protocol: GidProtocol,
        lease: Lease,
        *,
        prepares_all: bool,
        key_use: GivenKey | None,
    ) -> CommitContext:
        return CommitContext(
            txid,
            branches,
            self.ledger,
            deadline,
            self._observe,
            protocol=protocol,
            termination=self.settings.termination,
            find=self.participants.find,
            agent=lease.agent,
            key=lease.key,
            prepares_all=prepares_all,
            given_key=key_use,
        )

    def start_commit(self, transaction: Transaction, context: CommitContext) -> Uncancellable[None]:
        driving = self._drive(transaction, context)
        if self._meter is not None:
            watch = Stopwatch(self._meter, context, transaction.protocol, transaction.began_at)
            driving = watch.measure(driving)
        task = uncancellable(driving, name=f"commit {context.txid}")
        self.in_background(task)
        return task

    def in_background(self, task: Uncancellable[None]) -> None:
        self._background.add(task)
        task.add_done_callback(self._left_background)

    def _left_background(self, task: Uncancellable[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raised = isinstance(error, TransactionAborted | HeuristicOutcome)  # to the caller
            log.log(logging.DEBUG if raised else logging.WARNING, "%s: %s", task.get_name(), error)

    async def _drive(self, transaction: Transaction, context: CommitContext) -> None:
        """Run the commit protocol from beginning to end, independently of the caller."""
        try:
            await _DRIVERS[context.protocol](context)
        except UndoubtError:
            raise
        except Exception as error:  # a bug of undoubt or of a driver: what is raised depends on the phase
            log.exception("transaction %s failed in phase %s", context.txid, context.phase.name)
            if context.phase is Phase.VOTING:
                await roll_back(context, context.branches, error)
            if context.phase is Phase.DECIDING:
                raise OutcomeUnknown(context.txid, f"{type(error).__name__}: {error}") from error
        finally:
            await context.release()
            self._ended(transaction)
            self._finish(context)

    async def roll_back(self, context: CommitContext, cause: BaseException) -> None:
        """Roll back a transaction whose first phase has not begun, and of which other processes may have
        prepared a branch. Raises ``HeuristicOutcome`` if such a branch has committed."""
        try:
            await roll_back(context, context.branches, cause)
        except TransactionAborted as error:
            log.debug("rollback %s: %s", context.txid, error)
        finally:
            await context.release()
            self._finish(context)

    def _finish(self, context: CommitContext) -> None:
        if context.state in FINISHED:
            self._finisher.finished.append(context.txid)
            self._finisher.filled.set()
        if context.rows and context.state in NOTHING_LEFT:
            self._finisher.forget(context.rows)
        if (
            context.agent is not None
            and context.agent_row is not None
            and context.state in COMMIT_IN_THE_LEDGER
        ):
            self._finisher.forget_agent_row(context.agent.participant, context.agent_row)
