"""Decisions a second: the ledger on three nodes beside an etcd of three, on the same machine and disk.

Both clusters run all the time, and take turns of about a second; a ratio is the median of the ratios of turns
of the same round. Both have one client, in this process. Each caller records one decision after the other,
with the same two branches in it, and all share one connection. What undoubt is asked at once travels in one
frame and becomes one entry of its log: that is how it is built, not a batch that the benchmark makes.
Afterwards both must hold what was counted.

    python -m benchmarks.ledger --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
import typing
from pathlib import Path

import msgspec

from benchmarks import etcd as peer
from benchmarks.machine import machine
from undoubt.bench.figures import percentile
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.contract import BranchRecord, Session
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.ids import Protocol, SessionKey
from undoubt.serve.local.nodes import Nodes
from undoubt.serve.loop import fastest_loop

BRANCHES = (
    BranchRecord(1, "orders", 2**40, 2**62, "00000001"),
    BranchRecord(2, "payments", 2**40, 2**62, "00000001"),
)
TURN_S = 1.0
WARM_UP_S = 0.5
FINISH_AT_ONCE = 1_000
UNDOUBT, ETCD = "undoubt", "etcd"


class Decider(typing.Protocol):
    """One of the two."""

    async def decide(self, number: int) -> bool:
        """Whether COMMIT was recorded for the transaction of that number, which nobody has used before."""
        ...

    async def between(self, numbers: range) -> None:
        """After a turn, in which these were decided; not measured."""
        ...

    async def count(self) -> int:
        """What is recorded."""
        ...


class Ours:
    """The client that applications have."""

    def __init__(self, ledger: ClusterLedger, session: Session) -> None:
        self._ledger = ledger
        self._session = session
        self._key = SessionKey(session.key)

    async def decide(self, number: int) -> bool:
        """As a coordinator's: the names of the branches are proved."""
        txid = self._session.txid(number)
        tagged = [
            msgspec.structs.replace(
                branch, tag=branch.gid(self._ledger.ledger_id, Protocol.TWO_PHASE, txid).tagged(self._key).tag
            )
            for branch in BRANCHES
        ]
        return await self._ledger.decide(txid, Decision.COMMIT, tagged) is Decision.COMMIT

    async def between(self, numbers: range) -> None:
        """As a coordinator does within moments: the ledger may let go of the details."""
        for start in range(numbers.start, numbers.stop, FINISH_AT_ONCE):
            some = numbers[start - numbers.start :][:FINISH_AT_ONCE]
            await self._ledger.finish([self._session.txid(number) for number in some])

    async def count(self) -> int:
        return (await self._ledger.info()).decisions_kept


class Theirs:
    def __init__(self, etcd: peer.Etcd) -> None:
        self._etcd = etcd
        self.count = etcd.count

    async def decide(self, number: int) -> bool:
        return await self._etcd.decide(number, BRANCHES)

    async def between(self, numbers: range) -> None: ...


class Turns:
    """What one of the two has done. ``rates`` and ``p50_us`` by callers at once, a figure for each turn."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider
        self.decided = 0
        self.rates: dict[int, list[float]] = {}
        self.p50_us: dict[int, list[float]] = {}

    async def take(self, callers: int, seconds: float) -> tuple[float, float]:
        """Decisions a second, and the median wait for one in microseconds."""
        begin = self.decided + 1
        waits: list[float] = []
        started = time.perf_counter()
        ends = started + seconds

        async def call() -> None:
            while (began := time.perf_counter()) < ends:
                self.decided += 1
                if not await self.decider.decide(self.decided):
                    raise ArithmeticError("a decision that nobody had recorded was there already")
                waits.append(time.perf_counter() - began)

        await asyncio.gather(*(call() for _ in range(callers)))
        rate = len(waits) / (time.perf_counter() - started)
        await self.decider.between(range(begin, self.decided + 1))
        return rate, percentile(waits, 0.5) * 1e6

    async def fill(self, most: int) -> None:
        """Record at most ``most`` decisions, many at once, and finish them."""
        begin = self.decided + 1
        self.decided += min(most, FINISH_AT_ONCE)
        numbers = range(begin, self.decided + 1)
        if not all(await asyncio.gather(*map(self.decider.decide, numbers))):
            raise ArithmeticError("a decision that nobody had recorded was there already")
        await self.decider.between(numbers)

    async def measure(self, callers: int) -> None:
        rate, p50_us = await self.take(callers, TURN_S)
        self.rates.setdefault(callers, []).append(rate)
        self.p50_us.setdefault(callers, []).append(p50_us)

    async def check(self, name: str) -> None:
        kept = await self.decider.count()
        if kept != self.decided:
            raise ArithmeticError(f"{name} answered {self.decided} decisions and holds {kept}")


async def run(seconds: float, callers: list[int], *, alone: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-bench-")))
        nodes = Nodes(folder, keep=False, more="")
        stack.push_async_callback(nodes.close)
        await nodes.start()
        turns = {UNDOUBT: Turns(await ours(stack, nodes))}
        if not alone:
            turns[ETCD] = Turns(Theirs(await stack.enter_async_context(peer.etcd(folder))))
        for count in callers:
            for one in turns.values():
                await one.take(count, WARM_UP_S)
            for number in range(max(3, round(seconds / len(turns) / TURN_S))):
                order = list(turns.values())
                for one in order if number % 2 else reversed(order):
                    await one.measure(count)
        for name, one in turns.items():
            await one.check(name)
        _tell(turns, callers)


async def ours(stack: contextlib.AsyncExitStack, nodes: Nodes) -> Ours:
    """A client of ``nodes`` with a session."""
    ledger = await ClusterLedger.open(LedgerSettings(url=nodes.url, request_timeout_s=60.0))
    stack.push_async_callback(ledger.close)
    return Ours(ledger, await ledger.open_session("benchmark", 3_600.0))


def _tell(turns: dict[str, Turns], callers: list[int]) -> None:
    print("| at once |", " | ".join(f"{name}/s | p50 µs" for name in turns), "| ratio (rounds from, to) |")
    print("|---" * (2 + 2 * len(turns)) + "|")
    for count in callers:
        cells = [
            f"{statistics.median(one.rates[count]):,.0f} | {statistics.median(one.p50_us[count]):,.0f}"
            for one in turns.values()
        ]
        print(f"| {count} |", " | ".join(cells), f"| {_ratio(turns, count)} |")
    print(f"\n{machine()}")


def _ratio(turns: dict[str, Turns], count: int) -> str:
    if ETCD not in turns:
        return "-"
    ratios = [a / b for a, b in zip(turns[UNDOUBT].rates[count], turns[ETCD].rates[count], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for each number of callers")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    parser.add_argument("--alone", action="store_true", help="without etcd")
    options = parser.parse_args()
    if not options.alone and (why := peer.missing()):
        parser.error(f"{why}; or --alone")
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(run(options.seconds, options.callers, alone=options.alone))


if __name__ == "__main__":
    main()
