"""A simulated database as a participant: the contract of :mod:`undoubt.participants.contract` over its
sessions.

Answers are believed as far as PostgreSQL's deserve it, as in :mod:`undoubt.participants.postgres`: an error
of a living session is a "no", silence is no answer, a missing gid is judged by the books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation import agent
from tests.simulation.database import APPLICATION, SqlError
from undoubt.participants.contract import (
    Claim,
    CommitNotSent,
    Decision,
    Ending,
    Evidence,
    PreparedBranch,
    PrepareResult,
    PrepareUnanswered,
    Settled,
    Vote,
    Waiting,
    WaitNode,
    Work,
    XactStatus,
    judge,
)
from undoubt.participants.errors import (
    BranchFailed,
    ParticipantError,
    ParticipantRefused,
    ParticipantUnavailable,
    UsageError,
)
from undoubt.participants.findings import Finding
from undoubt.participants.ids import NO_KEY, Gid, Protocol, SessionKey
from undoubt.participants.last_agent import AgentEntry, AgentUnanswered
from undoubt.participants.three_phase import Charter, Event, StateRow

STATEMENT_TIMEOUT_S = 4.0
LOOKS_MAX = 8

_XACT_STATUSES = {
    "committed": XactStatus.COMMITTED,
    "aborted": XactStatus.ABORTED,
    "in progress": XactStatus.IN_PROGRESS,
}


class NoAnswer(Exception):
    """The statement was sent; the session is of no more use."""


class NotSent(NoAnswer):
    """The session was gone before."""


class Link(asyncio.Protocol):
    """The client's end of a session."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.lost = False
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.pid, self.timeline = 0, ""

    @classmethod
    async def open(cls, name: str, address: tuple[str, int]) -> Link:
        """Raises ``ParticipantUnavailable``."""
        link = cls()
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: link, *address)
            link.pid, link.timeline = await link.ask("whoami")
        except (OSError, NoAnswer, SqlError) as error:
            raise ParticipantUnavailable(name, f"cannot connect: {error}") from error
        return link

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, answer: Any) -> None:
        number, value = answer
        future = self._waiting.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(value, SqlError):
            future.set_exception(value)
        else:
            future.set_result(value)

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(NoAnswer("the connection was lost"))
        self._waiting.clear()

    async def ask(self, verb: str, *arguments: Any, timeout_s: float = STATEMENT_TIMEOUT_S) -> Any:
        """Raises ``SqlError``, ``NoAnswer``, ``NotSent``."""
        if self.lost or self.transport.is_closing():
            raise NotSent("the connection was lost")
        self._number += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = future
        self.transport.write((self._number, verb, arguments))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self.discard()
            raise NoAnswer(f"no answer to {verb} within {timeout_s} s") from None
        except asyncio.CancelledError:
            self.discard()
            raise

    def discard(self) -> None:
        self.lost = True
        self.transport.abort()


class SimulatedParticipant:
    """For one process. ``notes``: the database has the table that proves one-phase commits; ``rows``: that of
    the rows of last-agent commit."""

    def __init__(
        self, name: str, address: tuple[str, int], ledger_id: str, *, notes: bool, rows: bool = False
    ) -> None:
        self.name = name
        self.names = frozenset({name})
        self.other_ledgers: frozenset[str] = frozenset()
        self.address = address
        self.ledger_id = ledger_id
        self.notes = notes
        self.states = SimulatedStates(self)
        self.agent = agent.SimulatedAgent(self) if rows else None
        self._management: Link | None = None
        self._managing = asyncio.Lock()
        self._closed = False

    async def begin(self, gid: Gid, *, timeout_s: float, key: SessionKey = NO_KEY) -> SimulatedBranch:
        self._check_open()
        link = await Link.open(self.name, self.address)
        try:
            claim = (gid.txid.session, gid.txid.seq, key.backend(gid.txid, link.pid))
            await link.ask("begin", str(gid), claim)
        except SqlError as error:
            link.discard()
            raise ParticipantRefused(self.name, str(error), sqlstate=error.sqlstate) from error
        except NoAnswer as error:
            raise ParticipantUnavailable(self.name, str(error)) from error
        except BaseException:
            link.discard()
            raise
        return SimulatedBranch(self, link, gid, timeout_s, key)

    async def manage(self, verb: str, *arguments: Any) -> Any:
        """On the session that all calls without a branch share. Raises ``SqlError`` and
        ``ParticipantUnavailable``."""
        self._check_open()
        async with self._managing:
            if self._management is None or self._management.lost:
                self._management = await Link.open(self.name, self.address)
            link = self._management
        try:
            return await link.ask(verb, *arguments)
        except NoAnswer as error:
            raise ParticipantUnavailable(self.name, str(error)) from error

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"participant {self.name!r} is closed")

    async def in_doubt(self) -> Sequence[PreparedBranch]:
        standby, rows = await self.manage("list")
        if standby:
            raise ParticipantRefused(self.name, "the server is a standby")
        return [
            PreparedBranch(
                Gid.parse(text), owner, self.name, 0.0, age_s, xid, Evidence(xid, *where),
                owned=owner == APPLICATION,
            )
            for text, owner, xid, age_s, where in rows
        ]  # fmt: skip

    async def settle(self, gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
        verb = "commit_prepared" if order is Decision.COMMIT else "rollback_prepared"
        try:
            confirmed = await self.manage(verb, str(gid))
        except SqlError as error:
            # A gid exists once: where it is a stranger's (42501), ours is gone.
            if error.sqlstate in {"42704", "42501"}:
                xact_status = XactStatus.UNKNOWN if evidence is None else await self.evidence(evidence)
                return judge(order, xact_status)
            if error.sqlstate == "55000":
                return Settled.BUSY
            raise ParticipantRefused(self.name, str(error), sqlstate=error.sqlstate) from error
        return Settled.APPLIED if confirmed else Settled.BUSY

    async def settle_each(self, endings: Sequence[Ending]) -> None:
        """One by one: so a seed may crash the database between any two."""

    async def end_impostor(self, branch: PreparedBranch) -> Settled:
        listed = [(one.gid, one.owner, one.xid) for one in await self.in_doubt()]
        if (branch.gid, branch.owner, branch.xid) not in listed:
            return Settled.ABSENT
        try:
            await self.manage("rollback_prepared", str(branch.gid))
        except SqlError as error:
            if error.sqlstate == "42704":
                return Settled.ABSENT
            if error.sqlstate == "55000":
                return Settled.BUSY
            raise ParticipantRefused(self.name, str(error), sqlstate=error.sqlstate) from error
        return Settled.APPLIED

    async def evidence(self, evidence: Evidence) -> XactStatus:
        try:
            where = (evidence.system, evidence.timeline, evidence.history, evidence.position)
            status = await self.manage("status", evidence.xid, *where)
        except SqlError as error:
            if error.sqlstate == "22023":
                return XactStatus.NEVER_ASSIGNED
            raise ParticipantRefused(self.name, str(error), sqlstate=error.sqlstate) from error
        return _XACT_STATUSES.get(status, XactStatus.UNKNOWN)

    async def timeline_history(self) -> None:
        """Its role may not read that."""

    async def forget(self, gid: Gid) -> None:
        """It keeps no record of heuristic outcomes."""

    async def waits(self) -> Sequence[Waiting]:
        rows = await self.manage("waits")
        return [
            Waiting(self._node(waiter), self._node(holder), since, pid, xid)
            for waiter, holder, since, pid, xid in rows
        ]

    def _node(self, end: tuple[str | None, str, int, Any]) -> WaitNode:
        name, owner, pid, claim = end
        if name is None:
            return f"{self.name}/{pid}" if claim is None else Claim(claim[0], claim[1], pid, claim[2])
        gid = Gid.parse(name)
        ours = isinstance(gid, Gid) and gid.ledger == self.ledger_id and gid.participant in self.names
        return gid if isinstance(gid, Gid) and ours and owner == APPLICATION else f"{self.name}/{name}"

    async def cancel_waiter(self, waiting: Waiting) -> bool:
        return bool(await self.manage("cancel", waiting.pid, waiting.xid))

    async def check(self, *, protocol: Protocol = Protocol.TWO_PHASE) -> Sequence[Finding]:  # noqa: ARG002
        """Nothing is wrong with a simulated database that doctor could find."""
        return ()

    async def close(self) -> None:
        self._closed = True
        if self._management is not None:
            self._management.discard()


class SimulatedStates:
    """:class:`undoubt.participants.three_phase.States` of a simulated database."""

    def __init__(self, participant: SimulatedParticipant) -> None:
        self._participant = participant

    async def _ask(self, verb: str, *arguments: Any) -> Any:
        try:
            return await self._participant.manage("states", verb, *arguments)
        except SqlError as error:
            raise ParticipantRefused(self._participant.name, str(error), sqlstate=error.sqlstate) from error

    async def enlist(self, gid: Gid, charter: Charter, note: bytes = b"") -> bool:
        return bool(await self._ask("enlist", gid, charter, note))

    async def read(self, gid: Gid) -> StateRow | None:
        row: StateRow | None = await self._ask("read", gid)
        return row

    async def elect(self, gid: Gid, election: int, charter: Charter) -> StateRow | None:
        row: StateRow | None = await self._ask("elect", gid, election, charter)
        return row

    async def attempt(self, gid: Gid, election: int, event: Event) -> bool:
        return bool(await self._ask("attempt", gid, election, event))

    async def bury(self, gid: Gid, charter: Charter) -> bool:
        return bool(await self._ask("bury", gid, charter))

    async def unfinished(self) -> Sequence[tuple[Gid, StateRow]]:
        rows: Sequence[tuple[Gid, StateRow]] = await self._ask("unfinished")
        return rows

    async def stale(self, older_than_s: float, buried_s: float) -> Sequence[Gid]:
        gids: Sequence[Gid] = await self._ask("stale", older_than_s, buried_s)
        return gids

    async def forget(self, gids: Sequence[Gid]) -> None:
        await self._ask("forget", gids)


class Account:
    """What the application holds: ``execute`` of an update or a read, in its branch."""

    def __init__(self, branch: SimulatedBranch) -> None:
        self._branch = branch

    async def add(self, account: int, delta: int, *, lock_timeout_s: float = 20.0) -> int:
        branch = self._branch
        result: int = await self._ask("update", account, delta, lock_timeout_s)
        branch.wrote = True
        return result

    async def read(self, account: int) -> int:
        result: int = await self._ask("read", account)
        return result

    async def finish_by_application(self, *, commit: bool) -> None:
        await self._ask("finish_by_application", commit)

    async def _ask(self, verb: str, *arguments: Any) -> Any:
        branch = self._branch
        if branch.over:
            raise UsageError("the branch is over")
        try:
            return await branch.link.ask(verb, *arguments, timeout_s=60.0)
        except NoAnswer as error:
            raise ParticipantUnavailable(branch.participant.name, str(error)) from error


class SimulatedBranch:
    def __init__(
        self, participant: SimulatedParticipant, link: Link, gid: Gid, timeout_s: float, key: SessionKey
    ) -> None:
        self.participant = participant
        self.link = link
        self.gid = gid
        self.over = False
        self.wrote = False
        self._proof = key.proof(gid)
        self._timeout_s = max(timeout_s, STATEMENT_TIMEOUT_S)
        self._asked = False
        self._evidence: Evidence | None = None
        self._settled: Settled | None = None

    @property
    def connection(self) -> Account:
        return Account(self)

    @property
    def prepares(self) -> bool:
        return True

    @property
    def surely_writes(self) -> bool:
        return self.wrote

    def break_off(self, why: Callable[[], Exception]) -> None:
        self.over = True

    def _failed(self, why: object, sqlstate: str | None = None) -> BranchFailed:
        return BranchFailed(self.participant.name, str(why), sqlstate=sqlstate)

    async def poll(self) -> Work:
        self.over = True
        try:
            marker, xid = await self.link.ask("poll")
        except SqlError as error:
            raise self._failed(error, error.sqlstate) from error
        except NoAnswer as error:
            raise self._failed(error) from error
        if marker != str(self.gid):
            raise self._failed("the branch was ended by the application")
        return Work.READ_ONLY if xid is None else Work.WRITES

    async def prepare(self) -> PrepareResult:
        self.over = True
        self._asked = True
        try:
            proof = self._proof if self.gid.protocol is Protocol.THREE_PHASE else b""
            tag, evidence, confirmed = await self.link.ask("prepare", str(self.gid), proof)
        except SqlError as error:
            self._asked = False
            return PrepareResult(Vote.ABORT, reason=self._failed(error, error.sqlstate))
        except NotSent as error:
            self._asked = False
            return PrepareResult(Vote.ABORT, reason=self._failed(error))
        except NoAnswer as error:
            raise PrepareUnanswered(ParticipantUnavailable(self.participant.name, str(error))) from error
        if tag != "PREPARE TRANSACTION":
            self._asked = False
            return PrepareResult(Vote.ABORT, reason=self._failed(f"PREPARE answered {tag}"))
        if not confirmed:
            raise PrepareUnanswered(ParticipantUnavailable(self.participant.name, "no standby confirmed it"))
        self._evidence = Evidence(*evidence)
        return PrepareResult(Vote.PREPARED, self._evidence)

    async def check_as_agent(self, entry: AgentEntry) -> None:
        await self.poll()
        try:
            await agent.check(self.link, entry, self._failed)
        except (SqlError, NoAnswer) as error:
            raise self._failed(error) from error

    async def commit_as_agent(self, entry: AgentEntry, branches: bytes) -> None:
        self.over = True
        try:
            await agent.commit(self.link, str(self.gid), entry, branches, self._failed)
        except SqlError as error:
            raise self._failed(error, error.sqlstate) from error
        except NotSent as error:
            raise self._failed(error) from error
        except NoAnswer as error:
            raise AgentUnanswered(ParticipantUnavailable(self.participant.name, str(error))) from error

    async def commit_one_phase(self) -> Settled:
        self.over = True
        proof = self._proof if self.participant.notes else b""
        try:
            tag = await self.link.ask("commit", str(self.gid), proof, timeout_s=self._timeout_s)
        except SqlError as error:
            raise self._failed(error, error.sqlstate) from error
        except NotSent as error:
            raise self._failed(error) from error
        except NoAnswer:
            self._settled = await self._look_up()
            return self._settled
        if tag != "COMMIT":
            raise self._failed(f"COMMIT answered {tag}")
        self._settled = Settled.APPLIED
        return Settled.APPLIED

    async def _look_up(self) -> Settled:
        """The row that was written inside the branch proves either, where there is such a table."""
        pause_s = 0.02
        for _ in range(LOOKS_MAX):
            await asyncio.sleep(pause_s)
            pause_s *= 2
            try:
                arguments = (self._proof, self.link.pid, self.link.timeline)
                noted, gone = await self.participant.manage("noted", *arguments)
            except (SqlError, ParticipantError):
                continue
            if noted:
                return Settled.APPLIED
            if gone and self.participant.notes and self.wrote:
                return Settled.ABSENT
        return Settled.HEURISTIC_HAZARD

    async def commit(self) -> Settled:
        if self._settled is None:
            self._settled = await (self._settle(Decision.COMMIT) if self._asked else self._end_reading())
        return self._final()

    async def rollback(self) -> Settled:
        self.over = True
        if self._settled is None:
            self._settled = await (self._settle(Decision.ABORT) if self._asked else self._undo())
        return self._final()

    def _final(self) -> Settled:
        settled = self._settled or Settled.BUSY
        if settled is Settled.BUSY or (settled is Settled.ABSENT and self._evidence is None and self._asked):
            self._settled = None
        return settled

    async def _settle(self, order: Decision) -> Settled:
        verb = "commit_prepared" if order is Decision.COMMIT else "rollback_prepared"
        try:
            if await self.link.ask(verb, str(self.gid)) or order is Decision.ABORT:
                return Settled.APPLIED
        except SqlError as error:
            if error.sqlstate == "55000":
                return Settled.BUSY
        except NoAnswer:
            pass
        else:
            return Settled.BUSY
        return await self.participant.settle(self.gid, order, self._evidence)

    async def _end_reading(self) -> Settled:
        try:
            tag = await self.link.ask("commit", str(self.gid), b"")
        except SqlError as error:
            raise self._failed(error, error.sqlstate) from error
        except NotSent as error:
            raise CommitNotSent(self._failed(error)) from error
        except NoAnswer as error:
            raise ParticipantUnavailable(self.participant.name, str(error)) from error
        if tag != "COMMIT":
            raise self._failed(f"COMMIT answered {tag}")
        return Settled.APPLIED

    async def _undo(self) -> Settled:
        try:
            await self.link.ask("rollback")
        except (SqlError, NoAnswer):
            self.link.discard()
        return Settled.APPLIED

    async def forget(self) -> None:
        """It keeps no record of heuristic outcomes."""

    async def release(self) -> None:
        self.over = True
        self.link.transport.close()
