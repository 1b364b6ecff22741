"""A commit of two real branches that is interrupted while an answer is on its way: cancelled, late, given up,
interrupted by Ctrl-C, or its loop or connection ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import undoubt
from tests.participants.proxy import Proxy
from tests.servers import prepared
from tests.undoubt.test_end_to_end import TABLE, ids, run, source
from undoubt import TransactionAborted
from undoubt.coordinator.coordinator import Coordinator
from undoubt.participants.postgres.branch import PostgresBranch

DRIVERS = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
TIMEOUT_S = 60.0
"""The timeout of a transaction; no test waits for it."""


class Stage:
    """A coordinator's settings, and the network between it and the two databases."""

    def __init__(self, folder: Path, databases: dict[str, str], proxies: dict[str, Proxy]) -> None:
        self.databases = databases
        self.proxies = proxies
        self._folder = folder

    def settings(self, driver: str, *, direct: bool = False, **more: Any) -> dict[str, Any]:
        dsns = self.databases if direct else {name: proxy.dsn for name, proxy in self.proxies.items()}
        chosen = source(self._folder, dsns, coordinator={"session_ttl_s": 600.0, **more})
        for participant in chosen["participants"].values():
            participant |= {"driver": driver, "statement_timeout_s": 2 * TIMEOUT_S}
        return chosen

    def freeze(self) -> None:
        for proxy in self.proxies.values():
            proxy.freeze()

    def thaw(self) -> None:
        for proxy in self.proxies.values():
            proxy.thaw()

    def after_the_decision(
        self, coordinator: Coordinator, then: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Call ``then`` when COMMIT is recorded, before COMMIT PREPARED is sent."""
        decide = coordinator.ledger.decide

        async def decided(*arguments: Any, **more: Any) -> Any:
            decision = await decide(*arguments, **more)
            then()
            return decision

        monkeypatch.setattr(coordinator.ledger, "decide", decided)

    async def prepared(self, count: int) -> None:
        """Return once as many branches are prepared, as the servers say."""
        while await self.left() != count:
            await asyncio.sleep(0.005)

    async def left(self) -> int:
        return sum([len(await prepared(dsn)) for dsn in self.databases.values()])

    async def held(self) -> None:
        for proxy in self.proxies.values():
            await proxy.held.wait()

    async def recovered(self, driver: str) -> None:
        """Return once the next coordinator of this ledger has ended what was left prepared."""
        async with undoubt.connect(self.settings(driver, direct=True)):
            await self.prepared(0)


@pytest.fixture
async def stage(tmp_path: Path, databases: dict[str, str]) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        for dsn in databases.values():
            await run(dsn, TABLE)
        proxies = {name: await stack.enter_async_context(Proxy(dsn)) for name, dsn in databases.items()}
        yield Stage(tmp_path, databases, proxies)


async def transfer(coordinator: Coordinator, before: Callable[[], None]) -> Any:
    async with coordinator.transaction(timeout=TIMEOUT_S) as tx:
        for name in ("orders", "payments"):
            branch: Any = await tx.branch(name)
            await branch.execute("insert into note (id) values (1)")
        before()
        return await tx.commit()


def nothing() -> None:
    pass


@DRIVERS
@pytest.mark.parametrize("phase", ["PREPARE", "COMMIT PREPARED"])
async def test_a_caller_that_goes_away(
    stage: Stage, driver: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if cancelling the caller stops a vote, or the end of a branch, that is on its way."""
    async with undoubt.connect(stage.settings(driver)) as coordinator:
        if phase == "PREPARE":
            caller = asyncio.create_task(transfer(coordinator, stage.freeze))
            await stage.prepared(2)
        else:
            stage.after_the_decision(coordinator, stage.freeze, monkeypatch)
            caller = asyncio.create_task(transfer(coordinator, nothing))
        await stage.held()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        stage.thaw()
    assert await ids(stage.databases) == [[1], [1]]
    assert await stage.left() == 0


@DRIVERS
@pytest.mark.parametrize("answered", [(), ("payments",), ("orders", "payments")])
async def test_a_deadline_in_the_tick_of_an_answer(
    stage: Stage, driver: str, answered: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline passes when both branches are prepared, and the votes of ``answered`` arrive in the same
    turn of the event loop. Broken if the transaction then commits, or a branch stays prepared."""
    loop = asyncio.get_running_loop()
    now, late_s = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: now() + late_s)
    async with undoubt.connect(stage.settings(driver)) as coordinator:
        caller = asyncio.create_task(transfer(coordinator, stage.freeze))
        await stage.prepared(2)
        await stage.held()
        for name in answered:
            stage.proxies[name].thaw()
        await asyncio.sleep(0)  # now the proxy has written the answer
        late_s = TIMEOUT_S + 1
        for _ in range(5):
            await asyncio.sleep(0)
        stage.thaw()
        with pytest.raises(TransactionAborted) as aborted:
            await caller
        assert isinstance(aborted.value.cause, TimeoutError)
        assert await stage.left() == 0
    assert await ids(stage.databases) == [[], []]


@DRIVERS
@pytest.mark.parametrize("arrives", [True, False])
async def test_a_connection_lost_in_the_second_phase(
    stage: Stage,
    driver: str,
    arrives: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One connection is lost while both branches are asked to commit. Broken if the caller hears of it, if it
    takes the other branch with it, if it is logged as a bug, or if the branch stays prepared.

    ``arrives``: whether COMMIT PREPARED has reached the server of the lost connection."""
    lost, kept = stage.proxies["payments"], stage.proxies["orders"]

    def interrupt() -> None:
        kept.freeze()
        (lost.freeze if arrives else lost.forget)()

    async with undoubt.connect(stage.settings(driver)) as coordinator:
        begun = second_phase_begun(monkeypatch)
        stage.after_the_decision(coordinator, interrupt, monkeypatch)
        caller = asyncio.create_task(transfer(coordinator, nothing))
        await begun.wait()
        await stage.prepared(0 if arrives else 1)
        lost.cut()
        kept.thaw()
        assert all(gid.participant == "payments" for gid in (await caller).pending)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    await stage.recovered(driver)
    assert await ids(stage.databases) == [[1], [1]]


@DRIVERS
@pytest.mark.parametrize("arrives", [True, False])
async def test_a_connection_lost_when_nobody_waits(
    stage: Stage, driver: str, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator closes during a second phase, and gives it up; then the connections are lost. Broken if
    a branch stays prepared for which COMMIT is recorded, or if an error has no one who takes it.

    ``arrives``: whether COMMIT PREPARED has reached the servers."""

    def interrupt() -> None:
        for proxy in stage.proxies.values():
            (proxy.freeze if arrives else proxy.forget)()

    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with undoubt.connect(stage.settings(driver, drain_s=0.0)) as coordinator:
        begun = second_phase_begun(monkeypatch)
        stage.after_the_decision(coordinator, interrupt, monkeypatch)
        caller = asyncio.create_task(transfer(coordinator, nothing))
        await begun.wait()
        if arrives:
            await stage.prepared(0)
    for proxy in stage.proxies.values():
        proxy.cut()
    await asyncio.wait([caller])
    assert (
        caller.cancelled() or not caller.exception() or isinstance(caller.exception(), undoubt.UndoubtError)
    )
    del caller
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
    await stage.recovered(driver)
    assert await ids(stage.databases) == [[1], [1]]


def second_phase_begun(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once COMMIT PREPARED was sent to both databases."""
    begun, sent = asyncio.Event(), 0
    commit = PostgresBranch.commit

    def counted(branch: PostgresBranch) -> Any:
        nonlocal sent
        sent += 1
        if sent == 2:
            begun.set()
        return commit(branch)

    monkeypatch.setattr(PostgresBranch, "commit", counted)
    return begun


@DRIVERS
async def test_a_loop_that_ends(stage: Stage, driver: str) -> None:
    """``asyncio.run`` returns while both votes are on their way. Broken if it does not wait for the commit,
    or waits for ever for a vote that is no task."""
    here = asyncio.get_running_loop()
    cancelled = asyncio.Event()
    leave_there: list[Callable[[], object]] = []

    async def freeze() -> None:
        stage.freeze()

    def freeze_from_there() -> None:
        asyncio.run_coroutine_threadsafe(freeze(), here).result()

    async def work() -> None:
        async with undoubt.connect(stage.settings(driver)) as coordinator:
            try:
                await transfer(coordinator, freeze_from_there)
            except asyncio.CancelledError:
                here.call_soon_threadsafe(cancelled.set)  # and so are all tasks of that loop
                raise

    async def program() -> None:
        there, may_leave = asyncio.get_running_loop(), asyncio.Event()
        leave_there.append(lambda: there.call_soon_threadsafe(may_leave.set))
        working = asyncio.create_task(work())
        await may_leave.wait()
        assert not working.done()

    ended = asyncio.create_task(asyncio.to_thread(asyncio.run, program()))
    await stage.prepared(2)
    await stage.held()
    leave_there[0]()
    await cancelled.wait()
    stage.thaw()
    await ended
    assert await stage.left() == 0
    assert await ids(stage.databases) == [[1], [1]]


def interrupted_at_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(monkeypatch, "_voted", 1, sends=True)


def interrupted_between_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(monkeypatch, "prepare", 2, sends=False)


def interrupted_behind_the_last_prepare(monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(monkeypatch, "prepare", 2, sends=True)


def interrupted_at_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(monkeypatch, "_committed", 1, sends=True)


def interrupted_between_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    _interrupted(monkeypatch, "commit", 2, sends=False)


def _interrupted(monkeypatch: pytest.MonkeyPatch, name: str, nth: int, *, sends: bool) -> None:
    """Raise ``KeyboardInterrupt`` in the ``nth`` call of a method of branches; ``sends``: at its end."""
    called = 0
    method = getattr(PostgresBranch, name)

    def interrupted(branch: PostgresBranch, *arguments: Any) -> Any:
        nonlocal called
        called += 1
        if called != nth:
            return method(branch, *arguments)
        if sends:
            method(branch, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(PostgresBranch, name, interrupted)


def interrupted_commit(chosen: dict[str, Any]) -> tuple[int, BaseException | None]:
    """How often the event loop of an interrupted commit heard of the interrupt, before it went on, and what
    the commit has ended with."""

    async def work() -> None:
        async with undoubt.connect(chosen) as coordinator:
            await transfer(coordinator, nothing)

    heard = 0
    with asyncio.Runner() as runner:
        working = runner.get_loop().create_task(work())
        while not working.done():
            try:
                runner.get_loop().run_until_complete(asyncio.wait([working]))
            except KeyboardInterrupt:
                heard += 1
    return heard, working.exception()


@DRIVERS
@pytest.mark.parametrize(
    "plant", [interrupted_at_vote, interrupted_between_votes, interrupted_behind_the_last_prepare]
)
async def test_an_interrupt_between_prepare_and_decision(
    stage: Stage, driver: str, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a program whose loop goes on. Broken if a branch stays prepared, or one commits."""
    plant(monkeypatch)
    heard, ended = await asyncio.to_thread(interrupted_commit, stage.settings(driver))
    assert heard == 1
    assert isinstance(ended, TransactionAborted)
    assert isinstance(ended.cause, KeyboardInterrupt)
    assert await stage.left() == 0
    assert await ids(stage.databases) == [[], []]


@DRIVERS
@pytest.mark.parametrize("plant", [interrupted_at_commit, interrupted_between_commits])
async def test_an_interrupt_in_the_second_phase(
    stage: Stage, driver: str, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if the caller hears anything but COMMIT, which is recorded, or if a branch is not committed in
    the end."""
    plant(monkeypatch)
    assert await asyncio.to_thread(interrupted_commit, stage.settings(driver)) == (1, None)
    monkeypatch.undo()
    await stage.recovered(driver)
    assert await ids(stage.databases) == [[1], [1]]
