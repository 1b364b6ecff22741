"""The process that owns a SQLite ledger, and what other processes of its user send it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.prove.poison.frames import garbage, poisoned
from tests.prove.poison.load import Load
from tests.prove.poison.sender import BESIDE, WINDOW, OwnerSender, throw
from tests.prove.poison.targets import Targets
from tests.prove.processes import ROOT
from undoubt.coordinator.ledger.sqlite import unix_socket
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.rpc import envelope
from undoubt.coordinator.settings import LedgerSettings

START_S = 30.0
PROGRAM = "import sys; from tests.prove.poison.owner import own; own(sys.argv[1])"


class Owner:
    """The process. ``ledger`` is the file."""

    def __init__(self, folder: Path) -> None:
        self.ledger = folder / "ledger.db"
        self._log = folder / "owner.log"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Raises ``TimeoutError`` if it does not answer."""
        with self._log.open("a") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, str(self.ledger),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, cwd=self._folder,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            )  # fmt: skip
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(OSError):
                    unix_socket.connect(self.ledger).close()
                    return
                await asyncio.sleep(0.05)

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


class _Run:
    def __init__(self, owner: Owner, load: Load) -> None:
        self.counts = {"applied_or_refused": 0, "frames": 0}
        self.disturbed: list[str] = []
        self._owner = owner
        self._load = load
        self._number = 0

    async def send(self, targets: Targets) -> None:
        for call, long in targets.of_ledger():
            raws = list(poisoned(call, long=long))
            for start in range(0, len(raws), WINDOW):
                await self._once(type(call).__name__, raws[start : start + WINDOW])
                if self._owner.ended:
                    return

    async def _once(self, name: str, raws: list[bytes]) -> None:
        numbered = {self._number + each: raw for each, raw in enumerate(raws)}
        self._number += len(raws)
        sender = await OwnerSender.over(self._owner.ledger)
        try:
            answers = await sender.send(list(numbered.items()), self._load.known)
        finally:
            sender.close()
        for number, raw in numbered.items():
            beside = answers.by_number.get(number + BESIDE)
            if number not in answers.by_number or not isinstance(beside, envelope.Reply):
                shown = f"{raw[:80]!r} ({len(raw)} bytes)"
                self.disturbed.append(f"owner: {name}: at {shown}: {answers.lost or beside}")
            else:
                self.counts["applied_or_refused"] += 1

    async def throw(self) -> None:
        place = unix_socket.folder(self._owner.ledger) / unix_socket.SOCKET_NAME
        for make in garbage():
            data = make()
            if not await throw(place, data):
                self.disturbed.append(f"owner: does not end the connection of {data[:80]!r}")
            self.counts["frames"] += 1


async def poisoned_owner() -> tuple[dict[str, Any], bool]:
    """What came of it, and whether all of it held."""
    with tempfile.TemporaryDirectory(prefix="undoubt-") as name:
        owner = Owner(Path(name))
        await owner.start()
        try:
            result = await _poisoned(owner)
        finally:
            await owner.kill()
    bad = ("nodes_stopped", "tasks_dead", "others_disturbed")
    return result, not any(result[key] for key in bad) and result["honest_commits"] > 0


async def _poisoned(owner: Owner) -> dict[str, Any]:
    settings = LedgerSettings(url=f"sqlite:///{owner.ledger}", request_timeout_s=10.0)
    load = await Load.on(await SqliteLedger.open(owner.ledger, settings, create=False))
    run = _Run(owner, load)
    stopped = 0
    try:
        await load.begun()
        await run.send(await Targets.of(load.ledger, nodes=False))
        await run.throw()
        await load.stop()
        await load.look_again()
        stopped += owner.ended or load.ledger.ledger.leads
        await load.ledger.close()
        await owner.kill()
        await owner.start()  # and all of it can be applied again
    except TimeoutError:
        stopped += 1
    finally:
        await load.close()
    dead = owner.log.count("Traceback (most recent call last)")
    if dead or run.disturbed or load.disturbed:
        print(owner.log[-3_000:], *run.disturbed[:20], *load.disturbed[:20], sep="\n", file=sys.stderr)
    return {
        **run.counts,
        "honest_commits": load.committed,
        "nodes_stopped": stopped,
        "tasks_dead": dead,
        "others_disturbed": len(run.disturbed) + len(load.disturbed),
    }


def own(path: str) -> None:
    asyncio.run(_own(Path(path)))


async def _own(path: Path) -> None:
    ledger = await SqliteLedger.open(path, LedgerSettings(url=f"sqlite:///{path}"))
    try:
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await ledger.close()
