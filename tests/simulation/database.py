"""A simulated PostgreSQL server that holds accounts: what survives a crash, and what its sessions may do.

The rules are PostgreSQL's, as far as a transaction manager meets them: a failed transaction answers PREPARE
and COMMIT with the tag ``ROLLBACK``; a prepared one keeps its locks and survives everything, its session, a
crash; a PREPARE may take its time behind a deferred trigger and appear when nobody expects it any more; gids
that do not exist are 42704, gids that somebody is finishing 55000; transaction ids of which nothing reached
the log are given out again after a crash; a promoted standby has another timeline, and while it has not been
promoted its list of prepared transactions is empty and lies.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.agent_table import LOOK_S, SLOWEST_COMMIT_S, TOMBSTONE_WAITS_S, AgentTable
from undoubt.participants.scripted_three_phase import MemoryStates

SLOWEST_PREPARE_S = 10.0
APPLICATION = "app"
"""The role that every process of ours logs in with. A prepared transaction can be finished by its owner."""
LOST = 0.003
"""How probable it is that an answer never arrives."""
LOST_COMMIT = 0.03
"""That of a COMMIT, which is rare in itself, and leaves the most open if no other branch can tell."""
OUTLIVE_THEIR_CLIENT = frozenset(
    {"prepare", "commit", "commit_as_agent", "commit_prepared", "rollback_prepared"}
)
"""Requests that are executed although nobody will hear the answer."""


class State(enum.StrEnum):
    OPEN = "in progress"
    PREPARED = "prepared"
    COMMITTED = "committed"
    ABORTED = "aborted"


class SqlError(Exception):
    """``fatal``: it ends the session."""

    def __init__(self, sqlstate: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.fatal = fatal


@dataclass(eq=False)
class Work:
    """One local transaction. ``deltas`` by account, whose rows it has locked. ``proof``: whose hash becomes
    a note if it commits. ``claim``: what its session says of itself. ``impostor``: a stranger's, or one that
    is prepared under a name whose branch is over."""

    name: str
    xid: int | None = None
    state: State = State.OPEN
    failed: bool = False
    marker: str | None = None
    deltas: dict[int, int] = field(default_factory=dict)
    role: str = APPLICATION
    impostor: bool = False
    claim: Any = None
    proof: bytes = b""
    prepared_at: float = 0.0
    busy: bool = False
    pid: int = 0
    waits_for: tuple[Work, float] | None = None
    cancelled: bool = False
    terminated: bool = False
    """Its session is to end."""
    ended: asyncio.Future[None] | None = None
    """Of the server's loop of now: done when its locks are free."""


class Disk:
    """Everything durable. ``works`` by gid are the branches that were ever prepared or committed here."""

    def __init__(self, name: str, system: int, accounts: int, balance: int) -> None:
        self.name = name
        self.system = system
        self.timeline = 1
        self.balances = dict.fromkeys(range(accounts), balance)
        self.next_xid = 1_000
        self.prepared: dict[str, Work] = {}
        self.books: dict[int, State] = {}
        self.history = f"{system:032x}"
        self.position = 0
        self.notes: set[bytes] = set()
        self.hashes: dict[Any, bytes] = {}
        """By gid: that of the note which its row of three-phase commit waits for."""
        self.states = MemoryStates(lambda gid: self.hashes.get(gid) in self.notes, _at_once)
        """Three-phase commit's rows; each change is a transaction of its own."""
        self.agent = AgentTable()
        self.recovering = False
        self.promotions: list[float] = []
        self.starts = 0

    def commit(self, work: Work) -> None:
        for account, delta in work.deltas.items():
            self.balances[account] += delta
        if work.proof:
            self.notes.add(hashlib.sha256(work.proof).digest())
        self._enter(work, State.COMMITTED)

    def abort(self, work: Work) -> None:
        self._enter(work, State.ABORTED)

    def _enter(self, work: Work, state: State) -> None:
        work.state = state
        self.position += 1
        if work.xid is not None:
            self.books[work.xid] = state
        if self.prepared.get(work.name) is work:  # not another one that has its name
            del self.prepared[work.name]


def _end(work: Work) -> tuple[str | None, str, int, Any]:
    return work.name if work.state is State.PREPARED else None, work.role, work.pid, work.claim


async def _at_once(_call: str, _gid: object) -> None:
    """A change of one row neither waits nor fails by itself."""


class Server:
    """The processes of one server while it runs; a crash forgets this object and keeps the ``disk``."""

    def __init__(self, disk: Disk, random: Random, judge: Any, *, faulty: Any, told: Any) -> None:
        self.disk = disk
        self.told = told
        self.random = random
        self.judge = judge
        """Told what is prepared, committed and rolled back: see :mod:`tests.simulation.judge`."""
        self.faulty = faulty
        self.locks: dict[int | bytes, Work] = {}
        """By account, or by the key of an agent's row."""
        self.sessions: dict[int, Session] = {}
        self._pid = 100
        disk.starts += 1
        disk.agent.unseen.clear()  # they are seen after a restart
        for work in disk.prepared.values():
            work.busy, work.pid, work.waits_for, work.ended = False, 0, None, None
            for account in work.deltas:
                self.locks[account] = work

    @property
    def timeline(self) -> str:
        return f"{self.disk.timeline:08X}"

    async def serve(self, loop: Any, address: tuple[str, int]) -> None:
        await loop.create_server(lambda: Session(self), *address)

    def new_pid(self) -> int:
        self._pid += 1
        return self._pid

    def free(self, work: Work) -> None:
        self.locks = {account: holder for account, holder in self.locks.items() if holder is not work}
        if work.ended is not None and not work.ended.done():
            work.ended.set_result(None)


class Session(asyncio.Protocol):
    """One connection; requests are ``(number, verb, arguments)``, answers ``(number, value or SqlError)``."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.disk = server.disk
        self.pid = server.new_pid()
        self.role, self.impostor = APPLICATION, False
        self.work: Work | None = None
        self.transport: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()
        self._lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.sessions[self.pid] = self

    def data_received(self, request: Any) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._answer(*request)))

    def connection_lost(self, _error: Exception | None) -> None:
        """The backend notices once it is done with what it does."""
        self._lost = True
        self._tasks.append(asyncio.get_running_loop().create_task(self._hang_up()))

    async def _hang_up(self) -> None:
        if self.work is not None:
            self.work.cancelled = True
        async with self._turn:
            if self.work is not None:
                self._end(self.work, State.ABORTED)
            self.server.sessions.pop(self.pid, None)

    async def _answer(self, number: int, verb: str, arguments: tuple[Any, ...]) -> None:
        async with self._turn:
            if self._lost and verb not in OUTLIVE_THEIR_CLIENT:
                return
            try:
                await asyncio.sleep(self.server.random.uniform(0.000_05, 0.000_4))
                answer = await getattr(self, "do_" + verb)(*arguments)
            except SqlError as error:
                answer = error
                if self.work is not None:
                    self.work.failed = True
            self.server.told(self.pid, verb, arguments, answer)
            if self.server.faulty(
                "lost answer",
                LOST_COMMIT if verb.startswith("commit") and verb != "commit_prepared" else LOST,
            ):
                self.transport.abort()
                return
            self.transport.write((number, answer))
            if isinstance(answer, SqlError) and answer.fatal:
                self.transport.abort()

    # Inside a transaction.

    async def do_begin(self, name: str, claim: Any = None) -> None:
        if self.disk.recovering:
            raise SqlError("25006", "cannot execute in a read-only transaction")
        self.work = Work(name, marker=name, pid=self.pid, role=self.role, impostor=self.impostor, claim=claim)

    async def do_write_elsewhere(self) -> None:
        """Into a table of its own."""
        self._write(self._current())

    def _write(self, work: Work) -> None:
        if work.xid is None:
            self.disk.next_xid += 1
            work.xid = self.disk.next_xid
            self.server.judge.wrote(work)

    def _current(self) -> Work:
        if self.work is None:
            raise SqlError("25P01", "no transaction is in progress")
        if self.work.failed:
            raise SqlError("25P02", "current transaction is aborted")
        return self.work

    async def do_update(self, account: int, delta: int, lock_timeout_s: float) -> int:
        work = self._current()
        self._write(work)
        await self._lock(work, account, lock_timeout_s)
        balance = self.disk.balances[account] + work.deltas.get(account, 0) + delta
        if balance < 0:
            raise SqlError("23514", "the balance would be negative")
        work.deltas[account] = work.deltas.get(account, 0) + delta
        return balance

    async def do_read(self, account: int) -> int:
        return self.disk.balances[account] + self._current().deltas.get(account, 0)

    async def do_finish_by_application(self, commit: bool) -> None:
        """The application typed COMMIT or ROLLBACK itself, and then BEGIN."""
        work = self._current()
        work.marker = None
        self._end(work, State.COMMITTED if commit else State.ABORTED)
        self.work = Work(work.name, marker=None, pid=self.pid)

    async def _lock(self, work: Work, account: int | bytes, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        while (holder := self.server.locks.get(account)) is not None and holder is not work:
            if holder.ended is None or holder.ended.done():
                holder.ended = loop.create_future()
            if work.waits_for is None or work.waits_for[0] is not holder:
                work.waits_for = (holder, loop.time())
            if self._deadlocked(work):
                work.waits_for = None
                raise SqlError("40P01", "deadlock detected")
            await asyncio.wait([holder.ended], timeout=0.05)
            self._check_terminated(work)
            if work.cancelled:
                work.waits_for, work.cancelled = None, False
                raise SqlError("57014", "canceling statement due to user request")
            if loop.time() >= ends:
                work.waits_for = None
                raise SqlError("55P03", "canceling statement due to lock timeout")
        work.waits_for = None
        self.server.locks[account] = work

    def _deadlocked(self, work: Work) -> bool:
        """Within this server alone; it knows nothing of others."""
        at: Work | None = work
        for _ in range(100):
            at = at.waits_for[0] if at is not None and at.waits_for is not None else None
            if at is None or at is work:
                return at is work
        return False

    async def do_poll(self) -> tuple[str | None, int | None]:
        work = self._current()
        return work.marker, work.xid

    async def do_prepare(self, name: str, proof: bytes = b"") -> tuple[str, tuple[Any, ...] | None, bool]:
        """Tag, evidence, and whether a synchronous standby has confirmed it."""
        work, server = self.work, self.server
        if work is None or work.failed:
            if work is not None:
                self._end(work, State.ABORTED)
            return "ROLLBACK", None, True
        if work.marker != name:
            raise SqlError("22P02", "undoubt marker is gone")
        self._check_free(name)
        if server.faulty("deferred constraint", 0.02):
            self._end(work, State.ABORTED)
            raise SqlError("23503", "a deferred constraint is violated")
        if server.faulty("slow prepare", 0.04):
            await asyncio.sleep(server.random.uniform(0.5, SLOWEST_PREPARE_S - 1))
            self._check_free(name)
        if work.xid is None:
            self.disk.next_xid += 1
            work.xid = self.disk.next_xid
        evidence = (work.xid, *self.whereabouts())
        self.disk.position += 1
        work.proof = proof
        work.state, work.prepared_at, work.pid = State.PREPARED, asyncio.get_running_loop().time(), 0
        self.disk.prepared[name] = work
        self.work = None
        server.judge.prepared(self.disk.name, work)
        if server.faulty("unconfirmed prepare", 0.01):
            return "PREPARE TRANSACTION", evidence, False
        return "PREPARE TRANSACTION", evidence, True

    def _check_free(self, name: str) -> None:
        if name in self.disk.prepared:
            raise SqlError("42710", "transaction identifier is already in use")

    def whereabouts(self) -> tuple[int, str, str, int]:
        """System, timeline, history, position."""
        return self.disk.system, self.server.timeline, self.disk.history, self.disk.position

    async def do_commit(self, name: str, proof: bytes) -> str:
        work = self.work
        if work is None or work.failed:
            if work is not None:
                self._end(work, State.ABORTED)
            return "ROLLBACK"
        if work.marker != name:
            raise SqlError("22P02", "undoubt marker is gone")
        if self.server.faulty("deferred constraint", 0.02) and work.xid is not None:
            self._end(work, State.ABORTED)
            raise SqlError("23503", "a deferred constraint is violated")
        work.proof = proof if work.xid is not None else b""
        self._end(work, State.COMMITTED)
        return "COMMIT"

    async def do_commit_as_agent(
        self, name: str, key: bytes, ledger: str, txid: str, branches: bytes
    ) -> tuple[str, bool]:
        """Tag, and whether a synchronous standby has confirmed it."""
        work, server = self.work, self.server
        if work is None or work.failed:
            if work is not None:
                self._end(work, State.ABORTED)
            return "ROLLBACK", True
        try:
            if work.marker != name:
                raise SqlError("22P02", "undoubt marker is gone")
            self._write(work)
            await self._lock(work, key, 20.0)
            if key in self.disk.agent.rows:
                raise SqlError("23505", "a tombstone is there")
            if server.faulty("deferred constraint", 0.02):
                raise SqlError("23503", "a deferred constraint is violated")
            if server.faulty("slow commit of an agent", 0.1):
                await self._linger(work, server.random.uniform(0.2, SLOWEST_COMMIT_S))
        except SqlError:
            self._end(work, State.ABORTED)
            raise
        self.disk.agent.write(server.judge, key, "commit", ledger, txid, branches)
        self.disk.commit(work)
        server.judge.ended(self.disk.name, work, prepared=False)
        try:
            if server.faulty("commit of an agent waits for its standby", 0.1):
                await self._await_standby(work, key)
        finally:
            self.work = None
            server.free(work)
        return "COMMIT", not server.faulty("unconfirmed commit", 0.01)

    async def _await_standby(self, work: Work, key: bytes) -> None:
        """The row is durable, and nobody sees it. If the session is terminated, its COMMIT has happened."""
        self.disk.agent.unseen.add(key)
        try:
            await self._linger(work, self.server.random.uniform(0.2, SLOWEST_COMMIT_S))
        finally:
            self.disk.agent.unseen.discard(key)

    async def _linger(self, work: Work, seconds: float) -> None:
        """The row is written, and the COMMIT is under way."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while loop.time() < ends:
            await asyncio.sleep(LOOK_S)
            self._check_terminated(work)

    def _check_terminated(self, work: Work) -> None:
        if work.terminated:
            work.waits_for = None
            raise SqlError("57P01", "terminating connection due to administrator command", fatal=True)

    async def do_rollback(self) -> None:
        if self.work is not None:
            self._end(self.work, State.ABORTED)

    def _end(self, work: Work, state: State) -> None:
        if self.work is work:
            self.work = None
        if state is State.COMMITTED:
            self.disk.commit(work)
        else:
            self.disk.abort(work)
        self.server.judge.ended(self.disk.name, work, prepared=False)
        self.server.free(work)

    # Outside of one.

    def _primary(self) -> None:
        if self.disk.recovering:
            raise SqlError("25006", "recovery is in progress")

    async def do_login(self, role: str, impostor: bool) -> None:
        self.role, self.impostor = role, impostor

    async def do_list(self) -> tuple[bool, list[tuple[str, str, int, float, tuple[Any, ...]]]]:
        """Whether this is a standby, and every prepared transaction: gid, owner, xid, age in seconds, and
        where it lies."""
        now = asyncio.get_running_loop().time()
        rows = [
            (name, work.role, work.xid or 0, max(now - work.prepared_at, 0.0), self.whereabouts())
            for name, work in self.disk.prepared.items()
        ]
        return self.disk.recovering, [] if self.disk.recovering else rows

    async def do_commit_prepared(self, name: str) -> bool:
        """Whether a synchronous standby has confirmed it."""
        await self._finish(name, State.COMMITTED)
        return not self.server.faulty("unconfirmed commit", 0.01)

    async def do_rollback_prepared(self, name: str) -> bool:
        await self._finish(name, State.ABORTED)
        return True

    async def _finish(self, name: str, state: State, *, by_hand: bool = False) -> None:
        self._primary()
        work = self.disk.prepared.get(name)
        if work is None:
            raise SqlError("42704", f"prepared transaction {name} does not exist")
        if work.busy:
            raise SqlError("55000", f"prepared transaction {name} is busy")
        if work.role != self.role:
            raise SqlError("42501", f"prepared transaction {name} is {work.role}'s")
        work.busy = True
        await asyncio.sleep(self.server.random.uniform(0, 0.002))
        if state is State.COMMITTED:
            self.disk.commit(work)
        else:
            self.disk.abort(work)
        by_hand = by_hand or (work.impostor and self.impostor)
        self.server.judge.ended(self.disk.name, work, prepared=True, by_hand=by_hand)
        self.server.free(work)

    async def do_by_hand(self, name: str, commit: bool) -> None:
        """A database administrator at the prompt, who asked nobody."""
        await self._finish(name, State.COMMITTED if commit else State.ABORTED, by_hand=True)

    async def do_status(
        self, xid: int, system: int, timeline: str, history: str | None, position: int | None
    ) -> str | None:
        self._primary()
        if (system, timeline) != (self.disk.system, self.server.timeline):
            return None
        if history not in {None, self.disk.history} or (position or 0) > self.disk.position:
            return None
        if xid > self.disk.next_xid:
            raise SqlError("22023", "transaction ID is in the future")
        state = self.disk.books.get(xid)
        if state is None:
            running = [*self.disk.prepared.values(), *(one.work for one in self.server.sessions.values())]
            held = any(work is not None and work.xid == xid for work in running)
            # After a crash an id that left no trace counts as rolled back.
            return str(State.OPEN) if held else str(State.ABORTED)
        return str(state)

    async def do_noted(self, proof: bytes, pid: int, timeline: str) -> tuple[bool, bool]:
        """Whether the commit's row is there, and whether the session has gone on this very timeline."""
        self._primary()
        gone = pid not in self.server.sessions and timeline == self.server.timeline
        return hashlib.sha256(proof).digest() in self.disk.notes, gone

    async def do_states(self, verb: str, *arguments: Any) -> Any:
        """A call of :class:`undoubt.participants.three_phase.States`."""
        self._primary()
        result = await getattr(self.disk.states, verb)(*arguments)
        if verb == "enlist" and result:
            gid, _, self.disk.hashes[gid] = arguments
        self.server.judge.row_changed(verb, arguments, result)
        return result

    async def do_whereabouts(self) -> tuple[int, str, str, int]:
        return self.whereabouts()

    # The rows of last-agent commit.

    async def do_bury(
        self, key: bytes, ledger: str, txid: str, history: str
    ) -> tuple[bool, tuple[Any, ...] | None, bool]:
        """Write a tombstone unless there is a row. Whether the key is held, and by which session; else the
        row that is there then. Whether a synchronous standby has confirmed it."""
        self._primary()
        table = self.disk.agent
        if history == self.disk.history:
            tombstone = Work("a tombstone", pid=self.pid)
            try:
                await self._lock(tombstone, key, TOMBSTONE_WAITS_S)
            except SqlError as error:
                if error.sqlstate != "55P03":
                    raise
                holder = self.server.locks.get(key)
                return True, None if holder is None else (holder.pid, self._started(holder.pid)), True
            await asyncio.sleep(self.server.random.uniform(0, 0.002))
            if key not in table.rows:
                table.write(self.server.judge, key, "abort", ledger, txid, b"")
            self.server.free(tombstone)
        found = [(decision, branches) for _, decision, branches in table.find([key])]
        return False, found[0] if found else None, not self.server.faulty("unconfirmed commit", 0.01)

    def _started(self, pid: int) -> str:
        return f"{self.disk.starts}.{pid}"

    async def do_terminate(self, pid: int, started: str) -> bool:
        session = self.server.sessions.get(pid)
        if session is None or session.work is None or started != self._started(pid):
            return False
        session.work.terminated = True
        return True

    async def do_agent_find(self, keys: list[bytes]) -> tuple[list[tuple[bytes, str, bytes]], bool]:
        self._primary()
        return self.disk.agent.find(keys), not self.server.faulty("unconfirmed commit", 0.01)

    async def do_agent_stored(
        self, ledger: str, after: bytes, limit: int
    ) -> list[tuple[bytes, str, str, float]]:
        self._primary()
        return self.disk.agent.page(ledger, after, limit)

    async def do_agent_forget(self, keys: list[bytes], decision: str) -> None:
        self._primary()
        self.disk.agent.delete(self.server.judge, keys, decision)

    async def do_whoami(self) -> tuple[int, str]:
        return self.pid, self.server.timeline

    async def do_waits(self) -> list[tuple[Any, Any, str, int, int | None]]:
        """Each end is a transaction's name if it is prepared, its owner, its process, what that claims."""
        found = []
        for session in self.server.sessions.values():
            work = session.work
            if work is not None and work.waits_for is not None:
                holder, since = work.waits_for
                found.append((_end(work), _end(holder), f"{since:.6f}", session.pid, work.xid))
        return found

    async def do_cancel(self, pid: int, xid: int | None) -> bool:
        session = self.server.sessions.get(pid)
        if session is None or session.work is None or session.work.xid != xid:
            return False
        session.work.cancelled = True
        return True

    async def do_total(self) -> int:
        return sum(self.disk.balances.values())
