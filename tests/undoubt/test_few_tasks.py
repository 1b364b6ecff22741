"""What one commit costs the event loop: tasks and timers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

import undoubt
from tests.participants.hands import cleaned
from tests.undoubt.test_end_to_end import TABLE, run, source
from undoubt.coordinator.coordinator import Coordinator
from undoubt.participants.postgres import PostgresParticipant, pool
from undoubt.participants.tasks import Uncancellable

TASKS_MAX = 2
"""For each commit."""
TASKS_OF_BEGINS = 2
"""For each transaction: each branch is opened by a task."""
COMMITS = 5
UPKEEP_MAX = 4
"""For all commits: the timers of two pools, each at most one for the sessions that have to be cleaned, and
one for those that may be closed."""

_counts: ContextVar[bool] = ContextVar("_counts", default=False)
"""True in the calls that are counted, and in all tasks and callbacks that come of them."""


class Counted:
    """Tasks, by what they run, and timers of the event loop, by what they call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: list[str] = []
        self.timers: list[str] = []
        self.upkeep: list[str] = []
        """The timers of pools."""
        loop: Any = asyncio.get_running_loop()
        call_at = loop.call_at

        def made(_: Any, coroutine: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
            self._task(coroutine)
            return asyncio.Task(coroutine, loop=loop, **more)

        def uncancellable(task: Any, coroutine: Coroutine[Any, Any, Any], **more: Any) -> None:
            self._task(coroutine)
            asyncio.Task.__init__(task, coroutine, **more)

        def timer(when: float, callback: Any, *arguments: Any, **more: Any) -> Any:
            if _counts.get():
                of_a_pool = isinstance(getattr(callback, "__self__", None), pool.Pool)
                (self.upkeep if of_a_pool else self.timers).append(callback.__qualname__)
            return call_at(when, callback, *arguments, **more)

        monkeypatch.setattr(Uncancellable, "__init__", uncancellable, raising=False)
        monkeypatch.setattr(loop, "call_at", timer)  # call_later calls it
        loop.set_task_factory(made)

    def _task(self, coroutine: Any) -> None:
        if _counts.get():
            self.tasks.append(coroutine.__qualname__)

    def taken(self) -> list[str]:
        """The tasks since the last call."""
        taken, self.tasks = self.tasks, []
        return taken


async def transfer(coordinator: Coordinator, counted: Counted | None = None) -> tuple[list[str], list[str]]:
    """Returns the tasks of begin, and those of commit. The application's own statements are not counted:
    what they cost is their driver's."""
    counts = counted is not None
    _counts.set(counts)
    async with coordinator.transaction() as tx:
        for name in ("orders", "payments"):
            connection: Any = await tx.branch(name)
            _counts.set(False)
            await connection.execute("update note set id = id + 1")
            _counts.set(counts)
        begins = counted.taken() if counted is not None else []
        await tx.commit()
    _counts.set(False)
    return begins, counted.taken() if counted is not None else []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_commit_of_two_branches(
    tmp_path: Path, databases: dict[str, str], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken if each vote and each COMMIT PREPARED is a task again, or each deadline a timer."""
    chosen: Any = source(tmp_path, databases)
    for name, dsn in databases.items():
        await run(dsn, TABLE)
        await run(dsn, "insert into note values (1)")
        chosen["participants"][name]["driver"] = driver
    # How often a pool looks at its idle sessions depends on time, not on commits.
    monkeypatch.setattr(pool, "CLEAN_AFTER_S", 3600.0)
    async with undoubt.connect(chosen) as coordinator:
        for _ in range(2):  # the timers that serve all commits are set
            await transfer(coordinator)
        counted = Counted(monkeypatch)
        tasks = []
        for _ in range(COMMITS):
            tasks.append(await transfer(coordinator, counted))
            for participant in coordinator.participants:
                assert isinstance(participant, PostgresParticipant)
                await cleaned(participant)  # else the next transaction waits for its sessions
        asyncio.get_running_loop().set_task_factory(None)
    for begins, commit in tasks:
        assert len(begins) == TASKS_OF_BEGINS, begins
        assert 1 <= len(commit) <= TASKS_MAX, commit
    assert counted.timers == []
    assert len(counted.upkeep) <= UPKEEP_MAX, counted.upkeep
