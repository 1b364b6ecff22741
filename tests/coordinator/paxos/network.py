"""Acceptors with slow disks, and leaders of transactions, in memory.

Whatever was sent stays on the wire: it may arrive at any time, again, or never. A crash takes what was not
stored. ``Witness`` works out what is chosen from what left the acceptors, by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import combinations

from undoubt.coordinator.paxos import (
    Acceptor,
    AcceptorRecord,
    AcceptorReply,
    AcceptorRequest,
    Ballot,
    BranchInstance,
    FirstBallot,
    Forgotten,
    Known,
    Marks,
    Outgoing,
    PaxosReady,
    Phase1b,
    Phase2b,
    Recovery,
    Refused,
    RestoredAcceptor,
    Value,
    decode_reply,
    decode_request,
    encode,
)
from undoubt.coordinator.quorum import Joint
from undoubt.participants.contract import Decision
from undoubt.participants.ids import TxId

NONCE = "0123456789abcdef"
PREPARED = Value(True, b"evidence")
BRANCHES = (BranchInstance(1, "orders"), BranchInstance(2, "payments"))
THREE = Joint(frozenset({1, 2, 3}))

Leader = FirstBallot | Recovery


def txid(seq: int = 1, session: int = 1) -> TxId:
    return TxId(session, NONCE, seq)


@dataclass
class Disk:
    """What survives a crash."""

    records: dict[TxId, AcceptorRecord] = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)

    def store(self, ready: PaxosReady) -> None:
        """One transaction."""
        self.records |= {record.txid: record for record in ready.records}
        for each in ready.dropped:
            self.records.pop(each, None)
        self.marks = ready.marks or self.marks

    def restored(self) -> RestoredAcceptor:
        return RestoredAcceptor(self.marks, tuple(self.records.values()))


class Node:
    """An acceptor and its driver."""

    acceptor_type: type[Acceptor] = Acceptor

    def __init__(self, number: int, acceptor_type: type[Acceptor] = Acceptor) -> None:
        self.number = number
        self.disk = Disk()
        self.acceptor_type = acceptor_type
        self.start()

    def start(self) -> None:
        self.acceptor = self.acceptor_type(self.number, self.disk.restored())
        self.writing: deque[PaxosReady] = deque()

    def pump(self) -> tuple[Outgoing, ...]:
        """Take what is to be done: what may be sent at once."""
        ready = self.acceptor.ready()
        if ready.writes or ready.replies_after_sync:
            self.writing.append(ready)
        return ready.replies_now

    def sync(self) -> tuple[Outgoing, ...]:
        """The disk finishes its oldest write."""
        if not self.writing:
            return ()
        ready = self.writing.popleft()
        self.disk.store(ready)
        return self.acceptor.on_persisted(ready.token)

    def crash(self, stored: int = 0) -> None:
        """The oldest ``stored`` writes reached the disk all the same; nobody was told."""
        for ready in list(self.writing)[:stored]:
            self.disk.store(ready)
        self.start()


class Witness:
    """What the acceptors have told, added up by other means than the product's."""

    def __init__(self) -> None:
        self.facts: dict[tuple[TxId, int, Ballot, bool], set[int]] = {}
        """By transaction, number of the branch (0: all there are), ballot and vote: who accepted."""
        self.lists: dict[TxId, tuple[BranchInstance, ...]] = {}

    def told(self, node: Node, reply: AcceptorReply) -> None:
        """``reply`` leaves ``node``: what it says must be on its disk."""
        if isinstance(reply, Forgotten):
            assert _forgotten(node.disk.marks, reply.txid), "forgotten in memory only"
            return
        stored = node.disk.records.get(reply.txid)
        if stored is None:
            assert reply.known == Known() or _forgotten(node.disk.marks, reply.txid), "nothing is stored"
        elif isinstance(reply, Phase1b):
            assert stored.promised >= reply.ballot, "promised before it was stored"
        for number, ballot, _ in facts_of(reply.known):
            if stored is not None:
                kept = {number: ballot for number, ballot, _ in facts_of(stored.known)}
                assert number in kept, "accepted before it was stored"
                assert kept[number] >= ballot
        self.count(reply)

    def count(self, reply: Phase1b | Phase2b | Refused) -> None:
        for number, ballot, prepared in facts_of(reply.known):
            self.facts.setdefault((reply.txid, number, ballot, prepared), set()).add(reply.acceptor)
        if reply.known.branches:
            assert self.lists.setdefault(reply.txid, reply.known.branches) == reply.known.branches

    def outcome(self, tx: TxId, acceptors: Joint) -> Decision | None:
        chosen: dict[int, set[bool]] = {}
        for (each, number, _, prepared), who in self.facts.items():
            if each == tx and is_quorum(acceptors, who):
                chosen.setdefault(number, set()).add(prepared)
        assert all(len(values) == 1 for values in chosen.values()), f"{tx}: two values are chosen: {chosen}"
        if any(values == {False} for values in chosen.values()):
            return Decision.ABORT
        branches = self.lists.get(tx, ())
        if branches and all(each.number in chosen for each in branches):
            return Decision.COMMIT
        return None


def facts_of(known: Known) -> list[tuple[int, Ballot, bool]]:
    """Number of the branch (0: all there are), ballot, vote."""
    facts = [
        (branch.number, accepted.ballot, accepted.value.prepared)
        for branch, accepted in zip(known.branches, known.accepted, strict=True)
        if accepted is not None
    ]
    return facts if known.unnamed is None else [*facts, (0, known.unnamed, False)]


def _forgotten(marks: Marks, tx: TxId) -> bool:
    floors = dict(marks.floors)
    return tx.seq < floors[tx.session] if tx.session in floors else tx.session < marks.next_session


def is_quorum(quorum: Joint, acceptors: set[int]) -> bool:
    sets = [each for each in (quorum.incoming, quorum.outgoing) if each]
    return all(any(set(few) <= acceptors for few in combinations(each, len(each) // 2 + 1)) for each in sets)


class Network:
    """``leaders`` by the number under which acceptors answer them."""

    def __init__(self, nodes: int = 3, acceptor_type: type[Acceptor] = Acceptor) -> None:
        self.nodes = {number: Node(number, acceptor_type) for number in range(1, nodes + 1)}
        self.leaders: dict[int, Leader] = {}
        self.requests: list[tuple[int, int, bytes]] = []
        """From, to, what."""
        self.replies: list[tuple[int, bytes]] = []
        """To, what."""
        self.sent = 0
        self.witness = Witness()

    # Leaders.

    def first_ballot(
        self, tx: TxId, *, acceptors: Joint = THREE, votes: dict[BranchInstance, Value] | None = None
    ) -> FirstBallot:
        leader = FirstBallot(tx, acceptors, votes or dict.fromkeys(BRANCHES, PREPARED))
        self.leaders[len(self.leaders) + 1] = leader
        return leader

    def recovery(self, tx: TxId, *, acceptors: Joint = THREE, kind: type[Recovery] = Recovery) -> Recovery:
        number = len(self.leaders) + 1
        leader = kind(tx, acceptors, number)
        self.leaders[number] = leader
        return leader

    def send(self, leader: Leader, requests: tuple[tuple[int, AcceptorRequest], ...]) -> None:
        number = next(number for number, each in self.leaders.items() if each is leader)
        self.sent += len(requests)
        self.requests += [(number, to, encode(request)) for to, request in requests]

    # What happens.

    def arrive(self, position: int, *, again: bool = False) -> None:
        """A request reaches its acceptor."""
        sender, to, frame = self.requests[position] if again else self.requests.pop(position)
        node = self.nodes[to]
        node.acceptor.step(sender, decode_request(frame))
        self.post(node, node.pump())

    def post(self, node: Node, outgoing: tuple[Outgoing, ...]) -> None:
        for each in outgoing:
            self.witness.told(node, each.message)
            self.sent += 1
            self.replies.append((each.to, encode(each.message)))

    def sync(self, number: int) -> None:
        self.post(self.nodes[number], self.nodes[number].sync())

    def answer(self, position: int, *, again: bool = False) -> Leader:
        """A reply reaches its leader: who it is."""
        to, frame = self.replies[position] if again else self.replies.pop(position)
        leader, reply = self.leaders[to], decode_reply(frame)
        if isinstance(leader, Recovery):
            self.send(leader, leader.step(reply))
        else:
            leader.step(reply)
        return leader

    def forget(self, number: int, marks: Marks) -> None:
        node = self.nodes[number]
        node.acceptor.forget(marks)
        self.post(node, node.pump())

    def arrive_at(self, *numbers: int) -> None:
        """Every request for those reaches them and is stored; the answers wait, as do the other requests."""
        for each in [each for each in self.requests if each[1] in numbers]:
            self.arrive(self.requests.index(each))
        for number in numbers:
            while self.nodes[number].writing:
                self.sync(number)

    def settle(self, *up: int) -> None:
        """Deliver and store until nothing is left; what is for others than ``up`` (else for anybody) is
        lost."""
        while self.requests or self.replies or any(node.writing for node in self.nodes.values()):
            while self.requests:
                if up and self.requests[0][1] not in up:
                    self.requests.pop(0)
                else:
                    self.arrive(0)
            for number in self.nodes:
                while self.nodes[number].writing:
                    self.sync(number)
            while self.replies:
                self.answer(0)
