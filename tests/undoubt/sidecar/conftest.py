"""One sidecar on a SQLite ledger for the whole room, with a row of money in each database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
import pytest

from tests.servers import Server
from tests.undoubt.cli.harness import undoubt
from tests.undoubt.sidecar.pair import Pair
from tests.undoubt.sidecar.stage import Stage, configuration, eventually_none_prepared, staged, token
from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings
from undoubt.serve.sidecar.tokens import hash_of

OF_B = (
    f'[[sidecar.tokens]]\nname = "stranger"\nsha256 = "{hash_of(token("stranger"))}"\nparticipants = ["*"]\n'
    "[participants.payments.sidecar]\nsql = true"
)
"""The second sidecar alone knows a client, and runs SQL in the database of its service."""

TABLES = (
    "create table account (id int primary key, balance int not null);"
    "insert into account select id, 100 from generate_series(1, 1000) as id"
)


def made(server: Server, name: str) -> str:
    """The DSN of a new database."""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)".encode())
        admin.execute(f"create database {name}".encode())
    dsn = server.dsn(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TABLES)
    return dsn


def migrated_pair(one: Server, other: Server, stem: str) -> dict[str, str]:
    """The DSNs of two new databases with undoubt's tables, by their participants' names."""
    databases = {"orders": made(one, f"{stem}_orders"), "payments": made(other, f"{stem}_payments")}
    for name, dsn in databases.items():
        asyncio.run(schema.migrate(name, ParticipantSettings(dsn=dsn)))
    return databases


@pytest.fixture(scope="package")
def shops(postgres: Server, other_postgres: Server) -> dict[str, str]:
    """Two databases on two servers."""
    return {"orders": made(postgres, "sidecar_orders"), "payments": made(other_postgres, "sidecar_payments")}


@pytest.fixture(scope="package")
def stage(shops: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(
        tmp_path_factory.mktemp("sidecar"),
        shops,
        transactions_max=60,
        branches_max=5,
        rows_max=1000,
        rows_bytes_max=100_000,
        body_bytes_max=100_000,
        body_timeout_s=2.0,
        kept_s=60.0,
        wait_max_s=5.0,
    ) as made_:
        yield made_


@pytest.fixture(scope="package")
def outboxes(
    postgres: Server, other_postgres: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """A sidecar whose databases have undoubt's tables: they have an outbox, and can guard locks."""
    databases = migrated_pair(postgres, other_postgres, "sidecar_outboxes")
    with staged(tmp_path_factory.mktemp("outboxes"), databases) as made_:
        yield made_


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A branch that stays prepared would hold its locks for ever."""
    yield
    for name in ("stage", "outboxes"):
        if name in request.fixturenames:
            stage: Stage = request.getfixturevalue(name)
            for dsn in stage.databases.values():
                eventually_none_prepared(dsn)


@pytest.fixture(scope="package")
def ledger(postgres: Server, shops: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    name = "sidecar_pair_ledger"
    with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)".encode())
        admin.execute(f"create database {name}".encode())
    url = postgres.dsn(name).replace("postgresql://", "postgresql+psycopg://")
    config = configuration(tmp_path_factory.mktemp("init"), url, shops, 1)
    initialized = undoubt("ledger", "init", "--yes", "--config", str(config))
    assert initialized.status == 0, initialized.err
    return url


@pytest.fixture(scope="package")
def pair(
    postgres: Server, other_postgres: Server, ledger: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    databases = {
        "orders": made(postgres, "sidecar_pair_orders"),
        "payments": made(other_postgres, "sidecar_pair_payments"),
    }
    with paired(databases, ledger, tmp_path_factory) as both:
        yield both


@contextmanager
def paired(databases: dict[str, str], ledger: str, folders: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as stack:
        a, b = (
            stack.enter_context(staged(folders.mktemp(name), databases, ledger, more, reachable=True))
            for name, more in (("a", ""), ("b", OF_B))
        )
        yield Pair(a, b)


@pytest.fixture(autouse=True)
def both_run(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pair" in request.fixturenames:
        pair: Pair = request.getfixturevalue("pair")
        for stage in (pair.a, pair.b):
            if stage.process is None or stage.process.poll() is not None:
                stage.start()
        for dsn in pair.databases.values():
            eventually_none_prepared(dsn)
