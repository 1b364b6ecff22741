"""Runs branches for other sidecars: statements of services that join a transaction of another sidecar, the
owner.

Duties, in order:

1. Ask the owner for a branch. The owner verifies the capability and returns the gid.
2. Begin the branch with this sidecar's role in the database, and run the statements.
3. Prepare the branch when the owner orders it. The owner then reads the branch from the database
   (:mod:`.agent_branch`), and ends it there.

An order contains a secret that this process has drawn for the branch, and has sent to the owner only.

A branch that is not prepared at its deadline is rolled back, also if the owner does not answer any more: it
can then never be prepared, and the owner can only abort. A prepared branch is ended by the owner or by
recovery."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec

from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.errors import LedgerUnavailable, TransactionAborted
from undoubt.coordinator.protocols.causes import may_come_of_a_cancellation
from undoubt.participants.contract import Branch, PrepareUnanswered, Vote
from undoubt.participants.errors import BranchFailed, ParticipantError
from undoubt.participants.ids import Gid
from undoubt.participants.outbox import Publication, PublishingBranch
from undoubt.participants.plural import plural
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.psycopg.connection import AsyncBranchConnection
from undoubt.serve.sidecar import statements
from undoubt.serve.sidecar.book import wait_while
from undoubt.serve.sidecar.capability import SealedCapability
from undoubt.serve.sidecar.idempotency import Answer
from undoubt.serve.sidecar.peers import OtherSidecars
from undoubt.serve.sidecar.problems import RequestRefused, busy, reason_of
from undoubt.serve.sidecar.settings import SidecarSettings
from undoubt.serve.sidecar.sql_values import Parameter
from undoubt.serve.sidecar.types import AgentBegun, AgentRequest, Problem, Rows

log = logging.getLogger(__name__)

NO_AGENT = "NoAgent"
"""The owner's answer if it runs the statements of that participant itself."""


Key = tuple[bytes, str]
"""The hash of the capability's text, and a participant: another capability never reaches the same branch."""
AT_OWNER_MAX = 10_000
FORGOTTEN_S = 86_400.0


class OwnerAnswered(Exception):
    """The owner refused; ``answer`` is for the client."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class AgentState(enum.Enum):
    OPEN = "open"
    PREPARING = "preparing"
    PREPARED = "prepared"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class AgentWork:
    """One branch. ``why`` is the reason why it was rolled back."""

    branch: Branch
    key: Key
    secret: str = field(repr=False)
    state: AgentState = AgentState.OPEN
    set_up: bool = False
    """Its session has the settings with which values are written (:func:`.statements.begin`)."""
    why: BaseException | None = None
    statements: asyncio.Lock = field(default_factory=asyncio.Lock)
    voting: asyncio.Task[None] | None = None
    timers: tuple[asyncio.TimerHandle, ...] = ()

    @property
    def gid(self) -> Gid:
        return self.branch.gid

    def check_open(self) -> None:
        """Raises :class:`RequestRefused`."""
        if self.state is AgentState.ENDED:
            raise self.refusal()
        if self.state is not AgentState.OPEN:
            raise RequestRefused(
                409,
                "TransactionEnded",
                "its commit has begun: nothing more can be done in it",
                transaction=str(self.gid.txid),
            )

    def refusal(self) -> RequestRefused:
        """The answer to a request that needs the branch, which is rolled back."""
        return RequestRefused(
            409,
            "BranchFailed",
            "the branch is rolled back, and its transaction can only abort: "
            + reason_of(self.why or "it was not prepared"),
            participant=self.gid.participant,
            sqlstate=(self.why.sqlstate or "") if isinstance(self.why, ParticipantError) else "",
            transaction=str(self.gid.txid),
        )


class Agency:
    """The branches that one process runs for other sidecars."""

    def __init__(self, coordinator: Coordinator, settings: SidecarSettings, peers: OtherSidecars) -> None:
        self._coordinator = coordinator
        self._settings = settings
        self._peers = peers
        self._begun: dict[Key, asyncio.Task[AgentWork | None]] = {}
        self._at_owner: dict[Key, None] = {}
        """Where the owner runs the statements itself; the oldest first."""
        self._works: dict[tuple[str, int], AgentWork] = {}
        """By transaction and number of the branch."""
        self._ending: set[asyncio.Task[None]] = set()
        self._draining = False

    @property
    def open(self) -> int:
        """Branches that are neither prepared nor rolled back."""
        return sum(work.state in {AgentState.OPEN, AgentState.PREPARING} for work in self._works.values())

    async def execute(
        self,
        shown: SealedCapability,
        owner: str,
        participant: PostgresParticipant,
        sql: str,
        parameters: Sequence[Parameter],
    ) -> Rows | None:
        """Run a statement in the branch of ``participant``, which the first one begins; None if the owner is
        to run it. Raises :class:`OwnerAnswered`, :class:`RequestRefused`, ``TransactionAborted``, what
        ``OtherSidecars.join`` and ``Participant.begin`` raise, and what :func:`.statements.run` raises."""
        work = await self._work(shown, owner, participant)
        if work is None:
            return None
        async with self._used(work) as connection:
            try:
                return await statements.run(connection, participant.name, sql, parameters, self._settings)
            except statements.UnreadableAnswer as error:
                await self._end(work, statements.without_frames(error))
                raise work.refusal() from None

    async def publish(
        self, shown: SealedCapability, owner: str, participant: PostgresParticipant, message: Publication
    ) -> str | None:
        """Put a message into the outbox of ``participant``, in such a branch. Returns its dedupe id; None,
        and raises, as :meth:`execute`."""
        work = await self._work(shown, owner, participant)
        if work is None:
            return None
        async with self._used(work):
            if not isinstance(work.branch, PublishingBranch):
                raise TypeError(type(work.branch))
            return await work.branch.publish(message)

    @contextlib.asynccontextmanager
    async def _used(self, work: AgentWork) -> AsyncIterator[AsyncBranchConnection]:
        """For one call, the connection of the branch. Raises ``TransactionAborted`` if the call fails because
        another process has aborted the transaction: the database says only that it was cancelled."""
        async with work.statements:
            work.check_open()
            connection = work.branch.connection
            if not isinstance(connection, AsyncBranchConnection):
                raise TypeError(type(connection))
            if not work.set_up:
                await statements.begin(connection, work.gid.participant)
                work.set_up = True
            try:
                yield connection
            except (statements.StatementFailed, ParticipantError) as error:
                cause = None
                if may_come_of_a_cancellation(error):
                    cause = await self._coordinator.why_doomed(work.gid.txid)
                if cause is None:
                    raise
                await self._end(work, cause)
                raise TransactionAborted(work.gid.txid, cause) from error

    async def _work(
        self, shown: SealedCapability, owner: str, participant: PostgresParticipant
    ) -> AgentWork | None:
        key = (hashlib.sha256(shown.text.encode()).digest(), participant.name)
        if key in self._at_owner:
            return None
        task = self._begun.get(key)
        if task is None:
            if self._draining:
                raise busy("Draining", "this sidecar is about to end: use another one", status=503)
            if len(self._begun) >= self._settings.transactions_max:
                count = plural(len(self._begun), "branch runs", "branches run")
                raise busy("TooManyTransactions", f"{count} for other sidecars")
            task = self._begun[key] = asyncio.create_task(self._begin(key, shown, owner, participant))
            task.add_done_callback(_seen)
        await asyncio.wait([task])
        return task.result()

    async def _begin(
        self, key: Key, shown: SealedCapability, owner: str, participant: PostgresParticipant
    ) -> AgentWork | None:
        work: AgentWork | None = None
        try:
            begun, secret = await self._named(shown, owner, participant.name)
            if begun is None:
                self._at_owner[key] = None
                if len(self._at_owner) > AT_OWNER_MAX:
                    del self._at_owner[next(iter(self._at_owner))]
                return None
            gid = _checked(begun.gid, shown, participant)
            timeout_s = min(begun.timeout_ms / 1000, self._settings.timeout_max_s)
            work = AgentWork(await participant.begin(gid, timeout_s=timeout_s), key, secret)
        finally:
            if work is None:
                self._begun.pop(key, None)
        self._works[str(gid.txid), gid.branch] = work
        refused_s = max(timeout_s, shown.capability.expires - time.time())
        loop = asyncio.get_running_loop()
        work.timers = (
            loop.call_later(timeout_s, self._expire, work),
            # Until then the header may be shown again, and nothing new is to be begun with it.
            loop.call_later(min(refused_s, FORGOTTEN_S), self._forget, work),
        )
        return work

    async def _named(
        self, shown: SealedCapability, owner: str, participant: str
    ) -> tuple[AgentBegun | None, str]:
        """The owner's name for a new branch, and the secret that the owner was told."""
        session = self._coordinator.session
        if session is None:
            raise LedgerUnavailable("this sidecar has no session with the ledger now")
        secret = secrets.token_urlsafe(32)
        body = msgspec.json.encode(AgentRequest(participant, f"{session.id}-{session.nonce}", secret))
        url = f"{owner}/v1/transactions/{shown.capability.transaction}/agents"
        asking = self._peers.join("POST", url, shown, body, {"content-type": "application/json"})
        answer = await self._peers.while_open(self._coordinator.ledger, shown.capability.txid, asking)
        if answer.status == 201:
            return msgspec.json.decode(answer.body, type=AgentBegun), secret
        if answer.status == 409 and msgspec.json.decode(answer.body, type=Problem).name == NO_AGENT:
            return None, secret
        raise OwnerAnswered(answer)

    async def prepare(self, transaction: str, number: int, secret: str) -> None:
        """The owner's order. Raises :class:`RequestRefused` unless the branch is prepared."""
        work = self._found(transaction, number, secret)
        if work.state is AgentState.OPEN:
            work.state = AgentState.PREPARING
            work.voting = asyncio.create_task(self._prepare(work))
        if work.voting is not None:
            await asyncio.wait([work.voting])  # it goes on if the owner does not wait
            self._forget(work)
        if work.state is not AgentState.PREPARED:
            raise work.refusal()

    async def _prepare(self, work: AgentWork) -> None:
        try:
            result = await work.branch.prepare()
            if result.vote is Vote.PREPARED:
                work.state = AgentState.PREPARED
                return
            work.why = result.reason
            await work.branch.rollback()
        except PrepareUnanswered as unanswered:
            work.why = unanswered.cause
        except ParticipantError as error:
            work.why = work.why or error
        finally:
            if work.state is not AgentState.PREPARED:
                work.state = AgentState.ENDED
            await work.branch.release()

    async def undo(self, transaction: str, number: int, secret: str) -> None:
        """The owner's order; a branch that is prepared, or may be, is left to the owner. Raises
        :class:`RequestRefused`."""
        work = self._found(transaction, number, secret)
        await self._end(work, BranchFailed(work.gid.participant, "its transaction is aborted"))
        if work.voting is None:
            self._forget(work)

    async def drain(self, seconds: float) -> None:
        """Begin no more, and wait until none is open, but no longer."""
        self._draining = True
        await wait_while(lambda: self.open > 0, seconds)

    async def close(self) -> None:
        """Roll back what is not prepared."""
        self._draining = True
        for task in self._begun.values():
            task.cancel()
        voting = [work.voting for work in self._works.values() if work.voting is not None]
        await asyncio.gather(*self._begun.values(), *voting, return_exceptions=True)
        for work in list(self._works.values()):
            self._forget(work)
            await self._end(work, BranchFailed(work.gid.participant, "the sidecar that ran it has ended"))
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _expire(self, work: AgentWork) -> None:
        late = BranchFailed(work.gid.participant, "it was not prepared by its deadline")
        ending = asyncio.create_task(self._end(work, late))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _forget(self, work: AgentWork) -> None:
        """Remove the branch from memory: later requests are sent to the owner."""
        for timer in work.timers:
            timer.cancel()
        self._begun.pop(work.key, None)
        self._works.pop((str(work.gid.txid), work.gid.branch), None)

    async def _end(self, work: AgentWork, why: BaseException) -> None:
        """Roll it back unless it is prepared, or is being prepared."""
        if work.state is not AgentState.OPEN:
            return
        work.state, work.why = AgentState.ENDED, why
        work.branch.break_off(work.refusal)
        try:
            await work.branch.rollback()
        except ParticipantError as error:
            log.info("%s ends with its session: %s", work.gid, error)
        finally:
            await work.branch.release()

    def _found(self, transaction: str, number: int, secret: str) -> AgentWork:
        work = self._works.get((transaction, number))
        if work is None or not hmac.compare_digest(work.secret.encode(), secret.encode()):
            raise RequestRefused(404, "NoSuchBranch", "this sidecar runs no such branch for you")
        return work


def _seen(task: asyncio.Task[AgentWork | None]) -> None:
    """Its error, also if the client that waited for it is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("a branch for another sidecar was not begun: %s", type(error).__name__)


def _checked(text: str, shown: SealedCapability, participant: PostgresParticipant) -> Gid:
    """Raises :class:`RequestRefused` if the owner names another branch than it was asked for."""
    gid = Gid.parse(text)
    asked = (shown.capability.ledger, shown.capability.txid, participant.name)
    if not isinstance(gid, Gid) or (gid.ledger, gid.txid, gid.participant) != asked:
        raise RequestRefused(
            502, "OwnerRefuses", "the sidecar that began the transaction names another branch"
        )
    return gid
