"""The provider of servers: each way gives a real server that can prepare transactions."""

from __future__ import annotations

import asyncpg
import pytest

from tests.servers import Container, Server, fresh_database, prepared, why_no_docker


async def test_a_server_can_prepare_and_a_database_is_fresh(postgres: Server) -> None:
    """Everything else in this suite stands on it."""
    async with fresh_database(postgres, "one") as dsn:
        await _prepare(dsn)
        assert await prepared(dsn) == ["mine"]
        await _roll_back(dsn)
        assert await prepared(dsn) == []


async def test_what_is_left_prepared_fails_its_test(postgres: Server) -> None:
    """A test that leaves a transaction in doubt must not pass."""
    with pytest.raises(AssertionError, match="left prepared in one: \\['mine'\\]"):
        async with fresh_database(postgres, "one") as dsn:
            await _prepare(dsn)


async def test_a_container_is_a_server_too() -> None:
    """testcontainers is the way for machines without PostgreSQL's programs."""
    reason = why_no_docker()
    if reason is not None:
        pytest.skip(reason)
    server = Container()
    try:
        async with fresh_database(server, "one") as dsn:
            await _prepare(dsn)
            await _roll_back(dsn)
    finally:
        server.close()


async def _prepare(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("begin; create table mine (a int); prepare transaction 'mine'")
    await connection.close()


async def _roll_back(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("rollback prepared 'mine'")
    await connection.close()
