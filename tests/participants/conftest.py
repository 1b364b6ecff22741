"""One server for the whole room, a database of its own for every test."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import LiteralString

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from tests.participants import support
from tests.participants.scene import Scene
from tests.participants.support import SETTINGS, Database, new_gid, participant_at
from tests.pgbouncer import PgBouncer, program_or_skip
from tests.servers import Control, run_apart
from undoubt.embedded import EmbeddedServer
from undoubt.participants.ids import Gid
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.postgres.sql import query
from undoubt.participants.settings import ParticipantSettings

_names = itertools.count(1)

KINDS = ("asyncpg", "psycopg")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that talks to a server runs over each driver, and in each way: undoubt's own statements in
    pipelines, or as scripts. A module's own ``KINDS`` and ``WAYS`` say otherwise."""
    if inspect.iscoroutinefunction(metafunc.function):
        kinds = getattr(metafunc.module, "KINDS", KINDS)
        ways = getattr(metafunc.module, "WAYS", support.WAYS)
        metafunc.parametrize("kind", [kind + way for kind in kinds for way in ways], indirect=True)


@pytest.fixture(autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the test's participants are made of: the part of :data:`support.kind` without the way."""
    chosen = str(getattr(request, "param", "asyncpg"))
    monkeypatch.setattr(support, "kind", chosen)
    return chosen.removesuffix(support.SCRIPTS)


@pytest.fixture(scope="package")
def server() -> Iterator[EmbeddedServer]:
    """A server whose data may be lost: for tests that crash nothing."""
    server = EmbeddedServer(SETTINGS, durable=False)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.close())


@pytest.fixture(scope="package")
def control(server: EmbeddedServer) -> Iterator[Control]:
    control = Control(server.socket_dsn(), server.socket_dsn("template1"), loses_data=True)
    yield control
    control.close()


@pytest.fixture(scope="package")
def pooler(server: EmbeddedServer) -> Iterator[PgBouncer]:
    """PgBouncer in transaction mode before that server."""
    program_or_skip()
    pooler = PgBouncer(server.socket_dsn(), users=("postgres", "app", "rescue"))
    asyncio.run(pooler.start())
    yield pooler
    asyncio.run(pooler.close())


@pytest.fixture(params=["direct", "pooled"])
def way(request: pytest.FixtureRequest) -> PgBouncer | None:
    """The pooler, or none."""
    found: PgBouncer | None = request.getfixturevalue("pooler") if request.param == "pooled" else None
    return found


@pytest.fixture(scope="package")
def empty(server: EmbeddedServer, control: Control) -> str:
    """The template of :func:`database`."""
    control.create("empty")
    _run_in(
        server.dsn("empty"),
        "create table account (id int primary key, balance int not null);"
        " insert into account values (1, 100), (2, 100)",
    )
    return "empty"


@pytest.fixture(scope="package")
def migrated(server: EmbeddedServer, control: Control, empty: str) -> str:
    """The template of :func:`noted`."""
    control.create("migrated", empty)
    settings = ParticipantSettings(dsn=server.dsn("migrated"))
    assert run_apart(migrate("p", settings))
    assert not run_apart(migrate("p", settings))
    return "migrated"


def _run_in(dsn: str, statements: LiteralString) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statements)


@pytest.fixture
def template(request: pytest.FixtureRequest, empty: str) -> str:
    return str(request.getfixturevalue("migrated")) if "noted" in request.fixturenames else empty


@pytest_asyncio.fixture
async def database(server: EmbeddedServer, control: Control, template: str) -> AsyncIterator[Database]:
    """A database with ``account(id, balance)``, two rows of 100; its prepared branches go with it."""
    name = f"db{next(_names)}"
    control.create(name, template)
    dsn = server.dsn(name)
    admin = await asyncpg.connect(dsn, server_settings={"lock_timeout": "10s"})
    yield Database(name, dsn, admin)
    for gid in control.prepared(name):
        await admin.execute(f"rollback prepared '{gid}'")
    await admin.close()
    control.drop(name)


@pytest_asyncio.fixture
async def participant(database: Database) -> AsyncIterator[PostgresParticipant]:
    """Participant ``p`` at that database."""
    participant = participant_at(database.dsn)
    yield participant
    await participant.close()


@pytest.fixture
def gid() -> Gid:
    """Of a transaction that no other test has."""
    return new_gid()


@pytest_asyncio.fixture
async def noted(database: Database) -> Database:
    """The database with undoubt's tables, and a history id of its own."""
    await database.admin.execute(";".join(query(each) for each in ("forget_history", "draw_history")))
    return database


@pytest_asyncio.fixture
async def scene(database: Database, server: EmbeddedServer) -> AsyncIterator[Scene]:
    await database.admin.execute(
        "create role app login; create role clerk login; create role thief login;"
        "grant all on account to app, clerk"
    )
    thief = await asyncpg.connect(server.dsn(database.name, user="thief"))
    yield Scene(database, server, thief)
    await thief.close()
    for gid in await database.prepared():
        await database.admin.execute(f"rollback prepared '{gid}'")
    await database.admin.execute("drop owned by app, clerk, thief; drop role app, clerk, thief")


@pytest_asyncio.fixture
async def taken(scene: Scene) -> AsyncIterator[Scene]:
    """The thief owns the database."""
    name = scene.database.name
    await scene.database.admin.execute(f"alter database {name} owner to thief")
    yield scene
    await scene.database.admin.execute(
        f"alter database {name} owner to postgres; alter database {name} reset role"
    )
