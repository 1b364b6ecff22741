"""A deadlock across databases that another process finds: the victim is told, and ``run`` repeats it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import undoubt
import undoubt.sync
from tests.coordinator.node.processes import processes
from tests.servers import Server, fresh_database
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt import TransactionAborted
from undoubt.coordinator.errors import DistributedDeadlock, SelfDeadlock
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.settings import LedgerSettings
from undoubt.integrations.sqlalchemy import AsyncSession, Session
from undoubt.participants.ids import TxId

QUICK = {"deadlock_interval_s": 0.05, "interval_s": 0.5}
NAME = "select current_setting('application_name')"
BOUND = re.compile(r"undoubt:[a-z0-9]{10}:\d+\.\d+~[A-Za-z0-9_-]{8}")
UPDATE = "update note set text = text || 'x'"
PAIRS = (("orders", "payments"), ("payments", "orders"))


async def filled(databases: dict[str, str]) -> None:
    for dsn in databases.values():
        await run(dsn, TABLE)
        await run(dsn, "insert into note (id) values (1)")


@pytest.fixture(params=["sqlite", "postgresql"])
async def elsewhere(
    request: pytest.FixtureRequest, tmp_path: Path, databases: dict[str, str]
) -> AsyncIterator[dict[str, Any]]:
    """Settings of a process in which nobody looks for deadlocks; another one does."""
    await filled(databases)
    made = source(tmp_path, databases, recovery=QUICK)
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "raft":
            more = "[recovery]\n" + "".join(f"{key} = {value}\n" for key, value in QUICK.items())
            more += "".join(f'[participants.{name}]\ndsn = "{dsn}"\n' for name, dsn in databases.items())
            nodes = await stack.enter_async_context(processes(tmp_path, more))
            made["ledger"] = {"url": nodes.settings.url, "request_timeout_s": 60.0}
        elif request.param == "postgresql":
            server: Server = request.getfixturevalue("postgres")
            dsn = await stack.enter_async_context(fresh_database(server, "ledger"))
            made["ledger"] = {"url": dsn.replace("postgresql://", "postgresql+psycopg://")}
            await maintenance.init(LedgerSettings(**made["ledger"]))
        if request.param != "raft":
            await stack.enter_async_context(undoubt.connect(made))
        yield made


def with_driver(settings: dict[str, Any], driver: str) -> dict[str, Any]:
    participants = {name: {**one, "driver": driver} for name, one in settings["participants"].items()}
    return {**settings, "participants": participants}


async def texts(databases: dict[str, str]) -> list[str]:
    return [row["text"] for dsn in databases.values() for row in await run(dsn, "select text from note")]


EVERY_LEDGER = pytest.mark.parametrize("elsewhere", ["sqlite", "postgresql", "raft"], indirect=True)


@EVERY_LEDGER
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_run_repeats_it(elsewhere: dict[str, Any], databases: dict[str, str], driver: str) -> None:
    """Broken if the victim hears of a cancelled statement alone, and ``run`` gives up.

    The victim's next run can take the row that its abort has just freed before the one who waited for it,
    since PostgreSQL grants a row whose last writer aborted to whoever asks first. Then they deadlock again,
    so the number of runs is at least three.
    """
    both = asyncio.Barrier(2)
    calls: list[str] = []

    async def update(tx: undoubt.Transaction, first: str, second: str) -> None:
        calls.append(first)
        await (await tx.branch(first)).execute(UPDATE)
        if calls.count(first) == 1:
            await both.wait()
        await (await tx.branch(second)).execute(UPDATE)

    async with undoubt.connect(with_driver(elsewhere, driver), recover=False) as coordinator:
        await asyncio.gather(*(coordinator.run(update, *pair, timeout=60) for pair in PAIRS))
    assert len(calls) >= 3
    assert await texts(databases) == ["xx", "xx"]


def victim_of(told: list[Any]) -> BaseException:
    """Of two, one of which is a victim."""
    [error] = [each for each in told if each is not None]
    assert isinstance(error, TransactionAborted), error
    assert isinstance(error.cause, DistributedDeadlock)
    assert len(error.cause.cycle) == 2
    assert error.cause.victim == error.txid
    return error


async def enqueued(coordinator: undoubt.Coordinator, count: int) -> None:
    """Return once a lock has so many requests."""
    async with asyncio.timeout(60):
        while not any(len(info.entries) == count for info in await coordinator.ledger.locks()):
            await asyncio.sleep(0.01)


@EVERY_LEDGER
@pytest.mark.parametrize("victim", ["waits for the lock", "waits for the row"])
async def test_a_row_and_a_lock_of_the_ledger(
    elsewhere: dict[str, Any], databases: dict[str, str], victim: str
) -> None:
    """Broken if the detector does not read the ledger's own locks, or a victim that waits for one is not
    told: both transactions would wait until their timeouts."""
    both, first_began = asyncio.Barrier(2), asyncio.Event()

    async def row_first(coordinator: undoubt.Coordinator, turn: int) -> None:
        if turn:
            await first_began.wait()
        async with coordinator.transaction(timeout=60) as tx:
            first_began.set()
            await (await tx.branch("orders")).execute(UPDATE)
            await both.wait()
            async with coordinator.lock("job", tx=tx):
                await (await tx.branch("payments")).execute(UPDATE)

    async def lock_first(coordinator: undoubt.Coordinator, turn: int) -> None:
        if turn:
            await first_began.wait()
        async with coordinator.transaction(timeout=60) as tx:
            first_began.set()
            async with coordinator.lock("job", tx=tx):
                await both.wait()
                await enqueued(coordinator, 2)
                await (await tx.branch("orders")).execute(UPDATE)

    order = [lock_first, row_first] if victim == "waits for the lock" else [row_first, lock_first]
    async with undoubt.connect(elsewhere, recover=False) as coordinator:
        works = (work(coordinator, turn) for turn, work in enumerate(order))
        told = await asyncio.gather(*works, return_exceptions=True)
        assert told[0] is None
        victim_of(told)
        assert await coordinator.ledger.locks() == []


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_victim_is_told(elsewhere: dict[str, Any], driver: str, swallows: bool) -> None:
    """Broken if a body that swallows the cancelled statement hears of a swallowed error, and not of the
    deadlock."""
    both = asyncio.Barrier(2)

    async def update(coordinator: undoubt.Coordinator, first: str, second: str) -> None:
        async with coordinator.transaction(timeout=60) as tx:
            await (await tx.branch(first)).execute(UPDATE)
            branch = await tx.branch(second)
            await both.wait()
            with contextlib.suppress(Exception) if swallows else contextlib.nullcontext():
                await branch.execute(UPDATE)

    async with undoubt.connect(with_driver(elsewhere, driver), recover=False) as coordinator:
        updates = (update(coordinator, *pair) for pair in PAIRS)
        victim_of(await asyncio.gather(*updates, return_exceptions=True))


@EVERY_LEDGER
async def test_threads(elsewhere: dict[str, Any], databases: dict[str, str]) -> None:
    both = threading.Barrier(2)
    calls: list[str] = []

    def update(tx: undoubt.sync.Transaction, first: str, second: str) -> None:
        calls.append(first)
        tx.branch(first).execute(UPDATE)
        if calls.count(first) == 1:
            both.wait(30)
        tx.branch(second).execute(UPDATE)

    coordinator = await asyncio.to_thread(undoubt.sync.connect, elsewhere, recover=False)
    try:
        await asyncio.gather(
            *(asyncio.to_thread(coordinator.run, update, *pair, timeout=60) for pair in PAIRS)
        )
    finally:
        await asyncio.to_thread(coordinator.close)
    assert len(calls) >= 3
    assert await texts(databases) == ["xx", "xx"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_session_of_sqlalchemy(
    elsewhere: dict[str, Any], databases: dict[str, str], driver: str
) -> None:
    both = asyncio.Barrier(2)
    names: list[str] = []
    engines = {
        name: create_async_engine(dsn.replace("postgresql:", f"postgresql+{driver}:"))
        for name, dsn in databases.items()
    }

    async def update(coordinator: undoubt.Coordinator, first: str, second: str) -> None:
        participants = {engine: name for name, engine in engines.items()}
        async with AsyncSession(coordinator=coordinator, participants=participants, timeout=60) as session:
            for name in (first, second):
                bind = {"bind": engines[name].sync_engine}
                await session.execute(sa.text(UPDATE), bind_arguments=bind)
                names.append(await session.scalar(sa.text(NAME), bind_arguments=bind))
                if name == first:
                    await both.wait()
            await session.commit()

    async with undoubt.connect(elsewhere, recover=False) as coordinator:
        updates = (update(coordinator, *pair) for pair in PAIRS)
        victim_of(await asyncio.gather(*updates, return_exceptions=True))
    assert all(BOUND.fullmatch(name) for name in names), names
    for engine in engines.values():
        await engine.dispose()


async def test_a_synchronous_session(elsewhere: dict[str, Any], databases: dict[str, str]) -> None:
    both = threading.Barrier(2)
    engines = {
        name: sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
        for name, dsn in databases.items()
    }
    coordinator = await asyncio.to_thread(undoubt.sync.connect, elsewhere, recover=False)

    def update(first: str, second: str) -> None:
        participants = {engine: name for name, engine in engines.items()}
        with Session(coordinator=coordinator, participants=participants, timeout=60) as session:
            session.execute(sa.text(UPDATE), bind_arguments={"bind": engines[first]})
            both.wait(30)
            session.execute(sa.text(UPDATE), bind_arguments={"bind": engines[second]})
            session.commit()

    updates = (asyncio.to_thread(update, *pair) for pair in PAIRS)
    victim_of(await asyncio.gather(*updates, return_exceptions=True))
    await asyncio.to_thread(coordinator.close)
    for engine in engines.values():
        engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_one_database_ends_its_own_and_run_repeats_it(
    tmp_path: Path, databases: dict[str, str], driver: str
) -> None:
    """Broken if what PostgreSQL's own detector says (40P01) is not told as something to be run again."""
    await filled(databases)
    await run(databases["orders"], "insert into note (id) values (2)")
    both = asyncio.Barrier(2)
    calls: list[int] = []

    async def update(tx: undoubt.Transaction, first: int, second: int) -> None:
        calls.append(first)
        await (await tx.branch("payments")).execute("select 1")
        orders = await tx.branch("orders")
        await orders.execute(f"{UPDATE} where id = {first}")
        if calls.count(first) == 1:
            await both.wait()
        await orders.execute(f"{UPDATE} where id = {second}")

    async with undoubt.connect(with_driver(source(tmp_path, databases), driver)) as coordinator:
        pairs = ((1, 2), (2, 1))
        await asyncio.gather(*(coordinator.run(update, *pair, timeout=60) for pair in pairs))
    assert len(calls) >= 3
    rows = await run(databases["orders"], "select text from note")
    assert [row["text"] for row in rows] == ["xx", "xx"]


async def test_a_cancellation_of_the_applications_own_is_no_deadlock(
    tmp_path: Path, databases: dict[str, str]
) -> None:
    """Broken if whatever cancels a statement is told as something that nobody has found."""
    await filled(databases)
    async with undoubt.connect(source(tmp_path, databases)) as coordinator:
        with pytest.raises(Exception, match="statement timeout") as raised:
            async with coordinator.transaction() as tx:
                orders = await tx.branch("orders")
                await orders.execute("set local statement_timeout = '50ms'")
                await orders.execute("select pg_sleep(60)")
    assert not isinstance(raised.value, undoubt.UndoubtError)


VICTIM = TxId(3, "99b2" * 4, 7)
TOLD: list[Callable[[], DistributedDeadlock]] = [
    lambda: DistributedDeadlock(VICTIM, [str(VICTIM), "payments/17", "3-99b299b299b299b2.5"], ["b", "a"]),
    lambda: SelfDeadlock(VICTIM, ["orders", "orders-too"]),
]


@pytest.mark.parametrize("make", TOLD)
def test_what_is_written_down_is_read_as_what_it_was(make: Callable[[], DistributedDeadlock]) -> None:
    """Broken if the victim's process makes something else of it: ``run`` repeats the one and not the
    other."""
    written = make()
    read = DistributedDeadlock.parse(VICTIM, str(written))
    assert type(read) is type(written)
    assert read is not None
    assert (str(read), read.cycle, read.retryable) == (str(written), written.cycle, written.retryable)
    cut = DistributedDeadlock.parse(VICTIM, str(written)[:60])
    assert cut is None or cut.retryable
    assert DistributedDeadlock.parse(VICTIM, "an operator's whim") is None
