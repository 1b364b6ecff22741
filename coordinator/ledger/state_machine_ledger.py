"""The contract of the ledger over a state machine in this process.

Each backend adds ``propose``, which makes a command durable before it is applied. Queries read the applied
state. A command is applied before its caller is answered, so a query sees all changes that were answered
before. If another process may have answered changes that this process has not applied yet, ``_up_to_date``
waits for them first."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import time
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.agents import AgentBinding, AgentKey
from undoubt.coordinator.ledger.commands import (
    DURATION_MS_MAX,
    RULES,
    TAGS_VERSION,
    AdvanceTime,
    CloseSession,
    Command,
    Decide,
    Doom,
    DrawSecret,
    ExpireSession,
    Finish,
    ForgetHeuristic,
    Judge,
    KeepAlive,
    OpenSession,
    Precommit,
    RecordAct,
    RecordHeuristic,
    Restore,
    check_asked,
    check_command,
    check_limit,
    check_page,
)
from undoubt.coordinator.ledger.contract import (
    ACTS_MAX,
    CAUSE_CHARACTERS_MAX,
    UNFINISHED_MAX,
    Acceptors,
    Act,
    BranchRecord,
    DecisionRecord,
    Heuristic,
    LedgerInfo,
    RecordedDecision,
    Session,
    SessionInfo,
    SessionState,
    TransactionInfo,
    Verdict,
    without_newer,
)
from undoubt.coordinator.ledger.history import newest
from undoubt.coordinator.ledger.keyed_ledger import KeyedLedger
from undoubt.coordinator.ledger.leases import Leases
from undoubt.coordinator.ledger.lock_serving import MachineLocks
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.ledger.pages import Pages
from undoubt.coordinator.ledger.rules import Names, new_request, new_secret, nonce_of
from undoubt.coordinator.ledger.state import PrecommitRecord
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.supervision import Upkeep
from undoubt.participants.bounds import seconds
from undoubt.participants.contract import Claim, Decision
from undoubt.participants.errors import UndoubtError, UsageError
from undoubt.participants.ids import Gid, Protocol, TxId

UPKEEP_INTERVAL_S = 0.5
TIME_STEP_S = 60.0
"""How often ledger time is advanced."""
TIME_STEP_S_MAX = TIME_STEP_S + 10 * UPKEEP_INTERVAL_S
"""The most by which ledger time is advanced at once. What was stored since the last advance has the time of
that advance: it would look older than it is by all that is advanced now. Ledger time stands still for the
rest of the time in which the process was stopped, or a quorum was missing."""
SESSION_SKIP = 1 << 32
"""More sessions than any ledger can open after its backup, so that no number is issued twice."""


log = logging.getLogger(__name__)


class Agreed(typing.Protocol):
    """The version that all processes of the ledger have agreed on. It may rise."""

    version: int


class _Newest:
    version = TAGS_VERSION


NEWEST = _Newest()
"""The version of a ledger in which only one process proposes and applies commands."""


class StateMachineLedger(KeyedLedger, MachineLocks):
    """Implements :class:`~undoubt.coordinator.ledger.contract.Ledger`; a backend adds ``propose`` and the
    store of history.

    ``owner`` names this process in the sessions that it opens for itself. ``clock`` is monotonic, in seconds;
    ``wall`` returns seconds since 1970, for operators only.
    """

    backend = "local"
    schema = "-"
    acceptors: Acceptors | None = None

    def __init__(
        self,
        machine: Machine,
        settings: LedgerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        agreed: Agreed = NEWEST,
    ) -> None:
        """``agreed``: the version that all processes that may apply a command have agreed on."""
        self.machine = machine
        super().__init__()
        self._agreed = agreed
        self.settings = settings
        self.owner = ""
        self._clock = clock
        self._wall = wall
        self._leases = Leases()
        self._pages = Pages()
        self._time_advanced_at = clock()
        self._names = Names(machine.state.ledger_id, machine.state.secret)

    @property
    def names(self) -> Names:
        """The names that this ledger gives, by the state that is applied here."""
        state = self.machine.state
        if (self._names.ledger_id, self._names.secret) != (state.ledger_id, state.secret):
            self._names = Names(state.ledger_id, state.secret)
        return self._names

    @property
    def ledger_id(self) -> str:
        return self.machine.state.ledger_id

    @property
    def leads(self) -> bool:
        return True

    @abc.abstractmethod
    async def propose(self, command: Command) -> Any:
        """Make ``command`` durable, apply it, return its result. Raises ``LedgerError``."""

    @abc.abstractmethod
    async def _history_of(self, txid: TxId) -> DecisionRecord | None:
        """The record of a finished transaction, which is kept outside of the machine; None if there is
        none."""

    @abc.abstractmethod
    async def _history(self, limit: int, before: DecisionRecord | None) -> Sequence[DecisionRecord]:
        """The newest finished records, by time of decision and then id, older than ``before``."""

    def _voters(self) -> tuple[int, ...]:
        """The numbers of the nodes to which a new session is bound."""
        return ()

    async def voters(self) -> Sequence[int]:
        """The nodes to which a session is bound if it is opened now with ``bind``."""
        await self._up_to_date()
        return self._voters()

    async def _up_to_date(self) -> None:  # noqa: B027 - nothing to wait for if no other process answers
        """Return once the machine has applied all changes that any caller was answered before. Raises
        ``LedgerError``."""

    def _now_s(self) -> float:
        return self._wall()

    async def _run(self, command: Command) -> Any:
        check_command(command)
        return await self._run_checked(command)

    async def _run_checked(self, command: Command) -> Any:
        """Propose a command that was checked already."""
        result = await self.propose(command)
        if isinstance(result, UndoubtError):
            raise result
        return result

    # Sessions.

    async def open_session(
        self,
        name: str,
        ttl_s: float,
        *,
        remote: bool = False,
        request: str = "",
        nonce: str = "",
        bind: bool = False,
        agent: AgentBinding | None = None,
    ) -> Session:
        """Open a session. ``remote``: the opener is another process, which may outlive this one and has drawn
        the ``request``, or, if it is of version 0.1.0, which has no tags, the ``nonce``. ``bind``: whether
        the session is bound to the present voters."""
        ttl_s = seconds("ttl_s", ttl_s, least=0.001)
        owner = "" if remote else self.owner
        if not nonce:
            request = request or new_request()
        if request:
            nonce = nonce_of(request)
            await self.draw_secret()
        tagged = bool(request and self.machine.state.secret)
        acceptors = self._voters() if bind else ()
        command = OpenSession(nonce, name, round(ttl_s * 1000), owner, acceptors, tagged, agent)
        session: Session = await self._run(command)
        self._leases.renew(session.id, session.ttl_s, self._clock())
        book = self.machine.state.sessions.get(session.id)
        if request and book is not None and book.tagged:
            key = self.names.key_bytes(session.id, session.nonce)
            session = msgspec.structs.replace(session, key=key)
        return session

    async def draw_secret(self) -> None:
        """Draw the ledger's secret if there is none and the agreed version has secrets. A ledger of version
        0.1.0 has none."""
        if not self.machine.state.secret and self._agreed.version >= TAGS_VERSION:
            await self._run(DrawSecret(new_secret()))

    async def agree_on_rules(self) -> None:
        """Have commands checked when they are applied, from now on, if the agreed version has the rules."""
        if self.machine.state.rules < RULES and self._agreed.version >= TAGS_VERSION:
            await self._run(Judge(RULES))

    async def keep_alive(self, session: Session, floor: int) -> None:
        await self._up_to_date()
        book = self.machine.state.sessions.get(session.id)
        alive = book is not None and book.nonce == session.nonce and book.state is SessionState.OPEN
        if book is None or not alive or floor > book.floor:
            await self._run(KeepAlive(session.id, session.nonce, floor))
        if book is not None:  # by the recorded lifetime, whatever lifetime the caller sends
            self._leases.renew(session.id, book.ttl_ms / 1000, self._clock())

    async def agent_keys(self, txids: Iterable[TxId]) -> Sequence[AgentKey | None]:
        await self._up_to_date()
        return [self.names.agent_key(txid, self.machine.agent(txid)) for txid in txids]

    async def close_session(self, session: Session) -> None:
        await self._run(CloseSession(session.id, session.nonce))

    async def sessions(self) -> Sequence[SessionInfo]:
        await self._up_to_date()
        return self.machine.session_infos()

    # Decisions.

    async def decide(
        self,
        txid: TxId,
        decision: Decision,
        branches: Sequence[BranchRecord],
        *,
        protocol: Protocol = Protocol.TWO_PHASE,
        cause: str = "",
    ) -> Decision:
        command = self.decide_command(txid, decision, branches, protocol, cause)
        decided: Decision = await self._run_checked(command)
        return decided

    def decide_command(
        self, txid: TxId, decision: Decision, branches: Sequence[BranchRecord], protocol: Protocol, cause: str
    ) -> Decide:
        """A checked command, ready to be proposed. Raises ``Impostor``, ``UsageError``."""
        self._check(txid, protocol, decision, branches)
        known = self._known(branches)
        cause = cause[:CAUSE_CHARACTERS_MAX] if self._agreed.version >= TAGS_VERSION else ""
        command = Decide(txid, protocol, decision, known, self._wall(), cause)
        check_command(command)
        return command

    def _check(
        self, txid: TxId, protocol: Protocol, decision: Decision, branches: Sequence[BranchRecord]
    ) -> None:
        book = self.machine.state.sessions.get(txid.session)
        tagged = book is not None and book.nonce == txid.nonce and book.tagged
        self.names.check(txid, protocol, decision, branches, tagged=tagged)

    def _known(self, branches: Sequence[BranchRecord]) -> tuple[BranchRecord, ...]:
        """``branches`` with only the fields of the agreed version."""
        if self._agreed.version >= TAGS_VERSION:
            return tuple(branches)
        return tuple(without_newer(branch) for branch in branches)

    async def precommit(
        self, txid: TxId, branches: Sequence[BranchRecord], *, protocol: Protocol = Protocol.THREE_PHASE
    ) -> None:
        self._check(txid, protocol, Decision.COMMIT, branches)
        await self._run(Precommit(txid, protocol, self._known(branches), self._wall()))

    async def outcomes(self, gids: Iterable[Gid]) -> Mapping[Gid, Verdict]:
        await self._up_to_date()
        asked = list(gids)
        issued = max((gid.txid.session for gid in asked if self._never_issued(gid)), default=0)
        if issued >= self.machine.state.next_session:
            await self.begin_incarnation(
                f"it has given names in session {issued}, and its records end before session"
                f" {self.machine.state.next_session}",
                issued,
            )
        return {gid: self._verdict(gid) for gid in asked}

    async def begin_incarnation(self, why: str, issued: int = 0) -> None:
        """Begin a new incarnation, because the ledger was set back: records were lost, up to session
        ``issued`` at least. ``why`` is logged."""
        log_new_incarnation(why)
        await self._run(Restore(SESSION_SKIP, issued))

    def _never_issued(self, gid: Gid) -> bool:
        """Whether the ledger gave the name ``gid`` in a session that its records do not contain yet: it was
        set back."""
        return gid.txid.session >= self.machine.state.next_session and self.names.gave(gid)

    def _verdict(self, gid: Gid) -> Verdict:
        if gid.ledger != self.ledger_id:
            return Verdict.IMPOSTOR
        if gid.tag:
            ours = self.names.gave(gid)
        else:
            # Names of version 0.1.0 have no proof; they count as given by this ledger as long as their
            # session is known.
            book = self.machine.state.sessions.get(gid.txid.session)
            ours = book is not None and book.nonce == gid.txid.nonce and not book.tagged
            ours = ours or not self.machine.state.secret
        return self.machine.verdict(gid.txid, gid.protocol) if ours else Verdict.IMPOSTOR

    async def old_outcomes(self, txids: Iterable[TxId], protocol: Protocol) -> list[Verdict]:
        """The verdicts for a recovery of version 0.1.0, which asks by transaction. For a session with tags
        the answer is ACTIVE, on which that recovery does not act: it treats such names as foreign."""
        await self._up_to_date()
        sessions = self.machine.state.sessions
        return [
            Verdict.ACTIVE
            if (book := sessions.get(txid.session)) is not None and book.tagged
            else self.machine.verdict(txid, protocol)
            for txid in txids
        ]

    async def backends(self, claims: Iterable[Claim]) -> Sequence[TxId | None]:
        await self._up_to_date()
        return [self._proved(claim) for claim in claims]

    def _proved(self, claim: Claim) -> TxId | None:
        book = self.machine.state.sessions.get(claim.session)
        return None if book is None or not book.tagged else self.names.proved(claim, book.nonce)

    async def doom(self, txid: TxId, cause: str) -> None:
        if self._agreed.version >= TAGS_VERSION:
            await self._run(Doom(txid, cause[:CAUSE_CHARACTERS_MAX]))

    async def doomed(self, txid: TxId) -> str | None:
        await self._up_to_date()
        return self.machine.state.doomed.get(txid)

    async def records(self, txids: Iterable[TxId]) -> Mapping[TxId, RecordedDecision]:
        await self._up_to_date()
        return {txid: self.machine.record(txid) for txid in txids}

    async def unfinished(
        self, *, after: TxId | None = None, limit: int = UNFINISHED_MAX
    ) -> Sequence[DecisionRecord]:
        check_page(limit, after)
        await self._up_to_date()
        return self._pages.page(self.machine.state.unfinished, after, limit)

    async def old_unfinished(self) -> Sequence[DecisionRecord]:
        """All unfinished decisions in one answer, for a process of version 0.1.0."""
        await self._up_to_date()
        return self.machine.unfinished()

    async def finish(self, txids: Iterable[TxId]) -> None:
        await self._up_to_date()
        known = tuple(txid for txid in txids if txid in self.machine.state.unfinished)
        if known:
            await self._run(Finish(known))

    # Heuristics.

    async def record_heuristic(self, heuristic: Heuristic) -> None:
        await self._run(RecordHeuristic(heuristic, self._agreed.version >= TAGS_VERSION))

    async def forget_heuristic(self, gid: Gid, *, request: str = "") -> bool:
        return bool(await self._run(ForgetHeuristic(gid, request)))

    async def heuristics(self, *, include_forgotten: bool = False) -> Sequence[Heuristic]:
        await self._up_to_date()
        return self.machine.heuristics(include_forgotten=include_forgotten)

    # For operators.

    async def record_act(self, act: Act) -> None:
        await self._run(RecordAct(act.clipped(), ACTS_MAX))

    async def acts(self, *, limit: int) -> Sequence[Act]:
        check_limit(limit)
        await self._up_to_date()
        return self.machine.acts(limit)

    async def transaction(self, txid: TxId) -> TransactionInfo | None:
        check_asked(txid)
        await self._up_to_date()
        record = await self._record_of(txid)
        if record is None and self.machine.record(txid) is RecordedDecision.NOT_RECORDED:
            undecided = self.machine.precommitted(txid)
            return None if undecided is None else self._undecided_info(undecided)
        return self._info(txid, record)

    async def transactions(self, *, limit: int, before: TxId | None = None) -> Sequence[TransactionInfo]:
        check_limit(limit)
        check_asked(before)
        await self._up_to_date()
        marker = None
        if before is not None:
            marker = await self._record_of(before)
        found = {
            record.txid: record
            for record in self.machine.unfinished()
            if marker is None or newest(marker) < newest(record)
        }
        # In this order: a transaction that is finished meanwhile is found twice, and not missed.
        found |= {record.txid: record for record in await self._history(limit, marker)}
        return [self._info(record.txid, record) for record in sorted(found.values(), key=newest)[:limit]]

    async def _record_of(self, txid: TxId) -> DecisionRecord | None:
        """The record at one moment, although reading history takes time: the transaction may be decided and
        finished meanwhile."""
        while True:
            recorded = self.machine.record(txid)
            record = self.machine.state.unfinished.get(txid) or await self._history_of(txid)
            if record is not None or self.machine.record(txid) is recorded:
                return record

    def _info(self, txid: TxId, record: DecisionRecord | None) -> TransactionInfo:
        heuristics = [
            heuristic
            for heuristic in self.machine.heuristics(include_forgotten=True)
            if heuristic.gid.txid == txid
        ]
        protocol = None if record is None else record.protocol
        recorded = self.machine.record(txid)
        if record is not None and recorded is RecordedDecision.NOT_RECORDED:
            # The session was dropped; history is kept for longer.
            recorded = RecordedDecision(str(record.decision))
        return TransactionInfo(
            txid,
            recorded,
            self.machine.verdict(txid, protocol),
            protocol or "",
            () if record is None else record.branches,
            None if record is None else record.decided_at,
            "" if record is None else record.coordinator,
            txid not in self.machine.state.unfinished,
            tuple(heuristics),
            cause="" if record is None else record.cause,
            key=self.machine.state.keys.kept_of(txid) or "",
        )

    def _undecided_info(self, record: PrecommitRecord) -> TransactionInfo:
        return TransactionInfo(
            record.txid,
            RecordedDecision.NOT_RECORDED,
            self.machine.verdict(record.txid, record.protocol),
            record.protocol,
            record.branches,
            None,
            record.coordinator,
            finished=False,
            heuristics=(),
            precommitted=True,
        )

    async def backup(self, path: Path) -> int:
        """Write a backup to ``path``; returns its size in bytes. Raises ``UsageError``, ``LedgerError``."""
        raise UsageError(
            f"a {self.backend} ledger cannot write a backup to {path}; for a cluster use `undoubt cluster"
            " backup`"
        )

    async def info(self) -> LedgerInfo:
        await self._up_to_date()
        state = self.machine.state
        infos = self.machine.session_infos()
        return LedgerInfo(
            ledger_id=state.ledger_id,
            incarnation=state.incarnation,
            url=self.settings.url,
            backend=self.backend,
            schema=self.schema,
            ledger_time_s=state.time_ms / 1000,
            sessions_open=sum(info.state is SessionState.OPEN for info in infos),
            sessions_kept=len(infos),
            unfinished=len(state.unfinished),
            decisions_kept=sum(len(book.committed) + len(book.aborted) for book in state.sessions.values())
            + len(state.unfinished),
            heuristics_open=len(self.machine.heuristics(include_forgotten=False)),
        )

    # Upkeep, in the process that owns or leads the ledger.

    def upkeep(self, name: str) -> Upkeep:
        """The loop that the process that owns or leads the ledger has to start. ``name``: as in
        ``Supervised``."""
        undone = "sessions cannot be expired now"
        return Upkeep(name, self._keep_up, UPKEEP_INTERVAL_S, undone=undone, pause=self._pause)

    async def _keep_up(self) -> None:
        """One turn: expire sessions, and once in :data:`TIME_STEP_S` advance ledger time."""
        try:
            await self._look_after()
        finally:
            if self.leads and self._clock() - self._time_advanced_at >= TIME_STEP_S:
                await self.advance_time()

    async def _look_after(self) -> None:
        await self.expire_due()

    async def _pause(self, seconds: float) -> None:
        """Sleep for ``seconds``. If it takes far longer (a stopped process, an overloaded machine), renewals
        may be waiting to be read: then all deadlines are postponed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        await asyncio.sleep(seconds)
        late_s = loop.time() - end
        if late_s > seconds:
            self._leases.postpone(late_s)

    async def expire_due(self) -> list[int]:
        """Expire the sessions that were not renewed in time; returns their numbers."""
        expired = []
        for number in self._leases.due(self.machine.session_infos(), self._clock()):
            # It may have been renewed meanwhile, and its coordinator answered.
            if self._leases.is_due(number, self._clock()):
                await self._run(ExpireSession(number))
                expired.append(number)
        return expired

    async def advance_time(self) -> None:
        """Advance ledger time by the elapsed time, at most by :data:`TIME_STEP_S_MAX`, and drop sessions and
        keys that are older than the retention. What a key or a session has as its time is that of the last
        advance before: so they are kept for the longest step of time longer, and none is dropped within the
        retention."""
        now = self._clock()
        elapsed_s = min(now - self._time_advanced_at, TIME_STEP_S_MAX)
        kept_ms = min(round((self.settings.retention_s + TIME_STEP_S_MAX) * 1000), DURATION_MS_MAX)
        # Before the answer: a command whose answer is lost may be applied, and must not be counted twice. One
        # that is lost itself only makes the retention longer.
        self._time_advanced_at = now
        with contextlib.suppress(LedgerError):
            await self._run(AdvanceTime(round(elapsed_s * 1000), kept_ms))


def log_new_incarnation(why: str) -> None:
    """Log that the ledger begins a new incarnation by itself."""
    log.error(
        "the ledger was set back: %s. A new incarnation begins; an operator has to decide the undecided"
        " transactions",
        why,
    )
