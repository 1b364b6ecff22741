"""The units: systemd verifies them and measures what they expose, and what they start reports as they demand,
with the system calls that they leave (see :mod:`.sandbox`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.coordinator.node.processes import Processes
from tests.prove import deploy
from tests.prove.deploy import sandbox
from tests.prove.deploy.planted import Fault, judged
from tests.service_manager import PATIENCE_S, ServiceManager
from tests.undoubt.cli.harness import environment
from undoubt.coordinator.settings import CoordinatorSettings
from undoubt.serve.sidecar.settings import SidecarSettings

NODE, SIDECAR = "systemd/undoubt-node.service", "systemd/undoubt-sidecar.service"
PROGRAM = "/opt/undoubt/bin/undoubt"
NEEDED = {
    "PrivateNetwork",
    "RestrictAddressFamilies_AF_INET_INET6",
    "RestrictAddressFamilies_AF_UNIX",
    # The addresses of an installation are not known here.
    "IPAddressDeny",
    "RootDirectoryOrRootImage",
    # ProtectSystem mounts privately already; ProtectClock lets the clock's device through, to be read.
    "PrivateMounts",
    "DeviceAllow",
}
"""What `systemd-analyze security` has to say against a service that needs a network."""
SPANS = {"s": 1, "min": 60}
FAULTS = (
    Fault(NODE, "Type=notify", "Type=notfy", "Failed to parse service type"),
    Fault(NODE, "undoubt node --config", "undoubt nod --config", "ended with status 2"),
    Fault(NODE, "ProtectSystem=strict\n", "", "exposed: ProtectSystem"),
    Fault(NODE, "~@privileged @resources", "~@privileged", "exposed: SystemCallFilter_resources"),
    Fault(NODE, "~@privileged @resources", "~@privileged @resources @network-io", "ended with status"),
    Fault(NODE, "WatchdogSec=30s\n", "", "has no watchdog"),
    Fault(SIDECAR, "Type=notify", "Type=exec", "Type is not notify"),
    Fault(SIDECAR, "UMask=0077", "UMask=0022", "exposed: UMask"),
    Fault(SIDECAR, "TimeoutStopSec=45s", "TimeoutStopSec=5s", "killed before its transactions"),
)


def why_not() -> str | None:
    installed = shutil.which("systemd-analyze")
    return None if installed else "systemd-analyze is not installed: apt install systemd"


async def main() -> list[str]:
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
        return found
    _, told = await deploy.run(
        "systemd-analyze", "security", "--offline=yes", "--json=short", "--no-pager", str(copy)
    )
    exposed = {each["json_field"] for each in json.loads(told) if float(each["exposure"] or 0)}
    return [f"{unit.name} is exposed: {name}" for name in sorted(exposed - NEEDED)]


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
                sys.executable, sandbox.__file__, str(place / unit),
                sys.executable, "-m", "undoubt", *words[1:],
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment({"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(usec)}),
            )  # fmt: skip
            stack.push_async_callback(_ended, process)
            told = asyncio.create_task(_two_reports(manager))
            ended = asyncio.create_task(process.wait())
            await asyncio.wait((told, ended), return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
            told.cancel()
            if ended.done():
                found.append(f"{unit}: what it starts ended with status {ended.result()}")
            elif not told.done() or told.result()[0] != "READY=1" or told.result()[-1] != "WATCHDOG=1":
                found.append(f"{unit}: what it starts does not report")
    return found


async def _two_reports(manager: ServiceManager) -> list[str]:
    """The lines of both."""
    manager.door.setblocking(False)
    loop = asyncio.get_running_loop()
    return [
        line for _ in range(2) for line in (await loop.sock_recv(manager.door, 4096)).decode().split("\n")
    ]


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
