"""Requests that are out of bounds, or no requests at all, stop no node and touch nobody else.

Three real nodes, honest clients at work. Every call of the ledger, of operators and of acceptors is sent as
raw frames, past all checks of a client, with each value at its bounds, beyond them, and of another kind; a
sound request goes in every such frame. A fourth member, which is none of ours, sends the nodes every message
of Raft in the same way (:mod:`.peers`), and every ledger call goes to the process that owns a SQLite ledger,
through its socket (:mod:`.owner`). ``applied_or_refused_by_node`` counts what a node carried out or
refused. ``nodes_stopped``: nodes that ended, or did not come back afterwards. ``tasks_dead``: exceptions that
no code of a node expected, in background loops and in requests. ``others_disturbed``: honest calls that
failed, beside the poison in its frame or elsewhere, and decisions that were lost. ``control`` is the sum of
these with the bugs planted.

===============  =============================================================================================
:mod:`.targets`  makes sound calls of every kind.
:mod:`.frames`   changes one value of a call: at its bounds, beyond them, or of another kind.
:mod:`.sender`   sends bytes as they are over a sound connection.
:mod:`.load`     runs honest clients beside it.
:mod:`.owner`    sends the same to the process that owns a SQLite ledger.
:mod:`.peers`    sends messages of Raft as a member that is none.
===============  =============================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.coordinator.node.processes import Processes
from tests.prove.control import control
from tests.prove.poison.frames import garbage, poisoned
from tests.prove.poison.load import Load
from tests.prove.poison.owner import poisoned_owner
from tests.prove.poison.peers import Peer
from tests.prove.poison.sender import BESIDE, WINDOW, Answers, Sender, throw
from tests.prove.poison.targets import Targets, removes_a_member
from undoubt.coordinator.ledger.calls import ALL_CALLS
from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger
from undoubt.coordinator.ledger.cluster.messages import (
    NodeCall,
)
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.rpc.calls import kinds
from undoubt.coordinator.rpc.envelope import (
    Elsewhere,
)
from undoubt.coordinator.wire import Address

CONFIG = "heartbeat_s = 0.1\nelection_timeout_s = 1.0\n"
MUTANTS = ("lifetime-not-judged", "command-encoded-with-the-batch")
CONTROL = ("--only", "OpenSessionCall", "--no-control")
REQUEST_TIMEOUT_S = 10.0
TRIES_MAX = 20
RESTART_S = 60.0
PEER_WINDOW = 16
"""Connections of the member that is none at once."""
UNEXPECTED = re.compile(r"Traceback \(most recent call last\)|never retrieved|Exception in callback")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", default=[""], help="only calls whose name contains one of these")
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bugs")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    with tempfile.TemporaryDirectory(prefix="undoubt-") as folder:
        nodes = Processes(Path(folder), timers=CONFIG)
        nodes.settings = msgspec.structs.replace(nodes.settings, request_timeout_s=REQUEST_TIMEOUT_S)
        try:
            result, holds = await _poisoned(nodes, options)
        finally:
            await nodes.kill()
    if "" in options.only:
        of_owner, owner_holds = await poisoned_owner()
        result |= {"owner": of_owner}
        for key in ("nodes_stopped", "tasks_dead", "others_disturbed"):
            result[key] += of_owner[key]
        holds = holds and owner_holds
    if not options.no_control:
        found = (await control("poison", *CONTROL, mutants=MUTANTS)).result
        result["control"] = sum(found[key] for key in ("nodes_stopped", "tasks_dead", "others_disturbed"))
        holds = holds and found["nodes_stopped"] >= 1
    return result, holds


async def _poisoned(nodes: Processes, options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    await nodes.start()
    load = await Load.on(await ClusterLedger.open(nodes.settings))
    run = _Run(nodes, load)
    try:
        await load.begun()
        targets = await Targets.of(load.ledger)
        await run.send(targets, options.only)
        if "" in options.only:
            await run.throw()
            await run.speak_as_a_peer()
        await load.stop()
        await load.look_again()
        await run.look_back()
        await load.look_again()
    finally:
        await load.close()
    disturbed = [*run.disturbed, *load.disturbed]
    for failure in (*run.failures, *disturbed):
        print(failure, file=sys.stderr)
    result = {
        "applied_or_refused_by_node": run.counts["applied"] + run.counts["refused"],
        **run.counts,
        "honest_commits": load.committed,
        "nodes_stopped": len(run.stopped),
        "tasks_dead": run.tasks_dead,
        "others_disturbed": len(disturbed),
        "failures": [*run.failures, *disturbed][:20],
    }
    holds = not (run.failures or disturbed or run.stopped or run.tasks_dead) and load.committed > 0
    return result, holds


class _Run:
    """``failures``: what stopped, ended unexpectedly, or was never answered."""

    def __init__(self, nodes: Processes, load: Load) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.disturbed: list[str] = []
        self.stopped: set[int] = set()
        self.tasks_dead = 0
        self._nodes = nodes
        self._load = load
        self._number = 0
        self._addresses = {number: f"127.0.0.1:{nodes.ports[number - 1]}" for number in nodes.numbers}

    async def send(self, targets: Targets, only: Sequence[str]) -> None:
        listed = list(targets.all())
        declared = {*kinds(ALL_CALLS), *kinds(NodeCall)}
        for missed in declared - {type(call) for call, _ in listed}:
            self.failures.append(f"{missed.__name__} is not among what is changed")
        for call, long in listed:
            name = type(call).__name__
            if any(word in name for word in only):
                raws = [raw for raw in poisoned(call, long=long) if not removes_a_member(raw)]
                before = self.counts.copy()
                await self._send_all(name, raws, everywhere=isinstance(call, NodeCall))
                print(f"{name}: {len(raws)} sent, {self.counts - before}", file=sys.stderr)

    async def _send_all(self, name: str, raws: Sequence[bytes], *, everywhere: bool) -> None:
        """To whoever leads; ``everywhere``: what is asked of a node itself goes to each in turn as well."""
        for start in range(0, len(raws), WINDOW):
            numbered = {self._next(): raw for raw in raws[start : start + WINDOW]}
            if everywhere:
                for number in self._alive():
                    await self._once(name, self._addresses[number], numbered)
            for _ in range(TRIES_MAX):
                if not numbered or not (leader := await self._leader()):
                    break
                numbered = await self._once(name, self._addresses[leader], numbered)
            self.failures += [f"{name}: not answered: {_shown(raw)}" for raw in numbered.values()]

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _alive(self) -> Iterator[int]:
        for number, process in self._nodes.running.items():
            if process.returncode is None:
                yield number
            elif number not in self.stopped:
                self.stopped.add(number)
                self.failures.append(f"node {number} has stopped: {self._nodes.log(number)[-500:]}")

    async def _leader(self) -> int:
        if len(list(self._alive())) < 2:
            return 0
        try:
            async with asyncio.timeout(RESTART_S):
                return await self._nodes.leader()
        except TimeoutError:
            self.failures.append("nobody leads")
            return 0

    async def _once(self, name: str, address: str, numbered: dict[int, bytes]) -> dict[int, bytes]:
        """What no node that could has answered yet."""
        try:
            sender = await Sender.to(address)
        except OSError:
            return numbered
        try:
            answers = await sender.send(list(numbered.items()), self._load.known)
        finally:
            sender.close()
        if answers.lost and len(numbered) > 1:
            left: dict[int, bytes] = {}
            for number, raw in numbered.items():
                left |= await self._once(name, address, {number: raw})
            return left
        return {
            number: raw for number, raw in numbered.items() if not self._judge(name, number, raw, answers)
        }

    def _judge(self, name: str, number: int, raw: bytes, answers: Answers) -> bool:
        """Whether it is answered."""
        answer, beside = answers.by_number.get(number), answers.by_number.get(number + BESIDE)
        if answers.lost:
            self.disturbed.append(f"{name}: the connection was cut at {_shown(raw)}: {answers.lost}")
            return True
        if isinstance(answer, Elsewhere | None) or isinstance(beside, Elsewhere | None):
            return False
        if not isinstance(beside, envelope.Reply):
            self.disturbed.append(f"{name}: beside {_shown(raw)}: {beside}")
        self.counts["applied" if isinstance(answer, envelope.Reply) else "refused"] += 1
        return True

    async def throw(self) -> None:
        """What is no frame at all, each to every node."""
        for make in garbage():
            data = make()
            for number in self._alive():
                if await throw(Address.parse(self._addresses[number]), data):
                    self.counts["frames"] += 1
                else:
                    self.failures.append(f"node {number} does not end the connection of {_shown(data)}")

    async def speak_as_a_peer(self) -> None:
        """As member 4, which is a learner: whatever it says counts for nothing."""
        peer = await Peer.joined(self._nodes.settings, self._load.ledger.ledger_id)
        try:
            for number in list(self._alive()):
                for name, frames in peer.frames(number):
                    told = list(frames)
                    for start in range(0, len(told), PEER_WINDOW):
                        window = told[start : start + PEER_WINDOW]
                        ended = await asyncio.gather(
                            *(peer.say(self._addresses[number], data) for data in window)
                        )
                        self.failures += [
                            f"node {number} does not end {name}: {_shown(data)}"
                            for data, end in zip(window, ended, strict=True)
                            if not end
                        ]
                    self.counts["peer_frames"] += len(told)
                    print(f"{name}: {len(told)} sent to node {number}", file=sys.stderr)
                    await peer.look(self._nodes.settings)
        finally:
            peer.close()

    async def look_back(self) -> None:
        """What is in the logs; and every node must be able to apply all of it again."""
        alive = list(self._alive())
        for number in self._nodes.numbers:
            found = UNEXPECTED.findall(self._nodes.log(number))
            self.tasks_dead += len(found)
            if found:
                self.failures.append(f"node {number}: {_around(self._nodes.log(number))}")
        for number in alive:
            await self._nodes.end(number, signal.SIGKILL)
        for number in alive:
            try:
                async with asyncio.timeout(RESTART_S):
                    await self._nodes.start(number)
            except (TimeoutError, AssertionError) as error:
                self.stopped.add(number)
                self.failures.append(f"node {number} does not start again: {error}")
        await self._leader()


def _shown(raw: bytes) -> str:
    return f"{raw[:80]!r}{f' … ({len(raw)} bytes)' if len(raw) > 80 else ''}"


def _around(log: str) -> str:
    found = UNEXPECTED.search(log)
    return "" if found is None else log[max(found.start() - 300, 0) : found.start() + 2_000]
