"""Fixtures that every room's tests share: servers for the session, databases for each test."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.servers import Server, fresh_database, new_server

MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's filesystem in memory
MEMORY_BYTES_MIN = 8 << 30
"""Several times what a whole run in parallel needs, also of the machine's free memory."""

# A shell starts background jobs with SIGINT ignored, and children inherit that: nothing could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _use_memory() -> None:
    """Temporary files of the tests, and of the processes that they start, are in memory.

    No test cuts the power, so none can tell it from a disk, and each new database is some 300 files. TMPDIR
    names another place.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    found = os.statvfs(MEMORY)
    room_bytes = min(found.f_bavail * found.f_frsize, _available_bytes())
    if room_bytes >= MEMORY_BYTES_MIN and not found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None  # it may have been asked for before


def _available_bytes() -> int:
    """Memory that can be used without swapping (``MemAvailable``, proc(5))."""
    meminfo = Path("/proc/meminfo").read_text()
    return int(meminfo.partition("MemAvailable:")[2].split()[0]) * 1024


_use_memory()


def pytest_xdist_auto_num_workers() -> int:
    """Twice the processors: most tests wait for servers most of their time."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay to the end: garbage collections, also in tests, leave them out."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


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


@pytest.fixture
def few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hazard is recorded after 0.07 s instead of 2.5 s, where no recovery can have committed the branch."""
    monkeypatch.setattr("undoubt.coordinator.protocols.second_phase.HAZARD_LOOKS_MAX", 3)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the traces of scenario files anew")
