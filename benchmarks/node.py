"""The nodes' own CPU time for a decision: three of them in one process, whose disks store at once.

What is left out is what every replicated decision pays (sockets, threads, the disks), so that a change of a
few microseconds shows, on a busy machine too. Besides: what a vote of Paxos Commit costs its leader and all
three acceptors. Another version is measured by ``PYTHONPATH=OTHER_TREE python -P benchmarks/node.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from undoubt.coordinator.ledger.commands import Command, Decide, Finish, OpenSession
from undoubt.coordinator.ledger.contract import BranchRecord, Session
from undoubt.coordinator.ledger.machine import Machine
from undoubt.coordinator.node.bootstrap import beginning
from undoubt.coordinator.node.fsm import NodeStateMachine
from undoubt.coordinator.node.replica import Replica
from undoubt.coordinator.node.settings import NodeSettings
from undoubt.coordinator.node.storage.contract import DiskIdentity, DiskWrite, Stored
from undoubt.coordinator.paxos import BranchInstance, FirstBallot, Value
from undoubt.coordinator.quorum import Joint
from undoubt.coordinator.raft import Message, decode, encode
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol
from undoubt.serve.loop import fastest_loop

CLUSTER = "abcdefghij"
NODES = (1, 2, 3)
TICK_S = 0.02
BRANCHES = (
    BranchRecord(1, "orders", 2**40, 2**62, "00000001"),
    BranchRecord(2, "payments", 2**40, 2**62, "00000001"),
)
VOTES = {BranchInstance(each.number, each.participant): Value(True, b"evidence of it") for each in BRANCHES}
FINISH_AT_ONCE = 1_000


class Instant:
    """A disk that has stored everything in the next turn of the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def write(self, _: Sequence[DiskWrite]) -> asyncio.Future[bool]:
        stored: asyncio.Future[bool] = self._loop.create_future()
        self._loop.call_soon(stored.set_result, True)
        return stored

    def close(self) -> asyncio.Future[None]:
        closed: asyncio.Future[None] = self._loop.create_future()
        closed.set_result(None)
        return closed


class Nodes:
    """Messages take a turn of the loop, and are encoded and decoded."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        addresses = {number: f"127.0.0.1:{7400 + number}" for number in NODES}
        hard_state, snapshot = beginning(CLUSTER, addresses)
        self.replicas = {}
        self._machines = []
        for number in NODES:
            replicated = NodeStateMachine(Machine(CLUSTER), {})
            self._machines.append(replicated.machine)
            replicated.restore(snapshot.image)
            self.replicas[number] = Replica(
                Stored(DiskIdentity(CLUSTER, number, "disk"), hard_state, snapshot, ()),
                Instant(),  # type: ignore[arg-type]
                replicated,
                NodeSettings().raft,
                Random(number),  # noqa: S311 - election timeouts
                tick_s=TICK_S,
                history_ms=1,
                snapshot_log_bytes=2**40,
                send=self._send,
                on_change=lambda _: None,
            )

    def _send(self, message: Message) -> None:
        replica, frame = self.replicas[message.to], encode(message)
        self._loop.call_soon(lambda: replica.driver.step(decode(frame)))

    async def leader(self) -> Replica:
        for replica in self.replicas.values():
            replica.start()
        while True:
            for replica in self.replicas.values():
                if replica.leads:
                    return replica
            await asyncio.sleep(TICK_S)

    async def have(self, session: Session) -> None:
        """Return once every node has applied it; until then an acceptor refuses the votes of its branches."""
        while not all(session.id in machine.state.sessions for machine in self._machines):
            await asyncio.sleep(TICK_S)

    async def stop(self) -> None:
        for replica in self.replicas.values():
            await replica.stop()


class Work:
    """What is measured, by numbers that are used once."""

    def __init__(self, nodes: Nodes, leader: Replica, session: Session) -> None:
        self._nodes = nodes
        self._leader = leader
        self._txid = session.txid

    async def decide(self, number: int) -> None:
        await propose(
            self._leader, Decide(self._txid(number), Protocol.TWO_PHASE, Decision.COMMIT, BRANCHES, 1.0)
        )

    async def finish(self, numbers: range) -> None:
        for first in range(numbers.start, numbers.stop, FINISH_AT_ONCE):
            some = range(first, min(first + FINISH_AT_ONCE, numbers.stop))
            await propose(self._leader, Finish(tuple(self._txid(number) for number in some)))

    async def vote(self, number: int) -> None:
        """As a coordinator's, but for the way there and back."""
        leader = FirstBallot(self._txid(number), Joint(frozenset(NODES)), VOTES)
        known: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answered(reply: object) -> None:
            leader.step(reply)  # type: ignore[arg-type]
            if leader.outcome is Decision.COMMIT and not known.done():
                known.set_result(None)

        for to, request in leader.messages():
            self._nodes.replicas[to].acceptors.ask(request, answered)
        await known


async def propose(leader: Replica, command: Command) -> object:
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    leader.proposals.propose(command, answer.set_result)
    return await answer


async def measured(one: Callable[[int], Awaitable[None]], numbers: range, at_once: int) -> float:
    """Microseconds of CPU for each."""
    left = iter(numbers)

    async def work() -> None:
        for number in left:
            await one(number)

    began_s = time.process_time()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return (time.process_time() - began_s) * 1e6 / len(numbers)


async def run(count: int, rounds: int) -> None:
    nodes = Nodes()
    leader = await nodes.leader()
    session = await propose(leader, OpenSession("0" * 16, "benchmark", 10**9, acceptors=NODES))
    if not isinstance(session, Session):
        raise TypeError(session)
    await nodes.have(session)
    work = Work(nodes, leader, session)
    found: dict[str, list[float]] = {}
    for first in range(1, 3 * count * rounds, 3 * count):
        one, many, votes = (range(first + at * count, first + (at + 1) * count) for at in range(3))
        found.setdefault("a decision, one at a time", []).append(await measured(work.decide, one, 1))
        found.setdefault("a decision, 64 at once", []).append(await measured(work.decide, many, 64))
        found.setdefault("a vote of Paxos Commit", []).append(await measured(work.vote, votes, 1))
        await work.finish(range(one.start, many.stop))
    for about, each in found.items():
        print(f"{about}: {min(each):.0f} µs at best, {statistics.median(each):.0f} µs in the median")
    await nodes.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="in each round")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(run(options.count, options.rounds))


if __name__ == "__main__":
    main()
