"""Deadlocks across databases, which no single database can see.

Two transactions that touch the same rows of two databases in opposite order wait for each other for ever:
each database sees an ordinary wait. The detector joins the wait graphs of all participants and looks for a
cycle that no participant sees as a whole.

Wait graphs of several databases, read at different moments, can join to a cycle that never existed (phantom
deadlock: Knapp, *Deadlock Detection in Distributed Databases*, 1987, §1). A wait for one lock has one
beginning (``since``). So an edge counts only if two passes saw it with the same ``since``, and the first pass
ended before the second began: then all edges of the cycle existed at the moment between the two passes.

A transaction with two branches in one database can wait for itself: one branch waits for a lock that the
other branch holds, and PostgreSQL sees a session that waits for an idle session. That is a cycle of one edge.
It is ended only after two looks saw the same wait, since the application may still undo the holder's part by
a savepoint, and some locks (the one that extends a table) are held for a moment only.

Waits for the ledger's locks are edges like any other, if they were made with a transaction
(:mod:`.lock_waits`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from undoubt.coordinator.errors import DistributedDeadlock, LedgerError, OutcomeUnknown, SelfDeadlock
from undoubt.coordinator.ledger.contract import Ledger, RecordedDecision, Verdict
from undoubt.coordinator.supervision import restarts
from undoubt.coordinator.transaction import Transaction
from undoubt.participants.contract import Claim, Participant, Waiting, WaitNode
from undoubt.participants.errors import ParticipantError, UndoubtError
from undoubt.participants.ids import Gid, InvalidName, TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.lock_waits import LOCKS, LockWait, lock_waits

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 5.0
"""A participant that has not answered by then is left out of this look."""

Cancel = Callable[[TxId, BaseException], bool]
"""``Coordinator.cancel``: aborts an undecided transaction of this process; False if it is not of this process
or is decided."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One edge of the joined wait graph. ``waits`` has what each participant saw of it."""

    waiter: str
    holder: str
    waits: tuple[tuple[str, Waiting], ...]

    @property
    def participants(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.waits)

    @property
    def queued(self) -> bool:
        """Whether the holder has nothing yet that the waiter wants, and is only before it in a lock's
        queue."""
        return all(isinstance(wait, LockWait) and wait.queued for _, wait in self.waits)


STUCK_S = 1.0
"""How long a transaction with several branches lasts before its own process looks for deadlocks, if another
process does so in general: a node of a cluster knows only the participants of its own settings."""


def may_be_stuck(live: Mapping[TxId, Transaction]) -> bool:
    """Whether one of ``live``, the transactions of a coordinator, may be in a deadlock."""
    before = asyncio.get_running_loop().time() - STUCK_S
    return any(len(tx.participants) > 1 and tx.began_at < before for tx in live.values())


class DeadlockDetector:
    """Each ``look`` finds all deadlocks across the participants and ends them."""

    def __init__(self, ledger: Ledger, participants: Registry, cancel: Cancel | None = None) -> None:
        self._ledger = ledger
        self._participants = participants
        self._cancel = cancel
        self._own: frozenset[Waiting] = frozenset()
        """Waits of transactions for themselves that the last look saw."""

    async def look(self) -> list[DistributedDeadlock]:
        """The deadlocks that were found, each with its victim. Raises ``LedgerError``."""
        first = await self._waits()
        second = await self._waits() if any(first.values()) else {}
        proved = await self._proved(lasting(first, second))
        edges = self._lasting(standing_edges(first, second, proved))
        found = []
        while cycle := find_cycle([edge for edge in edges if not edge.queued]) or find_cycle(edges):
            victim = await self._victim(cycle)
            if victim is None:
                log.warning("deadlock without a transaction that may be aborted: %s", _names(cycle))
                edges = [edge for edge in edges if edge not in cycle]
                continue
            deadlock = await self._end(victim, cycle)
            found.append(deadlock)
            edges = [edge for edge in edges if str(victim) not in {edge.waiter, edge.holder}]
        return found

    def _lasting(self, edges: list[Edge]) -> list[Edge]:
        """``edges`` without those waits of a transaction for itself that the last look did not see."""
        before = self._own
        own = {edge: {wait for _, wait in edge.waits} for edge in edges if edge.waiter == edge.holder}
        self._own = frozenset[Waiting]().union(*own.values())
        return [edge for edge in edges if edge not in own or own[edge] & before]

    async def _waits(self) -> dict[str, Sequence[Waiting]]:
        """The waits of each participant that answers in time, and those for the ledger's locks."""
        tasks = {
            asyncio.create_task(_waits_of(one), name=f"undoubt-deadlocks {one.name}"): one.name
            for one in self._participants
        }
        tasks[asyncio.create_task(lock_waits(self._ledger), name="undoubt-deadlocks locks")] = LOCKS
        try:
            done, _ = await asyncio.wait(tasks, timeout=LOOK_TIMEOUT_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return {tasks[task]: task.result() for task in done}

    async def _proved(self, waits: Iterable[Waiting]) -> dict[Claim | Gid, TxId]:
        """The transactions of those ends of ``waits`` that have a proof: any session can write any name into
        its application_name, and can prepare under any gid."""
        ends = {end for waiting in waits for end in (waiting.waiter, waiting.holder)}
        claims = [end for end in ends if isinstance(end, Claim)]
        gids = [end for end in ends if isinstance(end, Gid)]
        proved: dict[Claim | Gid, TxId] = {}
        if claims:
            backends = zip(claims, await self._ledger.backends(claims), strict=True)
            proved |= {claim: txid for claim, txid in backends if txid is not None}
        if gids:
            verdicts = await self._ledger.outcomes(gids)
            proved |= {gid: gid.txid for gid in gids if _believed(gid, verdicts[gid])}
        return proved

    async def _victim(self, cycle: Sequence[Edge]) -> TxId | None:
        """The youngest transaction of the cycle that has no recorded COMMIT. "Youngest" is by the numbers of
        session and transaction, so that all detectors choose the same one."""
        txids = [txid for edge in cycle if (txid := _txid(edge.waiter)) is not None]
        records = await self._ledger.records(txids)
        return max((txid for txid in txids if records[txid] is not RecordedDecision.COMMIT), default=None)

    async def _end(self, victim: TxId, cycle: Sequence[Edge]) -> DistributedDeadlock:
        at = next(i for i, edge in enumerate(cycle) if edge.waiter == str(victim))
        turned = [*cycle[at:], *cycle[:at]]
        names = frozenset[str]().union(*(edge.participants for edge in turned))
        if len(turned) == 1:
            deadlock: DistributedDeadlock = SelfDeadlock(victim, names)
        else:
            deadlock = DistributedDeadlock(victim, [edge.waiter for edge in turned], names)
        log.warning("%s; aborting %s", deadlock, victim)
        if self._cancel is None or not self._cancel(victim, deadlock):
            await self._write_down(deadlock)
            await self._end_wait(victim, *turned[0].waits[0])
        return deadlock

    async def _end_wait(self, victim: TxId, name: str, waiting: Waiting) -> None:
        """End one wait of a transaction of another process, which then asks the ledger for the cause."""
        try:
            if isinstance(waiting, LockWait) and waiting.request is not None:
                await self._ledger.unlock(waiting.request)
            else:
                await self._participants.get(name).cancel_waiter(waiting)
        except UndoubtError as error:
            log.warning(
                "the wait of %s at %r could not be cancelled: %s",
                victim,
                name,
                error,
                extra={"participant": name},
            )

    async def _write_down(self, deadlock: DistributedDeadlock) -> None:
        """Record the cause for the victim's coordinator, before its statement is cancelled: the cancelled
        statement alone does not say why."""
        try:
            await self._ledger.doom(deadlock.victim, str(deadlock))
        except (LedgerError, OutcomeUnknown) as error:
            log.warning("why %s is aborted could not be written down: %s", deadlock.victim, error)


async def _waits_of(participant: Participant) -> Sequence[Waiting]:
    try:
        return await participant.waits()
    except ParticipantError as error:
        # The participant's worker reports it. A deadlock through a database that is down is found once the
        # database is up.
        log.debug("no waits of participant %r: %s", participant.name, error)
        return ()
    except Exception:
        # A bug of ours or of a driver's at one participant must not hide the deadlocks at the others.
        restarts["deadlocks"] += 1
        log.exception("no waits of participant %r", participant.name, extra={"participant": participant.name})
        return ()


def lasting(
    first: Mapping[str, Sequence[Waiting]], second: Mapping[str, Sequence[Waiting]]
) -> Iterator[Waiting]:
    """The waits that both passes saw, with the same beginning."""
    for name, waits in second.items():
        before = set(first.get(name, ()))
        yield from (waiting for waiting in waits if waiting in before)


def standing_edges(
    first: Mapping[str, Sequence[Waiting]],
    second: Mapping[str, Sequence[Waiting]],
    proved: Mapping[Claim | Gid, TxId] | None = None,
) -> list[Edge]:
    """The edges that both passes saw, in a stable order. An end without a proof counts as a session, or a
    prepared transaction, that is not of undoubt."""
    sightings: dict[tuple[str, str], list[tuple[str, Waiting]]] = {}
    for name, waits in second.items():
        for waiting in lasting(first, {name: waits}):
            waiter = _node(waiting.waiter, waiting.pid, name, proved or {})
            holder = _node(waiting.holder, waiting.holder_pid, name, proved or {})
            sightings.setdefault((waiter, holder), []).append((name, waiting))
    return [
        Edge(waiter, holder, tuple(seen)) for (waiter, holder), seen in sorted(sightings.items(), key=_key)
    ]


def _believed(gid: Gid, verdict: Verdict) -> bool:
    """Whether ``gid`` names a branch of this ledger. A gid without a tag may come from a session of version
    0.1.0; then only a session that the ledger still has proves it."""
    return verdict is not Verdict.IMPOSTOR and (bool(gid.tag) or verdict is not Verdict.FORGOTTEN)


def _node(end: WaitNode, pid: int | None, participant: str, proved: Mapping[Claim | Gid, TxId]) -> str:
    """The name of ``end`` in the graph. Sessions without a proof are distinguished by their ``pid``: two
    sessions of one name, of which one waits for us and the other blocks us, are no cycle."""
    if isinstance(end, str):
        return end
    if end in proved:
        return str(proved[end])
    return f"{participant}/{pid or end}"


def _key(item: tuple[tuple[str, str], object]) -> tuple[str, str]:
    return item[0]


Chain = tuple[str, int, int | None]
"""A participant that sees a whole path as waits of one backend for the next: its name, the first backend, and
the backend that the last one waits for (0: a prepared branch; None: not known)."""


def find_cycle(edges: Sequence[Edge]) -> list[Edge] | None:
    """A cycle that no database sees as a whole, in order; None if there is none.

    A cycle that one database sees as a whole, from backend to backend, is ended by that database, and is not
    followed here. A transaction with two branches in one database has two backends there.
    """
    outgoing: dict[str, list[Edge]] = {}
    for edge in edges:
        if edge.waiter != edge.holder:
            outgoing.setdefault(edge.waiter, []).append(edge)
    for edge in edges:
        path = _path_back(edge, outgoing)
        if path is not None:
            return path
    return None


def _path_back(start: Edge, outgoing: dict[str, list[Edge]]) -> list[Edge] | None:
    """A shortest cycle through ``start`` that spans participants.

    The search is breadth first over pairs of a node and the chains by which participants see the whole path
    to that node: once no chain is left, every path back closes a cycle across participants."""
    chains = frozenset((name, wait.pid, wait.holder_pid) for name, wait in start.waits)
    origin = (start.holder, chains)
    came: dict[tuple[str, frozenset[Chain]], list[Edge]] = {origin: [start]}
    queue = [origin]
    for node, whole in queue:
        path = came[node, whole]
        if node == start.waiter:
            if not any(last in {None, first} for _, first, last in whole) and _simple(path):
                return path
            continue
        for edge in outgoing.get(node, ()):
            state = (edge.holder, _prolonged(whole, edge))
            if state not in came:
                came[state] = [*path, edge]
                queue.append(state)
    return None


def _prolonged(chains: frozenset[Chain], edge: Edge) -> frozenset[Chain]:
    return frozenset(
        (name, first, wait.holder_pid)
        for name, first, last in chains
        for seen_by, wait in edge.waits
        if seen_by == name and last in {None, wait.pid}
    )


def _simple(path: Sequence[Edge]) -> bool:
    return len({edge.waiter for edge in path}) == len(path)


def _txid(node: str) -> TxId | None:
    try:
        return TxId.parse(node)
    except InvalidName:
        return None


def _names(cycle: Sequence[Edge]) -> str:
    return " → ".join(edge.waiter for edge in cycle)
