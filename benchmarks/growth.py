"""How figures change as something grows: one table and one plot for each curve.

``concurrency``  transfers a second with 1 to 256 at once
``branches``     the median of a transaction over 2 to 16 databases, one at a time
``backlog``      branches that recovery ends a second, of 10 to 100,000 in doubt
``finished``     decisions a second of a cluster that holds 1,000 to 1,000,000 finished transactions
``nodes``        decisions a second of one, three and five nodes

    python -m benchmarks.growth concurrency branches
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import asyncpg

import undoubt
from benchmarks import in_doubt
from benchmarks.ledger import Ours, Turns, ours
from benchmarks.machine import machine
from benchmarks.plot import Curve
from undoubt.bench.audit import audit
from undoubt.bench.contract import UPDATE, AsyncContender
from undoubt.bench.field import field
from undoubt.bench.figures import p50_us, tps
from undoubt.bench.rounds import play
from undoubt.bench.worker import take_turn
from undoubt.embedded import EmbeddedServer
from undoubt.serve.local.nodes import Nodes
from undoubt.serve.loop import fastest_loop

SERVERS = 2
CALLERS = (1, 64)
TURN_S = 1.0


async def concurrency(seconds: float, numbers: Sequence[int] = (1, 4, 16, 64, 256)) -> Curve:
    """``seconds`` for each number, all contenders together."""
    names = ("naive", "undoubt-sqlite", "undoubt-raft")
    async with field(names, max(numbers), None) as built:
        rounds, transfers = await play(built.contenders, numbers, seconds, lambda _: None)
        await audit(built, transfers)
    return Curve(
        "concurrency",
        "transfers at once",
        "transfers/s",
        numbers,
        {
            name: [statistics.median(tps(turns[name]) for turns in rounds[number]) for number in numbers]
            for name in names
        },
    )


class ByHand:
    """Two-phase commit over all databases in parallel, without a record."""

    def __init__(self, connections: Sequence[Any]) -> None:
        self._connections = connections
        self._numbers = itertools.count()

    async def transfer(self, worker: int) -> None:
        number = next(self._numbers)
        names = [f"growth-{number}-{branch}" for branch in range(len(self._connections))]
        pairs = list(zip(self._connections, names, strict=True))
        await asyncio.gather(*(self._prepare(each, worker, name) for each, name in pairs))
        await asyncio.gather(*(each.execute(f"commit prepared '{name}'") for each, name in pairs))

    async def _prepare(self, connection: Any, row: int, name: str) -> None:
        await connection.execute("begin")
        await connection.execute(UPDATE, row)
        await connection.execute(f"prepare transaction '{name}'")


class ByUndoubt:
    """The same over the first of the coordinator's participants."""

    def __init__(self, coordinator: undoubt.Coordinator, names: Sequence[str]) -> None:
        self._coordinator = coordinator
        self._names = names

    async def transfer(self, worker: int) -> None:
        async with self._coordinator.transaction() as tx:
            await asyncio.gather(*(self._add(tx, name, worker + 1) for name in self._names))

    async def _add(self, tx: undoubt.Transaction, name: str, row: int) -> None:
        await (await tx.branch(name)).execute(UPDATE, row)


@contextlib.asynccontextmanager
async def _databases(count: int) -> AsyncIterator[dict[str, str]]:
    """The DSNs of ``count`` databases by participant, spread over the servers, each with two rows."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [EmbeddedServer({"max_prepared_transactions": "100"}) for _ in range(SERVERS)]
        for server in servers:
            await stack.enter_async_context(server)
        dsns = {}
        for number in range(count):
            name = f"b{number + 1}"
            dsns[name] = await servers[number % SERVERS].create_database(name)
            connection = await asyncpg.connect(dsns[name])
            await connection.execute(
                "create table account (id int primary key, balance bigint not null);"
                "insert into account values (0, 0), (1, 0)"
            )
            await connection.close()
        yield dsns


async def branches(seconds: float, numbers: Sequence[int] = (2, 4, 8, 16)) -> Curve:
    """``seconds`` for each number, all contenders together."""
    found: dict[str, list[float]] = {"naive": [], "undoubt-sqlite": []}
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-benchmark-"))
        dsns = await stack.enter_async_context(_databases(max(numbers)))
        connections = []
        for dsn in dsns.values():
            connections.append(await asyncpg.connect(dsn))
            stack.push_async_callback(connections[-1].close)
        settings = {
            "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
            "participants": {name: {"dsn": dsn} for name, dsn in dsns.items()},
        }
        coordinator = await stack.enter_async_context(undoubt.connect(settings))
        for number in numbers:
            contenders: dict[str, AsyncContender] = {
                "naive": ByHand(connections[:number]),
                "undoubt-sqlite": ByUndoubt(coordinator, list(dsns)[:number]),
            }
            medians_ms: dict[str, list[float]] = {name: [] for name in found}
            for round_number in range(1 + max(3, round(seconds / len(contenders) / TURN_S))):
                for name, contender in contenders.items():
                    turn = await take_turn(contender, 1, TURN_S)
                    if round_number:  # the first is for warming up
                        medians_ms[name].append(p50_us(turn) / 1e3)
            for name, each in medians_ms.items():
                found[name].append(statistics.median(each))
    return Curve("branches", "branches", "p50 ms", numbers, found, points=".2f")


async def backlog(_: float, numbers: Sequence[int] = (10, 100, 1_000, 10_000, 100_000)) -> Curve:
    found: dict[str, list[float]] = {"by hand": [], "recovery": []}
    for number in numbers:
        rates = await in_doubt.measure(number // 2, 3 if number <= 10_000 else 1)
        for name, each in found.items():
            each.append(statistics.median(rates[name]))
    return Curve("backlog", "branches in doubt", "branches/s", numbers, found)


async def finished(seconds: float, numbers: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000)) -> Curve:
    """``seconds`` for each number of callers."""
    found: dict[str, list[float]] = {f"{callers} at once": [] for callers in CALLERS}
    async with _decider(3) as decider:
        turns = Turns(decider)
        for number in numbers:
            while turns.decided < number:
                await turns.fill(number - turns.decided)
            await _measured(turns, found, seconds)
        await turns.check("the ledger")
    return Curve("finished", "finished transactions", "decisions/s", numbers, found)


async def nodes(seconds: float, numbers: Sequence[int] = (1, 3, 5)) -> Curve:
    """``seconds`` for each number of callers."""
    found: dict[str, list[float]] = {f"{callers} at once": [] for callers in CALLERS}
    for number in numbers:
        async with _decider(number) as decider:
            turns = Turns(decider)
            await turns.take(CALLERS[-1], TURN_S)
            await _measured(turns, found, seconds)
            await turns.check("the ledger")
    return Curve("nodes", "nodes", "decisions/s", numbers, found)


async def _measured(turns: Turns, found: dict[str, list[float]], seconds: float) -> None:
    for callers, each in zip(CALLERS, found.values(), strict=True):
        rates = [(await turns.take(callers, TURN_S))[0] for _ in range(max(3, round(seconds / TURN_S)))]
        each.append(statistics.median(rates))


@contextlib.asynccontextmanager
async def _decider(count: int) -> AsyncIterator[Ours]:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-benchmark-")))
        running = Nodes(folder, keep=False, more="", count=count)
        stack.push_async_callback(running.close)
        await running.start()
        yield await ours(stack, running)


CURVES: dict[str, Callable[[float], Coroutine[Any, Any, Curve]]] = {
    "concurrency": concurrency,
    "branches": branches,
    "backlog": backlog,
    "finished": finished,
    "nodes": nodes,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("curves", nargs="+", choices=CURVES, metavar="CURVE")
    parser.add_argument("--seconds", type=float, default=12.0, help="for each point")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        for name in options.curves:
            curve = runner.run(CURVES[name](options.seconds))
            curve.draw()
            print(curve.markdown(), end="\n\n")
    print(machine())


if __name__ == "__main__":
    main()
