"""The units: systemd verifies them and measures what they expose, and what they start reports as they demand.

The sandbox of a unit is systemd's, and is not tried here: no systemd runs in a container."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

from tests.coordinator.node.processes import Processes
from tests.prove import deploy
from tests.prove.deploy.planted import Fault, judged
from tests.service_manager import ServiceManager
from tests.undoubt.cli.harness import environment
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.serve.sidecar.settings import SidecarSettings

NODE, SIDECAR = "systemd/undoubt-node.service", "systemd/undoubt-sidecar.service"
PROGRAM = "/opt/undoubt/bin/undoubt"
EXPOSURE = 15
"""Tenths, of a hundred: what `systemd-analyze security` calls safe."""
SPANS = {"s": 1, "min": 60}
FAULTS = (
    Fault(NODE, "Type=notify", "Type=notfy"),
    Fault(NODE, "undoubt node --config", "undoubt nod --config"),
    Fault(NODE, "ProtectSystem=strict\n", ""),
    Fault(NODE, "WatchdogSec=30s\n", ""),
    Fault(SIDECAR, "Type=notify", "Type=exec"),
    Fault(SIDECAR, "TimeoutStopSec=45s", "TimeoutStopSec=5s"),
)


async def main() -> list[str]:
    if shutil.which("systemd-analyze") is None:
        return ["systemd-analyze is not installed: apt install systemd"]
    return await judged(find, FAULTS)


async def find(place: Path) -> list[str]:
    """What is wrong with the units."""
    found = []
    with tempfile.TemporaryDirectory(prefix="undoubt-") as name:
        folder = Path(name)
        for unit in (NODE, SIDECAR):
            found += await _verified(place / unit, folder)
            found += _asks_for_signs_of_life(place / unit)
        drain_s = SidecarSettings().drain_s + CoordinatorSettings().drain_s
        if _seconds(read(place / SIDECAR)["TimeoutStopSec"]) <= drain_s:
            found.append("the sidecar is killed before its transactions have had their time to end")
        if not found:
            found += await _reports(place, folder)
    return found


def read(unit: Path) -> dict[str, str]:
    """The settings of a unit by name; the last one counts."""
    pairs = (line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line and line[0] != "#")
    return {name: value for name, value in pairs}  # noqa: C416 - mypy knows no dict of lists


async def _verified(unit: Path, folder: Path) -> list[str]:
    # The program is somewhere else here, and systemd looks whether it is there.
    program = folder / "undoubt"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = folder / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, str(program)))
    found = []
    status, told = await deploy.run("systemd-analyze", "verify", "--man=no", str(copy))
    if status or told.strip():
        found.append(f"{unit.name}: {told.strip()}")
    status, told = await deploy.run(
        "systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", str(copy)
    )
    if status:
        found.append(f"{unit.name}: {told.strip().splitlines()[-1]}")
    return found


def _asks_for_signs_of_life(unit: Path) -> list[str]:
    settings = read(unit)
    wanted = {"Type": "notify", "Restart": "always", "User": "undoubt"}
    found = [
        f"{unit.name}: {key} is not {value}" for key, value in wanted.items() if settings.get(key) != value
    ]
    return found + ([] if "WatchdogSec" in settings else [f"{unit.name} has no watchdog"])


def _seconds(span: str) -> float:
    digits = span.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(digits) * SPANS[span[len(digits) :] or "s"]


async def _reports(place: Path, folder: Path) -> list[str]:
    """Start what each unit starts, with a configuration for this machine."""
    node = Processes(folder, count=1)
    sidecar = folder / "sidecar.toml"
    sidecar.write_text(
        f'[ledger]\nurl = "{node.settings.url}"\n[sidecar]\nsocket = "{folder}/run/http.sock"\n'
    )
    found = []
    async with contextlib.AsyncExitStack() as stack:
        for unit, config in ((NODE, node.config(1)), (SIDECAR, sidecar)):
            manager = stack.enter_context(ServiceManager.listening())
            settings = read(place / unit)
            usec = round(_seconds(settings["WatchdogSec"]) * 1e6)
            words = settings["ExecStart"].split()
            words[words.index("--config") + 1] = str(config)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "undoubt", *words[1:],
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment({"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(usec)}),
            )  # fmt: skip
            stack.push_async_callback(_ended, process)
            told = asyncio.create_task(_next(manager))
            ended = asyncio.create_task(process.wait())
            await asyncio.wait((told, ended), return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                told.cancel()
                found.append(f"{unit}: what it starts ended with status {ended.result()}")
            elif told.result()[0] != "READY=1" or await _next(manager) != ["WATCHDOG=1"]:
                found.append(f"{unit}: what it starts does not report")
    return found


async def _next(manager: ServiceManager) -> list[str]:
    manager.door.setblocking(False)
    return (await asyncio.get_running_loop().sock_recv(manager.door, 4096)).decode().split("\n")


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
