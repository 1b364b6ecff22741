"""Ends many prepared branches, several at once in each session, for recovery.

The rules are those of :mod:`undoubt.participants.postgres.settle`, whose methods judge every answer that is
not a plain success. What a superuser has to look up before and after the end of a branch is looked up here
for all branches of one call together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from undoubt.participants.contract import Decision, Ending, Evidence, Settled, XactStatus, judge
from undoubt.participants.errors import ParticipantError
from undoubt.participants.invariant import InvariantViolation
from undoubt.participants.postgres.admin_pool import SESSIONS_MAX, AdminPool, refuse_standby
from undoubt.participants.postgres.pool import Pool
from undoubt.participants.postgres.roles import owned
from undoubt.participants.postgres.session import (
    CommandResult,
    NoAnswer,
    NotSent,
    PipelinedSession,
    ServerError,
)
from undoubt.participants.postgres.settle import XACT_STATUSES, Settler, holders, question
from undoubt.participants.postgres.sqlstate import NO_RIGHT, participant_error
from undoubt.participants.sql import identifier, literal

log = logging.getLogger(__name__)

RETRY_S = 30.0
"""After a failed attempt to open a pipelined session, branches are settled one by one for so long."""


@dataclass(frozen=True, slots=True)
class _Unproved:
    """The answer about a branch, whose transaction id has to show whether it was that branch."""

    settled: Settled


_Answer = Settled | ParticipantError | ServerError | _Unproved


@dataclass(slots=True)
class _Asked:
    """One branch of a call, and the answer about it, None as long as there is none."""

    ending: Ending
    gid: str
    answer: _Answer | None = None


class PipelinedSettler(Settler):
    """A settler that can also settle many branches at once, in sessions that ``connect`` opens; at most
    ``SESSIONS_MAX``, which are closed when they were idle for ``idle_s`` seconds."""

    def __init__(
        self,
        admin_pool: AdminPool,
        owners: Sequence[str],
        connect: Callable[[], Awaitable[PipelinedSession]],
        *,
        idle_s: float,
    ) -> None:
        super().__init__(admin_pool, owners)
        self._pool: Pool[PipelinedSession] = Pool(
            admin_pool.participant, connect, SESSIONS_MAX, idle_s=idle_s
        )
        self._not_before_s = 0.0

    def close(self) -> None:
        self._pool.close()

    async def settle_each(self, endings: Sequence[Ending]) -> Sequence[Settled | ParticipantError] | None:
        """See :meth:`undoubt.participants.contract.Participant.settle_each`. None behind a pooler, which may
        send a session's next statement to another server process."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._not_before_s or (await self._admin_pool.who()).pooled:
            return None
        try:
            slot = await self._pool.acquire(self._admin_pool.timeout_s)
        except ParticipantError as error:
            log.info(
                "participant %r: branches are settled one by one: %s", self._admin_pool.participant, error
            )
            self._not_before_s = now_s + RETRY_S
            return None
        asked = [_Asked(ending, str(ending.gid)) for ending in endings]
        try:
            if slot.session.intro.pooled:
                return None
            await self._ask(slot.session, asked)
        except (ServerError, NoAnswer, NotSent) as error:
            self._pool.drop_idle()  # the other idle sessions were probably lost as well
            _fill(asked, participant_error(self._admin_pool.participant, error))
        except ParticipantError as error:
            _fill(asked, error)  # nothing was sent
        finally:
            self._pool.release(slot)
        xact_statuses = await self._xact_statuses(
            one.ending.evidence
            for one in asked
            if isinstance(one.answer, _Unproved) and one.ending.evidence is not None
        )
        return [await self._conclude(one.ending, one.answer, xact_statuses) for one in asked]

    async def _ask(self, session: PipelinedSession, asked: Sequence[_Asked]) -> None:
        """Send all, and note each answer. Raises the errors of ``session``, and ``ParticipantError`` if
        nothing was sent."""
        if not session.intro.superuser:
            await self._send(session, asked)
            return
        for owner, group in (await self._by_owner(session, asked)).items():
            if owner is None:
                await self._send(session, group)
                # Another transaction may have had the name by then: the status of the transaction id shows
                # the outcome of our branch.
                for one in group:
                    if one.answer is Settled.APPLIED:
                        one.answer = _Unproved(Settled.APPLIED)
            else:
                await self._send_as(session, owner, group)

    async def _by_owner(
        self, session: PipelinedSession, asked: Sequence[_Asked]
    ) -> Mapping[str | None, Sequence[_Asked]]:
        """The branches that are prepared now, by the role in which a superuser ends them; None: its own."""
        participant = self._admin_pool.participant
        rows = await session.rows(
            owned("holders", "p.owner", "$2"),
            [one.gid for one in asked],
            self._owners,
            timeout_s=self._admin_pool.timeout_s,
        )
        found = holders(participant, rows)
        groups: dict[str | None, list[_Asked]] = {}
        for one in asked:
            holder = found.get(one.gid)
            gid, order, evidence = one.ending
            try:
                if holder is None or not self._ours(gid, holder, order, evidence):
                    one.answer = _Unproved(Settled.ABSENT)
                else:
                    groups.setdefault(None if holder.superuser or holder.gone else holder.owner, []).append(
                        one
                    )
            except ParticipantError as error:
                one.answer = error
        return groups

    async def _send_as(self, session: PipelinedSession, owner: str, asked: Sequence[_Asked]) -> None:
        """Send as the role that prepared the branches: then the server does not let the session end a
        transaction of another role. No statement is sent before the session has that role."""
        timeout_s = self._admin_pool.timeout_s
        clean = False
        try:
            try:
                await session.script(f"set role {identifier(owner)}", timeout_s=timeout_s)
            except ServerError as error:
                if error.fatal:
                    raise
                clean = True
                for one in asked:
                    one.answer = error
                return
            await self._send(session, asked)
            for one in asked:
                if isinstance(one.answer, ServerError) and one.answer.sqlstate == NO_RIGHT:
                    one.answer = Settled.BUSY  # it belongs to another role now: try again
            await session.script("set role none", timeout_s=timeout_s)
            clean = True
        finally:
            if not clean:
                session.discard()

    async def _send(self, session: PipelinedSession, asked: Sequence[_Asked]) -> None:
        """Send in the current role of ``session``. Raises ``NoAnswer`` if the session was lost."""
        participant = self._admin_pool.participant
        found = await session.each([_statement(one) for one in asked], timeout_s=self._admin_pool.timeout_s)
        lost: NoAnswer | ServerError | None = None
        for one, answer in zip(asked, found, strict=True):
            if isinstance(answer, CommandResult):
                one.answer = _confirmed(one.ending, answer)
            elif isinstance(answer, ServerError) and not answer.fatal:
                one.answer = answer
            else:
                one.answer = participant_error(participant, answer)
                lost = lost or answer
        if lost is not None:
            raise NoAnswer(str(lost), lost.sqlstate)

    async def _conclude(
        self, ending: Ending, answer: _Answer | None, xact_statuses: Mapping[Evidence, XactStatus]
    ) -> Settled | ParticipantError:
        gid, order, evidence = ending
        try:
            match answer:
                case ServerError():
                    return await self._refused(gid, order, evidence, answer)
                case _Unproved(settled):
                    xact_status = XactStatus.UNKNOWN
                    if evidence is not None:
                        xact_status = xact_statuses.get(evidence) or await self.evidence(evidence)
                    unknown = xact_status is XactStatus.UNKNOWN and settled is not Settled.ABSENT
                    return settled if unknown else judge(order, xact_status)
                case Settled() | ParticipantError():
                    return answer
                case None:
                    raise InvariantViolation("every branch of a call has an answer")
        except ParticipantError as error:
            return error

    async def _xact_statuses(self, asked: Iterable[Evidence]) -> Mapping[Evidence, XactStatus]:
        """The statuses of transaction ids, one statement for all of one history. Those that the server does
        not report so (an id that it has not assigned is an error of the whole statement) are missing."""
        places: dict[tuple[object, ...], list[Evidence]] = {}
        for evidence in asked:
            places.setdefault((evidence.system, evidence.timeline, evidence.history), []).append(evidence)
        xact_statuses: dict[Evidence, XactStatus] = {}
        for those in places.values():
            # A server that has reached the highest position has reached all. Without one of them, none
            # counts.
            known = [evidence.position for evidence in those if evidence.position is not None]
            position = max(known) if len(known) == len(those) else None
            if known and position is None:
                continue
            sought = question(replace(those[0], position=position), [evidence.xid for evidence in those])
            if sought is None or len(those) == 1:
                continue
            try:
                [row] = await self._admin_pool.ask(*sought)
                refuse_standby(self._admin_pool.participant, row)
            except (ServerError, ParticipantError) as error:
                log.info("statuses of transaction ids are read one by one: %s", error)
                continue
            if row["here"] and not row["behind"]:
                for evidence, status in zip(those, row["status"], strict=True):
                    xact_statuses[evidence] = XACT_STATUSES.get(status, XactStatus.UNKNOWN)
        return xact_statuses


def _fill(asked: Sequence[_Asked], error: ParticipantError) -> None:
    for one in asked:
        one.answer = one.answer or error


def _statement(asked: _Asked) -> str:
    verb = "commit" if asked.ending.order is Decision.COMMIT else "rollback"
    return f"{verb} prepared {literal(asked.gid)}"


def _confirmed(ending: Ending, answer: CommandResult) -> Settled:
    if ending.order is Decision.ABORT or answer.unconfirmed is None:
        return Settled.APPLIED
    # Committed on this server, but perhaps on no other: not final. A repeated call gets evidence.
    log.warning(
        "%s is committed, but no synchronous standby confirmed it: %s",
        ending.gid,
        answer.unconfirmed.message,
    )
    return Settled.BUSY
