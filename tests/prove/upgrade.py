"""The last release and this one beside each other, and one after the other.

Version 0.1.0, from its wheel in ``tests/prove/releases``, makes ledgers of every kind, moves money, and is
killed with branches in doubt; this tree opens the ledgers, and finishes what was left. Processes of both
share a SQLite ledger. A cluster rolls forward node by node, with one node back and forward again on the way,
while applications of both releases move money; once all nodes are of this release they agree on its version,
and the last release is refused. In the end of each step no money is missing, nothing acknowledged is lost,
and nothing is prepared.

The last step compares the formats of everything that is stored or sent with those that are kept in the tests
(:mod:`tests.coordinator.formats`). The control is that step with a changed tag and a changed field.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg

from tests.coordinator import formats
from tests.prove import bank, upgrade_formats
from tests.prove.control import control
from tests.prove.nodes import CommandFailed
from tests.prove.processes import within
from tests.prove.upgrade_stage import Application, Cluster, Release, Wrong
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.coordinator.wire import VERSIONS
from undoubt.embedded import EmbeddedServer

LAST, THIS = Release.LAST, Release.THIS
TRANSFERS = 40
"""That have to be answered between two changes."""
SAMPLES_MIN = 150
LAST_VERSION = 2
"""Of what the last release sends and stores."""
MUTANTS = ["formats-renamed-tag", "formats-swapped-fields"]


class Stage:
    """Two database servers; none for steps that need none. Each step has databases, a folder and ledgers of
    its own."""

    def __init__(self, folder: Path, servers: dict[str, EmbeddedServer]) -> None:
        self._folder = folder
        self._servers = servers
        self.applications: list[Application] = []
        self.transfers = 0

    async def begin(self, step: str) -> None:
        self.folder = self._folder / step
        self.folder.mkdir()
        self.applications = []
        self.dsns = {name: await server.create_database(step) for name, server in self._servers.items()}
        await bank.set_up(self.dsns)

    async def ledger_dsn(self, step: str) -> str:
        dsn = await self._servers[bank.NAMES[0]].create_database(f"{step}_ledger")
        return dsn.replace("postgresql://", "postgresql+psycopg://")

    def settings(self, url: str) -> dict[str, Any]:
        return {
            "ledger": {"url": url, "request_timeout_s": 30.0},
            "coordinator": {"session_ttl_s": 2.0},
            "participants": {name: {"dsn": dsn} for name, dsn in self.dsns.items()},
        }

    async def application(
        self, release: Release, settings: dict[str, Any], protocols: str = "2pc"
    ) -> Application:
        tag = f"{release.value}-{len(self.applications)}"
        one = await Application.start(release, settings, tag, protocols)
        self.applications.append(one)
        await one.more(1)
        return one

    async def prepared(self) -> int:
        found = 0
        for dsn in self.dsns.values():
            connection = await asyncpg.connect(dsn)
            try:
                found += await connection.fetchval(
                    "select count(*) from pg_prepared_xacts where database = current_database()"
                )
            finally:
                await connection.close()
        return found

    async def killed_in_doubt(self, release: Release, settings: dict[str, Any]) -> None:
        """An application of ``release`` does work, and is killed so that something stays prepared."""
        async with within("something in doubt"):
            while True:
                one = await self.application(release, settings)
                await one.more(TRANSFERS)
                await one.kill()
                if await self.prepared():
                    return

    async def recovered(self, release: Release, settings: dict[str, Any]) -> None:
        """Recover by the command line until nothing is prepared."""
        async with release.running(self.folder, settings, "recover") as recovery, within("recovery"):
            while await self.prepared():
                if recovery.returncode is not None:
                    raise Wrong(f"recovery ended with {recovery.returncode}")
                await asyncio.sleep(0.2)

    async def audited(self) -> None:
        """Raises :class:`Wrong`."""
        async with within("nothing prepared any more"):
            while await self.prepared():
                await asyncio.sleep(0.1)
        heard = [one.heard for one in self.applications]
        acknowledged = [name for each in heard for name in each.acknowledged]
        found = await bank.audit(self.dsns, acknowledged, [name for each in heard for name in each.aborted])
        self.transfers += len(acknowledged)
        if not found.clean:
            raise Wrong(str(found))

    async def close(self) -> None:
        for one in self.applications:
            await one.kill()


async def sqlite_ledger(stage: Stage, step: str) -> None:
    settings = stage.settings(f"sqlite:///{stage.folder}/ledger.db")
    await LAST.run(stage.folder, settings, "ledger", "init")
    await stage.killed_in_doubt(LAST, settings)
    await THIS.run(stage.folder, settings, "ledger", "check")
    await stage.recovered(THIS, settings)
    await (await stage.application(THIS, settings)).enough(TRANSFERS)


async def sqlite_shared(stage: Stage, step: str) -> None:
    """A process of each release owns the file, and serves one of the other."""
    settings = stage.settings(f"sqlite:///{stage.folder}/ledger.db")
    await LAST.run(stage.folder, settings, "ledger", "init")
    for first, second in ((LAST, THIS), (THIS, LAST)):
        owner = await stage.application(first, settings)
        client = await stage.application(second, settings)
        await client.enough(TRANSFERS)
        await owner.enough(0)


async def postgresql_ledger(stage: Stage, step: str) -> None:
    settings = stage.settings(await stage.ledger_dsn(step))
    await LAST.run(stage.folder, settings, "ledger", "init")
    await stage.killed_in_doubt(LAST, settings)
    try:
        await THIS.run(stage.folder, settings, "ledger", "check")
    except CommandFailed as error:
        if "undoubt ledger migrate" not in str(error):
            raise
    else:
        raise Wrong("a ledger that needs a migration is said to be sound")
    await THIS.run(stage.folder, settings, "ledger", "migrate")
    await stage.recovered(THIS, settings)
    await (await stage.application(THIS, settings)).enough(TRANSFERS)


async def disks_of_nodes(stage: Stage, step: str) -> None:
    """All nodes end, and the disks that they leave are run by this release, whose leader finishes what is in
    doubt."""
    async with Cluster(stage.folder, LAST, stage.dsns) as cluster:
        settings = stage.settings(f"raft://{cluster.url}")
        await stage.killed_in_doubt(LAST, settings)
        await cluster.end(*list(cluster.running), signal_=signal.SIGTERM)
        cluster.releases = dict.fromkeys(cluster.addresses, THIS)
        await cluster.start(*cluster.addresses)
        await (await stage.application(THIS, settings, "2pc,paxos")).enough(TRANSFERS)
        await stage.audited()


async def _rolled(cluster: Cluster, applications: list[Application], number: int, release: Release) -> None:
    await cluster.end(number, signal_=signal.SIGTERM)
    await _more(applications)
    cluster.releases[number] = release
    await cluster.start(number)
    await cluster.applied_by(number)
    await _more(applications)


async def _more(applications: list[Application]) -> None:
    for one in applications:
        await one.more(TRANSFERS // 2)


async def _agreed(cluster: Cluster) -> set[int]:
    found = await survey(LedgerSettings(url=f"raft://{cluster.url}", request_timeout_s=5.0))
    return {seen.status.agreed_version for seen in found.nodes if seen.status is not None}


async def rolling(stage: Stage, step: str) -> None:
    """Forward one after the other. The second one returns to the last release on the way, which cannot read
    the disk that this one has converted: it rejoins on an empty folder, under a new number."""
    async with Cluster(stage.folder, LAST, stage.dsns) as cluster:
        settings = stage.settings(f"raft://{cluster.url}")
        applications = [await stage.application(one, settings, "2pc,paxos") for one in (LAST, THIS)]
        await _rolled(cluster, applications, 1, THIS)
        await _rolled(cluster, applications, 2, THIS)
        await cluster.leaves(2)
        await cluster.joins(4, LAST)
        await cluster.moved(1, 3, 4)
        await _more(applications)
        if await _agreed(cluster) != {LAST_VERSION}:
            raise Wrong(f"agreed on {await _agreed(cluster)} while nodes of the last release were members")
        await _rolled(cluster, applications, 3, THIS)
        await _rolled(cluster, applications, 4, THIS)
        async with within(f"version {VERSIONS.highest} agreed on"):
            while await _agreed(cluster) != {VERSIONS.highest}:
                await asyncio.sleep(0.1)
        await _more(applications)
        for one in applications:
            await one.enough(0)
        await stage.audited()
        await _refused(cluster, 3)


async def _refused(cluster: Cluster, number: int) -> None:
    """A node of the last release on a folder that has been converted."""
    await cluster.end(number, signal_=signal.SIGTERM)
    cluster.releases[number] = LAST
    try:
        await cluster.start(number)
    except ProcessLookupError as error:
        if "undoubt" not in str(error) or "Traceback" in str(error):
            raise Wrong(f"the last release did not say why it does not start: {error}") from error
    else:
        raise Wrong("the last release runs on a disk of this one")


async def formats_kept(stage: Stage, step: str) -> None:
    changed = formats.differences()
    if changed:
        raise Wrong("; ".join(changed))


async def formats_of_last(stage: Stage, step: str) -> None:
    told = await LAST.evaluate(upgrade_formats.PROGRAM, upgrade_formats.SAMPLER)
    changed = upgrade_formats.differences(told)
    if changed:
        raise Wrong("; ".join(changed))
    if upgrade_formats.count(told) < SAMPLES_MIN:
        raise Wrong(f"only {upgrade_formats.count(told)} samples of the last release")


STEPS: dict[str, Callable[[Stage, str], Awaitable[None]]] = {
    "sqlite": sqlite_ledger,
    "sqlite_shared": sqlite_shared,
    "postgresql": postgresql_ledger,
    "disks_of_nodes": disks_of_nodes,
    "rolling": rolling,
    "formats": formats_kept,
    "formats_of_last": formats_of_last,
}
WITHOUT_DATABASES = {"formats", "formats_of_last"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", nargs="*", choices=list(STEPS), default=list(STEPS), help="only these steps"
    )
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bugs")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    failures: list[str] = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-upgrade-")))
        LAST.unpack(folder / "release")
        needed = () if WITHOUT_DATABASES.issuperset(options.only) else bank.NAMES
        servers = {name: await stack.enter_async_context(EmbeddedServer()) for name in needed}
        stage = Stage(folder, servers)
        for step in options.only:
            began_at = time.monotonic()
            await stage.begin(step)
            try:
                await STEPS[step](stage, step)
                if servers:
                    await stage.audited()
            except (Wrong, CommandFailed, TimeoutError, ProcessLookupError) as error:
                failures.append(f"{step}: {type(error).__name__}: {error}")
                print(failures[-1], file=sys.stderr)
            finally:
                await stage.close()
            print(f"{step}: {time.monotonic() - began_at:.1f} s", file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "steps": len(options.only),
        "failed": len(failures),
        "transfers": stage.transfers,
        "failures": failures,
    }
    holds = not failures
    if not options.no_control:
        found = await control("upgrade", "--no-control", "--only", *WITHOUT_DATABASES, mutants=MUTANTS)
        result["control"] = found.result["failed"]
        result["control_failures"] = found.result["failures"]
        holds = holds and found.result["failed"] == 2
    return result, holds


__all__ = ["add_arguments", "main"]
