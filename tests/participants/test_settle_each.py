"""Many branches ended at once in each session: each as if it were ended alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from tests.participants.proxy import Proxy
from tests.participants.scene import Scene
from tests.participants.support import Database, new_gid, participant_at
from tests.pgbouncer import PgBouncer
from undoubt.participants.contract import Decision, Ending, PreparedBranch, Settled
from undoubt.participants.errors import ParticipantError, ParticipantRefused, ParticipantUnavailable
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant, settle_each
from undoubt.participants.postgres.psycopg import sync_each
from undoubt.participants.postgres.psycopg.connector import PsycopgConnector
from undoubt.participants.postgres.psycopg.session import PsycopgSession
from undoubt.participants.settings import ParticipantSettings

LOGINS = ("app", "postgres", "rescue")
"""Who ends the branches of ``app``: their role, the superuser that has prepared its own, and a superuser that
changes to the role."""


async def left(scene: Scene, role: str, count: int) -> list[Gid]:
    """Branches that ``role`` has prepared, each with a row of its own."""
    await scene.database.admin.execute("create table if not exists seen (gid text primary key, role text)")
    await scene.database.admin.execute("grant all on seen to public")
    session = await asyncpg.connect(scene.server.dsn(scene.database.name, user=role))
    gids = [new_gid() for _ in range(count)]
    for gid in gids:
        await session.execute(
            f"begin; insert into seen values ('{gid}', current_user); prepare transaction '{gid}'"
        )
    await session.close()
    return gids


async def committed(scene: Scene) -> set[str]:
    return {gid for [gid] in await scene.database.admin.fetch("select gid from seen")}


async def endings(
    participant: PostgresParticipant, gids: Sequence[Gid], order: Decision = Decision.COMMIT
) -> list[Ending]:
    """With the evidence of the list, as recovery has it."""
    listed: dict[object, PreparedBranch] = {one.gid: one for one in await participant.in_doubt()}
    return [Ending(gid, order, listed[gid].evidence) for gid in gids]


def signed_in(scene: Scene, login: str) -> tuple[PostgresParticipant, str]:
    """A participant of ``login``, and the role that prepares its branches."""
    match login:
        case "rescue":
            return scene.at("postgres", owners=("app",)), "app"
        case _:
            return scene.at(login), login


async def session_at(dsn: str) -> PsycopgSession:
    connector = PsycopgConnector("p", ParticipantSettings(dsn=dsn), "undoubt-test", "async")
    return await connector.connect_pipelined()


@pytest.fixture(params=LOGINS)
def login(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_each_is_ended_as_it_was_decided(scene: Scene, login: str) -> None:
    """Broken if an error of one ends another, or the answer of one is taken for another's: among forty, some
    are to be rolled back, some were committed and some rolled back by hand, and some never were."""
    participant, role = signed_in(scene, login)
    gids = await left(scene, role, 40)
    todo = await endings(participant, gids)
    todo = [one if n % 3 else one._replace(order=Decision.ABORT) for n, one in enumerate(todo)]
    by_hand = {4: "commit", 5: "rollback", 6: "commit", 9: "rollback"}
    for n, verb in by_hand.items():
        await scene.database.admin.execute(f"{verb} prepared '{gids[n]}'")
    never = Ending(new_gid(), Decision.COMMIT, None)
    ahead = Ending(new_gid(), Decision.COMMIT, replace(todo[1].evidence, xid=2_000_000))  # type: ignore[type-var]
    results = await participant.settle_each([never, *todo, ahead])
    expected = [Settled.APPLIED] * 40
    expected[5], expected[6] = Settled.HEURISTIC_ROLLBACK, Settled.HEURISTIC_COMMIT
    assert results == [Settled.HEURISTIC_HAZARD, *expected, Settled.HEURISTIC_ROLLBACK]
    assert await scene.database.prepared() == []
    wanted = {n for n in range(40) if n % 3} - {5} | {6}
    assert await committed(scene) == {str(gids[n]) for n in wanted}
    await participant.close()


async def test_a_busy_one_does_not_hold_up_the_others(scene: Scene, login: str) -> None:
    """Broken if a branch that another session is ending is lost, or makes others wait."""
    participant, role = signed_in(scene, login)
    gids = await left(scene, role, 5)
    todo = await endings(participant, gids)
    each = PsycopgSession.each

    async def busy(session: PsycopgSession, statements: Sequence[str], *, timeout_s: float) -> list[Any]:
        answers: list[Any] = await each(
            session, [*statements[:2], "select 1 / 0", *statements[3:]], timeout_s=timeout_s
        )
        assert answers[2].sqlstate == "22012"
        answers[2].sqlstate = "55000"
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PsycopgSession, "each", busy)
        results = await participant.settle_each(todo)
    assert results == [Settled.APPLIED] * 2 + [Settled.BUSY] + [Settled.APPLIED] * 2
    assert await scene.database.prepared() == [str(gids[2])]
    await participant.close()


async def test_what_a_thief_prepared_again(scene: Scene, login: str) -> None:
    """Broken if a name in the middle of many is ended whoever has it: an ordinary role is kept from it by the
    server, a superuser looks first."""
    participant, role = signed_in(scene, login)
    gids = await left(scene, role, 6)
    todo = await endings(participant, gids)
    await scene.database.admin.execute(f"commit prepared '{gids[2]}'")
    await scene.database.admin.execute(f"rollback prepared '{gids[3]}'")
    for gid in gids[2:4]:
        await scene.forge(gid)
    results = await participant.settle_each(todo)
    assert results is not None
    assert results[2:4] == [Settled.APPLIED, Settled.HEURISTIC_ROLLBACK]
    assert [*results[:2], *results[4:]] == [Settled.APPLIED] * 4
    assert sorted(await scene.forged()) == sorted(map(str, gids[2:4]))
    await participant.close()


async def test_what_a_thief_prepared_between_the_look_and_the_end(scene: Scene, login: str) -> None:
    """Broken if a superuser ends the transaction of another role in the place of a branch, and tells it as
    done: it sends as the owner, or proves the end by the transaction id."""
    participant, role = signed_in(scene, login)
    gids = await left(scene, role, 4)
    todo = await endings(participant, gids)
    each = PsycopgSession.each

    async def too_late(session: PsycopgSession, statements: Sequence[str], *, timeout_s: float) -> list[Any]:
        if str(gids[1]) not in await scene.forged():
            await scene.database.admin.execute(f"rollback prepared '{gids[1]}'")
            await scene.forge(gids[1])
        return await each(session, statements, timeout_s=timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PsycopgSession, "each", too_late)
        results = await participant.settle_each(todo)
    assert results is not None
    assert [results[0], *results[2:]] == [Settled.APPLIED] * 3
    if login == "rescue":
        assert results[1] is Settled.BUSY
        results = await participant.settle_each(todo[1:2])
        assert results == [Settled.HEURISTIC_ROLLBACK]
    else:
        assert results[1] is Settled.HEURISTIC_ROLLBACK
    assert await scene.forged() == ([] if login == "postgres" else [str(gids[1])])
    await participant.close()


async def test_the_role_does_not_stay(scene: Scene) -> None:
    """Broken if a session of recovery goes on as a role of the application, or sends as a superuser after the
    change of role was refused."""
    participant = scene.at("postgres", owners=("app", "clerk"))
    gids = [*await left(scene, "app", 3), *await left(scene, "clerk", 3)]
    todo = await endings(participant, gids)
    roles: list[str] = []
    each = PsycopgSession.each

    async def noting(session: PsycopgSession, statements: Sequence[str], *, timeout_s: float) -> list[Any]:
        [row] = await session.rows("select current_user::text as me", timeout_s=timeout_s)
        roles.append(row["me"])
        return await each(session, statements, timeout_s=timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PsycopgSession, "each", noting)
        assert await participant.settle_each(todo) == [Settled.APPLIED] * 6
        assert sorted(roles) == ["app", "clerk"]
        gids = await left(scene, "postgres", 1)
        assert await participant.settle_each(await endings(participant, gids)) == [Settled.APPLIED]
    assert sorted(roles) == ["app", "clerk", "postgres"]
    gids = await left(scene, "clerk", 2)
    todo = await endings(participant, gids)
    script = PsycopgSession.script

    async def refused(session: PsycopgSession, sql: str, *, timeout_s: float) -> Any:
        sql = "set role nobody_at_all" if sql.startswith("set role") and "clerk" in sql else sql
        return await script(session, sql, timeout_s=timeout_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PsycopgSession, "script", refused)
        results = await participant.settle_each(todo)
    assert results is not None
    assert all(isinstance(one, ParticipantError) and "nobody_at_all" in str(one) for one in results)
    assert sorted(await scene.database.prepared()) == sorted(map(str, gids))
    await participant.close()


async def test_a_lost_connection(scene: Scene, login: str) -> None:
    """Broken if a branch whose answer did not come is told as ended, or as untouched: those before it have
    their answers, and a second call finds out about the others."""
    participant, role = signed_in(scene, login)
    gids = await left(scene, role, 40)
    todo = await endings(participant, gids)
    async with Proxy(
        scene.server.dsn(scene.database.name, user="postgres" if login == "rescue" else login)
    ) as proxy:
        far = participant_at(proxy.dsn, owners=("app",) if login == "rescue" else ())
        assert await far.settle_each(todo[:2]) == [Settled.APPLIED] * 2
        real, seen = sync_each.exchange, 0

        def cut(pgconn: Any, statements: Any, answered: Any, progressed: Any) -> Any:
            def counting(result: Any) -> None:
                nonlocal seen
                seen += 1
                if seen == 3:
                    proxy.freeze()
                    asyncio.get_running_loop().call_later(0.05, proxy.cut)
                answered(result)

            return real(pgconn, statements, counting, progressed)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sync_each, "exchange", cut)
            results = await far.settle_each(todo[2:])
        assert results is not None
        known = [one for one in results if one is Settled.APPLIED]
        assert 3 <= len(known) < len(results)
        assert results[: len(known)] == known
        assert all(isinstance(one, ParticipantUnavailable) for one in results[len(known) :])
        await far.close()
    assert await participant.settle_each(todo) == [Settled.APPLIED] * 40
    assert len(await committed(scene)) == 40
    await participant.close()


async def test_an_ended_session_says_why(scene: Scene) -> None:
    """Broken if the server's reason for ending a session is lost, or a statement behind it counts as
    answered."""
    session = await session_at(scene.database.dsn)
    answers = await session.each(
        ["select 1", "select pg_terminate_backend(pg_backend_pid())", "select 2"], timeout_s=10
    )
    assert [getattr(one, "tag", None) for one in answers] == ["SELECT 1", None, None]
    assert getattr(answers[1], "sqlstate", None) == "57P01"
    assert session.broken
    assert type(answers[2]).__name__ == "NoAnswer"


async def test_an_answer_that_does_not_come(scene: Scene) -> None:
    """Broken if one branch that hangs keeps recovery for ever, or if the time of one counts for all."""
    session = await session_at(scene.database.dsn)
    slow = ["select pg_sleep(0.2)"] * 4
    answers = await session.each([*slow, "select pg_sleep(60)", "select 1"], timeout_s=0.6)
    assert [type(one).__name__ for one in answers] == ["CommandResult"] * 4 + ["AnswerTimedOut"] * 2
    assert session.broken


async def test_cancelled(scene: Scene) -> None:
    """Broken if a session whose answers were not read is used again."""
    session = await session_at(scene.database.dsn)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await session.each(["select pg_sleep(60)", "select 1"], timeout_s=30)
    assert session.broken


async def test_a_warning_belongs_to_its_statement(scene: Scene) -> None:
    """Broken if the warning that no standby has confirmed one commit is told of another one, or of none."""
    session = await session_at(scene.database.dsn)
    warn = "do $$begin raise warning using errcode = '01000', message = 'unsure'; end$$"
    patch = pytest.MonkeyPatch()
    patch.setattr(
        "undoubt.participants.postgres.session.Notice.of_standby", property(lambda n: n.sqlstate == "01000")
    )
    answers: list[Any] = await session.each(
        ["select 1", warn, "select 1", warn, warn, "select 2"], timeout_s=10
    )
    patch.undo()
    assert [one.unconfirmed is not None for one in answers] == [False, True, False, True, True, False]
    session.discard()


async def test_behind_a_pooler(scene: Scene, pooler: PgBouncer) -> None:
    """Broken if COMMIT PREPARED and the role that it needs are sent where a pooler may part them."""
    participant = participant_at(pooler.dsn(scene.database.name), owners=("app",))
    gids = await left(scene, "app", 3)
    assert await participant.settle_each(await endings(participant, gids)) is None
    assert len(await scene.database.prepared()) == 3
    told = participant_at(scene.server.dsn(scene.database.name), pooler=True, owners=("app",))
    assert await told.settle_each(await endings(told, gids)) is None
    await told.close()
    async with asyncio.timeout(20):
        await participant.close()


async def test_another_participants_branch_is_refused(scene: Scene) -> None:
    """Broken if one database says what became of another's branch."""
    participant = scene.at("app")
    other = Ending(replace(new_gid(), participant="payments"), Decision.ABORT, None)
    assert await participant.settle_each([other]) is None
    await participant.close()


async def test_no_session_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if recovery ends nothing where libpq cannot connect, or has no pipeline mode."""
    participant, patient = scene.at("app"), scene.at("app")
    gids = await left(scene, "app", 2)
    todo = await endings(participant, gids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psycopg.capabilities.has_pipeline", lambda: False)
        with pytest.raises(ParticipantRefused, match="pipeline"):
            await session_at(scene.database.dsn)
        assert await patient.settle_each(todo) is None
        patch.setattr(settle_each, "RETRY_S", 0.0)
        assert await participant.settle_each(todo) is None
    assert await patient.settle_each(todo) is None, "it is not tried for each"
    assert await participant.settle_each(todo) == [Settled.APPLIED] * 2
    await participant.close()
    await patient.close()


class Watched:
    """A libpq connection that counts the Syncs that are sent."""

    def __init__(self, pgconn: Any) -> None:
        self.pgconn = pgconn
        self.synced = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pgconn, name)

    def pipeline_sync(self) -> None:
        self.synced += 1
        self.pgconn.pipeline_sync()


async def test_sixteen_in_flight(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if statements wait for each other's answers, or all are sent at once: a server that does not
    read would block both sides."""
    session = await session_at(database.dsn)
    real = sync_each.exchange
    in_flight: list[int] = []

    def watched(pgconn: Any, statements: Any, answered: Any, progressed: Any) -> Any:
        watched = Watched(pgconn)

        def counting(result: Any) -> None:
            in_flight.append(watched.synced - len(in_flight))
            answered(result)

        return real(watched, statements, counting, progressed)  # type: ignore[arg-type]

    monkeypatch.setattr(sync_each, "exchange", watched)
    answers: list[Any] = await session.each([f"select {n}" for n in range(100)], timeout_s=10)
    assert [one.tag for one in answers] == ["SELECT 1"] * 100
    assert (max(in_flight), in_flight[-1]) == (16, 1)
    session.discard()
