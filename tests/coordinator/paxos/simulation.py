"""One seeded run: many transactions, their coordinators, any number of recoveries, and a ledger, under
faults; then peace, in which everything comes to its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tests.coordinator.paxos.network import Leader, Network, txid
from undoubt.coordinator.paxos import (
    ABORTED,
    Acceptor,
    AcceptorRequest,
    BranchInstance,
    Marks,
    Recovery,
    Value,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

NODES = 5
SESSIONS = [
    Joint(frozenset({1, 2, 3})),
    Joint(frozenset({1, 2, 3, 4, 5})),
    Joint(frozenset({3, 4, 5})),
    Joint(frozenset({1, 2, 3}), frozenset({2, 3, 4})),
    Joint(frozenset({2})),
]
"""What the sessions 1, 2, … are bound to, as the membership changes."""
TRANSACTIONS = 2
"""In each session."""
CALM_ROUNDS = 40


@dataclass
class Transaction:
    txid: TxId
    acceptors: Joint
    votes: dict[BranchInstance, Value]
    leaders: list[Leader] = field(default_factory=list)
    voted: bool = False

    @property
    def all_prepared(self) -> bool:
        return all(value.prepared for value in self.votes.values())


class Simulation:
    recovery_type: type[Recovery] = Recovery

    def __init__(self, seed: int, acceptor_type: type[Acceptor] = Acceptor) -> None:
        self.random = Random(seed)
        self.network = Network(NODES, acceptor_type)
        self.transactions = {
            txid(seq, session): Transaction(txid(seq, session), acceptors, self.votes())
            for session, acceptors in enumerate(SESSIONS, 1)
            for seq in range(1, TRANSACTIONS + 1)
        }
        self.ledger: dict[TxId, Decision] = {}
        self.crashes = self.random.choice([0.0, 0.02, 0.06])
        self.loss = self.random.choice([0.0, 0.1, 0.4])
        self.repeats = self.random.choice([0.0, 0.2])
        self.forgets = self.random.choice([0.0, 0.02])
        self.forgotten = 0
        self.restarts = 0
        self.calm_now = False

    def votes(self) -> dict[BranchInstance, Value]:
        random = self.random
        branches = [BranchInstance(number, f"db{number}") for number in range(1, random.randrange(2, 5))]
        votes = {branch: Value(True, b"%d" % branch.number) for branch in branches}
        if random.random() < 0.2:
            votes[random.choice(branches)] = ABORTED
        return votes

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self.calm()

    def step(self) -> None:
        random, network = self.random, self.network
        number = random.randrange(1, NODES + 1)
        draw = random.random()
        if draw < self.crashes:
            self.restarts += 1
            node = network.nodes[number]
            node.crash(random.randrange(len(node.writing) + 1))
        elif draw < self.crashes + self.forgets:
            self.forget(number)
        elif draw < 0.15:
            self.lead(random.choice(list(self.transactions.values())))
        elif draw < 0.5 and network.requests:
            self.deliver_request()
        elif draw < 0.75:
            network.sync(number)
        elif network.replies:
            position = self.position(len(network.replies))
            if random.random() < self.loss:
                network.replies.pop(position)
            else:
                leader = network.answer(position, again=random.random() < self.repeats)
                self.record(leader)

    def position(self, count: int) -> int:
        """Mostly one of the oldest, at times any."""
        return (
            min(count - 1, self.random.randrange(4))
            if self.random.random() < 0.6
            else self.random.randrange(count)
        )

    def deliver_request(self) -> None:
        network = self.network
        position = self.position(len(network.requests))
        if self.random.random() < self.loss:
            network.requests.pop(position)
        else:
            network.arrive(position, again=self.random.random() < self.repeats)

    def lead(self, transaction: Transaction) -> None:
        """Somebody does something about it: votes, votes again, asks, or recovers."""
        random, network = self.random, self.network
        draw = random.random()
        if not transaction.voted and draw < 0.5:
            transaction.voted = True
            leader = network.first_ballot(
                transaction.txid, acceptors=transaction.acceptors, votes=transaction.votes
            )
            transaction.leaders.append(leader)
            network.send(leader, self.some(leader.messages()))
        elif transaction.leaders and draw < 0.7:
            each = random.choice(transaction.leaders)
            if isinstance(each, Recovery):
                network.send(each, self.some(each.begin() if random.random() < 0.5 else each.again()))
            else:
                network.send(each, self.some(each.messages()) if random.random() < 0.5 else each.ask())
        else:
            self.recover(transaction)

    def recover(self, transaction: Transaction) -> Recovery:
        recovery = self.network.recovery(
            transaction.txid, acceptors=self.acceptors_for(transaction), kind=self.recovery_type
        )
        transaction.leaders.append(recovery)
        self.network.send(recovery, self.some(recovery.begin()))
        return recovery

    def some(
        self, requests: tuple[tuple[int, AcceptorRequest], ...]
    ) -> tuple[tuple[int, AcceptorRequest], ...]:
        """A sender may die while it sends."""
        if self.calm_now or self.random.random() < 0.5:
            return requests
        return tuple(self.random.sample(requests, self.random.randrange(len(requests) + 1)))

    def acceptors_for(self, transaction: Transaction) -> Joint:
        """As the ledger has it for the session."""
        return transaction.acceptors

    def forget(self, number: int) -> None:
        """What the ledger holds, up to the first that it does not hold, of each session."""
        floors = {}
        for session in range(1, len(SESSIONS) + 1):
            undecided = [
                each for each in range(1, TRANSACTIONS + 1) if txid(each, session) not in self.ledger
            ]
            floors[session] = min(undecided, default=TRANSACTIONS + 1)
        gone = [
            session
            for session, floor in floors.items()
            if floor > TRANSACTIONS and self.random.random() < 0.5
        ]
        kept = tuple((session, floor) for session, floor in floors.items() if session not in gone)
        before = self.network.nodes[number].acceptor.count
        self.network.forget(number, Marks(len(SESSIONS) + 1, kept))
        self.forgotten += before - self.network.nodes[number].acceptor.count

    def listen(self) -> None:
        for leader in self.network.leaders.values():
            self.record(leader)

    def record(self, leader: Leader) -> None:
        """Whoever knows an outcome records it; none may ever contradict another, or the acceptors."""
        outcome, transaction = leader.outcome, self.transactions[leader.txid]
        if outcome is None:
            return
        recorded = self.ledger.setdefault(transaction.txid, outcome)
        assert recorded is outcome, f"{transaction.txid} is {recorded}, and {outcome} for another"
        if outcome is Decision.COMMIT:
            assert transaction.voted, f"{transaction.txid} is committed, and nobody voted"
            assert transaction.all_prepared, f"{transaction.txid} is committed against a vote"
            assert dict(zip(leader.branches, leader.chosen, strict=True)) == transaction.votes
        witnessed = self.network.witness.outcome(transaction.txid, transaction.acceptors)
        assert witnessed is outcome, f"{transaction.txid}: the acceptors say {witnessed}, a leader {outcome}"

    def calm(self) -> None:
        """No more faults: one recovery of each transaction is left, and finds what is recorded, if anything
        is."""
        self.calm_now = True
        network = self.network
        network.settle()
        self.listen()
        for transaction in self.transactions.values():
            recovery = self.recover(transaction)
            for _ in range(CALM_ROUNDS):
                network.settle()
                self.listen()
                if recovery.outcome is not None or recovery.forgotten:
                    break
                network.send(recovery, recovery.begin())
            assert transaction.txid in self.ledger, f"{transaction.txid} comes to no end"
        assert all(self.all_settled(each) for each in self.transactions.values())

    def all_settled(self, transaction: Transaction) -> bool:
        """A coordinator that asks is told, or told that the ledger knows."""
        for leader in transaction.leaders:
            self.network.send(leader, leader.ask())
        self.network.settle()
        self.listen()
        return all(leader.outcome is not None or leader.forgotten for leader in transaction.leaders)
