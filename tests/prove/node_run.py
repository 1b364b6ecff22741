"""A case in which nodes of the ledger's cluster die, or that only a cluster can go on from.

The interleavings of Paxos Commit to be feared most are here. The coordinator's votes have reached one of the
three acceptors when it is stopped. It is not dead: it will go on, with a ballot that it believes to be alive.
The others have never heard of the votes. A recovery takes a higher ballot,

- with that acceptor among those whom it can ask: it must take the votes that it finds, and come to COMMIT; or
- without it: it comes to ABORT, and the votes that the coordinator repeats must be refused, although one
  acceptor has them.

Then the coordinator goes on, and must find the same.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg

from tests.prove.bank import NAMES
from tests.prove.cases import NODES, UNDER_LOAD, Victim
from tests.prove.node_process import NodeStep
from tests.prove.nodes import Nodes
from tests.prove.processes import Child, Heard, within
from tests.prove.run import Run
from tests.prove.trap import NO_TRAP, PAUSE, TELL, Trap
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.protocols.steps import TwoPhaseStep
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import Gid, TxId

SESSION_TTL_S = 60.0
"""Of a coordinator that nobody may give up."""
PASSES_SPARED = 3
HALF_TOLD = Trap(PAUSE, TwoPhaseStep.BEFORE_SECOND_PHASE, 2, UNDER_LOAD)
"""Its other branch may have committed."""


class NodeRun(Run):
    timeout_s = 30.0
    _stopped: Child | None = None
    _uncopied: TxId | None = None
    """Committed by a coordinator that died before it could tell the ledger."""

    @property
    def nodes(self) -> Nodes:
        if self.stage.ledgers.nodes is None:
            raise RuntimeError(f"{self.case}: this ledger has no nodes")
        return self.stage.ledgers.nodes

    @property
    def session_ttl_s(self) -> float:
        outlives = self.case.victim in {*NODES, Victim.MAJORITY, Victim.SPARED} and not self.case.in_recovery
        return SESSION_TTL_S if outlives else super().session_ttl_s

    async def coordinate(self) -> Heard:
        if self.case.victim is Victim.OVERTAKEN and self.case.before is not None:
            self._stopped = await self.start_coordinator(self.case.before)
            if not await self._stopped.until_at_trap() or not await self._stopped.stop():
                self.count("not_killed", "the coordinator was not stopped in its trap")
            return self._stopped.heard
        if self.case.in_recovery or not self.case.of_node:
            return await super().coordinate()
        trap = HALF_TOLD if self.case.victim is Victim.FOLLOWERS else NO_TRAP
        await self._arm()
        child = await self.start_coordinator(trap)
        await self._nodes_die_beside(child)
        return child.heard

    async def recover_with_a_victim(self) -> None:
        if self.case.of_node:
            await self._arm()
            await self._nodes_die_beside(await self.start_recovery(NO_TRAP, self.passes))
        else:
            await super().recover_with_a_victim()

    async def strike(self, child: Child, subject: str) -> None:
        match self.case.victim:
            case Victim.POWER:
                await self._cut_power(child)
            case Victim.STOPPED:
                await self._stop(child)
                await asyncio.gather(self.recover(), self.recover())
                await self._go_on(child)
            case Victim.SPARED:
                await self._stop(child)
                before = await self._prepared()
                for looking in [await self.start_recovery(NO_TRAP, PASSES_SPARED) for _ in range(2)]:
                    await self.expect_ended(looking)
                for txid in {gid.txid for gid in before - await self._prepared()}:
                    await self._expect_recorded(txid, {RecordedDecision.COMMIT})
                await self._go_on(child)
            case Victim.OVERTAKEN if self._stopped is not None:
                await self._go_on(self._stopped)
                await child.go_on()
                await self.expect_ended(child)
            case Victim.OUTVOTED | Victim.HEARD:
                await self._one_vote(child, subject)
            case Victim.UNCOPIED:
                await self._kill_uncopied(child, TxId.parse(subject))
            case _:
                await self._kill_nodes_of(child)

    # Nodes that are killed while a process waits at a step of its own.

    async def _kill_nodes_of(self, child: Child) -> None:
        numbers = await self._numbers()
        self._expect_died(numbers, await self._kill(*numbers))
        await child.go_on()
        if self.case.victim is Victim.MAJORITY:
            await self.nodes.start(*numbers)
        await self.expect_ended(child)
        if self.case.victim in NODES:
            self._expect_nothing_missed(child)
            await self.nodes.start(*numbers)

    async def _numbers(self) -> list[int]:
        """Of the nodes that are to die."""
        leader = await self.nodes.leading()
        followers = sorted(self.nodes.running.keys() - {leader})
        chosen = {
            Victim.LEADER: [leader],
            Victim.FOLLOWER: followers[:1],
            Victim.OTHER_FOLLOWER: followers[1:],
            Victim.MAJORITY: [leader, followers[0]],
            Victim.FOLLOWERS: followers,
        }
        return chosen[self.case.victim]

    async def _kill(self, *numbers: int) -> Sequence[int]:
        return await asyncio.gather(*(self.nodes.kill(number) for number in numbers))

    def _expect_died(self, numbers: Sequence[int], died_of: Sequence[int]) -> None:
        """Of SIGKILL, each in its role: by its own last words."""
        leads = self.case.victim in {Victim.LEADER, Victim.MAJORITY}
        for position, (number, signal_) in enumerate(zip(numbers, died_of, strict=True)):
            if signal_ != signal.SIGKILL:
                self.count("not_killed", f"node {number} died of signal {signal_}")
            if self.nodes.led_last(number) is not (leads and position == 0):
                self.count("not_killed", f"node {number} had another role by then")

    def _expect_nothing_missed(self, child: Child) -> None:
        """One node of three may die without anybody's taking harm."""
        for name, why in child.heard.why.items():
            self.problems.append(f"{name} not committed, although nothing stood in its way: {why}")

    # Nodes that die at a step of their own.

    async def _arm(self) -> None:
        for number in await self._numbers():
            self.nodes.arm(number, self.case.trap)

    async def _nodes_die_beside(self, child: Child) -> None:
        numbers = [number for number in self.nodes.addresses if self.nodes.armed(number)]
        over = asyncio.create_task(self._half_told(child) if self._kills_all else self.expect_ended(child))
        dying = asyncio.gather(*(self.nodes.killed(number) for number in numbers))
        either: list[asyncio.Future[Any]] = [over, dying]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not dying.done() and not self._kills_all:
            dying.cancel()
            self.count("not_killed", f"node {numbers} did not reach {self.case.trap.step}")
            await over
            return
        async with within(f"the end of nodes {numbers}"):
            self._expect_died(numbers, await dying)
        for number in numbers:
            if [told["at"] for told in self.nodes.told(number)] != [self.case.trap.step]:
                self.count("not_killed", f"node {number} died elsewhere than at {self.case.trap.step}")
        self.nodes.disarm()
        if self.case.victim is Victim.FOLLOWERS:
            await self._kill(*self.nodes.running)
            await self.nodes.start(*numbers)
        await over
        if self.case.victim in NODES:
            if not self.case.in_recovery:
                self._expect_nothing_missed(child)
            await self.nodes.start(*numbers)

    @property
    def _kills_all(self) -> bool:
        """The coordinator too."""
        return self.case.victim is Victim.FOLLOWERS and not self.case.in_recovery

    async def _half_told(self, child: Child) -> None:
        """Kill the coordinator when one branch has committed, and the other is not told yet."""
        if not await child.until_at_trap():
            self.count("not_killed", f"the coordinator ended without reaching {HALF_TOLD.step}")
            return
        told = Gid.parse(child.heard.last["subject"])
        if isinstance(told, Gid):
            await self._committed(replace(told, branch=1, participant=NAMES[0]))
        if await child.kill() != -signal.SIGKILL:
            self.count("not_killed", "the coordinator ended by itself")

    async def _committed(self, gid: Gid) -> None:
        async with within(f"the commit of {gid}"):
            while gid in await self._prepared(gid.participant):
                await asyncio.sleep(0.005)

    async def _prepared(self, *names: str) -> set[Gid]:
        """Of this ledger or another, in all databases of these servers, or of all servers."""
        found: set[Gid] = set()
        for name in names or NAMES:
            connection = await asyncpg.connect(self.stage.servers[name].dsn())
            try:
                rows = await connection.fetch("select gid from pg_prepared_xacts")
            finally:
                await connection.close()
            found |= {gid for row in rows if isinstance(gid := Gid.parse(row["gid"]), Gid)}
        return found

    # A coordinator that is not dead.

    async def _stop(self, child: Child) -> None:
        if not await child.stop():
            self.count("not_killed", "the coordinator was not there to be stopped")

    async def _go_on(self, child: Child) -> None:
        child.resume()
        await child.go_on()
        await self.expect_ended(child)

    async def _one_vote(self, child: Child, txid: str) -> None:
        leader = await self.nodes.leading()
        heard, *deaf = sorted(self.nodes.running, key=lambda number: (number == leader, number))
        # A node hears no vote in a session of which it has not heard yet.
        await self.nodes.applied_by(heard)
        if set(await self._kill(*deaf)) != {signal.SIGKILL}:
            self.count("not_killed", f"nodes {deaf} ended by themselves")
        self.nodes.arm(heard, Trap(TELL, NodeStep.AFTER_STORE_VOTE, 0, 1, txid))
        await child.go_on()
        await self.nodes.at_trap(heard, txid)
        await self._stop(child)
        self.nodes.disarm()
        if self.case.victim is Victim.HEARD:
            await self.nodes.start(deaf.pop())
            expected = {RecordedDecision.COMMIT}
        else:
            self.nodes.signal(heard, signal.SIGSTOP)
            await self.nodes.start(*deaf)
            expected = {RecordedDecision.ABORT, RecordedDecision.NOT_RECORDED}
        await asyncio.gather(self.recover(), self.recover())
        await self._expect_recorded(TxId.parse(txid), expected)
        if self.case.victim is Victim.HEARD:
            await self.nodes.start(*deaf)
        else:
            self.nodes.signal(heard, signal.SIGCONT)
        await self._go_on(child)
        await self._expect_recorded(TxId.parse(txid), expected)

    async def _kill_uncopied(self, child: Child, txid: TxId) -> None:
        async with within(f"the commit of {txid}"):
            while txid in {gid.txid for gid in await self._prepared()}:
                await asyncio.sleep(0.005)
        if await child.kill() != -signal.SIGKILL:
            self.count("not_killed", "the coordinator ended by itself")
        self._uncopied = txid

    async def _audit(self, dsns: dict[str, str], heard: Heard) -> None:
        await super()._audit(dsns, heard)
        if self._uncopied is not None:
            await self._expect_recorded(self._uncopied, {RecordedDecision.COMMIT})

    async def _expect_recorded(self, txid: TxId, expected: set[RecordedDecision]) -> None:
        """``NOT_RECORDED`` is an ABORT that is finished."""
        settings = LedgerSettings(**json.loads(self._settings)["ledger"])
        ledger = await ClusterLedger.open(settings)
        try:
            [found] = (await ledger.records([txid])).values()
        finally:
            await ledger.close()
        if found not in expected:
            self.count("half_applied", f"{txid} came to {found}, not {' or '.join(sorted(expected))}")

    async def _cut_power(self, child: Child) -> None:
        servers, nodes = self.stage.servers.values(), list(self.nodes.running)
        died, *died_of = await asyncio.gather(
            child.kill(), *(server.kill() for server in servers), *(self.nodes.kill(node) for node in nodes)
        )
        if {-died, *died_of} != {signal.SIGKILL}:
            self.count("not_killed", f"ended by {[-died, *died_of]}, not all by SIGKILL")
        await asyncio.gather(self.nodes.start(*nodes), *(server.start() for server in servers))
