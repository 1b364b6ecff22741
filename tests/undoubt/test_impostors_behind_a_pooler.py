"""A person ends an impostor through PgBouncer, where nothing that is said in a session holds for the next
statement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.pgbouncer import PgBouncer, program_or_skip
from undoubt import wiring
from undoubt.config import load
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId
from undoubt.participants.registry import Registry
from undoubt.recovery.errors import Conflict, NotPrepared
from undoubt.recovery.operator.resolve import Operator
from undoubt.recovery.operator.survey import SurveyedBranch, survey
from undoubt.recovery.plan import BranchStanding

THIEF, CLERK = "pooled_thief", "pooled_clerk"
PASSWORD = "pooled"  # noqa: S105 - of a server that lives as long as the tests


@dataclass(slots=True)
class Scene:
    name: str
    dsn: str
    pooler: PgBouncer
    folder: Path

    async def opened(self, role: str = "") -> AsyncIterator[tuple[Ledger, Registry]]:
        """The ledger, and participant ``orders`` behind the pooler, where ``role`` logs in."""
        dsn = self.pooler.dsn(self.name, user=role) if role else self.pooler.dsn(self.name)
        settings = load(
            {
                "ledger": {"url": f"sqlite:///{self.folder / 'undoubt.db'}"},
                "participants": {"orders": {"dsn": dsn, "pooler": True}},
            }
        )
        await (await open_ledger(settings.ledger, create=True)).close()
        async with wiring.opened(settings) as found:
            yield found

    async def run(self, role: str, *statements: str) -> None:
        """By a session of that role's, without the pooler."""
        dsn = make_conninfo(self.dsn, user=role, password=PASSWORD) if role else self.dsn
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            for statement in statements:
                await connection.execute(statement)

    async def forge(self, gid: Gid) -> None:
        await self.run(THIEF, "begin", "select pg_current_xact_id()", f"prepare transaction '{gid}'")

    async def prepared(self) -> list[str]:
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            cursor = await connection.execute(
                "select gid from pg_prepared_xacts where database = %s", (self.name,)
            )
            return [row[0] for row in await cursor.fetchall()]


@pytest.fixture
async def scene(database: str, tmp_path: Path) -> AsyncIterator[Scene]:
    program_or_skip()
    info = conninfo_to_dict(database)
    name = str(info["dbname"])
    users = {str(info["user"]): str(info["password"]), CLERK: PASSWORD}
    settings = {"default_pool_size": "3"}
    async with (
        await psycopg.AsyncConnection.connect(database, autocommit=True) as admin,
        PgBouncer(database, settings, users=users) as pooler,
    ):
        for role in (THIEF, CLERK):
            await admin.execute(f"drop role if exists {role}")
            await admin.execute(f"create role {role} login password '{PASSWORD}'")
        made = Scene(name, database, pooler, tmp_path)
        yield made
        for gid in await made.prepared():
            await admin.execute(f"rollback prepared '{gid}'")
        for role in (THIEF, CLERK):
            await admin.execute(f"drop owned by {role}")
            await admin.execute(f"drop role {role}")


async def shown(ledger: Ledger, participants: Registry, gid: Gid) -> SurveyedBranch:
    found = (await survey(ledger, participants)).one(gid)
    assert found.standing is BranchStanding.IMPOSTOR
    return found


def made_up(ledger: Ledger) -> Gid:
    txid = TxId(1, "0123456789abcdef", 1)
    return Gid(ledger.ledger_id, Protocol.TWO_PHASE, txid, 1, "orders").tagged(SessionKey(b"forged"))


async def test_a_superuser_ends_the_one_that_was_shown(scene: Scene) -> None:
    """Broken if a person cannot end it behind a pooler, or ends another one that has its name by then."""
    async for ledger, participants in scene.opened():
        gid, operator = made_up(ledger), Operator(ledger, participants)
        await scene.forge(gid)
        first = await shown(ledger, participants, gid)
        await scene.run(THIEF, f"rollback prepared '{gid}'")
        with pytest.raises(NotPrepared):
            await operator.end_impostor(first)
        await scene.forge(gid)
        with pytest.raises(Conflict, match="has changed since it was shown"):
            await operator.end_impostor(first)
        assert await scene.prepared() == [str(gid)]
        await operator.end_impostor(await shown(ledger, participants, gid), note="ticket 7")
        assert await scene.prepared() == []
        acts: list[Any] = list(await ledger.acts(limit=9))
        assert {(act.verb, act.subject) for act in acts} == {("indoubt rollback (impostor)", str(gid))}
        assert [act.note for act in acts].count("ticket 7") == 1
        assert list(await ledger.heuristics()) == []
        assert list(await ledger.transactions(limit=5)) == []


async def test_a_role_that_may_not_is_told_who_may(scene: Scene) -> None:
    """Broken if a role ends a stranger's there, or is told less than how to: a SET ROLE could be another
    client's."""
    async for ledger, participants in scene.opened(CLERK):
        gid, operator = made_up(ledger), Operator(ledger, participants)
        await scene.forge(gid)
        await scene.run("", f"grant {THIEF} to {CLERK}")
        told = f"only role '{THIEF}' or a superuser may end it: rollback prepared"
        with pytest.raises(ParticipantRefused, match=told):
            await operator.end_impostor(await shown(ledger, participants, gid))
        assert await scene.prepared() == [str(gid)]
