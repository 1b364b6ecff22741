"""What the page is about: two databases, three nodes, and the machine of an administrator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.etcd import NAMES as MEMBERS
from tests.etcd import EtcdCluster
from tests.faults.machines import faketime_library
from tests.ports import free_ports
from tests.prove.bank import NAMES, set_up
from tests.prove.nodes import Nodes
from tests.prove.processes import ROOT, Child, within
from tests.prove.runbook.machines import Machines, Refused
from tests.prove.runbook.page import ADMIN
from tests.prove.trap import Trap
from tests.servers import execute, prepared
from undoubt.config import load
from undoubt.coordinator.ledger.cluster.status import survey
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.serve import bootstrap
from undoubt.serve.certs import Folder

CONFIGURATION = """\
[ledger]
url = "{url}"
request_timeout_s = 15.0
{tls}
[node]
number = {number}
listen = "{listen}"
data = "{data}"
heartbeat_s = 0.6
election_timeout_s = 3.0
"""
UNIT = "undoubt-node"
POSTGRESQL = "postgresql"
TIME = "chrony"
ETCD = "etcd"
ETC = "/etc/undoubt/"
REPLICATION = "host replication postgres 127.0.0.1/32 scram-sha-256"
SETTINGS = {"max_prepared_transactions": "100", "wal_level": "replica"}


class Servers:
    """A server for each participant. Each site has databases of its own there."""

    def __init__(self) -> None:
        self.by_name: dict[str, EmbeddedServer] = {}
        self.sites = 0

    async def __aenter__(self) -> Self:
        for name in NAMES:
            self.by_name[name] = await EmbeddedServer(SETTINGS, hba=[REPLICATION]).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.by_name.values():
            await server.close()

    async def running(self) -> None:
        """Also those that an earlier section left stopped."""
        for server in self.by_name.values():
            if not server.running:
                await server.start()


class Site(Nodes):
    """``releases``: the folder from which a node's undoubt is imported, this tree if it is not there.
    ``data``: where a node's data is, if that is not beside its configuration. ``clocks``: nodes whose wall
    clock can be set. ``etcd``: has the ledger instead of nodes."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        super().__init__(folder, election_s=3.0)
        folder.chmod(0o755)
        self.servers = servers
        self.dsns: dict[str, str] = {}
        self.releases: dict[int, Path] = {}
        self.data: dict[int, Path] = {}
        self.clocks: dict[int, Path] = {}
        self.etcd: EtcdCluster | None = None
        self.extra: dict[str, EmbeddedServer] = {}
        self.database = ""
        self._transfers = 0
        self._jobs: list[asyncio.Task[None]] = []
        """Of ``systemctl --no-block``."""
        self.machines = Machines(folder, self._serve)
        backups = folder / "backups"
        backups.mkdir()
        self.variables = {"BACKUPS": str(backups), "PGSERVICEFILE": str(folder / "services")}

    async def __aenter__(self) -> Self:
        await self.servers.running()
        self.servers.sites += 1
        self.database = f"bank{self.servers.sites}"
        for name, server in self.servers.by_name.items():
            self.dsns[name] = await server.create_database(self.database, owner="app")
            await migrate(name, ParticipantSettings(dsn=self.dsns[name]))
        await set_up(self.dsns)
        self.name_services(self.servers.by_name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.machines.close()
        for job in self._jobs:
            job.cancel()
        for number in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                self.running[number].send_signal(signal.SIGCONT)
        await self.close()
        if self.etcd is not None:
            self.etcd.close()
        for server in self.extra.values():
            await server.close()
        await self.servers.running()
        for server in self.servers.by_name.values():
            await _end_prepared(server.dsn(self.database))

    async def begun(self, *, tls: bool = False) -> None:
        """All nodes run, and one leads."""
        self.tls = tls
        await self.begin()
        await self.start(*self.addresses)
        await (self.leader() if tls else self.leading())
        self.configuration(0)

    async def begin(self, *command: str) -> None:
        """As the commands do it, which take long to start: in this process, unless the nodes are of another
        release."""
        if self.releases:
            await super().begin(*command)
            return
        ticket = ""
        for number in self.addresses:
            begun = bootstrap.init(load(self.configuration(number)), ticket)
            ticket = ticket or begun.ticket
            if self.tls and number == 1:
                self._certify(begun.cluster)

    def _certify(self, cluster: str) -> None:
        made = self.folder / "certs"
        Folder(made, cluster).issue({each: [] for each in self.addresses}, ["operator"])
        for number in (0, *self.addresses):
            stem = f"node-{number}" if number else "client-operator"
            for name in ("ca.crt", f"{stem}.crt", f"{stem}.key"):
                shutil.copy(made / name, self.machines.home(self.machine(number)))

    async def leaderless(self) -> None:
        """Once no node leads any more: a leader notices after an election timeout that it is alone."""
        settings = LedgerSettings(url=f"raft://{self.url}", request_timeout_s=1.0)
        async with within("no leader"):
            while (await survey(settings)).leader:
                await asyncio.sleep(0.1)

    def machine(self, number: int) -> str:
        return f"node-{number}" if number else ADMIN

    def name_services(self, servers: dict[str, EmbeddedServer]) -> None:
        """For ``psql service=…``, as a superuser."""
        told = [
            f"[{name}]\nhost=127.0.0.1\nport={server.port}\nuser=postgres\npassword={server.password}\n"
            f"dbname={self.database}\n"
            for name, server in servers.items()
        ]
        (self.folder / "services").write_text("\n".join(told))

    def participants(self) -> dict[str, Any]:
        return {name: {"dsn": dsn} for name, dsn in self.dsns.items()}

    @property
    def ledger_url(self) -> str:
        return f"raft://{self.url}" if self.etcd is None else self.etcd.url

    async def begun_in_etcd(self) -> EtcdCluster:
        """Its members run, with a new ledger."""
        self.etcd = EtcdCluster(self.folder / "etcd")
        await asyncio.to_thread(self.etcd.start)
        self.variables["ETCDCTL_ENDPOINTS"] = f"127.0.0.1:{self.etcd.clients[MEMBERS[0]]}"
        self.variables["ETCDCTL_API"] = "3"
        await self.run(0, "ledger", "init", "--yes")
        return self.etcd

    def settings(self) -> dict[str, Any]:
        """Of an application."""
        return {"ledger": {"url": self.ledger_url}, "participants": self.participants()}

    def configuration(self, number: int) -> str:
        if number and number not in self.addresses:
            self.addresses[number] = f"127.0.0.1:{free_ports(1)[0]}"
        home = self.machines.home(self.machine(number))
        stem = f"node-{number}" if number else "client-operator"
        names = {"ca": "ca.crt", "cert": f"{stem}.crt", "key": f"{stem}.key"}
        tls = "".join(f'tls_{key} = "{name}"\n' for key, name in names.items()) if self.tls else ""
        text = CONFIGURATION.format(
            url=self.ledger_url, tls=tls, number=number, listen=self.addresses.get(number, ""),
            data=self.data.get(number, home / "data"),
        )  # fmt: skip
        if not number:
            text = text.partition("[node]")[0]
        for name, one in self.participants().items():
            text += f'\n[participants.{name}]\ndsn = "{one["dsn"]}"\n'
        path = home / "undoubt.toml"
        path.touch(mode=0o600)
        path.write_text(text)
        return str(path)

    def tool(self, number: int) -> tuple[str, ...]:
        told = {"PYTHONPATH": str(self.releases.get(number, ROOT))}
        if number in self.clocks:
            told |= faked(self.clocks[number])
        return (
            "env",
            *(f"{name}={value}" for name, value in told.items()),
            sys.executable,
            "-P",
            "-m",
            "undoubt",
        )

    def command(self, number: int) -> tuple[str, ...]:
        return self.tool(number)

    def variables_of(self, machine: str) -> dict[str, str]:
        """What a shell there has, besides what the commands set."""
        number = int(machine.removeprefix("node-")) if machine.startswith("node-") else 0
        told = self.variables | {"PYTHONPATH": str(self.releases.get(number, ROOT))}
        if number:
            told["DATA"] = str(self.data.get(number, self.machines.home(machine) / "data"))
        if number in self.clocks:
            told |= faked(self.clocks[number])
        return told

    async def stuck(self, step: str, how: str, tag: str = "", **coordinator: object) -> Child:
        """A transfer whose coordinator has come to ``step`` of its commit, and stands there or has died."""
        self._transfers += 1
        tag = tag or f"stuck{self._transfers}"
        settings = json.dumps(self.settings() | {"coordinator": coordinator})
        trap = Trap(how, step, 0, 1).encode()
        shop = await Child.start("tests.prove.coordinator_process", settings, trap, tag, "1", "1")
        if not await shop.until_at_trap():
            raise RuntimeError(f"the shop ended before {step}: {shop.heard}")
        return shop

    async def execute(self, name: str, statements: str, *, user: str = "postgres") -> None:
        await execute(self.servers.by_name[name].dsn(self.database, user=user), statements)

    async def prepared(self, name: str) -> list[str]:
        return await prepared(self.servers.by_name[name].dsn(self.database))

    async def _serve(self, machine: str, words: list[str]) -> str:
        program, *arguments = words
        if program == "scp":
            return self._copy(machine, arguments)
        if program == "pip":
            self.releases.pop(_number(machine), None)
            return ""
        if program == "journalctl" and self.etcd is not None:
            return (self.etcd.folder / f"{_member(machine)}.log").read_text()
        if program == "journalctl":
            return "\n".join(self.logs.get(_number(machine), []))
        return await self._systemctl(machine, arguments)

    def _copy(self, machine: str, arguments: list[str]) -> str:
        *files, target = arguments
        host, _, place = target.partition(":")
        if place != ETC:
            raise Refused(f"{target}: only the folder of the configuration can be written to")
        for name in files:
            shutil.copy(self.machines.home(machine) / name, self.machines.home(host))
        return ""

    async def _systemctl(self, machine: str, arguments: list[str]) -> str:
        blocks = "--no-block" not in arguments
        verb, unit = [each for each in arguments if each != "--no-block"]
        if verb not in {"start", "stop", "restart"}:
            raise Refused(f"unknown verb {verb}")
        if unit == POSTGRESQL:
            server = self.extra.get(machine) or self.servers.by_name[machine]
            if verb != "start":
                await server.stop()
            if verb != "stop":
                await server.start()
        elif unit == ETCD and self.etcd is not None and verb == "start":
            await asyncio.to_thread(self.etcd.start, _member(machine))
        elif unit == TIME:
            self.clocks[_number(machine)].write_text("+0\n")
        elif unit == UNIT:
            unit_of = self._unit(verb, _number(machine))
            if blocks:
                await unit_of
            else:
                self._jobs.append(asyncio.create_task(unit_of))
        else:
            raise Refused(f"unit {unit} not found")
        return ""

    async def _unit(self, verb: str, number: int) -> None:
        if verb in {"stop", "restart"} and number in self.running:
            await self.end(number, signal_=signal.SIGTERM)
        if verb in {"start", "restart"} and number not in self.running:
            try:
                await self.start(number)
            except ProcessLookupError:
                self.running.pop(number, None)
                raise


def _number(machine: str) -> int:
    if not machine.startswith("node-"):
        raise Refused(f"{machine} is no node")
    return int(machine.removeprefix("node-"))


def _member(machine: str) -> str:
    """Of etcd: its machines are ``etcd-1``, ``etcd-2``, …"""
    return MEMBERS[int(machine.removeprefix("etcd-")) - 1]


def faked(clock: Path) -> dict[str, str]:
    """https://github.com/wolfcw/libfaketime, as in :mod:`tests.faults.machines`: only the wall clock."""
    return {
        "LD_PRELOAD": str(faketime_library()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


async def _end_prepared(dsn: str) -> None:
    for gid in await prepared(dsn):
        await execute(dsn, f"rollback prepared '{gid}'")
