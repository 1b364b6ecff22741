"""Roles that settings choose, and roles that strangers made: nobody works as them, or is told to trust
them."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from tests.participants.scene import Scene, listed, prepare, set_role
from tests.participants.support import new_gid, participant_at
from undoubt.participants.contract import Decision, Settled
from undoubt.participants.errors import UsageError
from undoubt.participants.findings import Severity


async def test_an_adopted_session_of_a_role_that_the_database_sets(taken: Scene) -> None:
    """Broken if an operator is told to grant the role that whoever owns the database has put in the way."""
    await set_role(taken)
    participant, engine = taken.at("postgres", owners=("app",)), taken.at("postgres", owners=("app",))
    session = await engine.pool._connect()
    with pytest.raises(UsageError, match=r"role 'thief'.*ALTER DATABASE \"\w+\" RESET role;") as refused:
        await participant.introduce(session)
    assert "GRANT" not in str(refused.value)
    assert "owners" not in str(refused.value)
    await participant.close()
    await engine.close()


async def test_no_hook_runs_as_a_role_that_the_database_sets(taken: Scene, kind: str) -> None:
    """Broken if what the application does once for each connection is done with the rights of a role that
    whoever owns the database has chosen."""
    await set_role(taken)
    seen = []

    async def hook(connection: Any) -> None:
        if kind == "asyncpg":
            seen.append(await connection.fetchval("select current_user::text"))
        else:
            cursor = await connection.execute("select current_user::text")
            seen.append((await cursor.fetchone())[0])

    dsn = taken.server.dsn(taken.database.name)
    participant = participant_at(dsn, owners=("app",), on_connect=hook)
    gid = new_gid()
    evidence = await prepare(participant, gid)
    assert seen == ["postgres"]
    assert [(one.owner, one.owned) for one in await listed(participant)] == [("postgres", True)]
    assert await participant.settle(gid, Decision.COMMIT, evidence) is Settled.APPLIED
    await participant.close()


SETTINGS_OF_ROLE = {
    "database": ("alter database {db} set role = clerk", "ALTER DATABASE", Severity.WARNING),
    "role": ("alter role app set role = clerk", 'ALTER ROLE "app" RESET role;', Severity.PROBLEM),
    "role in database": (
        "alter database {db} set role = thief; alter role app in database {db} set role = clerk",
        'ALTER ROLE "app" IN DATABASE "{db}" RESET role;',
        Severity.PROBLEM,
    ),
    "all": ("alter role all set role = clerk", "ALTER ROLE ALL RESET role;", Severity.PROBLEM),
    "none": ("alter role app set role = none", None, Severity.OK),
}


@pytest.mark.parametrize("where", SETTINGS_OF_ROLE)
async def test_doctor_sees_that_a_setting_chooses_the_role(scene: Scene, where: str) -> None:
    """Broken if nobody is told that branches begin as another role, or are refused, and who decides that."""
    name, admin = scene.database.name, scene.database.admin
    statement, fix, severity = SETTINGS_OF_ROLE[where]
    if where == "database":
        if int(await admin.fetchval("show server_version_num")) < 160000:
            pytest.skip("memberships have no options before version 16")
        await admin.execute("grant clerk to app with set false")
    participant = scene.at("app")
    try:
        for each in statement.format(db=name).split("; "):
            await admin.execute(each)
        [found] = [one for one in await participant.check() if one.check == "set_role"]
        assert found.severity is severity
        assert (found.fix or "").startswith((fix or "").format(db=name))
        assert ("role clerk" in found.what) is (fix is not None)
        await admin.execute("grant clerk to app")
        [found] = [one for one in await participant.check() if one.check == "set_role"]
        owned = Severity.OK if where in {"role", "role in database", "none"} else Severity.WARNING
        assert found.severity is owned
    finally:
        await admin.execute(
            f"alter role all reset role; alter role app reset role; alter database {name} reset role"
        )
        await participant.close()


async def test_nobody_is_told_to_trust_what_a_stranger_made(scene: Scene) -> None:
    """Broken if who may create roles prepares a name as one of them, and the operator is given the line that
    makes such names ours."""
    admin = scene.database.admin
    await admin.execute("create role dba login createrole")
    dba = await asyncpg.connect(scene.server.dsn(scene.database.name, user="dba"))
    gid, another = new_gid(), new_gid()
    app, superuser = scene.at("app"), scene.at("postgres", owners=("app",))
    try:
        await dba.execute("create role team")
        if await admin.fetchval("select current_setting('server_version_num')::int < 160000"):
            await admin.execute("grant team to dba with admin option")  # it is not written down by itself
        else:
            await dba.execute("grant team to dba with set true")
        await dba.execute("set role team")
        await dba.execute(f"begin; select pg_current_xact_id(); prepare transaction '{gid}'")
        for participant in (app, superuser):
            [shown] = await listed(participant)
            assert (shown.owner, shown.owned, shown.owner_fix) == ("team", False, None)
            [found] = [
                one for one in await participant.check() if one.check == "roles" and "team" in one.what
            ]
            assert (found.severity, found.fix) == (Severity.PROBLEM, None)
            assert "do not trust it" in found.why
        clerk = scene.at("clerk")
        await prepare(clerk, another)
        await clerk.close()
        [fix] = [one.owner_fix for one in await listed(app) if one.owner == "clerk"]
        assert fix is not None
        assert fix.startswith('GRANT "clerk" TO "app"')
    finally:
        await dba.close()
        await app.close()
        await superuser.close()
        for each in await scene.database.prepared():
            await admin.execute(f"rollback prepared '{each}'")
        await admin.execute("drop owned by team, dba cascade; drop role team; drop role dba")
