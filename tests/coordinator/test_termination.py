"""Termination of three-phase commit under seeded schedules: several terminate at once, beside a coordinator
that may be dead or only slow, over participants that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from undoubt.coordinator.protocols import termination, termination_rules
from undoubt.coordinator.protocols.termination import Round, ask, bury
from undoubt.coordinator.protocols.termination_rules import Move
from undoubt.participants.contract import Participant
from undoubt.participants.errors import ParticipantUnavailable
from undoubt.participants.ids import Gid, Protocol, TxId
from undoubt.participants.scripted_three_phase import MemoryStates
from undoubt.participants.three_phase import BranchState, Charter, Event, StateRow, States, Termination

LEDGER = "abcdefghij"
TXID = TxId(1, "0123456789abcdef", 1)
SEEDS = range(400)


class Died(Exception):
    """The process that runs this is dead."""


class Site:
    """One participant: its rows, and whether its branch is prepared, committed or rolled back."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.gid = Gid(LEDGER, Protocol.THREE_PHASE, TXID, number, f"p{number}")
        self.memory = MemoryStates(lambda _: self.committed, self._nothing)
        self.prepared = self.committed = self.rolled_back = False

    async def _nothing(self, call: str, gid: Gid) -> None:
        """The world decides when calls take effect."""

    def settle(self, commit: bool) -> None:
        assert not (commit and self.rolled_back), "a branch that was rolled back is told to commit"
        assert not (not commit and self.committed), "a branch that has committed is told to roll back"
        assert self.prepared or not commit, "a branch that never was prepared is told to commit"
        self.committed, self.rolled_back = commit, not commit


class View:
    """A site as one process sees it: calls take their time, get lost, or lose their answers."""

    def __init__(self, actor: Actor, site: Site) -> None:
        self._actor = actor
        self._site = site
        self.states: States = self  # type: ignore[assignment]
        self.name = site.gid.participant

    def __getattr__(self, name: str) -> Callable[..., object]:
        async def call(*arguments: object) -> object:
            await self._actor.pause()
            self._actor.reach(self._site)
            answer = await getattr(self._site.memory, name)(*arguments)
            await self._actor.pause()
            self._actor.reach(self._site)
            return answer

        return call


class Actor:
    """One process. ``sees`` are the numbers of the participants that it can reach now."""

    def __init__(self, world: World, deaths: float) -> None:
        self.world = world
        self.sees = set(world.sites)
        self._deaths = deaths

    async def pause(self) -> None:
        for _ in range(self.world.random.randrange(5)):
            await asyncio.sleep(0)
        if self.world.random.random() < self._deaths:
            raise Died

    def reach(self, site: Site) -> None:
        if site.gid.branch not in self.sees or self.world.random.random() < self.world.loss:
            raise ParticipantUnavailable(site.gid.participant, "does not answer")

    def find(self, name: str) -> Participant | None:
        return View(self, self.world.sites[int(name[1:])])  # type: ignore[return-value]

    @property
    def gids(self) -> dict[int, Gid]:
        return {number: site.gid for number, site in self.world.sites.items()}

    async def coordinate(self) -> None:
        """The protocol's own way as far as rows are concerned. A slow one may meet a termination anywhere."""
        charter = self.world.charter

        async def vote(states: States, gid: Gid) -> bool:
            if not await states.enlist(gid, charter):
                return False
            await self.pause()
            self.world.sites[gid.branch].prepared = True
            return True

        answers, _ = await ask(self.gids, self.find, vote)
        votes = len(answers) == len(self.gids) and all(answers.values())
        if not votes or self.world.random.random() < 0.1:
            await bury(self.gids, charter, self.find)
            self.world.outcomes.add(Move.ABORT)
            return
        answers, _ = await ask(
            self.gids, self.find, lambda states, gid: states.attempt(gid, 1, Event.TRY_COMMIT)
        )
        if len(answers) == len(self.gids) and all(answers.values()):
            self.world.outcomes.add(Move.COMMIT)
            await self.settle(commit=True)

    async def terminate(self, rounds: int) -> None:
        for _ in range(rounds):
            await self.pause()
            ended = await Round(self.world.charter, self.find).run()
            if ended.move in {Move.COMMIT, Move.ABORT}:
                self.world.outcomes.add(ended.move)
                await self.settle(commit=ended.move is Move.COMMIT)
                return

    async def settle(self, *, commit: bool) -> None:
        for site in self.world.sites.values():
            await self.pause()
            if site.gid.branch in self.sees and (site.prepared or not commit):
                site.settle(commit)


class World:
    def __init__(self, seed: int, rule: Termination, *, partitions: bool, deaths: float = 0.01) -> None:
        self.random = Random(seed)
        self.loss = self.random.choice([0.0, 0.02, 0.1]) if partitions else 0.0
        count = self.random.choice([2, 3, 3, 4, 5])
        self.sites = {number: Site(self, number) for number in range(1, count + 1)}
        self.charter = Charter(tuple(site.gid for site in self.sites.values()), rule)
        self.partitions = partitions
        self.deaths = deaths
        self.outcomes: set[Move] = set()

    async def run(self) -> None:
        """Under faults, then without; afterwards everybody knows one outcome."""
        actors = [Actor(self, self.deaths) for _ in range(self.random.choice([2, 3, 4]))]
        work = [actors[0].coordinate(), *(actor.terminate(8) for actor in actors[1:])]
        tasks = [asyncio.ensure_future(one) for one in work]
        while not all(task.done() for task in tasks):
            if self.partitions and self.random.random() < 0.05:
                self._cut(actors)
            await asyncio.sleep(0)
        for task in tasks:
            if (error := task.exception()) is not None and not isinstance(error, Died):
                raise error
        self.loss = 0.0
        await Actor(self, 0.0).terminate(20)
        assert len(self.outcomes) == 1, f"told both: {self.outcomes}"
        for site in self.sites.values():
            if site.prepared:
                assert site.committed or site.rolled_back, "left in doubt after healing"

    def _cut(self, actors: list[Actor]) -> None:
        """Each process finds itself on one side."""
        side = {number for number in self.sites if self.random.random() < 0.5}
        for actor in actors:
            actor.sees = self.random.choice([side, set(self.sites) - side, set(self.sites)])


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here takes real time."""
    monkeypatch.setattr(termination, "ANSWER_TIMEOUT_S", 60.0)


async def test_a_quorum_never_splits() -> None:
    """Broken if two of those that end a transaction, or its coordinator, come to different outcomes, or if it
    stays in doubt once everybody can be reached."""
    outcomes: set[Move] = set()
    for seed in SEEDS:
        world = World(seed, Termination.QUORUM, partitions=True)
        await world.run()
        outcomes |= world.outcomes
    assert outcomes == {Move.COMMIT, Move.ABORT}  # else the schedules prove nothing


async def test_skeen_is_right_while_silence_means_death() -> None:
    """Broken if Skeen's rule fails even where its assumption holds."""
    for seed in SEEDS:
        await World(seed, Termination.SKEEN, partitions=False).run()


async def test_skeen_splits_under_a_partition() -> None:
    """Broken if the schedules cannot split anything: then the test of the quorum proves nothing either."""
    split = 0
    for seed in SEEDS:
        try:
            await World(seed, Termination.SKEEN, partitions=True).run()
        except AssertionError:
            split += 1
    assert split


@pytest.mark.parametrize(
    "planted",
    [
        "a p is ignored",
        "the last attempt is not stored",
        "an election is not stored",
        "any majority of answers",
    ],
)
async def test_planted_bugs_are_found(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if one of the mistakes that this rule guards against goes unnoticed."""
    plant(planted, monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(4_000):
            await World(seed, Termination.QUORUM, partitions=True).run()


def plant(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MemoryStates.attempt

    async def forgets_attempt(self: MemoryStates, gid: Gid, election: int, event: Event) -> bool:
        before = self.rows.get(gid)
        changed = await honest(self, gid, election, event)
        if changed and before is not None:
            self.rows[gid] = StateRow(
                self.rows[gid].state, before.last_elected, before.last_attempt, before.charter
            )
        return changed

    async def forgets_election(
        self: MemoryStates, gid: Gid, election: int, charter: Charter
    ) -> StateRow | None:
        return self.rows.get(gid) or StateRow(BranchState.INITIAL, 0, 0, charter)

    async def any_election(self: MemoryStates, gid: Gid, election: int, event: Event) -> bool:
        row = self.rows[gid]
        return await honest(self, gid, row.last_elected, event)

    match bug:
        case "a p is ignored":
            monkeypatch.setattr(termination_rules, "max_attempt_committable", lambda rows: False)
        case "the last attempt is not stored":
            monkeypatch.setattr(MemoryStates, "attempt", forgets_attempt)
        case "an election is not stored":
            monkeypatch.setattr(MemoryStates, "elect", forgets_election)
            monkeypatch.setattr(MemoryStates, "attempt", any_election)
        case "any majority of answers":
            monkeypatch.setattr(termination_rules, "is_quorum", lambda members, some: bool(some))
        case _:
            raise AssertionError(bug)
