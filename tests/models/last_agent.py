"""Last-agent commit: one database commits in one phase, with the decision's row in its own transaction.

All other branches are prepared first. The last one's COMMIT writes a row; whoever wants the transaction
aborted writes a tombstone under the same primary key, so that at most one of the two is ever there. The
ledger keeps a copy: what it answers to `decide` is what everybody obeys. Without the tombstone this is known
as logging last resource (Oracle WebLogic Server, "Developing JTA Applications").

The agent's database has one standby. A commit is written at the primary, and seen by others once the standby
has it, or without a standby that is waited for, at once; after a restart of the primary, or if the wait is
broken off, it is seen unconfirmed. At a failover the standby goes on with what it has, under another history;
the sessions of the primary end. A COMMIT that was sent arrives although its sender is dead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

NOTHING, COMMIT, ABORT = "-", "commit", "abort"
ENDED = {COMMIT: "committed", ABORT: "aborted"}
AT_WORK = frozenset({"open", "sent", "holding"})
"""States of the agent's transaction in which its backend can be terminated, and nothing is written."""


class Database(NamedTuple):
    """The agent's. ``row`` is NOTHING, COMMIT or the tombstone ABORT; ``data`` whether the branch has
    committed: a row is deleted later, the data stay."""

    row: str = NOTHING
    data: bool = False
    seen: bool = True
    """Whether others see the row; else whoever writes the same key waits."""
    standby_row: str = NOTHING
    standby_data: bool = False
    history: int = 0
    restarts: int = 0
    lost: bool = False
    """A commit of the branch was lost by a failover."""


class Decider(NamedTuple):
    """The coordinator, or a recovery; both end the other branches the same way."""

    phase: str
    verdict: str = NOTHING


class World(NamedTuple):
    others: tuple[str, ...]
    agent: str
    """The agent's transaction: open, sent, holding (the row is inserted, and not committed), written,
    committed, dead, refused."""
    database: Database
    coordinator: Decider
    recoveries: tuple[Decider, ...]
    ledger: str = NOTHING
    told: str = NOTHING
    restored: bool = False
    """The ledger was set back to before this transaction."""


@dataclass(frozen=True, slots=True)
class LastAgent:
    """``synchronous``: commits wait for the standby. At most so many failovers and restarts happen, and the
    ledger is restored from a backup once if ``restores``."""

    others: int = 1
    recoveries: int = 1
    synchronous: bool = True
    failovers: int = 1
    restarts: int = 1
    restores: bool = False

    def initial(self) -> World:
        idle = (Decider("idle"),) * self.recoveries
        return World(("open",) * self.others, "open", Database(), Decider("voting"), idle)

    def describe(self, world: World) -> str:
        at = world.database
        recovered = " ".join(f"{each.phase}({each.verdict})" for each in world.recoveries)
        row = f"{at.row}{'' if at.seen else ' unseen'}"
        return (
            f"others {' '.join(world.others)}   agent {world.agent}   row {row}"
            f" standby {at.standby_row} history {at.history}   ledger {world.ledger}   told {world.told}"
            f"   coordinator {world.coordinator.phase}({world.coordinator.verdict})   recovery {recovered}"
        )

    def wrong(self, world: World) -> str | None:
        ends = set(world.others) & {"committed", "aborted"}
        if len(ends) == 2:
            return "the others are split"
        at = world.database
        if at.lost and not self.synchronous:
            return None  # the documented price of a standby that is not waited for
        if (at.data and at.seen and "aborted" in ends) or (world.told == COMMIT and "aborted" in ends):
            return "the agent has committed, and another has not"
        if "committed" in ends and not at.data:
            return "another has committed, and the agent has not"
        if world.told == COMMIT and not at.data:
            return "the caller was told of a commit that is not there"
        if world.told == ABORT and ((at.data and at.seen) or "committed" in ends):
            return "the caller was told of an abort that is none"
        return None

    def successors(self, world: World) -> Iterator[World]:
        yield from self.serve(world)
        yield from self.fail(world)
        for after, decider in self.coordinate(world):
            yield after._replace(coordinator=decider)
        if world.coordinator.phase != "stopped":
            yield world._replace(coordinator=Decider("stopped"))
        for position, recovery in enumerate(world.recoveries):
            for after, decider in self.find_out(world, recovery):
                recoveries = world.recoveries
                yield after._replace(
                    recoveries=(*recoveries[:position], decider, *recoveries[position + 1 :])
                )
        yield from self.keep(world)

    # The agent's database.

    def serve(self, world: World) -> Iterator[World]:
        """A COMMIT that was sent is executed; what is written reaches the standby."""
        at = world.database
        if world.agent == "sent":
            if at.row == NOTHING:
                yield world._replace(agent="holding")
            elif at.seen:
                yield world._replace(agent="refused")  # a unique key
        if world.agent == "holding":
            written = at._replace(row=COMMIT, data=True, seen=not self.synchronous)
            yield world._replace(agent="written" if self.synchronous else "committed", database=written)
        if (at.standby_row, at.standby_data) != (at.row, at.data):
            there = at._replace(standby_row=at.row, standby_data=at.data, seen=True)
            agent = "committed" if world.agent == "written" else world.agent
            yield world._replace(agent=agent, database=there)
        if world.agent == "written":  # its wait for the standby is broken off: it commits with a warning
            yield world._replace(agent="committed", database=at._replace(seen=True))

    def fail(self, world: World) -> Iterator[World]:
        at = world.database
        ended = "dead" if world.agent in AT_WORK | {"written"} else world.agent
        if at.restarts < self.restarts:
            yield world._replace(agent=ended, database=at._replace(seen=True, restarts=at.restarts + 1))
        if self.restores and not world.restored:
            yield world._replace(ledger=NOTHING, restored=True)
        if at.history < self.failovers:
            promoted = at._replace(
                row=at.standby_row,
                data=at.standby_data,
                seen=True,
                history=at.history + 1,
                lost=at.lost or (at.data and not at.standby_data),
            )
            yield world._replace(agent=ended, database=promoted)

    def confirmed(self, at: Database) -> bool:
        """Whether the row that is seen survives a failover: a later commit, which has waited for the standby,
        shows it."""
        return not self.synchronous or at.standby_row == at.row

    # The coordinator.

    def coordinate(self, world: World) -> Iterator[tuple[World, Decider]]:
        """It votes, sends COMMIT, and believes the answer, if it hears one."""
        me = world.coordinator
        match me.phase:
            case "voting":
                for number, other in enumerate(world.others):
                    if other == "open":
                        yield self.end(world, number, "prepared"), me
                if all(other == "prepared" for other in world.others):
                    yield (
                        world._replace(agent="sent" if world.agent == "open" else world.agent),
                        Decider("sent"),
                    )
                # Nothing was sent to the agent: a no, or the timeout.
                ended = "dead" if world.agent == "open" else world.agent
                yield world._replace(agent=ended, told=ABORT), Decider("ending", ABORT)
            case "sent":
                if world.agent == "committed" and self.believes(world.database):
                    yield world._replace(told=COMMIT), Decider("ending", COMMIT)
                if world.agent == "refused":
                    yield world._replace(told=ABORT), Decider("ending", ABORT)
                yield world, self.after_silence()
            case _:
                yield from self.find_out(world, me)

    def believes(self, at: Database) -> bool:
        """Whether the tag COMMIT came without the warning that the standby did not confirm it, or a later
        commit on the same history was confirmed."""
        return at.history == 0 and (at.standby_data or not self.synchronous)

    def after_silence(self) -> Decider:
        """The connection was lost, or the timeout has passed."""
        return Decider("idle")

    # Recovery, and a coordinator that has heard no answer.

    def find_out(self, world: World, me: Decider) -> Iterator[tuple[World, Decider]]:
        """A tombstone, a look in a new statement, the ledger, and then the others. An operator does the same
        while the transaction is still at work."""
        match me.phase:
            case "idle":
                yield from self.write_tombstone(world)
            case "look":
                yield from self.look(world)
            case "decide":
                if world.ledger == NOTHING and not self.records(world, me.verdict):
                    return  # reported, and in doubt
                found = world.ledger if world.ledger != NOTHING else me.verdict
                yield world._replace(ledger=found), Decider("ending", self.obeys(found, me.verdict))
            case "ending":
                for number, other in enumerate(world.others):
                    if other in {"open", "prepared"}:
                        yield self.end(world, number, ENDED[me.verdict]), me
            case _:
                pass
        if me.phase == "idle" and world.agent in AT_WORK and world.coordinator.phase in {"idle", "stopped"}:
            yield world._replace(agent="dead"), me  # nobody will hear its backend, which is terminated

    def write_tombstone(self, world: World) -> Iterator[tuple[World, Decider]]:
        at = world.database
        if at.history and not self.trusts_absence():
            yield world, Decider("look")
        elif world.agent == "holding" or not at.seen:
            return  # it waits for whoever holds the key
        elif at.row == NOTHING:
            written = at._replace(row=ABORT, seen=not self.synchronous)
            yield world._replace(database=written), Decider("look")
        else:
            yield world, Decider("look")

    def look(self, world: World) -> Iterator[tuple[World, Decider]]:
        at = world.database
        if not at.seen or at.row == NOTHING or not self.shows(at):
            return  # after a failover, absence proves nothing: it is reported, and stays in doubt
        yield world, Decider("decide", at.row)

    def shows(self, at: Database) -> bool:
        """Whether what is seen is concluded from: only what a failover cannot take back."""
        return self.confirmed(at)

    def trusts_absence(self) -> bool:
        """Whether a tombstone may be written where the history is another one."""
        return False

    def records(self, world: World, verdict: str) -> bool:
        """Whether the ledger takes the decision: after a restore a tombstone proves nothing, since the row
        may have been deleted for the COMMIT that the ledger had."""
        return verdict == COMMIT or not world.restored

    def obeys(self, answered: str, own: str) -> str:
        """Of the ledger's answer and what was seen, what counts."""
        return answered

    def end(self, world: World, number: int, state: str) -> World:
        return world._replace(others=(*world.others[:number], state, *world.others[number + 1 :]))

    # Housekeeping.

    def keep(self, world: World) -> Iterator[World]:
        """COMMIT is copied to the ledger; then its row is deleted."""
        at = world.database
        if at.row == COMMIT and at.seen and self.shows(at) and world.ledger == NOTHING:
            yield world._replace(ledger=COMMIT)
        if at.row == COMMIT and at.seen and self.may_delete(world):
            yield world._replace(database=at._replace(row=NOTHING))

    def may_delete(self, world: World) -> bool:
        return world.ledger == COMMIT
