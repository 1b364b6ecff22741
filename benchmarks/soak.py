"""Hours of transfers: does anything grow that should not?

Transfers between two databases, with the ledger on three nodes, while recovery runs. Every ``--every``
seconds it is counted what each process uses: resident memory and open files of the client and of every node,
connections of each server, the size of the nodes' folders, and of undoubt's own tables in both databases.
Prints JSON: for each measure its samples, and whether it is level: the median of the last third of the
samples exceeds that of the middle third by at most ``--tolerance``. Exits with 1 if something is not level.

    python -m benchmarks.soak --seconds 3600
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import asyncpg
import msgspec

import undoubt
from undoubt.bench.audit import audit
from undoubt.bench.cluster import cluster
from undoubt.bench.contenders.product import Product, configuration
from undoubt.bench.contract import ROWS, Places
from undoubt.bench.field import Field, own_servers, set_up
from undoubt.serve.loop import fastest_loop

WORKERS = 8
NODE_OPTIONS = "snapshot_log_bytes = 4_000_000\n"
"""Snapshots come often, so that the size of a log is level within minutes."""
SMALL = {"files": 8.0, "connections": 4.0, "bytes": 4e6}
"""What a measure may grow by in any case, by its kind."""
TABLES = """
select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c
join pg_namespace n on n.oid = c.relnamespace where n.nspname like 'undoubt%'
"""


class Measure(msgspec.Struct):
    """``kind``: ``bytes``, ``files`` or ``connections``."""

    kind: str
    samples: list[float] = []
    level: bool = True

    def judge(self, tolerance: float) -> None:
        third = len(self.samples) // 3
        if third:
            before = statistics.median(self.samples[third : 2 * third])
            after = statistics.median(self.samples[2 * third :])
            self.level = after <= before * (1 + tolerance) or after - before <= SMALL[self.kind]


def resident_bytes(pid: int) -> int:
    """Of the process (``statm``, proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a snapshot may replace it now
            total += path.stat().st_blocks * 512
    return total


class Soak:
    """The load, and what is counted beside it."""

    def __init__(self, field: Field, folder: Path, contender: Product) -> None:
        self._field = field
        self._folder = folder
        self._contender = contender
        self.transfers = 0
        self.measures: dict[str, Measure] = {}

    async def run(self, seconds: float, every: float) -> None:
        ends = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for worker in range(WORKERS):
                group.create_task(self._work(worker, ends))
            while time.monotonic() < ends:
                await asyncio.sleep(min(every, max(ends - time.monotonic(), 0)))
                await self._sample()

    async def _work(self, worker: int, ends: float) -> None:
        while time.monotonic() < ends:
            await self._contender.transfer(worker)
            self.transfers += 1

    async def _sample(self) -> None:
        processes = {"client": os.getpid()}
        if self._field.nodes is not None:
            processes |= {f"node {number}": pid for number, pid in self._field.nodes.pids.items()}
        for name, pid in processes.items():
            self._add(f"{name}: memory", "bytes", resident_bytes(pid))
            self._add(f"{name}: files", "files", open_files(pid))
            if name != "client":
                self._add(f"{name}: disk", "bytes", folder_bytes(self._folder / name.replace(" ", "-")))
        for number, dsn in enumerate(self._field.dsns, start=1):
            connection = await asyncpg.connect(dsn)
            try:
                backends = await connection.fetchval("select count(*) from pg_stat_activity")
                self._add(f"server {number}: connections", "connections", backends)
                self._add(f"server {number}: tables", "bytes", await connection.fetchval(TABLES))
            finally:
                await connection.close()

    def _add(self, name: str, kind: str, value: float) -> None:
        self.measures.setdefault(name, Measure(kind, [])).samples.append(value)


@contextlib.asynccontextmanager
async def soaking() -> AsyncIterator[Soak]:
    """On two new servers and three new nodes; afterwards both databases must hold what was counted."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-soak-")))
        dsns = await own_servers(stack, 100)
        for dsn in dsns:
            await set_up(dsn, ROWS)
        nodes = await stack.enter_async_context(cluster(folder, dsns, options=NODE_OPTIONS))
        places = Places("soak", dsns, 0, str(folder), WORKERS, nodes.url)
        settings = configuration(places, {"url": nodes.url})
        coordinator = await stack.enter_async_context(undoubt.connect(settings))
        field = Field(dsns, {}, {"soak": 0}, nodes)
        soak = Soak(field, folder, Product(coordinator, 0))
        yield soak
        await audit(field, {"soak": soak.transfers})


async def run(seconds: float, every: float, tolerance: float) -> tuple[int, Mapping[str, Measure]]:
    """The number of transfers, and the judged measures."""
    async with soaking() as soak:
        await soak.run(seconds, every)
    for measure in soak.measures.values():
        measure.judge(tolerance)
    return soak.transfers, soak.measures


def growing(measures: Mapping[str, Measure]) -> Sequence[str]:
    return [name for name, measure in measures.items() if not measure.level]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--tolerance", type=float, default=0.1, help="growth that is still level")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        transfers, measures = runner.run(run(options.seconds, options.every, options.tolerance))
    found = {"transfers": transfers, "growing": growing(measures), "measures": measures}
    print(msgspec.json.encode(found).decode())
    sys.exit(1 if found["growing"] else 0)


if __name__ == "__main__":
    main()
