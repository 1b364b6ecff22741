"""The sidecar and its callers behind a PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.pgbouncer import PgBouncer, program_or_skip
from tests.undoubt.sidecar.conftest import TABLES
from tests.undoubt.sidecar.stage import Stage, eventually_none_prepared, prepare, staged, value
from undoubt.embedded import EmbeddedServer

NAMES = ("orders", "payments")
BALANCE = "select balance from account where id = 1"
ADD = "update account set balance = balance + {} where id = 1"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """By participants' names: DSNs through the pooler, and direct ones."""
    program_or_skip()
    server = EmbeddedServer(durable=False)
    asyncio.run(server.start())
    pooler = PgBouncer(server.socket_dsn())
    try:
        asyncio.run(pooler.start())
        direct = {name: asyncio.run(server.create_database(name)) for name in NAMES}
        for dsn in direct.values():
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(TABLES)
        yield {name: pooler.dsn(name) for name in NAMES}, direct
    finally:
        asyncio.run(pooler.close())
        asyncio.run(server.close())


@pytest.fixture(params=["declared", "undeclared"])
def pooled(
    servers: tuple[dict[str, str], dict[str, str]], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Stage, dict[str, str]]]:
    """A sidecar that was told of the pooler, or was not."""
    through, direct = servers
    more = "pooler = true" if request.param == "declared" else ""  # of the last participant
    with staged(tmp_path, through, more=more) as stage:
        yield stage, direct


def balances(direct: dict[str, str]) -> list[int]:
    return [value(dsn, BALANCE) for dsn in direct.values()]


def test_a_commit_through_a_pooler(pooled: tuple[Stage, dict[str, str]]) -> None:
    """Both ways to run a branch; the caller's goes through the pooler too."""
    stage, direct = pooled
    before = balances(direct)
    for _ in range(3):
        work = stage.tcp().begin()
        work.run(ADD.format(-10))
        prepare(stage.databases["payments"], work.announce("payments"), ADD.format(10))
        answer = work.commit()
        assert (answer.status_code, answer.json()["pending"]) == (200, [])
    assert balances(direct) == [before[0] - 30, before[1] + 30]


def test_what_is_not_prepared_behind_a_pooler(pooled: tuple[Stage, dict[str, str]]) -> None:
    """An abort is recorded, so that a branch that is prepared later is rolled back."""
    stage, direct = pooled
    before = balances(direct)
    work = stage.tcp().begin()
    work.run(ADD.format(-10))
    branch = work.announce("payments")
    assert work.commit().json()["outcome"] == "aborted"
    prepare(stage.databases["payments"], branch, ADD.format(10))
    for dsn in direct.values():
        eventually_none_prepared(dsn)
    assert balances(direct) == before
