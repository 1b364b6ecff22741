"""Three-phase commit over rows in the participants, and both ways to end it without coordinator and ledger.

Every participant has a row: a state of Skeen's (*q* nothing is written yet, *w* voted or about to, *p*
pre-committed, *a* aborted, *c* committed), ``elected`` and ``attempt``. A step is one statement in one
participant, and changes the row only if it is as expected (compare and set). The coordinator writes *w*
everywhere, then *p* everywhere, then commits; it may stop anywhere, be slow, or abort before the first *p*.

*Skeen*'s termination reads the rows that it can reach: any *a* aborts, any *c* commits, some *p* moves the
others to *p* and commits, none aborts. The rows that it cannot reach it takes for crashed, which a
partition makes wrong (Skeen, "Nonblocking Commit Protocols", 1981, §6).

*Quorum* is Keidar and Dolev's E3PC ("Increasing the Resilience of Distributed and Replicated Database
Systems", 1998, §5). A terminator has itself elected, row by row, under a number higher than any that it
finds. With a majority of the rows it looks at those of the highest attempt: if all of these are *p* it
attempts to commit, else to abort, by writing state and attempt where it is still the elected one; with a
majority of these it is decided. An attempt to abort needs no state of its own: it is *w* with the attempt's
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

COORDINATOR = 1
"""Its election number; terminators have higher ones."""
FINAL = {"commit": "c", "abort": "a"}


class Row(NamedTuple):
    state: str = "q"
    elected: int = 0
    attempt: int = 0


class Actor(NamedTuple):
    """The coordinator or a terminator. ``seen`` and ``done`` are by participant."""

    phase: str
    number: int
    seen: tuple[Row | None, ...]
    done: frozenset[int] = frozenset()
    reach: frozenset[int] = frozenset()
    """Participants that it can reach; only Skeen's needs to know."""


class World(NamedTuple):
    rows: tuple[Row, ...]
    actors: tuple[Actor, ...]


@dataclass(frozen=True, slots=True)
class ThreePhase:
    """``partition``: a terminator may reach any of the participants, else it reaches all."""

    participants: int
    terminators: int
    termination: str
    partition: bool = True

    def initial(self) -> World:
        nothing = (None,) * self.participants
        numbers = range(COORDINATOR, COORDINATOR + self.terminators + 1)
        phases = ("write w", *("idle",) * self.terminators)
        actors = tuple(Actor(phase, number, nothing) for phase, number in zip(phases, numbers, strict=True))
        return World((Row(),) * self.participants, actors)

    def wrong(self, world: World) -> str | None:
        states = {row.state for row in world.rows}
        split = states >= {"a", "c"} or "both" in states
        return "committed here and aborted there" if split else None

    def describe(self, world: World) -> str:
        rows = " ".join(f"{row.state}{row.elected}.{row.attempt}" for row in world.rows)
        return f"{rows}   {', '.join(f'{actor.number} {actor.phase}' for actor in world.actors)}"

    def successors(self, world: World) -> Iterator[World]:
        for position, actor in enumerate(world.actors):
            for row_at, row, after in self.steps(world, actor):
                rows = world.rows
                if row is not None:
                    rows = (*rows[:row_at], row, *rows[row_at + 1 :])
                yield World(rows, (*world.actors[:position], after, *world.actors[position + 1 :]))

    def steps(self, world: World, actor: Actor) -> Iterator[tuple[int, Row | None, Actor]]:
        """Which participant's row becomes what (None: it stays), and how the actor goes on."""
        if actor.phase in FINAL:
            yield from self.finish(world, actor)
        elif actor.number == COORDINATOR:
            yield from self.coordinate(world, actor)
        elif self.termination == "skeen":
            yield from self.skeen(world, actor)
        else:
            yield from self.quorum(world, actor)

    def finish(self, world: World, actor: Actor) -> Iterator[tuple[int, Row | None, Actor]]:
        """What is decided is applied everywhere; by Skeen's, wherever it reaches."""
        for at in (actor.reach or frozenset(range(self.participants))) - actor.done:
            row, state = world.rows[at], FINAL[actor.phase]
            split = {row.state, state} == {"a", "c"}
            done = actor._replace(done=actor.done | {at})
            yield at, row._replace(state="both" if split else state), done

    # The coordinator.

    def coordinate(self, world: World, actor: Actor) -> Iterator[tuple[int, Row | None, Actor]]:
        if actor.phase == "write w":
            yield 0, None, self.enter(actor, "abort before p")
        for at, row in enumerate(world.rows):
            if at in actor.done:
                continue
            match actor.phase, row.state:
                case "write w", "q":
                    yield at, Row("w", COORDINATOR, 0), self.advance(actor, at, "write p")
                case "write p", "w" if self.is_elected(row, COORDINATOR):
                    yield at, self.attempt_row(row, "p", COORDINATOR), self.advance(actor, at, "commit")
                case "abort before p", "q" | "w":
                    yield at, row._replace(state="a"), self.enter(actor, "abort")
                case "abort before p", "a":
                    yield at, None, self.enter(actor, "abort")
                case _:
                    yield at, None, self.enter(actor, "stopped")  # somebody else is at it

    def advance(self, actor: Actor, at: int, after_all: str) -> Actor:
        done = actor.done | {at}
        return self.enter(actor, after_all) if len(done) == self.participants else actor._replace(done=done)

    def enter(self, actor: Actor, phase: str) -> Actor:
        return actor._replace(phase=phase, done=frozenset())

    # Skeen's termination.

    def skeen(self, world: World, actor: Actor) -> Iterator[tuple[int, Row | None, Actor]]:
        everybody = frozenset(range(self.participants))
        match actor.phase:
            case "idle":
                groups = subsets(self.participants) if self.partition else [everybody]
                for reach in groups:
                    yield 0, None, actor._replace(phase="read", reach=reach)
            case "read":
                for at in actor.reach:
                    if actor.seen[at] is None:
                        yield from self.read(world, actor, at)
            case "move to p" | "move to a":
                yield from self.move(world, actor)
            case _:
                pass

    def read(self, world: World, actor: Actor, at: int) -> Iterator[tuple[int, Row | None, Actor]]:
        row = world.rows[at]
        if row.state == "q":  # a tombstone, so that nothing is ever written there
            row = row._replace(state="a")
        read = actor._replace(seen=(*actor.seen[:at], row, *actor.seen[at + 1 :]))
        if all(read.seen[each] is not None for each in read.reach):
            read = self.judge_skeen(read)
        yield at, row, read

    def judge_skeen(self, actor: Actor) -> Actor:
        states = {row.state for row in actor.seen if row is not None}
        if "c" in states:
            return self.enter(actor, "commit")
        if "a" in states:
            return self.enter(actor, "abort")
        return self.enter(actor, "move to p" if "p" in states else "move to a")

    def move(self, world: World, actor: Actor) -> Iterator[tuple[int, Row | None, Actor]]:
        """All that it can reach; if one has changed since it was read, begin again."""
        for at in actor.reach - actor.done:
            row = world.rows[at]
            seen = actor.seen[at]
            if seen is None or row.state != seen.state:
                yield 0, None, Actor("stopped", actor.number, actor.seen)
                continue
            done = actor.done | {at}
            whole = done == actor.reach
            if actor.phase == "move to p":
                after = self.enter(actor, "commit") if whole else actor._replace(done=done)
                yield at, row._replace(state="p"), after
            else:
                after = self.enter(actor, "abort") if whole else actor._replace(done=done)
                yield at, row._replace(state="a"), after

    # Keidar and Dolev's.

    def quorum(self, world: World, actor: Actor) -> Iterator[tuple[int, Row | None, Actor]]:
        match actor.phase:
            case "idle":
                for at in range(self.participants):
                    if actor.seen[at] is None and world.rows[at].elected < actor.number:
                        yield from self.elect(world, actor, at)
                if self.majority(sum(row is not None for row in actor.seen)):
                    yield 0, None, self.judge_quorum(actor)
            case "attempt p" | "attempt w":
                for at in range(self.participants):
                    if at not in actor.done and self.is_elected(world.rows[at], actor.number):
                        yield from self.attempt(world, actor, at)
            case _:
                pass

    def majority(self, count: int) -> bool:
        return count > self.participants // 2

    def elect(self, world: World, actor: Actor, at: int) -> Iterator[tuple[int, Row | None, Actor]]:
        row = world.rows[at]
        row = row._replace(elected=actor.number, state="a" if row.state == "q" else row.state)
        yield at, row, actor._replace(seen=(*actor.seen[:at], row, *actor.seen[at + 1 :]))

    def judge_quorum(self, actor: Actor) -> Actor:
        seen = [row for row in actor.seen if row is not None]
        states = {row.state for row in seen}
        if "a" in states or "c" in states:
            return self.enter(actor, "abort" if "a" in states else "commit")
        highest = max(row.attempt for row in seen)
        committable = all(row.state == "p" for row in seen if row.attempt == highest)
        return self.enter(actor, "attempt p" if committable else "attempt w")

    def attempt(self, world: World, actor: Actor, at: int) -> Iterator[tuple[int, Row | None, Actor]]:
        row = world.rows[at]
        if row.state in {"a", "c"}:
            yield at, None, self.enter(actor, "abort" if row.state == "a" else "commit")
            return
        state = actor.phase.removeprefix("attempt ")
        done = actor.done | {at}
        decided = "commit" if state == "p" else "abort"
        after = self.enter(actor, decided) if self.majority(len(done)) else actor._replace(done=done)
        yield at, self.attempt_row(row, state, actor.number), after

    def is_elected(self, row: Row, number: int) -> bool:
        return row.elected == number

    def attempt_row(self, row: Row, state: str, number: int) -> Row:
        return row._replace(state=state, attempt=number)


def subsets(count: int) -> list[frozenset[int]]:
    return [frozenset(at for at in range(count) if mask >> at & 1) for mask in range(1, 2**count)]
