"""Finishing the branches of other roles without being a superuser: who may, and which GRANT is missing.

Every role here is an ordinary one. What :meth:`check` prints is executed as it stands, and has to be enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.participants.hands import at, sql_error
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Decision, Evidence, Settled, Vote
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.roles import missing_grant


@dataclass
class Roles:
    """``app`` works, and may become ``bookkeeper``; ``rescue`` recovers."""

    database: Database
    app: PostgresParticipant
    rescue: PostgresParticipant
    evidence: Evidence | None = None

    async def left(self, before: str = "") -> Gid:
        """A branch of ``app`` whose coordinator is gone, and its ``evidence``; ``before`` comes first in
        it."""
        gid = new_gid()
        branch = await self.app.begin(gid, timeout_s=30)
        if before:
            await at(branch).execute(before)
        await at(branch).execute(WRITE)
        result = await branch.prepare()
        assert result.vote is Vote.PREPARED, result.reason
        self.evidence = result.evidence
        await branch.release()
        return gid

    async def found(self) -> list[Finding]:
        return [one for one in await self.rescue.check() if one.check == "roles"]


@pytest_asyncio.fixture
async def roles(database: Database, server: EmbeddedServer) -> AsyncIterator[Roles]:
    await database.admin.execute(
        "create role app login noinherit; create role bookkeeper noinherit; grant bookkeeper to app;"
        "create role rescue login noinherit;"
        "grant all on account to app, bookkeeper"
    )
    made = Roles(
        database,
        participant_at(server.dsn(database.name, user="app")),
        participant_at(server.dsn(database.name, user="rescue")),
    )
    yield made
    await made.app.close()
    await made.rescue.close()
    for gid in await database.prepared():
        await database.admin.execute(f"rollback prepared '{gid}'")
    await database.admin.execute("drop owned by app, bookkeeper, rescue; drop role app, bookkeeper, rescue")


@pytest.mark.parametrize(("before", "owner"), [("", "app"), ("set local role bookkeeper", "bookkeeper")])
@pytest.mark.parametrize("order", list(Decision))
async def test_the_missing_grant_is_printed_and_is_enough(
    roles: Roles, before: str, owner: str, order: Decision
) -> None:
    """Broken if an operator without superuser (every managed cloud) cannot get a branch finished."""
    gid = await roles.left(before)
    with pytest.raises(ParticipantRefused, match="GRANT") as refused:
        await roles.rescue.settle(gid, order, roles.evidence)
    finding = next(one for one in await roles.found() if f"role {owner}," in one.what)
    assert finding.severity is Severity.PROBLEM
    assert finding.fix is not None
    assert finding.fix in str(refused.value), "doctor and recovery have to say the same"
    await roles.database.admin.execute(finding.fix)
    assert await roles.rescue.settle(gid, order, roles.evidence) is Settled.APPLIED
    assert await roles.database.balance() == (90 if order is Decision.COMMIT else 100)
    assert not any(f"role {owner}," in one.what for one in await roles.found())


async def test_a_membership_without_the_option_set(roles: Roles) -> None:
    """Since version 16 it gives the role's rights, and not SET ROLE; a plain GRANT would not add that."""
    if int(await roles.database.admin.fetchval("show server_version_num")) < 160000:
        pytest.skip("memberships have no options before version 16")
    await roles.database.admin.execute("grant app to rescue with inherit true, set false")
    gid = await roles.left()
    [listed] = await roles.rescue.in_doubt()
    assert not listed.owned, "what cannot be ended is not waited for"
    [finding] = await roles.found()
    assert finding.severity is Severity.PROBLEM
    assert listed.owner_fix == finding.fix
    await roles.database.admin.execute("grant app to rescue")
    with pytest.raises(ParticipantRefused, match="WITH SET TRUE"):
        await roles.rescue.settle(gid, Decision.COMMIT, roles.evidence)
    assert finding.fix == 'GRANT "app" TO "rescue" WITH SET TRUE;'
    await roles.database.admin.execute(finding.fix)
    assert await roles.rescue.settle(gid, Decision.COMMIT, roles.evidence) is Settled.APPLIED
    inherits = await roles.database.admin.fetchval(
        "select inherit_option from pg_auth_members where member = 'rescue'::regrole"
    )
    assert inherits, "what else the membership was made for stays as it was"


async def test_an_indirect_membership_is_enough(roles: Roles) -> None:
    """``rescue`` is a member of ``app``, which is one of ``bookkeeper``; none of them inherits."""
    await roles.database.admin.execute("grant app to rescue")
    gid = await roles.left("set local role bookkeeper")
    [finding] = await roles.found()
    assert (finding.severity, finding.what) == (
        Severity.OK,
        "rescue can finish its own branches and those of app, bookkeeper",
    )
    assert await roles.rescue.settle(gid, Decision.COMMIT, roles.evidence) is Settled.APPLIED


async def test_what_would_be_left_behind_is_said_before_it_is(roles: Roles) -> None:
    """Broken if the GRANT is asked for only once branches are stuck: sessions of other roles are seen."""
    branch = await roles.app.begin(new_gid(), timeout_s=30)
    [finding] = await roles.found()
    assert finding.severity is Severity.PROBLEM
    assert "role app, which has 1 sessions" in finding.what
    await branch.rollback()
    await branch.release()


async def test_cancelling_needs_the_rights_themselves(roles: Roles) -> None:
    """Broken if a deadlock across databases cannot be ended by a recovery in another process, and nobody says
    so: unlike SET ROLE it takes a membership that is inherited."""
    if int(await roles.database.admin.fetchval("show server_version_num")) < 160000:
        pytest.skip("before version 16 a NOINHERIT role inherits nothing at all")
    await roles.database.admin.execute("grant app to rescue")
    gid = await roles.left()
    waiter = await roles.app.begin(new_gid(), timeout_s=30)
    task = asyncio.create_task(at(waiter).execute(WRITE))
    async with asyncio.timeout(20):
        while not (edges := await roles.rescue.waits()):
            await asyncio.sleep(0.01)
    with pytest.raises(ParticipantRefused):
        await roles.rescue.cancel_waiter(edges[0])
    [finding] = [one for one in await roles.rescue.check() if one.check == "cancelling"]
    assert finding.severity is Severity.WARNING
    assert finding.fix is not None
    await roles.database.admin.execute(finding.fix)
    assert await roles.rescue.cancel_waiter(edges[0])
    with sql_error("57014"):
        await task
    [finding] = [one for one in await roles.rescue.check() if one.check == "cancelling"]
    assert finding.severity is Severity.OK
    await waiter.rollback()
    await waiter.release()
    assert await roles.rescue.settle(gid, Decision.ABORT, roles.evidence) is Settled.APPLIED


async def test_branches_of_others_are_not_asked_for(roles: Roles, server: EmbeddedServer) -> None:
    """Rights over foreign prepared transactions, or another ledger's, are none of ours."""
    await roles.database.admin.execute("begin; update account set balance = 1; prepare transaction 'foreign'")
    [finding] = await roles.found()
    assert finding.severity is Severity.OK
    await roles.database.admin.execute("rollback prepared 'foreign'")


async def test_the_superuser_finishes_what_is_named(roles: Roles) -> None:
    """Broken if being superuser alone makes everybody's branches ours, or naming their roles does not."""
    gid = await roles.left("set local role bookkeeper")
    superuser = participant_at(roles.database.dsn)
    found = {one.check: one for one in await superuser.check()}
    assert (found["roles"].severity, found["roles"].fix) == (Severity.PROBLEM, 'owners = ["bookkeeper"]')
    assert (found["owners"].severity, found["owners"].fix) == (Severity.PROBLEM, 'owners = ["app"]')
    [listed] = await superuser.in_doubt()
    assert not listed.owned
    assert await superuser.settle(gid, Decision.COMMIT, None) is Settled.HEURISTIC_HAZARD
    with pytest.raises(ParticipantRefused):
        await superuser.settle(gid, Decision.COMMIT, roles.evidence)
    await superuser.close()
    assert await roles.database.prepared() == [str(gid)]
    named = participant_at(roles.database.dsn, owners=("app", "bookkeeper"))
    found = {one.check: one for one in await named.check()}
    assert (found["roles"].severity, found["owners"].severity) == (Severity.OK, Severity.OK)
    [listed] = await named.in_doubt()
    assert listed.owned
    assert await named.settle(gid, Decision.COMMIT, roles.evidence) is Settled.APPLIED
    await named.close()


async def test_the_wait_graph_and_the_list_need_no_rights(roles: Roles) -> None:
    """Broken if deadlocks or orphans are invisible to a recovery that is no superuser."""
    gid = await roles.left()
    blocked = participant_at(roles.database.dsn)
    victim = await blocked.begin(new_gid(), timeout_s=30)
    task = asyncio.create_task(at(victim).execute(WRITE))
    async with asyncio.timeout(20):
        while not (edges := await roles.rescue.waits()):
            await asyncio.sleep(0.01)
    assert [(edge.waiter, edge.holder) for edge in edges] == [(victim.gid, "p/" + str(gid))]
    [listed] = await roles.rescue.in_doubt()
    assert (listed.gid, listed.owner) == (gid, "app")
    await roles.database.admin.execute(f"rollback prepared '{gid}'")
    await task
    await victim.rollback()
    await victim.release()
    await blocked.close()


def test_names_are_quoted() -> None:
    """A role may be called anything; the line is meant to be pasted."""
    assert missing_grant('a"b', "Rescue", 150000) == 'GRANT "a""b" TO "Rescue";'
