"""Disks of real nodes hang, are slow, fail and fill up, under load: nothing that was answered is lost, and no
node leads whose disk takes nothing while two healthy voters stand beside it.

Three processes, each on a disk that can be told what to do (:mod:`tests.prove.disk_node`), and, where this
user may mount one, on a small filesystem of its own that is filled up. Each trouble of :data:`TROUBLES` meets
the leader, a follower, and an acceptor of Paxos Commit, while callers decide all the time. The troubles of
:data:`OF_FED` meet the follower that gets new entries at once: the other one has to take its place. In the
end all nodes are killed and started again, and everything that was answered has to be in the ledger.

``stale_leader``: leaders that went on leading for longer than :data:`PATIENCE` election timeouts, or led
again, while their disk took nothing. ``false_alarm``: disks that were only slow and were called stalled.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.nemesis import fill
from tests.prove.control import control
from tests.prove.disk_node import RECORD, SEGMENT, SNAPSHOT, Trouble, no_room, power_fails
from tests.prove.grow import LOADS, Load, lost
from tests.prove.nodes import CommandFailed, Nodes
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger.cluster import admin
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.cluster.messages import NodeStatus
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings

ELECTION_S = 1.0
PATIENCE = 6.0
"""Election timeouts until a leader whose disk takes nothing has to have handed over: one until it is noticed,
and an election."""
CASE_S = 120.0
LOOK_S = 0.05
FED_LOOKS = 9
"""Looks at the leader, in which the followers differ, that show which one is fed."""
DECISIONS = 20
"""That have to be answered while the disk is in trouble."""
CLOSE_ENTRIES = 20
SMALL = "160m"
HISTORY_S = 5.0
"""Little: the load is as fast as the machine, and must not fill the small filesystems by itself."""
MET = '{"met"'
MORE = "snapshot_log_bytes = 150000\n"
MUTANTS = ["raft-disk-stall-keeps-a-leader", "raft-full-disk-keeps-leading", "failed-sync-not-written-again"]
CONTROL = ["--no-control", "--only", "hangs, leader", "quota, leader", "sync fails, leader"]
_CLONE_NEWNS = 0x20000


class Wrong(Exception):
    """What a case has found."""


class DiskNodes(Nodes):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, election_s=ELECTION_S)

    def command(self, number: int) -> tuple[str, ...]:
        return (sys.executable, "-m", "tests.prove.disk_node", str(self.trouble(number)))

    def trouble(self, number: int) -> Path:
        return self.folder / f"trouble-{number}"

    def configuration(self, number: int) -> str:
        path = Path(super().configuration(number))
        ledger, node = path.read_text().split("[node]")
        path.write_text(f"{ledger}history_s = {HISTORY_S}\n[node]{node}{MORE}")
        return str(path)

    def data(self, number: int) -> Path:
        return self.folder / f"node-{number}"

    def mostly_free(self, number: int) -> bool:
        """Whether its filesystem has room for another snapshot, and for the reserve twice."""
        room = shutil.disk_usage(self.data(number))
        return room.free > room.total / 2

    def says(self, number: int, words: str) -> int:
        return sum(words in line for line in self.logs[number])

    async def status(self, number: int) -> NodeStatus | None:
        """None if it does not answer."""
        asked = await survey(LedgerSettings(url=f"raft://{self.url}", request_timeout_s=0.5))
        return next((one.status for one in asked.nodes if one.status and one.status.node == number), None)

    async def caught_up(self, number: int) -> None:
        """Once it follows closely. A node that is late is sent more at once than the room that it has set
        aside; then its votes wait for room, if what it gives up is used up by others."""
        while True:
            told, leading = await self.status(number), await self.status(await self.leading())
            if told and leading and leading.commit_index - told.applied_index < CLOSE_ENTRIES:
                return
            await asyncio.sleep(LOOK_S)

    async def fed(self, leader: int) -> int:
        """The follower that ``leader`` sends new entries at once: of some looks, it was most often ahead."""
        ahead: Counter[int] = Counter()
        while sum(ahead.values()) < FED_LOOKS:
            told = await self.status(leader)
            if told is None or told.role != "leader":
                raise Wrong(f"node {leader} does not lead any more")
            match = {peer.node: peer.match for peer in told.peers if peer.node != leader}
            if len(set(match.values())) > 1:
                ahead[max(match, key=lambda node: match[node])] += 1
            await asyncio.sleep(LOOK_S / 5)
        return ahead.most_common(1)[0][0]

    async def leads(self, number: int) -> bool:
        told = await self.status(number)
        return told is not None and told.role == "leader"


@dataclass(slots=True)
class Scene:
    """One case: ``victim`` is the number of the node whose disk it is."""

    nodes: DiskNodes
    load: Load
    who: str
    victim: int
    real: bool
    counts: Counter[str]
    _met_before: int = 0

    async def met(self) -> None:
        """Once the trouble has met a call."""
        while self.nodes.says(self.victim, MET) == self._met_before:
            self.alive()
            await asyncio.sleep(LOOK_S)

    def alive(self) -> None:
        process = self.nodes.running.get(self.victim)
        if process is None or process.returncode is not None:
            raise Wrong(f"node {self.victim} ended: {self.nodes.logs[self.victim][-3:]}")

    async def says(self, words: str, before: int) -> None:
        while self.nodes.says(self.victim, words) == before:
            self.alive()
            await asyncio.sleep(LOOK_S)

    async def goes_on(self) -> None:
        """Decisions are answered without the victim, which does not lead meanwhile."""
        if self.who == "leader":
            await self._hands_over()
        watching = asyncio.create_task(self._watch())
        try:
            await self.load.more(DECISIONS)
            await asyncio.sleep(2 * ELECTION_S)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _hands_over(self) -> None:
        end = time.monotonic() + PATIENCE * ELECTION_S
        while await self.nodes.leads(self.victim):
            if time.monotonic() > end:
                self.counts["stale_leader"] += 1
                raise Wrong(f"node {self.victim} still leads {PATIENCE * ELECTION_S:g} s later")
            await asyncio.sleep(LOOK_S)

    async def _watch(self) -> None:
        while True:
            if await self.nodes.leads(self.victim):
                self.counts["stale_leader"] += 1
                raise Wrong(f"node {self.victim} leads again")
            await asyncio.sleep(LOOK_S)

    @contextlib.asynccontextmanager
    async def trouble(self, trouble: Trouble) -> AsyncIterator[None]:
        path = self.nodes.trouble(self.victim)
        self._met_before = self.nodes.says(self.victim, MET)
        trouble.write(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


async def hangs(scene: Scene) -> None:
    """A sync that does not end until the trouble does."""
    begun, over = "its disk does not finish a write", "its disk has finished the write"
    noticed, ended = scene.nodes.says(scene.victim, begun), scene.nodes.says(scene.victim, over)
    async with scene.trouble(Trouble(sync_s=-1.0)):
        await scene.met()
        if scene.who != "acceptor":  # whose log may have nothing to write
            await scene.says(begun, noticed)
        await scene.goes_on()
    if scene.who != "acceptor":
        await scene.says(over, ended)


async def hangs_again_and_again(scene: Scene) -> None:
    """Each sync takes longer than an election timeout, and ends."""
    async with scene.trouble(Trouble(sync_s=1.5 * ELECTION_S)):
        await scene.met()
        await scene.goes_on()


async def is_slow(scene: Scene) -> None:
    """Each sync takes a tenth of an election timeout, a hundred times as long as usual: that is no reason to
    hand over, also where a write takes several of them."""
    words = "its disk does not finish a write"
    before = scene.nodes.says(scene.victim, words)
    async with scene.trouble(Trouble(sync_s=ELECTION_S / 10)):
        await scene.met()
        await scene.load.more(DECISIONS // 2)
        await asyncio.sleep(3 * ELECTION_S)
    scene.counts["false_alarm"] += scene.nodes.says(scene.victim, words) - before


def fails(at: str) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        """The node ends with the reason; what the sync should have written is lost when the power fails."""
        nodes, victim = scene.nodes, scene.victim
        async with scene.trouble(Trouble(code=errno.EIO, at=at)):
            if at == SNAPSHOT:
                settings = LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=5.0)
                while nodes.running[victim].returncode is None:
                    with contextlib.suppress(LedgerError):  # the node ends
                        await admin.snapshot(settings, nodes.addresses[victim])
                    await asyncio.sleep(LOOK_S)
            await nodes.running[victim].wait()
            if await nodes.killed(victim):
                raise Wrong("it was killed by a signal")
        told = "\n".join(nodes.logs[victim])
        if "Input/output error" not in told:
            raise Wrong(f"it ended without the reason: {nodes.logs[victim][-3:]}")
        if '"synced_again"' in told:
            raise Wrong("it synced again after a sync that had failed")
        await scene.load.more(DECISIONS)
        await nodes.start(victim)
        await scene.load.more(DECISIONS)
        await nodes.kill(victim)
        power_fails(nodes.trouble(victim))
        await nodes.start(victim)  # raises if its disk is taken for damaged

    return play


def fills_up(code: int) -> Callable[[Scene], Awaitable[None]]:
    async def play(scene: Scene) -> None:
        """No room for anything new, and none left of what the node gives up."""
        async with filled(scene, no_room(code)):
            await scene.goes_on()
            if scene.who == "follower":
                await outlives(scene)

    return play


async def outlives(scene: Scene) -> None:
    """The leader dies: the one healthy node has to win, with the vote of the full one. (Nothing can be
    recorded then: the full one takes no entries, and one disk is no majority.)"""
    leader = await scene.nodes.leading()
    await scene.nodes.kill(leader)
    try:
        if await scene.nodes.leading() == scene.victim:
            scene.counts["stale_leader"] += 1
            raise Wrong(f"node {scene.victim} was elected, and node {leader} died beside a healthy one")
    finally:
        await scene.nodes.start(leader)
    await scene.goes_on()


@contextlib.asynccontextmanager
async def filled(scene: Scene, trouble: Trouble | None) -> AsyncIterator[None]:
    full, again = "no room on its disk", "room on its disk again"
    before, freed = scene.nodes.says(scene.victim, full), scene.nodes.says(scene.victim, again)
    filler = scene.nodes.data(scene.victim) / "fill"
    async with contextlib.AsyncExitStack() as stack:
        if trouble is not None:
            await stack.enter_async_context(scene.trouble(trouble))
        else:
            stack.callback(filler.unlink, missing_ok=True)
        while scene.nodes.says(scene.victim, full) == before:
            scene.alive()
            if trouble is None:
                await asyncio.to_thread(fill, str(filler))
            await asyncio.sleep(LOOK_S)
        yield
    await scene.says(again, freed)  # by itself: it is the same process


async def fills_up_really(scene: Scene) -> None:
    """The kernel says ENOSPC, also for the space that the node gives up."""
    async with filled(scene, None if scene.real else no_room()):
        await scene.goes_on()


async def fills_up_twice(scene: Scene) -> None:
    """Room comes, and goes again."""
    for _ in range(2):
        async with filled(scene, None if scene.real else no_room()):
            await scene.load.more(DECISIONS)


TROUBLES: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "hangs": hangs,
    "hangs again and again": hangs_again_and_again,
    "slow": is_slow,
    "sync fails": fails(RECORD),
    "sync of a new segment fails": fails(SEGMENT),
    "sync of a snapshot fails": fails(SNAPSHOT),
    "full": fills_up_really,
    "full twice": fills_up_twice,
    "full, used up at once": fills_up(errno.ENOSPC),
    "quota": fills_up(errno.EDQUOT),
}
VICTIMS = ("leader", "follower", "acceptor")


async def is_paused(scene: Scene) -> None:
    """The whole process stands still."""
    process = scene.nodes.running[scene.victim]
    process.send_signal(signal.SIGSTOP)
    try:
        await scene.goes_on()
    finally:
        process.send_signal(signal.SIGCONT)


async def is_dead(scene: Scene) -> None:
    await scene.nodes.kill(scene.victim)
    await scene.goes_on()
    await scene.nodes.start(scene.victim)


OF_FED: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "hangs": hangs,
    "slow": is_slow,
    "paused": is_paused,
    "dead": is_dead,
}
FED = "fed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", default=[""], help="only cases whose name contains one of these")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bugs")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    cases = [(what, who) for who in VICTIMS for what in TROUBLES] + [(what, FED) for what in OF_FED]
    chosen = [case for case in cases if any(word in ", ".join(case) for word in options.only)]
    counts: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="undoubt-disk-") as folder:
        nodes = DiskNodes(Path(folder))
        real = mounted(nodes)
        try:
            await nodes.begin()
            await nodes.start(1, 2, 3)
            for protocol, victims in (("2pc", ("leader", "follower", FED)), ("paxos", ("acceptor",))):
                some = [case for case in chosen if case[1] in victims]
                if some:
                    await play_all(nodes, protocol, some, real, counts, failures, options)
        finally:
            await nodes.close()
            for number in nodes.addresses if real else ():
                subprocess.run(["umount", str(nodes.data(number))], check=False)
    result: dict[str, Any] = {
        "cases": len(chosen),
        "decisions": counts["decisions"],
        "lost": counts["lost"],
        "stale_leader": counts["stale_leader"],
        "false_alarm": counts["false_alarm"],
        "failed_decisions": counts["failed"],
        "small_filesystems": real,
        "failures": failures[:20],
    }
    clean = not (counts["lost"] or counts["stale_leader"] or counts["false_alarm"] or counts["failed"])
    holds = bool(chosen) and clean and not failures
    if not options.no_control:
        found = await control("disk", *CONTROL, mutants=MUTANTS)
        told = found.result
        result["control"] = told["stale_leader"] + told["lost"]
        result["control_failures"] = told["failures"]
        holds = holds and told["stale_leader"] >= 1 and not found.holds
    return result, holds


def mounted(nodes: DiskNodes) -> bool:
    """Give each node a small filesystem, which nothing outside of this process and its children sees."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    if subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True).returncode:
        return False
    for number in nodes.addresses:
        nodes.data(number).mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=0700", "tmpfs", str(nodes.data(number))]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return False
    return True


async def play_all(
    nodes: DiskNodes,
    protocol: str,
    cases: list[tuple[str, str]],
    real: bool,
    counts: Counter[str],
    failures: list[str],
    options: argparse.Namespace,
) -> None:
    await nodes.leading()
    ledger = await ClusterLedger.open(LedgerSettings(url=f"raft://{nodes.url}", request_timeout_s=60.0))
    try:
        async with LOADS[protocol](ledger) as load:
            count = options.concurrency
            workers = [asyncio.create_task(load.run(worker, count)) for worker in range(count)]
            try:
                for what, who in cases:
                    name = f"{what}, {who}"
                    began_at = time.monotonic()
                    failures += [
                        f"{name}: {each}" for each in await _case(nodes, load, what, who, real, counts)
                    ]
                    print(f"{name}: {time.monotonic() - began_at:.1f} s", file=sys.stderr, flush=True)
            finally:
                load.ended = True
                await asyncio.wait(workers, timeout=CASE_S)
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
    finally:
        await ledger.close()
    counts["decisions"] += len(load.told)
    counts["failed"] += len(load.failed)
    failures += load.failed[:5]
    try:
        counts["lost"] += await lost(nodes, load)
    except (LedgerError, ProcessLookupError, TimeoutError) as error:
        failures.append(f"in the end: {error}")


async def _case(
    nodes: DiskNodes, load: Load, what: str, who: str, real: bool, counts: Counter[str]
) -> list[str]:
    """What went wrong. Afterwards all nodes run, and nothing troubles their disks."""
    found: list[str] = []
    leader = await nodes.leading()
    others = [number for number in nodes.addresses if number != leader]
    victim = leader if who == "leader" else others[0]
    play = (OF_FED if who == FED else TROUBLES)[what]
    try:
        async with asyncio.timeout(CASE_S):
            await nodes.caught_up(victim)
            crowded = [number for number in nodes.addresses if real and not nodes.mostly_free(number)]
            if crowded:
                raise Wrong(f"the load alone fills the disks of nodes {crowded}")
            await load.more(5)
            if who == FED:
                victim = await nodes.fed(leader)
            await play(Scene(nodes, load, who, victim, real, counts))
            await load.more(5)
    except (Wrong, LedgerError, TimeoutError, CommandFailed, ProcessLookupError, OSError) as error:
        found.append(f"{type(error).__name__}: {error}")
        logs = "\n".join(line for number in nodes.addresses for line in nodes.logs.get(number, ())[-12:])
        print(f"{what}, {who}: {error}", logs, sep="\n", file=sys.stderr)
    await _healed(nodes, found)
    return found


async def _healed(nodes: DiskNodes, found: list[str]) -> None:
    for number in nodes.addresses:
        nodes.trouble(number).unlink(missing_ok=True)
        process = nodes.running.get(number)
        if process is not None and process.returncode is not None:
            await nodes.killed(number)
        if number not in nodes.running:
            try:
                await nodes.start(number)
            except (ProcessLookupError, TimeoutError) as error:
                found.append(f"node {number} does not start: {error}")
    await nodes.leading()


__all__ = ["add_arguments", "main"]
