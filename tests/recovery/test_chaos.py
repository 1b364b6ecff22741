"""Coordinators that die, answers that get lost, two recoveries all the while: in the end every transaction is
in all databases or in none, and nothing is in doubt. Each seed is another story; a failing one replays."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from tests.recovery.world import World, until
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.participants.contract import Decision, Evidence, Settled, XactStatus
from undoubt.participants.errors import ParticipantUnavailable, UndoubtError
from undoubt.participants.ids import Gid, TxId
from undoubt.participants.scripted import ScriptedParticipant
from undoubt.participants.tasks import Uncancellable

NAMES = ("inventory", "orders", "payments")
SEEDS = 30
TRANSACTIONS = 12
STEPS_UNTIL_DEATH_MAX = 120


class Story:
    """One seed. ``calm`` ends the faults."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(*NAMES)
        self.calm = False
        self.acknowledged: list[TxId] = []
        for database in self.world.databases.values():
            database.before = self._before
            self._lose_answers(database)

    async def _before(self, _call: str, gid: Gid) -> None:
        for _ in range(self.rng.randint(0, 3)):
            await asyncio.sleep(0)
        if not self.calm and self.rng.random() < 0.03:
            raise ParticipantUnavailable(gid.participant, "connection refused")

    def _lose_answers(self, database: ScriptedParticipant) -> None:
        settle = database.settle

        async def settled(gid: Gid, order: Decision, evidence: Evidence | None) -> Settled:
            answer = await settle(gid, order, evidence)
            if not self.calm and self.rng.random() < 0.05:
                raise ParticipantUnavailable(gid.participant, "connection lost")
            return answer

        database.settle = settled  # type: ignore[method-assign]

    def observer(self, *, mortal: bool) -> Any:
        """Of a process that, if mortal, stops for ever after some steps, in the middle of everything."""
        left = self.rng.randint(1, STEPS_UNTIL_DEATH_MAX)

        async def observe(_step: object, _subject: str) -> None:
            nonlocal left
            left -= 1
            if mortal and left <= 0 and not self.calm:
                await asyncio.Event().wait()
            for _ in range(self.rng.randint(0, 4)):
                await asyncio.sleep(0)

        return observe

    async def begin(self, *, mortal: bool) -> list[asyncio.Task[None]]:
        """A coordinator with a few transactions at once."""
        settings = CoordinatorSettings(name="mortal" if mortal else "survivor")
        observe = self.observer(mortal=mortal)
        coordinator = Coordinator(self.world.ledger, self.world.registry, settings, observe=observe)
        await coordinator.start()
        return [asyncio.create_task(self._transact(coordinator)) for _ in range(TRANSACTIONS)]

    async def live(self) -> None:
        """Coordinators come, die, and sometimes lose their sessions; one lives to see all of its done."""
        for _ in range(3):
            await self.begin(mortal=True)
        work = await self.begin(mortal=False)
        if self.rng.random() < 0.4:
            for _ in range(self.rng.randint(1, 60)):
                await asyncio.sleep(0)
            await self.world.ledger.elapse(11.0)
        await asyncio.wait(work)
        self.calm = True

    async def end(self, before: set[asyncio.Task[Any]]) -> None:
        """Whatever of coordinators still runs is killed, and their sessions expire."""
        while dead := [task for task in asyncio.all_tasks() - before if not of_recovery(task)]:
            for task in dead:
                task.abandon() if isinstance(task, Uncancellable) else task.cancel()
            await asyncio.wait(dead, timeout=0.01)
        await self.world.ledger.elapse(100.0)

    async def _transact(self, coordinator: Coordinator) -> None:
        with contextlib.suppress(UndoubtError):
            async with coordinator.transaction() as tx:
                for name in self.rng.sample(NAMES, self.rng.randint(2, 3)):
                    await tx.branch(name)
                if self.rng.random() < 0.1:
                    raise UndoubtError("the application changed its mind")
            self.acknowledged.append(tx.id)

    def settled(self, owner: str = "") -> bool:
        """Nothing is left to do, of the sessions with that name or of all."""
        state = self.world.ledger.machine.state
        open_ones = [gid.txid for database in self.world.databases.values() for gid in database.prepared]
        sessions = {txid.session for txid in [*open_ones, *state.unfinished]}
        return all(owner not in state.sessions[number].name for number in sessions)

    def xact_statuses(self) -> dict[TxId, set[XactStatus]]:
        """What became of each transaction's branches."""
        found: dict[TxId, set[XactStatus]] = {}
        for database in self.world.databases.values():
            for branch in database.branches:
                found.setdefault(branch.gid.txid, set()).add(database.xact_statuses[branch.xid])
        return found


def of_recovery(task: asyncio.Task[Any]) -> bool:
    return task.get_name().startswith(("undoubt-recovery", "undoubt-deadlocks"))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_all_or_nothing_whatever_happens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undoubt.recovery.worker.YOUNG_S", 0.01)
    monkeypatch.setattr("undoubt.recovery.worker.PAUSE_MIN_S", 0.0)
    story = Story(seed)
    world = await story.world.open()
    before = asyncio.all_tasks()
    async with world.service(), world.service():
        await story.live()
        await until(lambda: story.settled("survivor"))
        await story.end(before)
        await until(story.settled)
    report = await world.recover()
    assert (report.lines, report.errors, report.unfinished) == ((), {}, ())
    assert await world.heuristics() == {}
    xact_statuses = story.xact_statuses()
    assert all(len(found) == 1 for found in xact_statuses.values()), xact_statuses
    assert all(xact_statuses[txid] == {XactStatus.COMMITTED} for txid in story.acknowledged)


async def test_the_stories_tell_of_commits_aborts_and_deaths() -> None:
    """Else the test above would prove nothing."""
    committed = aborted = unfinished = 0
    for seed in range(8):
        story = Story(seed)
        world = await story.world.open()
        before = asyncio.all_tasks()
        await story.live()
        await story.end(before)
        unfinished += len(await world.unfinished())
        await world.recover()
        xact_statuses = story.xact_statuses()
        committed += sum(found == {XactStatus.COMMITTED} for found in xact_statuses.values())
        aborted += sum(found == {XactStatus.ABORTED} for found in xact_statuses.values())
    assert min(committed, aborted, unfinished) > 10
