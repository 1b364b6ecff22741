"""A prepared branch is ours only if one of our roles prepared it: a gid is public, and may be prepared by
anybody."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from tests.participants.hands import at
from tests.participants.scene import Scene, listed, prepare, set_role
from tests.participants.support import WRITE, new_gid, participant_at
from tests.pgbouncer import PgBouncer
from undoubt.participants.contract import Decision, Settled, Vote
from undoubt.participants.errors import BranchFailed, ParticipantRefused, UsageError
from undoubt.participants.findings import Severity
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import settle
from undoubt.participants.postgres.end_prepared import end_prepared
from undoubt.participants.postgres.session import ServerError

LOGINS = ("app", "postgres")
"""An ordinary role, and a superuser, which the server lets end everything."""


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize("order", list(Decision))
@pytest.mark.parametrize("was", list(Decision))
async def test_a_name_that_is_prepared_again(
    scene: Scene, login: str, order: Decision, was: Decision
) -> None:
    """Broken if a replayed gid is ended in the place of the branch that had it, which ended before: an
    aborted transaction would be told as committed, and the other way round."""
    participant = scene.at(login)
    gid = new_gid()
    evidence = await prepare(participant, gid)
    assert await participant.settle(gid, was, evidence) is Settled.APPLIED
    await scene.forge(gid)
    [listed] = await participant.in_doubt()
    assert (listed.gid, listed.owner, listed.owned) == (gid, "thief", False)
    settled = await participant.settle(gid, order, evidence)
    expected = {
        (Decision.COMMIT, Decision.COMMIT): Settled.APPLIED,
        (Decision.COMMIT, Decision.ABORT): Settled.HEURISTIC_COMMIT,
        (Decision.ABORT, Decision.COMMIT): Settled.HEURISTIC_ROLLBACK,
        (Decision.ABORT, Decision.ABORT): Settled.APPLIED,
    }
    assert settled is expected[was, order]
    assert await scene.forged() == [str(gid)]
    await participant.close()


@pytest.mark.parametrize("login", LOGINS)
async def test_a_name_that_is_prepared_in_another_database(scene: Scene, login: str) -> None:
    """Broken if one gid in another database of the server keeps recovery from concluding anything, for
    ever."""
    participant = scene.at(login)
    gid = new_gid()
    evidence = await prepare(participant, gid)
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    elsewhere = await asyncpg.connect(scene.server.dsn(user="thief"))
    await elsewhere.execute(f"begin; select pg_current_xact_id(); prepare transaction '{gid}'")
    try:
        assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
        assert await participant.settle(gid, Decision.ABORT, None) is Settled.ABSENT
    finally:
        await elsewhere.execute(f"rollback prepared '{gid}'")
        await elsewhere.close()
    await participant.close()


async def test_a_thief_that_keeps_a_name_busy(scene: Scene) -> None:
    """Broken if whoever is ending a branch of that name makes recovery look again for ever."""
    participant = scene.at("app")
    gid = new_gid()
    evidence = await prepare(participant, gid)
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    await scene.forge(gid)
    # 55000 is answered before the owner is looked at: here by the settler's own hand.
    refused = participant._settler._refused
    error = ServerError("55000", "prepared transaction with identifier is busy")
    assert await refused(gid, Decision.COMMIT, evidence, error) is Settled.APPLIED
    await participant.close()


@pytest.mark.parametrize(
    ("login", "owners", "owned"),
    [
        ("app", (), {"app"}),
        ("app", ("clerk",), {"app", "clerk"}),
        ("postgres", (), set()),
        ("postgres", ("app", "clerk"), {"app", "clerk"}),
        ("clerk", (), {"clerk", "app"}),
    ],
)
async def test_whose_branches_are_ours(
    scene: Scene, login: str, owners: tuple[str, ...], owned: set[str]
) -> None:
    """Broken if being superuser makes every role's branches ours, or a granted role's are not."""
    await scene.database.admin.execute("grant app to clerk")
    for role in ("app", "clerk"):
        participant = scene.at(role)
        await prepare(participant, new_gid(), "set local lock_timeout = '1s'; " + WRITE)
        await participant.close()
        await _unlock(scene)
    participant = scene.at(login, owners=owners)
    assert {one.owner for one in await listed(participant) if one.owned} == owned
    await participant.close()


async def _unlock(scene: Scene) -> None:
    """The next branch writes the same rows: keep only the names."""
    for gid in await scene.database.prepared():
        owner = await scene.database.admin.fetchval("select owner from pg_prepared_xacts where gid = $1", gid)
        await scene.database.admin.execute(f"rollback prepared '{gid}'")
        await scene.database.admin.execute(
            f"begin; set local role {owner}; select 1; prepare transaction '{gid}'"
        )


async def test_a_role_that_granted_itself(scene: Scene) -> None:
    """Broken if a role makes itself ours: before version 15 it may grant itself to whomever it likes. Here as
    the catalog shows it then, since this server may be newer."""
    await scene.database.admin.execute("grant thief to app")
    gid = new_gid()
    await scene.forge(gid)
    participant = scene.at("app")
    assert [one.owned for one in await listed(participant)] == [True]
    await scene.database.admin.execute(
        "update pg_auth_members set grantor = roleid where roleid = 'thief'::regrole"
    )
    assert [one.owned for one in await listed(participant)] == [False]
    await scene.database.admin.execute("delete from pg_auth_members where roleid = 'thief'::regrole")
    await participant.close()


async def test_a_role_that_a_stranger_granted(scene: Scene) -> None:
    """Broken if whoever administers a role makes it ours by granting it to the one that logs in, which nobody
    asks; or if such a role's branches are prepared, or a grant by somebody who controls it counts no more."""
    admin = scene.database.admin
    counted = await admin.fetchval("select current_setting('server_version_num')::int < 160000")
    await admin.execute("create role dba login; grant clerk to dba with admin option")
    dba = await asyncpg.connect(scene.server.dsn(scene.database.name, user="dba"))
    participant, clerk = scene.at("app"), scene.at("clerk")
    gid = new_gid()
    evidence = await prepare(clerk, gid)
    try:
        await dba.execute("grant clerk to app")
        assert [one.owned for one in await listed(participant)] == [counted]
        if counted:
            return
        branch = await participant.begin(new_gid(), timeout_s=30)
        await at(branch).execute("set local role clerk")
        await at(branch).execute(WRITE.replace("= 1", "= 2"))
        assert (await branch.prepare()).vote is Vote.ABORT
        await branch.release()
        await admin.execute("grant app to dba with admin true, set false")
        assert [one.owned for one in await listed(participant)] == [True]
        assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    finally:
        await dba.close()
        await participant.close()
        await clerk.close()
        await admin.execute("drop owned by dba cascade; revoke clerk from dba cascade; drop role dba")


async def test_what_nobody_could_finish_is_not_prepared(scene: Scene) -> None:
    """Broken if a superuser prepares branches as a role whose branches it takes for somebody else's."""
    participant = scene.at("postgres")
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).execute("set local role app; " + WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert isinstance(result.reason, BranchFailed)
    assert "role 'app'" in str(result.reason)
    await branch.release()
    await participant.close()
    named = scene.at("postgres", owners=("app",))
    gid = new_gid()
    evidence = await prepare(named, gid, "set local role app")
    assert [(one.owner, one.owned) for one in await listed(named)] == [("app", True)]
    assert await named.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    await named.close()


async def test_a_role_that_the_databases_owner_has_set(taken: Scene) -> None:
    """Broken if whoever owns a database chooses who prepares a superuser's branches: recovery would take them
    for an impostor's, and that owner may end them."""
    await set_role(taken)
    participant = taken.at("postgres", owners=("app",))
    for _ in range(2):  # the session is used again
        gid = new_gid()
        evidence = await prepare(participant, gid)
        assert [(one.owner, one.owned) for one in await listed(participant)] == [("postgres", True)]
        assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    await taken.database.admin.execute("grant all on account to thief")
    branch = await participant.begin(new_gid(), timeout_s=30)
    await at(branch).execute("reset role")
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert "role 'thief'" in str(result.reason)
    await branch.release()
    assert await taken.forged() == []
    await participant.close()


async def test_a_role_that_is_set_behind_a_pooler(taken: Scene, pooler: PgBouncer) -> None:
    """Broken if a branch is prepared there that a thief may end, or that nobody can finish, since COMMIT
    PREPARED comes to a server that has begun as the thief."""
    dsn = pooler.dsn(taken.database.name)
    before, after = (participant_at(dsn, owners=("app",)) for _ in range(2))
    gid = new_gid()
    assert await before.settle(gid, Decision.COMMIT, await prepare(before, gid)) is Settled.APPLIED
    busy = [await asyncpg.connect(dsn) for _ in range(4)]
    for one in busy:  # the servers that have begun before
        await one.execute("begin")
    await taken.database.admin.execute("grant all on account to thief")
    await set_role(taken)
    branch = await before.begin(new_gid(), timeout_s=30)
    await at(branch).execute(WRITE)
    result = await branch.prepare()
    assert result.vote is Vote.ABORT
    assert "role 'thief'" in str(result.reason)
    await branch.release()
    with pytest.raises(ParticipantRefused, match=r"begin as role 'thief'.*ALTER DATABASE .* RESET role"):
        await after.begin(new_gid(), timeout_s=30)
    assert await taken.database.prepared() == []
    for one in busy:
        await one.close()
    async with asyncio.timeout(20):
        await before.close()
        await after.close()


async def test_a_role_that_the_dsn_names_is_not_passed_over(scene: Scene) -> None:
    """Broken if branches that are to have a role's rights have a superuser's, or nobody's that recovery
    knows."""
    dsn = scene.server.dsn(scene.database.name) + "?options=-crole%3Dclerk"
    unknown = participant_at(dsn, owners=("app",))
    with pytest.raises(ParticipantRefused, match=r"begin as role 'clerk'.*\[\"app\", \"clerk\"\]"):
        await unknown.begin(new_gid(), timeout_s=30)
    assert await listed(unknown) == []
    await unknown.close()
    known = participant_at(dsn, owners=("clerk",))
    gid = new_gid()
    evidence = await prepare(known, gid)
    assert [(one.owner, one.owned) for one in await listed(known)] == [("clerk", True)]
    assert await known.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    await known.close()


@pytest.mark.parametrize("order", list(Decision))
async def test_a_superuser_works_as_the_owner(scene: Scene, order: Decision) -> None:
    """Broken if nothing but a look beforehand keeps a superuser from ending what a thief prepared
    meanwhile."""
    participant = scene.at("postgres", owners=("app",))
    gid = new_gid()
    evidence = await prepare(participant, gid, "set local role app")
    with_role = participant._settler._with_role
    came_between: list[Gid] = []

    async def too_late(*args: Any, **more: Any) -> Settled:
        if not came_between:
            came_between.append(gid)
            await scene.database.admin.execute(f"commit prepared '{gid}'")
            await scene.forge(gid)
        return await with_role(*args, **more)

    participant._settler._with_role = too_late  # type: ignore[method-assign]
    assert await participant.settle(gid, order, evidence) is Settled.BUSY
    assert await scene.forged() == [str(gid)]
    expected = Settled.APPLIED if order is Decision.COMMIT else Settled.HEURISTIC_COMMIT
    assert await participant.settle(gid, order, evidence) is expected
    assert await scene.forged() == [str(gid)]
    await participant.close()


async def test_a_superusers_own_branches_are_proved_by_the_books(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if what a thief prepared meanwhile is committed in the place of a branch that was rolled back,
    and told as done: no role that could be become is kept from it by the server."""
    participant = scene.at("postgres")
    gid = new_gid()
    evidence = await prepare(participant, gid)

    async def too_late(*given: Any) -> Settled:
        await scene.database.admin.execute(f"rollback prepared '{gid}'")
        await scene.forge(gid)
        return await end_prepared(*given)

    monkeypatch.setattr(settle, "end_prepared", too_late)
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.HEURISTIC_ROLLBACK
    await participant.close()


async def test_another_participants_branch_is_refused(scene: Scene) -> None:
    """Broken if one database says what became of another's branch."""
    participant = scene.at("app")
    other = replace(new_gid(), participant="payments")
    for order in Decision:
        with pytest.raises(ParticipantRefused, match="payments"):
            await participant.settle(other, order, None)
    await participant.close()
    renamed = scene.at("app", was=("payments",))
    assert renamed.names == {"p", "payments"}
    assert await renamed.settle(other, Decision.ABORT, None) is Settled.ABSENT
    await renamed.close()


async def test_a_role_that_was_dropped(scene: Scene) -> None:
    """Broken if a branch whose owner is gone counts as busy, or, without the transaction id that was recorded
    of it, as ours: whoever may make roles can prepare a name again, and drop the role."""
    await scene.database.admin.execute(
        "create role temp login; grant all on account to temp; grant temp to app"
    )
    participant = scene.at("temp")
    gid = new_gid()
    evidence = await prepare(participant, gid)
    await participant.close()
    await scene.database.admin.execute("drop owned by temp; drop role temp")
    app, superuser = scene.at("app"), scene.at("postgres", owners=("app",))
    for participant in (app, superuser):
        if participant is superuser:
            [found] = [one for one in await app.check() if one.check == "roles"]
            assert (found.severity, "has been dropped" in found.what) == (Severity.PROBLEM, True)
        [shown] = await listed(participant)
        assert (shown.owned, shown.owner_dropped, shown.owner_fix) == (False, True, None)
        assert await participant.settle(gid, Decision.ABORT, None) is Settled.ABSENT, "it is not proved"
        assert await scene.database.prepared() == [str(gid)]
    with pytest.raises(ParticipantRefused, match="its role is gone; only a superuser can finish it"):
        await app.settle(gid, Decision.COMMIT, evidence)
    assert await superuser.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    await app.close()
    await superuser.close()


async def test_an_adopted_session_of_another_role(scene: Scene) -> None:
    """Broken if an engine's branches are prepared by a role that recovery takes for anybody's."""
    participant, engine = scene.at("app"), scene.at("clerk")
    session = await engine.pool._connect()
    with pytest.raises(UsageError, match=r"role 'clerk'.*GRANT"):
        await participant.introduce(session)
    await scene.database.admin.execute("grant clerk to app")
    await participant.introduce(session)
    session.discard()
    await participant.close()
    await engine.close()


async def test_behind_a_pooler(scene: Scene, pooler: PgBouncer) -> None:
    """Broken if a superuser behind a pooler, which cannot become anybody there, ends what a thief
    prepared."""
    participant = participant_at(pooler.dsn(scene.database.name), owners=("app",))
    gid, replayed = new_gid(), new_gid()
    evidence = await prepare(participant, gid)
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    evidence = await prepare(participant, replayed)
    assert await participant.settle(replayed, Decision.ABORT, evidence) is Settled.APPLIED
    await scene.forge(replayed)
    assert await participant.settle(replayed, Decision.COMMIT, evidence) is Settled.HEURISTIC_ROLLBACK
    assert await scene.forged() == [str(replayed)]
    async with asyncio.timeout(20):
        await participant.close()


async def test_a_person_ends_an_impostor_and_nothing_else(scene: Scene) -> None:
    """Broken if a superuser's ``indoubt rollback`` ends another transaction than the one that was shown."""
    participant = scene.at("postgres", owners=("app",))
    gid = new_gid()
    await scene.forge(gid)
    [shown] = await participant.in_doubt()
    assert not shown.owned
    for other in (
        replace(shown, owner="app"),
        replace(shown, database="postgres"),
        replace(shown, xid=(shown.xid or 0) + 1),
        replace(shown, xid=None),
    ):
        assert await participant.end_impostor(other) is Settled.ABSENT
        assert await scene.forged() == [str(gid)]
    assert await participant.end_impostor(shown) is Settled.APPLIED
    assert await participant.end_impostor(shown) is Settled.ABSENT
    assert await scene.database.prepared() == []
    await participant.close()


async def test_a_name_that_is_used_again_while_its_impostor_is_ended(
    scene: Scene,
    way: PgBouncer | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Broken if a person is told that the one which was shown was rolled back, and it was committed: nothing
    can be sent with ROLLBACK PREPARED, and its name may be given to another one before it."""
    participant = participant_at((way or scene.server).dsn(scene.database.name), owners=("app",))
    gid = new_gid()
    await scene.forge(gid)
    [shown] = await participant.in_doubt()

    async def too_late(*given: Any) -> Settled:
        await scene.thief.execute(f"commit prepared '{gid}'")
        await scene.forge(gid)
        return await end_prepared(*given)

    monkeypatch.setattr(settle, "end_prepared", too_late)
    assert await participant.end_impostor(shown) is Settled.ABSENT
    assert "another transaction of that name was rolled back" in caplog.text
    assert await scene.database.prepared() == []
    await participant.close()


async def test_a_role_that_may_not_end_an_impostor_says_who_may(scene: Scene) -> None:
    """Broken if an operator without the right is told to grant a stranger's role, or that it is gone."""
    participant = scene.at("app")
    gid = new_gid()
    await scene.forge(gid)
    [shown] = await participant.in_doubt()
    with pytest.raises(ParticipantRefused, match="only role 'thief' or a superuser may end it") as refused:
        await participant.end_impostor(shown)
    assert "GRANT" not in str(refused.value)
    assert await scene.forged() == [str(gid)]
    await scene.database.admin.execute("grant thief to app")
    assert await participant.end_impostor(shown) is Settled.APPLIED
    await participant.close()


async def test_a_superuser_ends_an_impostor_as_its_owner(scene: Scene) -> None:
    """Broken if a look beforehand is all that keeps it from ending a branch that got the name meanwhile."""
    participant = scene.at("postgres", owners=("app",))
    gid = new_gid()
    await scene.forge(gid)
    [shown] = await participant.in_doubt()
    settler = participant._settler
    looked = settler._with_role

    async def meanwhile(*args: Any, **more: Any) -> Settled:
        await scene.thief.execute(f"rollback prepared '{gid}'")
        app = scene.at("app")
        await prepare(app, gid)
        await app.close()
        return await looked(*args, **more)

    settler._with_role = meanwhile  # type: ignore[method-assign]
    assert await participant.end_impostor(shown) is Settled.ABSENT
    assert await scene.database.prepared() == [str(gid)], "the branch that has the name now is another's"
    await participant.close()
