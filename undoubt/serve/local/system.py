"""Builds a whole system on one machine: two databases, a ledger of three nodes, and a sidecar.

All files are in temporary folders. The processes end, and the folders are removed, with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import msgspec

from undoubt.embedded import EmbeddedServer
from undoubt.embedded.places import new_place, remove_place
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings
from undoubt.serve.local import child, sweeper
from undoubt.serve.local.keeper import Kept
from undoubt.serve.local.nodes import COUNT, QUICK, Nodes
from undoubt.serve.local.ports import HELD, reserved_ports
from undoubt.serve.local.processes import ChildProcess, serving
from undoubt.serve.sidecar.tokens import TOKEN_PREFIX, hash_of

ROLE = "app"
"""The role that owns the databases and that undoubt logs in as; it is no superuser."""
SCHEMAS = {
    "orders": "create table orders (id bigint generated always as identity primary key, item text not null)",
    "payments": "create table accounts (name text primary key, balance int not null check (balance >= 0));"
    " insert into accounts values ('ada', 100), ('bob', 100)",
}
LOOK_S = 0.05
SIDECAR_END_S = 5.0

PARTICIPANT = """
[participants.{name}]
dsn = {dsn}
temporary = true
"""
CONFIG = """\
# Written by `undoubt dev`.
[ledger]
url = "{url}"

[coordinator]
session_ttl_s = 5.0

[sidecar]
socket = ""
listen = "127.0.0.1:{port}"
url = "http://127.0.0.1:{port}"
drain_s = 0.0

[[sidecar.tokens]]
name = "dev"
sha256 = "{sha256}"
roles = ["transact", "observe", "operate"]
participants = ["*"]
"""


class KeptServer:
    """A database server, as :class:`~undoubt.serve.local.keeper.Kept`."""

    def __init__(self, name: str, server: EmbeddedServer) -> None:
        self.name = f"server {name}"
        self._server = server

    @property
    def pid(self) -> int:
        return self._server.pid

    async def start(self) -> None:
        """Start the server with the same data and port. Raises ``ServerFailed``."""
        await self._server.start()

    async def ended(self) -> int:
        """Wait for the end of the server; return the exit status, or minus the number of the signal that
        ended it."""
        while (status := self._server.returncode) is None:
            await asyncio.sleep(LOOK_S)
        return status


@dataclass(frozen=True, slots=True)
class System:
    """A running system: its addresses, and its processes. ``token`` is for the sidecar. ``kept`` holds the
    processes that are restarted if they end, each with the signal that ends it immediately."""

    folder: Path
    sidecar: str
    token: str
    nodes: list[str]
    participants: dict[str, str]
    kept: list[tuple[Kept, signal.Signals]]
    sweeper: ChildProcess

    @property
    def console(self) -> str:
        """The address of the console, in a browser; it asks for the token."""
        return f"{self.sidecar}/"

    @property
    def config(self) -> Path:
        return self.folder / "undoubt.toml"

    def update_sweeper(self) -> None:
        """Send the ids of the processes to the sweeper, which ends them if this process is killed."""
        for each, number in self.kept:
            self.sweeper.write(f"{each.pid} {int(number)}\n")


@contextlib.asynccontextmanager
async def system() -> AsyncIterator[System]:
    """A running system, which is ended and removed at the end of the block. Raises ``ServerFailed``,
    ``BinariesMissing``, ``NodeFailed``, ``ChildFailed``."""
    folder = new_place("dev")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, remove_place, folder)
        sweeping = ChildProcess("sweeper", sweeper.__name__, [str(folder)], folder / "sweeper.log")
        stack.push_async_callback(sweeping.kill)
        await sweeping.start()
        sidecar_at, *others = stack.enter_context(reserved_ports(1 + COUNT + len(SCHEMAS)))
        nodes_at, servers_at = others[:COUNT], others[COUNT:]
        servers, dsns = await _databases(stack, servers_at, sweeping)
        more = QUICK + "".join(
            PARTICIPANT.format(name=name, dsn=msgspec.json.encode(dsn).decode()) for name, dsn in dsns.items()
        )
        nodes = Nodes(folder, keep=False, more=more, ports=nodes_at)
        stack.push_async_callback(nodes.close)
        await nodes.start()
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        sidecar = serving("sidecar", child.SIDECAR, folder / "undoubt.toml", folder / "sidecar.log")
        built = System(
            folder=folder,
            sidecar=f"http://127.0.0.1:{sidecar_at}",
            token=token,
            nodes=nodes.addresses,
            participants=dsns,
            kept=[
                *((KeptServer(name, server), signal.SIGQUIT) for name, server in servers.items()),
                *((node, signal.SIGKILL) for node in nodes.children.values()),
                (sidecar, signal.SIGKILL),
            ],
            sweeper=sweeping,
        )
        _configure(built, nodes.url, sidecar_at)
        stack.push_async_callback(sidecar.terminate, SIDECAR_END_S)
        await sidecar.start()
        built.update_sweeper()
        yield built


async def _databases(
    stack: contextlib.AsyncExitStack, ports: list[int], sweeping: ChildProcess
) -> tuple[dict[str, EmbeddedServer], dict[str, str]]:
    """Start the database servers. Returns two maps by the participant's name: the server, and the dsn of its
    database for programs in any language."""
    servers, dsns = {}, {}
    for (name, schema), port in zip(SCHEMAS.items(), ports, strict=True):
        # Not synced: the data is temporary, and syncing all of it after a kill takes seconds.
        servers[name] = server = EmbeddedServer(durable=False, port=port if HELD else 0)
        stack.push_async_callback(server.close)
        await server.start()
        sweeping.write(f"{server.pid} {int(signal.SIGQUIT)}\n")
        dsns[name] = await server.create_database(name, owner=ROLE)
        connection = await asyncpg.connect(dsns[name])
        try:
            await connection.execute(schema)
        finally:
            await connection.close()
        await migrate(name, ParticipantSettings(dsn=dsns[name]))  # for messages, and guards of locks
    return servers, dsns


def _configure(built: System, url: str, port: int) -> None:
    """Write the configuration file for the sidecar, the command line and Python programs. It allows
    statements through the sidecar."""
    text = CONFIG.format(url=url, port=port, sha256=hash_of(built.token))
    for name, dsn in built.participants.items():
        text += PARTICIPANT.format(name=name, dsn=msgspec.json.encode(dsn).decode()) + "sidecar.sql = true\n"
    built.config.touch(mode=0o600)
    built.config.write_text(text)
