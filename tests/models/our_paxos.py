"""Our own acceptors and leaders of one transaction, in every order of events that small bounds allow.

A coordinator votes, or gives up before it has voted; some recoveries begin some ballots; an acceptor may
crash between hearing and storing, and then knows what it had stored. Once an outcome is in the ledger, any
acceptor may forget the transaction at any time. What must hold: whoever knows the outcome knows the same
one; no instance ever chooses two values; a commit has every vote; nobody is ever seen to break the
protocol.

To keep the states few, a leader that only learns hears all that was said to it at once: hearing less, it
knows no more. Refusals are always lost. The seeded runs beside the objects' own tests have all of that.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Any

import msgspec

from tests.coordinator.paxos.network import Disk, Node, Witness, is_quorum
from tests.models.processes import Message, Sent, System
from undoubt.coordinator.paxos import (
    ABORTED,
    Acceptor,
    AcceptorReply,
    AcceptorRequest,
    Ballot,
    BranchInstance,
    FirstBallot,
    Learner,
    Marks,
    Outgoing,
    PeerMisbehaved,
    Phase1b,
    Phase2b,
    Recovery,
    Refused,
    Value,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

TX = TxId(1, "0" * 16, 1)
PREPARED = Value(True)
RECORDED = "the ledger has the outcome"


@dataclass(frozen=True, slots=True)
class Bounds:
    """``acceptors`` is the set that the session is bound to; ``nodes`` are there. ``slow``: what an
    acceptor has heard and what it has stored are two states; else they are one step, which may end in a
    crash."""

    branches: int = 2
    acceptors: Joint = field(default_factory=lambda: Joint(frozenset({1, 2, 3})))
    nodes: int = 3
    recoveries: int = 1
    rounds: int = 1
    slow: bool = False
    forget: bool = True


@dataclass(frozen=True, slots=True)
class Kinds:
    """What the model is made of; a planted error takes the place of one of these."""

    acceptor: type[Acceptor] = Acceptor
    recovery: type[Recovery] = Recovery
    recovery_acceptors: Joint | None = None
    """Whom a recovery asks, if not those that the session is bound to."""
    votes_max: int = 1
    gives_up_late: bool = False
    """A coordinator that has voted may still take the transaction for aborted."""
    loses_disks: bool = False
    """A crash may take what was stored, and the acceptor comes back under its old number."""


class Leading:
    """A leader's position is also the number by which acceptors answer it."""

    def __init__(self, position: int, bounds: Bounds) -> None:
        self.position = position
        self.bounds = bounds
        self.outcome: Decision | None = None
        self.misbehaved = ""

    def copy(self) -> Leading:
        """Everything in here is replaced, nothing changed."""
        return copy(self)

    def send(self, requests: Iterable[tuple[int, AcceptorRequest]]) -> list[tuple[int, Message]]:
        """To the acceptors; and what they may hear of the ledger."""
        leaders = self.bounds.recoveries + 1
        sent: list[tuple[int, Message]] = [(leaders + to - 1, (self.position, each)) for to, each in requests]
        if self.outcome is not None and self.bounds.forget:
            sent += [(leaders + node, RECORDED) for node in range(self.bounds.nodes)]
        return sent

    def hear(self, leader: Learner, replies: Iterable[AcceptorReply]) -> list[tuple[int, AcceptorRequest]]:
        requests = list[tuple[int, AcceptorRequest]]()
        try:
            for reply in replies:
                if isinstance(leader, Recovery):
                    requests += leader.step(reply)
                elif isinstance(leader, FirstBallot):
                    leader.step(reply)
        except PeerMisbehaved as error:
            self.misbehaved = str(error)
        self.outcome = leader.outcome
        return requests


class Coordinator(Leading):
    """Votes once, all prepared or one aborted; or gives up, and then never votes."""

    def __init__(self, position: int, bounds: Bounds, kinds: Kinds) -> None:
        super().__init__(position, bounds)
        self.kinds = kinds
        self.voted: tuple[str, ...] = ()

    def key(self) -> Hashable:
        return self.voted, self.outcome, self.misbehaved

    @property
    def all_prepared(self) -> bool:
        return "all prepared" in self.voted

    def options(self, arriving: Sequence[AcceptorReply]) -> Iterable[Any]:
        if "give up" not in self.voted:
            if not self.voted or self.kinds.gives_up_late:
                yield "give up"
            if len(self.voted) < self.kinds.votes_max:
                yield from ("all prepared", "one aborted")
        if arriving and self.outcome is None:
            yield arriving

    def take(self, option: Any) -> Sent:
        if isinstance(option, str):
            self.voted = (*self.voted, option)
            if option == "give up":
                self.outcome = Decision.ABORT
                return ()
            return self.send(self.leader().messages())
        self.hear(self.leader(), option)
        return self.send(())

    def leader(self) -> FirstBallot:
        values = [PREPARED] * self.bounds.branches
        if self.voted[-1] == "one aborted":
            values[-1] = ABORTED
        votes = {BranchInstance(number, f"db{number}"): value for number, value in enumerate(values, 1)}
        return FirstBallot(TX, self.bounds.acceptors, votes)

    def show(self) -> str:
        return f"coordinator {', '.join(self.voted)} {self.outcome or ''} {self.misbehaved}"


class Recovering(Leading):
    def __init__(self, position: int, bounds: Bounds, kinds: Kinds) -> None:
        super().__init__(position, bounds)
        self.kinds = kinds
        self.acceptors = kinds.recovery_acceptors or bounds.acceptors
        self.round = 0
        self.bundle: tuple[tuple[int, AcceptorRequest], ...] = ()
        self.over = False

    def key(self) -> Hashable:
        return self.round, self.bundle, self.outcome, self.over, self.misbehaved

    def leader(self) -> Recovery:
        """In its present round, before it has heard anything: it is told again each time."""
        leader = self.kinds.recovery(TX, self.acceptors, self.position)
        for _ in range(self.round):
            leader.begin()
        return leader

    def options(self, arriving: Sequence[AcceptorReply]) -> Iterable[Any]:
        """Begin a ballot; hear a quorum's promises, and no more than that; after that, hear everything."""
        if self.over:
            return
        if self.round < self.bounds.rounds:
            yield "begin"
        ballot = Ballot(self.round, self.position)
        promises = [each for each in arriving if isinstance(each, Phase1b) and each.ballot == ballot]
        if self.bundle:
            yield arriving
        for count in range(1, len(promises) + 1):
            for few in combinations(promises, count):
                if is_quorum(self.acceptors, {each.acceptor for each in few}):
                    yield few

    def take(self, option: Any) -> Sent:
        if option == "begin":
            self.round, self.bundle = self.round + 1, ()
            return self.send(self.leader().again())
        leader = self.leader()
        requests = self.hear(leader, option)
        self.bundle = self.bundle or tuple(requests)
        self.over = self.outcome is not None or leader.forgotten
        return self.send(self.bundle)

    def show(self) -> str:
        return f"recovery {self.round}.{self.position} {self.outcome or ''} {self.misbehaved}"


class Accepting:
    """An acceptor with its driver and disk."""

    def __init__(self, number: int, bounds: Bounds, kinds: Kinds) -> None:
        self.node = Node(number, kinds.acceptor)
        self.slow = bounds.slow
        self.ends = ("stored", "crash", "lost") if kinds.loses_disks else ("stored", "crash")
        self.misbehaved = ""

    def copy(self) -> Accepting:
        return deepcopy(self)

    def key(self) -> Hashable:
        node = self.node
        writing = tuple(msgspec.structs.replace(ready, token=0) for ready in node.writing)
        return node.disk.restored(), node.acceptor.kept(), writing, self.misbehaved

    def options(self, arriving: Sequence[Any]) -> Iterable[Any]:
        if not self.slow:
            return [(message, end) for message in arriving for end in self.ends]
        on = ("sync", "crash") if self.node.writing else ()
        return [*on, *((message, "") for message in arriving if len(self.node.writing) < 2)]

    def take(self, option: Any) -> Sent:
        sent = list[Outgoing]()
        if isinstance(option, str):
            end = option
        else:
            message, end = option
            sent += self.arrive(message)
        if end in {"crash", "lost"}:
            self.node.disk = Disk() if end == "lost" else self.node.disk
            self.node.crash()
        elif end:
            sent += self.node.sync()
        return [(each.to, each.message) for each in sent if not isinstance(each.message, Refused)]

    def arrive(self, message: Any) -> tuple[Outgoing, ...]:
        if message == RECORDED:
            self.node.acceptor.forget(Marks(1, ((TX.session, TX.seq + 1),)))
        else:
            try:
                self.node.acceptor.step(*message)
            except PeerMisbehaved as error:
                self.misbehaved = str(error)
        return self.node.pump()

    def show(self) -> str:
        record = self.node.acceptor.record(TX)
        if record is None:
            return f"{self.node.number} nothing"
        known = record.known
        accepted = [f"{each.value}@{each.ballot.round}" if each else "-" for each in known.accepted]
        return (
            f"{self.node.number} promised {record.promised.round} {' '.join(accepted)} {known.unnamed or ''}"
        )


def judge(bounds: Bounds, *, strict: bool) -> Any:
    @cache
    def counted(replies: tuple[Phase1b | Phase2b | Refused, ...]) -> tuple[Decision | None, str]:
        """What the acceptors have chosen, or why they contradict themselves; the same in many states."""
        witness = Witness()
        try:
            for reply in replies:
                witness.count(reply)
            return witness.outcome(TX, bounds.acceptors), ""
        except AssertionError as error:
            return None, str(error)

    def judged(leaders: Sequence[Leading], replies: Sequence[Any]) -> str | None:
        outcomes = {leader.outcome for leader in leaders if leader.outcome is not None}
        if len(outcomes) > 1:
            return "two outcomes"
        coordinator = leaders[0]
        assert isinstance(coordinator, Coordinator)
        if Decision.COMMIT in outcomes and not coordinator.all_prepared:
            return "committed without every vote"
        chosen, contradiction = counted(tuple(replies))
        if contradiction:
            return contradiction
        if chosen is not None and outcomes - {chosen}:
            return f"the acceptors say {chosen}, somebody says otherwise"
        return next((leader.misbehaved for leader in leaders if leader.misbehaved and strict), None)

    return judged


def our_paxos(bounds: Bounds, kinds: Kinds | None = None, *, strict: bool = True) -> System:
    """``strict``: also what a leader takes for a broken peer is wrong."""
    kinds = kinds or Kinds()
    leaders: list[Any] = [Coordinator(0, bounds, kinds)]
    leaders += [Recovering(position, bounds, kinds) for position in range(1, bounds.recoveries + 1)]
    acceptors = [Accepting(number, bounds, kinds) for number in range(1, bounds.nodes + 1)]
    return System(
        [*leaders, *acceptors],
        judge(bounds, strict=strict),
        judged=len(leaders),
        evidence=lambda message: hasattr(message, "known"),
    )
