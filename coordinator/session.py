"""Opens, renews and replaces a coordinator's sessions with the ledger.

A lease is a session with the transactions that run under it
(:class:`~undoubt.coordinator.ledger.contract.Lease`). Its ``floor`` is its lowest sequence number that is
still undecided in this process: all transactions below it have ended, and the ledger may answer for them.
Each renewal of the session carries the floor. A lease is replaced after a fixed number of transactions, so
that each session stays small and the ledger can drop it as a whole after the retention time. A lease that is
bound to acceptors is also replaced once new sessions would be bound to other acceptors: its running
transactions finish on the old acceptors; the old session is then closed, which allows the old acceptors to be
removed.

The table :data:`TRANSITIONS` is the whole state machine of the keeper: it decides whether transactions may
begin, and whether another session has to be opened. The diagram in ``docs/protocols-background.md`` and the
property tests derive from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable, Mapping

from undoubt.coordinator.errors import (
    CoordinatorClosed,
    LedgerError,
    LedgerUnavailable,
    SessionLost,
    VersionHeldBack,
)
from undoubt.coordinator.ledger.agents import AgentBinding
from undoubt.coordinator.ledger.contract import Lease, Ledger, Session
from undoubt.coordinator.ledger.session_mark import mark
from undoubt.coordinator.supervision import Supervised, restarts
from undoubt.participants.errors import ParticipantError, UndoubtError
from undoubt.participants.ids import TxId
from undoubt.participants.invariant import state_after

log = logging.getLogger(__name__)


class KeeperState(enum.StrEnum):
    """Whether transactions may begin, and whether another session has to be opened."""

    NEW = "new"
    """No session has been opened yet."""
    READY = "ready"
    """Transactions begin under the current lease."""
    HELD_BACK = "held back"
    """The same as READY, but the current lease is not bound to acceptors although the keeper needs a bound
    lease: not all members of the cluster support the required version yet."""
    REPLACING = "replacing"
    """Transactions begin under the current lease, and another session has to be opened."""
    LOST = "lost"
    """The session of the current lease has ended. No transaction begins until another session is opened."""
    SHUT = "shut"
    """No transaction begins. Sessions are renewed for the transactions that have begun."""
    CLOSED = "closed"
    """No transaction begins, and no session is renewed."""


class KeeperEvent(enum.StrEnum):
    """What moves the keeper from one state to another."""

    WANTED = "wanted"
    """The current lease is full, lost, not bound, or bound to acceptors that are no longer the current
    ones."""
    OPENED = "opened"
    """A session was opened, bound to acceptors if it has to be."""
    REFUSED = "refused"
    """The cluster cannot bind a session to acceptors yet; a session that is not bound is open."""
    EXPIRED = "expired"
    """The ledger no longer has the session of the current lease."""
    SHUT = "shut"
    """The coordinator is closing."""
    CLOSED = "closed"
    """Every session was closed, as far as the ledger has answered."""


_S, _E = KeeperState, KeeperEvent

TRANSITIONS: Mapping[tuple[KeeperState, KeeperEvent], KeeperState] = {
    (_S.NEW, _E.WANTED): _S.NEW,
    (_S.NEW, _E.OPENED): _S.READY,
    (_S.NEW, _E.REFUSED): _S.HELD_BACK,
    (_S.NEW, _E.SHUT): _S.SHUT,
    (_S.READY, _E.WANTED): _S.REPLACING,
    (_S.READY, _E.EXPIRED): _S.LOST,
    (_S.READY, _E.SHUT): _S.SHUT,
    (_S.HELD_BACK, _E.WANTED): _S.REPLACING,
    (_S.HELD_BACK, _E.EXPIRED): _S.LOST,
    (_S.HELD_BACK, _E.SHUT): _S.SHUT,
    (_S.REPLACING, _E.WANTED): _S.REPLACING,
    (_S.REPLACING, _E.OPENED): _S.READY,
    (_S.REPLACING, _E.REFUSED): _S.HELD_BACK,
    (_S.REPLACING, _E.EXPIRED): _S.LOST,
    (_S.REPLACING, _E.SHUT): _S.SHUT,
    (_S.LOST, _E.WANTED): _S.LOST,
    (_S.LOST, _E.OPENED): _S.READY,
    (_S.LOST, _E.REFUSED): _S.HELD_BACK,
    (_S.LOST, _E.SHUT): _S.SHUT,
    # Events of calls that were running when the coordinator began to close.
    (_S.SHUT, _E.WANTED): _S.SHUT,
    (_S.SHUT, _E.OPENED): _S.SHUT,
    (_S.SHUT, _E.REFUSED): _S.SHUT,
    (_S.SHUT, _E.EXPIRED): _S.SHUT,
    (_S.SHUT, _E.CLOSED): _S.CLOSED,
}
"""The state after each event. An event that a state does not have here is a bug, and raises."""

TO_OPEN = frozenset({_S.REPLACING, _S.LOST})
"""The states in which another session has to be opened."""
BEGINNING = frozenset({_S.READY, _S.HELD_BACK, _S.REPLACING})
"""The states in which transactions begin under the current lease."""
OVER = frozenset({_S.SHUT, _S.CLOSED})
"""The states in which the coordinator is closing or closed: no transaction begins."""


class SessionKeeper:
    """Keeps one lease current: opens it, renews it three times per lifetime, and replaces it when it is full,
    lost, or bound to acceptors that are no longer the current ones. ``on_lost`` is called with the session
    number of a lease whose session has ended unexpectedly: its undecided transactions have to abort."""

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        *,
        ttl_s: float,
        transactions_max: int,
        on_lost: Callable[[int], None],
        bind: bool = False,
        marks: bool = False,
        agent: Callable[[], Awaitable[AgentBinding]] | None = None,
    ) -> None:
        """``bind``: bind leases to acceptors of Paxos Commit, from the first lease on. ``marks``: every
        commit of a session is recorded, and each session is marked before a transaction begins in it.
        ``agent``: bind leases to the agent of last-agent commit that this returns; a lease is replaced once
        the agent's database is in another history."""
        self._ledger = ledger
        self._name = name
        self._ttl_s = ttl_s
        self._transactions_max = transactions_max
        self._on_lost = on_lost
        self._bind = bind
        self._marks = marks
        self._agent = agent
        self.state = KeeperState.NEW
        """Changed only by ``_move``."""
        self._current: Lease | None = None
        self._leases: dict[int, Lease] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._opened = asyncio.Event()
        """Set when a session was opened, or a bound session was refused; cleared before a wait for the next
        session."""
        self._trouble: Exception | None = None
        """Why the last attempt to open or bind another session failed; None if it did not."""

    def _move(self, event: KeeperEvent) -> None:
        """Change the state as :data:`TRANSITIONS` says. Raises ``InvariantViolation`` for an event that is
        not in the table for the current state."""
        self.state = state_after(TRANSITIONS, self.state, event, "the session keeper")

    @property
    def session(self) -> Session | None:
        """The session under which a transaction would begin now; None while there is none."""
        return None if self._current is None or self.state not in BEGINNING else self._current.session

    async def start(self) -> None:
        """Open the first session; raises the errors of the ledger."""
        await self._open()
        self._task = Supervised("session", self._keep).start("undoubt-session")

    async def begin(self, timeout_s: float, *, bound: bool = False) -> tuple[TxId, Lease]:
        """Return a new transaction id, and the lease under which it runs. Waits for a session if the last one
        was lost and none is open yet; raises ``LedgerUnavailable`` if none is opened within ``timeout_s``
        seconds. ``bound``: the lease has to be bound to acceptors, and all later leases too; raises
        ``VersionHeldBack`` while the cluster cannot bind sessions."""
        self._bind = self._bind or bound
        end = None
        while (lease := self._beginning(bound)) is None:
            self._opened.clear()
            self._want()
            end = end or asyncio.get_running_loop().time() + timeout_s
            await self._wait_for_another(end, timeout_s)
            if bound and self.state is KeeperState.HELD_BACK and self._trouble is not None:
                raise self._trouble
        txid = lease.begin()
        if lease.begun >= self._transactions_max:
            self._want()
        return txid, lease

    def _beginning(self, bound: bool) -> Lease | None:
        """The lease under which a transaction can begin now. Raises ``CoordinatorClosed``."""
        if self.state in OVER:
            raise CoordinatorClosed
        lease = self._current
        if lease is None or self.state not in BEGINNING or (bound and not lease.session.acceptors):
            return None
        return lease

    async def _wait_for_another(self, end: float, timeout_s: float) -> None:
        try:
            async with asyncio.timeout_at(end):
                await self._opened.wait()
        except TimeoutError:
            why = self._trouble or "it does not answer"
            raise LedgerUnavailable(f"no session with the ledger within {timeout_s:g} s: {why}") from None

    def shut(self) -> None:
        """Let no further transaction begin; sessions are still renewed for the transactions that have
        begun."""
        self._move(KeeperEvent.SHUT)
        self._opened.set()

    def _want(self) -> None:
        self._move(KeeperEvent.WANTED)
        self._wake.set()

    async def close(self) -> None:
        """Stop the renewals, and close every session, as far as the ledger answers."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for lease in list(self._leases.values()):
            try:
                await self._end(lease)
            except LedgerError as error:
                log.warning("session %d stays open until it expires: %s", lease.session.id, error)
        self._leases.clear()
        self._move(KeeperEvent.CLOSED)

    async def _open(self) -> None:
        former, session, refusal = self._current, None, None
        try:
            session = await self._bound()
        except VersionHeldBack as error:
            refusal = error
        agent = None if self._agent is None else await self._agent()
        if session is not None or former is None or not self._usable(former) or former.agent != agent:
            lease = Lease(session or await self._unbound(agent), agent)
            if self._marks:
                await mark(self._ledger, lease.session, lease.key)
            self._leases[lease.session.id] = self._current = lease
            if former is not None:
                former.retire(self._wake)
        self._trouble = refusal
        self._move(KeeperEvent.OPENED if refusal is None else KeeperEvent.REFUSED)
        self._opened.set()

    def _usable(self, lease: Lease) -> bool:
        return self.state is not KeeperState.LOST and lease.begun < self._transactions_max

    async def _unbound(self, agent: AgentBinding | None) -> Session:
        """Open a session that is not bound to acceptors."""
        if agent is None:
            return await self._ledger.open_session(self._name, self._ttl_s)
        return await self._ledger.open_session(self._name, self._ttl_s, agent=agent)

    async def _bound(self) -> Session | None:
        """Open a session that is bound to acceptors; None if the ledger has no acceptors, or no bound session
        is needed."""
        acceptors = self._ledger.acceptors if self._bind else None
        return None if acceptors is None else await acceptors.open_session(self._name, self._ttl_s)

    async def _moved(self) -> bool:
        """Whether a lease that is opened now would be bound to other acceptors, or to another history of the
        agent."""
        lease, acceptors = self._current, self._ledger.acceptors
        if lease is not None and self._agent is not None:
            try:
                return await self._agent() != lease.agent
            except ParticipantError as error:
                log.info("the agent of session %d does not answer: %s", lease.session.id, error)
                return False
        if lease is None or acceptors is None or not lease.session.acceptors:
            return False
        return tuple(await acceptors.current()) != lease.session.acceptors

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._ttl_s / 3)
            self._wake.clear()
            try:
                await self._renew_all()
                if self.state is KeeperState.READY and await self._moved():
                    self._move(KeeperEvent.WANTED)
                if self.state in TO_OPEN:
                    await self._open()
            except (
                Exception
            ) as error:  # also a bug of undoubt or of a driver: without a session no transaction can commit
                if isinstance(error, LedgerError):
                    log.warning("the ledger does not answer: %s", error)
                elif isinstance(error, UndoubtError):
                    log.warning("no session can be opened: %s", error)
                else:
                    restarts["session"] += 1
                    log.exception("a session could not be renewed or opened")
                self._trouble = error
                await asyncio.sleep(min(self._ttl_s / 10, 1.0))
                self._wake.set()  # a third of the lifetime may be all that is left

    async def _end(self, lease: Lease) -> None:
        """Close the session of ``lease``. The last floor is sent first: acceptors forget the transactions
        below the floor, and the floor of a closed session no longer changes."""
        if lease.session.acceptors:
            with contextlib.suppress(SessionLost):
                await self._ledger.keep_alive(lease.session, lease.floor)
        await self._ledger.close_session(lease.session)

    async def _renew_all(self) -> None:
        for lease in list(self._leases.values()):
            if lease is not self._current and lease.idle:
                await self._end(lease)
                del self._leases[lease.session.id]
                continue
            try:
                await self._ledger.keep_alive(lease.session, lease.floor)
            except SessionLost:
                self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        log.warning(
            "session %d was closed or has expired; its undecided transactions abort", lease.session.id
        )
        del self._leases[lease.session.id]
        if lease is self._current:
            self._move(KeeperEvent.EXPIRED)
        self._on_lost(lease.session.id)
