"""A plain COMMIT whose answer was lost: only what is proved is said."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tests.participants.hands import at
from tests.participants.proxy import Proxy
from tests.participants.support import (
    KEY,
    WRITE,
    Database,
    participant_at,
    unreachable_standby,
    waits_for_standby,
)
from undoubt.participants.contract import Branch, Evidence, Settled, Work, XactStatus
from undoubt.participants.errors import BranchFailed, ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.one_phase import OnePhase
from undoubt.participants.postgres.session import ServerParameters, ServerSession

_SLOW_TRIGGER = (
    "create function dawdle() returns trigger language plpgsql as"
    " $$ begin perform pg_advisory_xact_lock(4711); return null; end $$;"
    "create constraint trigger slow after update on account deferrable initially deferred"
    " for each row execute function dawdle()"
)


async def told(branch: Branch) -> Settled:
    """What became of its COMMIT; the server's reason for ending the session is told with that."""
    with pytest.raises((BranchFailed, ParticipantUnavailable)) as failed:
        await branch.commit_one_phase()
    assert failed.value.sqlstate == "57P01"
    return Settled.ABSENT if isinstance(failed.value, BranchFailed) else Settled.HEURISTIC_HAZARD


async def lose_answer(
    participant: PostgresParticipant, database: Database, gid: Gid, *, polled: bool
) -> Settled:
    """The connection is cut while COMMIT waits in a deferred trigger: it never happens."""
    await database.admin.execute(_SLOW_TRIGGER)
    await database.admin.execute("select pg_advisory_lock(4711)")
    branch = await participant.begin(gid, timeout_s=30, key=KEY)
    pid = await at(branch).fetchval("select pg_backend_pid()")
    await at(branch).execute(WRITE)
    if polled:
        assert await branch.poll() is Work.WRITES
    commit = asyncio.create_task(told(branch))
    while not await database.admin.fetchval(
        "select exists (select from pg_locks where pid = $1 and not granted)", pid
    ):
        await asyncio.sleep(0.005)
    await database.admin.execute("select pg_terminate_backend($1)", pid)
    settled = await commit
    await branch.release()
    await database.admin.execute("select pg_advisory_unlock(4711)")
    return settled


async def test_lost_answer_without_table(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Nothing is known of the branch but that it had no answer: to say "aborted" would be a guess."""
    assert await lose_answer(participant, database, gid, polled=False) is Settled.HEURISTIC_HAZARD
    assert await database.balance() == 100


async def test_lost_answer_with_known_xid(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """An id that the server calls aborted did not commit, whoever had it."""
    assert await lose_answer(participant, database, gid, polled=True) is Settled.ABSENT
    assert await database.balance() == 100


@pytest.mark.parametrize("polled", [False, True])
async def test_lost_answer_with_table(
    participant: PostgresParticipant, noted: Database, gid: Gid, polled: bool
) -> None:
    """The session is over and its row is not there: it never committed."""
    assert await lose_answer(participant, noted, gid, polled=polled) is Settled.ABSENT
    assert await noted.balance() == 100


async def test_lost_answer_of_a_commit_that_still_runs(
    noted: Database, gid: Gid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has lost its connection, the server does not know yet: a missing row is no proof."""
    await noted.admin.execute(_SLOW_TRIGGER)
    await noted.admin.execute("select pg_advisory_lock(4711)")
    async with Proxy(noted.dsn) as proxy:
        participant = participant_at(proxy.dsn)
        look_for_note = OnePhase._look_for_note
        looks = []

        async def then_let_it_commit(
            books: OnePhase, session: ServerSession, proof: bytes, certain: bool
        ) -> Settled:
            looks.append(await look_for_note(books, session, proof, certain))
            if len(looks) == 1:
                await noted.admin.execute("select pg_advisory_unlock(4711)")
            return looks[-1]

        monkeypatch.setattr(OnePhase, "_look_for_note", then_let_it_commit)
        branch = await participant.begin(gid, timeout_s=30, key=KEY)
        await at(branch).execute(WRITE)
        commit = asyncio.create_task(branch.commit_one_phase())
        while not await noted.admin.fetchval("select exists (select from pg_locks where not granted)"):
            await asyncio.sleep(0.005)
        proxy.cut()
        assert await commit is Settled.APPLIED
        assert looks[0] is Settled.BUSY
        await branch.release()
        await participant.close()
    assert await noted.balance() == 90


async def lose_answer_after_commit(participant: PostgresParticipant, database: Database, gid: Gid) -> Settled:
    """COMMIT is in the log and waits for a standby when its session is terminated: it did happen."""
    async with unreachable_standby(database):
        branch = await participant.begin(gid, timeout_s=30, key=KEY)
        pid = await at(branch).fetchval("select pg_backend_pid()")
        await at(branch).execute(WRITE)
        assert await branch.poll() is Work.WRITES
        commit = asyncio.create_task(branch.commit_one_phase())
        while not await waits_for_standby(database, pid):
            await asyncio.sleep(0.005)
        await database.admin.execute("select pg_terminate_backend($1)", pid)
        settled = await commit
        await branch.release()
        return settled


async def test_lost_answer_of_a_done_commit_with_table(
    participant: PostgresParticipant, noted: Database, gid: Gid
) -> None:
    """The row is there: it committed. To answer "unknown" or "aborted" would make the caller do it twice."""
    assert await lose_answer_after_commit(participant, noted, gid) is Settled.APPLIED
    assert await noted.balance() == 90


async def test_lost_answer_of_a_done_commit_without_table(
    participant: PostgresParticipant, database: Database, gid: Gid
) -> None:
    """Without a row, "committed" may be said of another transaction, given the same id after a crash."""
    assert await lose_answer_after_commit(participant, database, gid) is Settled.HEURISTIC_HAZARD


async def test_evidence_of_one_phase_is_not_evidence_of_commit() -> None:
    """The rule in one line: only *aborted* and *never assigned* are believed of an unprepared id."""

    class Books:
        def __init__(self, xact_status: XactStatus) -> None:
            self.xact_status = xact_status

        async def evidence(self, evidence: Evidence) -> XactStatus:
            return self.xact_status

    expected = {
        XactStatus.COMMITTED: Settled.HEURISTIC_HAZARD,
        XactStatus.ABORTED: Settled.ABSENT,
        XactStatus.NEVER_ASSIGNED: Settled.ABSENT,
        XactStatus.UNKNOWN: Settled.HEURISTIC_HAZARD,
        XactStatus.IN_PROGRESS: Settled.BUSY,
    }
    for xact_status in XactStatus:
        phase = OnePhase(None, Books(xact_status))  # type: ignore[arg-type]
        assert await phase._look_for_xid(Evidence(7, 1, "00000001")) is expected[xact_status]


@pytest.mark.parametrize("ending", ["commit", "commit and chain", "commit; begin", "/* so */ end; begin"])
async def test_the_application_has_committed_itself_before_the_answer_is_lost(
    noted: Database, gid: Gid, ending: str
) -> None:
    """Broken if "aborted" is said of a row that is there: the missing note is that of a later transaction."""
    async with Proxy(noted.dsn) as proxy:
        participant = participant_at(proxy.dsn)
        branch = await participant.begin(gid, timeout_s=30, key=KEY)
        await at(branch).execute(WRITE)
        await at(branch).execute(ending)
        proxy.freeze()
        commit = asyncio.create_task(branch.commit_one_phase())
        await proxy.held.wait()
        proxy.cut()
        assert await commit is Settled.HEURISTIC_HAZARD
        await branch.release()
        await participant.close()
    assert await noted.balance() == 90


@pytest.mark.parametrize(
    ("of_session", "of_note", "settled"),
    [
        ("here", "here", Settled.ABSENT),
        ("elsewhere", "here", Settled.BUSY),
        ("here", "elsewhere", Settled.BUSY),
        (None, None, Settled.BUSY),
    ],
)
async def test_a_note_is_missing_only_where_the_session_was(
    of_session: str | None, of_note: str | None, settled: Settled
) -> None:
    """Broken if a server that never had the session, between two failovers, proves that nothing committed."""

    class Servers:
        async def read(self, sql: str, *args: object) -> list[dict[str, object]]:
            history = of_note if "is_noted" in sql else of_session
            assert "current_history" in sql
            return [{"gone": True, "noted": False, "system": None, "timeline": None, "history": history}]

    intro = ServerParameters(
        180000, "on", 0.0, 0.0, True, None, None, "1", reports_history=True, history="here"
    )
    session: Any = SimpleNamespace(intro=intro, pid=7)
    phase = OnePhase(Servers(), None)  # type: ignore[arg-type]
    assert await phase._look_for_note(session, b"proof", True) is settled
