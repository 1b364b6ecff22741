"""A coordinator belongs to one event loop: every other one is refused at once, and nothing is left
prepared."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

import undoubt
import undoubt.sync
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt.integrations import sqlalchemy as undoubt_sqlalchemy
from undoubt.participants.errors import UsageError, WrongLoop
from undoubt.participants.scripted import ScriptedParticipant

Call = Callable[[undoubt.Coordinator, undoubt.Transaction], Awaitable[Any]]


def in_another_loop(make: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
    async def main() -> Any:
        return await make()

    return asyncio.to_thread(lambda: asyncio.run(main()))


async def block(coordinator: undoubt.Coordinator, _: undoubt.Transaction) -> None:
    async with coordinator.transaction() as tx:
        await tx.branch("orders")


async def add(coordinator: undoubt.Coordinator, _: undoubt.Transaction) -> None:
    coordinator.add_participant(ScriptedParticipant("more"))


async def cancel(coordinator: undoubt.Coordinator, tx: undoubt.Transaction) -> None:
    coordinator.cancel(tx.id, RuntimeError("as told"))


async def nothing(tx: undoubt.Transaction) -> None:
    await tx.branch("orders")


CALLS: dict[str, Call] = {
    "block": block,
    "run": lambda coordinator, _: coordinator.run(nothing),
    "start": lambda coordinator, _: coordinator.transaction().start(),
    "outcome": lambda coordinator, tx: coordinator.outcome(tx.id),
    "cancel": cancel,
    "add": add,
    "remove": lambda coordinator, _: coordinator.remove_participant("payments"),
    "close": lambda coordinator, _: coordinator.close(),
    "branch": lambda _, tx: tx.branch("payments"),
    "the same branch": lambda _, tx: tx.branch("orders"),
    "commit": lambda _, tx: tx.commit(),
    "rollback": lambda _, tx: tx.rollback(),
    "end of the block": lambda _, tx: tx.__aexit__(None, None, None),
}


async def set_up(databases: dict[str, str]) -> None:
    for dsn in databases.values():
        await run(dsn, TABLE)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_every_call_from_another_loop_is_refused(
    tmp_path: Path, databases: dict[str, str], driver: str
) -> None:
    """Broken if a call from another thread's loop hangs, half works, or disturbs the loop that it belongs
    to."""
    await set_up(databases)
    made = source(tmp_path, databases)
    for participant in made["participants"].values():
        participant["driver"] = driver
    async with undoubt.connect(made) as coordinator:
        async with coordinator.transaction() as tx:
            orders: Any = await tx.branch("orders")
            for call in CALLS.values():
                with pytest.raises(WrongLoop, match="event loop"):
                    await in_another_loop(partial(call, coordinator, tx))
            with pytest.raises(WrongLoop, match="event loop"):
                await in_another_loop(lambda: orders.execute("insert into note values (2)"))
            await orders.execute("insert into note values (1)")
            await (await tx.branch("payments")).execute("insert into note values (1)")
        assert tx.may_have_committed
    for dsn in databases.values():
        assert [row["id"] for row in await run(dsn, "select id from note")] == [1]


async def test_a_session_in_another_loop_is_refused(tmp_path: Path, databases: dict[str, str]) -> None:
    await set_up(databases)
    async with undoubt.connect(source(tmp_path, databases)) as coordinator:

        async def program() -> None:
            engine = create_async_engine(databases["orders"].replace("postgresql:", "postgresql+asyncpg:"))
            try:
                async with undoubt_sqlalchemy.AsyncSession(
                    coordinator=coordinator, participants={engine: "orders"}, bind=engine
                ) as session:
                    await session.connection()
            finally:
                await engine.dispose()

        with pytest.raises(WrongLoop, match="event loop"):
            await in_another_loop(program)


async def test_a_lock_is_its_loops_own(tmp_path: Path, databases: dict[str, str]) -> None:
    """Broken if a call from another loop takes a lock that nobody gives back, or forgets one that is held."""
    async with undoubt.connect(source(tmp_path, databases)) as coordinator:
        free, held = coordinator.lock("free"), await coordinator.lock("held").acquire()

        async def ask() -> bool:
            return held.held

        async def check() -> None:
            held.check()

        for call in (
            free.acquire, free.try_acquire, free.__aenter__, held.lost, held.release, ask, check,
            partial(held.guard, None), partial(held.__aexit__, None, None, None),
        ):  # fmt: skip
            with pytest.raises(WrongLoop, match="event loop"):
                await in_another_loop(call)
        assert held.held
        await held.release()
        for name in ("free", "held"):
            assert await coordinator.lock(name).try_acquire()


def test_a_loop_that_comes_after_its_own_has_ended(tmp_path: Path) -> None:
    """Broken if a coordinator kept in a global hangs, or prepares something, in the next ``asyncio.run``."""
    connecting = undoubt.connect({"ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"}})
    coordinator = asyncio.run(connecting.__aenter__())

    async def use(call: Call) -> None:
        await call(coordinator, coordinator.transaction())

    for name in ("block", "run", "remove", "close"):
        with pytest.raises(WrongLoop, match="has ended"):
            asyncio.run(use(CALLS[name]))


async def test_a_coordinator_is_not_closed_in_another_loop(tmp_path: Path) -> None:
    """Broken if leaving ``connect`` elsewhere closes half of it, or waits for what only its own loop can
    do."""
    made = {"ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"}}
    connecting = undoubt.connect(made, recover=False)
    coordinator = await connecting.__aenter__()
    with pytest.raises(WrongLoop, match="is another one"):
        await in_another_loop(lambda: connecting.__aexit__(None, None, None))
    tx = await coordinator.transaction().start()
    await tx.rollback()
    await coordinator.close()
    await coordinator.ledger.close()


@pytest.mark.parametrize(
    ("module", "asked", "name"),
    [
        ("gevent.monkey", "is_module_patched", "threading"),
        ("gevent.monkey", "is_module_patched", "socket"),
        ("eventlet.patcher", "is_monkey_patched", "thread"),
    ],
)
def test_green_threads_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, asked: str, name: str
) -> None:
    """Broken if ``undoubt.sync.connect`` hangs in a worker of gevent or eventlet, where no thread is real."""
    patched = types.ModuleType(module)
    setattr(patched, asked, lambda of: of == name)
    monkeypatch.setitem(sys.modules, module, patched)
    with pytest.raises(UsageError, match=f"{module.partition('.')[0]} has replaced threads"):
        undoubt.sync.connect({"ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"}})


def test_gevent_that_replaces_nothing_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = types.ModuleType("gevent.monkey")
    patched.is_module_patched = lambda of: False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", patched)
    with undoubt.sync.connect({"ledger": {"url": f"sqlite:///{tmp_path}/ledger.db"}}) as coordinator:
        assert coordinator.participants == ()
