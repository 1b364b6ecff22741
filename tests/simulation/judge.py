"""What must hold of transactions, at every step and in the end. Shares no code with what it judges.

The simulated servers tell it what really happens to each branch, the applications what they were told, the
recorders (:mod:`tests.simulation.recorded`) what the ledger answered. A contradiction raises at once, in the
very step that made it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.simulation.database import State

if TYPE_CHECKING:
    from tests.simulation.agents import AgentRows
    from tests.simulation.database import Disk, Work
    from tests.simulation.promises import Promises
    from tests.simulation.rows import Rows

_NAME = re.compile(r"undoubt:([^:]+):([23pl]):([0-9]+-[0-9a-f]+\.[0-9]+):([0-9]+):([^:]+):([0-9a-f]+)")


class Violation(BaseException):
    """The product is wrong. asyncio and the shipped code may catch it; ``first`` ends the run anyway."""

    first: Violation | None = None

    def __init__(self, message: str) -> None:
        super().__init__(message)
        Violation.first = Violation.first or self


@dataclass
class Story:
    """Everything that is known of one transaction. ``tampered``: somebody outside ended a branch of it."""

    branches: list[Work] = field(default_factory=list)
    told: str | None = None
    decision: str | None = None
    presumed: bool = False
    """Somebody was told that it is aborted for ever."""
    tampered: str = ""
    heuristic: set[str] = field(default_factory=set)
    protocol: str = ""
    """As its gids say: 2, 3, p or l."""
    prepared: bool = False
    """A branch of it was prepared at some time."""


class Judge:
    """``rows``, ``promises`` and ``agents`` know what is fixed before the ledger does."""

    def __init__(self, rows: Rows, promises: Promises, agents: AgentRows) -> None:
        self.rows, self.promises, self.agents = rows, promises, agents
        self.stories: dict[str, Story] = {}
        self.given: dict[str, str] = {}
        """The database of each name that a coordinator has prepared a branch under."""
        self.forged: set[str] = set()
        """Names that nobody was given, and the transactions of some."""
        self.counts: Counter[str] = Counter()
        self.keys: dict[str, str] = {}
        """The key of each transaction that ran with one."""
        self.done: dict[str, str] = {}
        """The transaction that has committed with each key."""

    def keyed(self, key: str, txid: str) -> None:
        """A transaction with that key runs."""
        self.keys[txid] = key
        if key in self.done:
            raise Violation(f"{txid} runs, and {self.done[key]} has committed with its key {key}")

    def answered(self, key: str, txid: str) -> None:
        """An application was answered that ``txid`` has committed with that key."""
        if self.done.setdefault(key, txid) != txid:
            raise Violation(f"{txid} and {self.done[key]} have both committed with {key}")

    def story(self, txid: str) -> Story:
        return self.stories.setdefault(txid, Story())

    # What servers tell.

    def wrote(self, work: Work) -> None:
        """A branch has a transaction id now."""
        if not work.impostor and (match := _NAME.fullmatch(work.name)) is not None:
            self._add(self.story(match[3]), work)

    def _add(self, story: Story, work: Work) -> None:
        if not any(known is work for known in story.branches):
            story.branches.append(work)

    def prepared(self, database: str, work: Work) -> None:
        if work.impostor:
            self.counts["impostors prepared"] += 1
            return
        self.counts["prepared"] += 1
        self.given[work.name] = database
        self.wrote(work)
        if (match := _NAME.fullmatch(work.name)) is not None:
            story = self.story(match[3])
            story.prepared, story.protocol = True, match[2]
            # One that comes late, when the row of its recorded abort has been swept, is rolled back by that.
            rowless = story.protocol == "3" and work.name not in self.rows.elected
            if rowless and story.decision is None:
                raise Violation(f"{work.name} is prepared, and {database} has no row of it")

    def row_changed(self, verb: str, arguments: tuple[Any, ...], result: object) -> None:
        """Three-phase commit's."""
        self.rows.changed(verb, arguments, result)
        for gid in arguments[0] if verb == "forget" else ():
            story = self.story(str(gid.txid))
            late = story.decision == "abort"  # what is prepared long after that is rolled back by the record
            if not late and any(work.state is State.PREPARED for work in story.branches):
                raise Violation(f"{gid} is forgotten, and a branch of its transaction is still prepared")

    def agent_wrote(self, txid: str, decision: str) -> None:
        """A row of last-agent commit, or a tombstone."""
        self.counts["agents' rows" if decision == "commit" else "tombstones"] += 1
        self.agents.written(txid, decision, self.story(txid).decision)

    def agent_deleted(self, txid: str) -> None:
        self.agents.deleted(txid, self.story(txid).decision)

    def ended(self, database: str, work: Work, *, prepared: bool, by_hand: bool = False) -> None:
        match = _NAME.fullmatch(work.name)
        if work.impostor:
            if prepared and not by_hand:
                raise Violation(f"{work.name} in {database} is no branch of ours, and was {work.state} by us")
            return
        if match is None or work.xid is None:
            return
        txid = match[3]
        story = self.story(txid)
        self._add(story, work)
        if by_hand or work.marker is None:
            story.tampered = work.name
        if prepared and not story.tampered:
            self.counts[f"{work.state} prepared"] += 1
            if work.state is State.COMMITTED and story.decision != "commit" and story.protocol == "2":
                raise Violation(f"{work.name} is committed, but nobody was told of a recorded COMMIT")
            if work.state is State.ABORTED and story.decision == "commit":
                raise Violation(f"{work.name} is rolled back, but COMMIT is recorded")
            self._fixed(txid, story, f"{work.name} ends", str(work.state))
        self.check(txid, story, committing=work if work.state is State.COMMITTED else None)

    def _fixed(self, txid: str, story: Story, what: str, outcome: str) -> None:
        """Three-phase commit fixes its outcome in the participants, Paxos Commit at the acceptors, last-agent
        commit in the row of the agent; the ledger's record is a copy."""
        decision = {"committed": "commit", "aborted": "abort"}.get(outcome, outcome)
        if not story.prepared or story.tampered or decision not in {"commit", "abort"}:
            return
        if story.protocol == "3":
            self.rows.acts(txid, what, decision)
        elif story.protocol == "p":
            self.promises.acts(txid, what, decision)
        elif story.protocol == "l":
            self.agents.acts(txid, what, decision)

    def check(self, txid: str, story: Story, committing: Work | None = None) -> None:
        """All or nothing, and as it was told."""
        if story.tampered:
            return
        states = {work.name: str(work.state) for work in story.branches}
        found = {work.state for work in story.branches}
        if {State.COMMITTED, State.ABORTED} <= found:
            raise Violation(f"{txid} is half applied: {states}")
        if committing is not None and State.OPEN in found:
            raise Violation(f"{committing.name} commits while a branch is not prepared: {states}")
        if story.told == "committed" and State.ABORTED in found:
            raise Violation(f"{txid} was acknowledged, and is lost: {states}")
        if story.told == "aborted" and State.COMMITTED in found:
            raise Violation(f"{txid} was told as aborted, and is committed: {states}")

    # What applications and the ledger's clients tell.

    def told(self, txid: str, outcome: str) -> None:
        """``committed``, ``aborted``, ``unknown`` or ``heuristic``: what the application was told."""
        self.counts[f"told {outcome}"] += 1
        story = self.story(txid)
        if story.told in {"committed", "aborted"} and outcome in {"committed", "aborted"}:
            self._same(txid, story.told, outcome)
        if outcome == "committed" and story.decision == "abort":
            raise Violation(f"{txid} was told as committed, but ABORT is recorded")
        if outcome == "aborted" and story.decision == "commit":
            raise Violation(f"{txid} was told as aborted, but COMMIT is recorded")
        story.told = outcome
        self._fixed(txid, story, f"{txid} is told", outcome)
        self.check(txid, story)

    def decided(self, txid: str, decision: str) -> None:
        """Somebody was told that this decision is recorded."""
        if txid in self.forged:
            raise Violation(f"{txid} was made up, and {decision} is recorded for it")
        story = self.story(txid)
        if story.decision is not None:
            self._same(txid, story.decision, decision)
        if story.presumed and decision == "commit":
            raise Violation(f"{txid} was aborted for ever, and now COMMIT is recorded")
        if story.told == "aborted" and decision == "commit":
            raise Violation(f"{txid} was told as aborted, and now COMMIT is recorded")
        story.decision = decision
        if decision == "commit" and txid in self.keys:
            self.answered(self.keys[txid], txid)
        self._fixed(txid, story, f"{txid} is recorded", decision)
        self.counts[f"decided {decision}"] += 1

    def presumed(self, txid: str) -> None:
        """Somebody was told that it is aborted for ever, recorded or not."""
        story = self.story(txid)
        if story.decision == "commit":
            raise Violation(f"{txid} is said to be aborted, but COMMIT is recorded")
        story.presumed = True

    def verdict(self, name: str, *, impostor: bool) -> None:
        """The ledger has told whether it gave that name."""
        if name in self.forged and not impostor:
            raise Violation(f"{name} was made up, and the ledger takes it for its own")
        if name in self.given and impostor:
            raise Violation(f"{name} was given, and the ledger takes it for made up")
        self.counts["impostors told"] += impostor

    def heuristic(self, txid: str, name: str) -> None:
        """Recovery or a protocol has recorded that a branch ended otherwise, or may have."""
        if name in self.forged:
            raise Violation(f"{name} was made up, and a heuristic outcome is recorded for it")
        self.counts["heuristics"] += 1
        self.story(txid).heuristic.add(name)

    def _same(self, txid: str, before: str, now: str) -> None:
        if before != now:
            raise Violation(f"{txid} was {before}, and now it is {now}")

    # In the end.

    def final(self, disks: list[Disk], initial: int) -> None:
        """After healing: nothing is in doubt, every story has one end, no money came or went."""
        for disk in disks:
            ours = [name for name, work in disk.prepared.items() if not work.impostor]
            if ours:
                raise Violation(f"{disk.name} still holds {ours}")
        outside = 0
        promoted = any(disk.promotions for disk in disks)
        for txid, story in self.stories.items():
            self.check(txid, story)
            if story.tampered:
                self._explained(txid, story)
                outside += sum(
                    sum(work.deltas.values()) for work in story.branches if work.state is State.COMMITTED
                )
            elif story.heuristic and not promoted:
                raise Violation(f"{txid} has heuristic outcomes that nothing explains: {story.heuristic}")
            elif story.told == "committed" and not self._all_committed(story):
                raise Violation(f"{txid} was acknowledged, and is not everywhere")
        total = sum(sum(disk.balances.values()) for disk in disks)
        if total != initial + outside:
            raise Violation(f"there are {total} in all accounts, there must be {initial + outside}")

    def _all_committed(self, story: Story) -> bool:
        return all(work.state is State.COMMITTED for work in story.branches)

    def _explained(self, txid: str, story: Story) -> None:
        """Whoever tampers against a recorded COMMIT must be found out."""
        for work in story.branches:
            lost = work.state is State.ABORTED and work.name not in story.heuristic
            if story.decision == "commit" and lost:
                raise Violation(f"{work.name} was rolled back against COMMIT, and nobody has noticed")
