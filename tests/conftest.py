"""Fixtures that every room's tests share: servers for the session, databases for each test."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.servers import Server, fresh_database, new_server

# A shell starts background jobs with SIGINT ignored, and children inherit that: nothing could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes that share the tests must name them alike: an address of an object differs in each."""
    if odd := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"names of tests hold addresses of objects: {odd[:3]}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One server for the whole session; not to be crashed."""
    server = new_server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def other_postgres() -> Iterator[Server]:
    """A second one."""
    server = new_server()
    yield server
    server.close()


@pytest.fixture
async def database(postgres: Server) -> AsyncIterator[str]:
    """The DSN of a fresh database. Nothing may be left prepared in it."""
    async with fresh_database(postgres, "test") as dsn:
        yield dsn


@pytest.fixture
async def databases(postgres: Server, other_postgres: Server) -> AsyncIterator[dict[str, str]]:
    """DSNs of two fresh databases on two servers, by participant: ``orders`` and ``payments``."""
    async with AsyncExitStack() as stack:
        orders = await stack.enter_async_context(fresh_database(postgres, "orders"))
        payments = await stack.enter_async_context(fresh_database(other_postgres, "payments"))
        yield {"orders": orders, "payments": payments}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the traces of scenario files anew")
