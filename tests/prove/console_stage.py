"""A whole system for the proofs of the console: two databases, three nodes, a sidecar, and one node that
serves the console as well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.ports import free_ports
from tests.prove.processes import ROOT
from tests.undoubt.cli.harness import environment
from tests.undoubt.sidecar.stage import token
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import Ledger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.serve.local import child
from undoubt.serve.local.nodes import QUICK, Nodes
from undoubt.serve.local.processes import ChildProcess, serving
from undoubt.serve.sidecar.tokens import hash_of

TABLES = (
    "create table account (id int primary key, balance int not null);"
    "insert into account select id, 1000 from generate_series(1, 500) as id"
)
NAMES = ("orders", "payments")
ROLES = {"shop": ["transact"], "watcher": ["observe"], "operator": ["observe", "operate"]}
CONFIG = """\
[ledger]
url = "{url}"
[coordinator]
session_ttl_s = 5.0
[recovery]
interval_s = 0.5
[sidecar]
socket = ""
listen = "127.0.0.1:{port}"
drain_s = 0.0
"""
NODE = 1
"""The node with a console."""


def _tokens(section: str) -> str:
    return "".join(
        f'[[{section}.tokens]]\nname = "{name}"\nsha256 = "{hash_of(token(name))}"\n'
        f'roles = {json.dumps(roles)}\nparticipants = ["*"]\n'
        for name, roles in ROLES.items()
    )


@dataclass
class System:
    """``base``: of the sidecar; ``node_base``: of the node with a console."""

    folder: Path
    servers: dict[str, EmbeddedServer]
    dsns: dict[str, str]
    nodes: Nodes
    sidecar: ChildProcess
    base: str
    node_base: str
    config: Path

    def http(self, name: str = "shop") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token(name)}"}
        return httpx.AsyncClient(base_url=self.base, headers=headers, timeout=60)

    @contextlib.asynccontextmanager
    async def ledger(self) -> AsyncIterator[Ledger]:
        ledger = await open_ledger(LedgerSettings(url=self.nodes.url))
        try:
            yield ledger
        finally:
            await ledger.close()

    async def undoubt(self, *arguments: str) -> Any:
        """What the command line says, as JSON."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "undoubt", *arguments, "--config", str(self.config), "-o", "json",
            cwd=ROOT,
            env=environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, errors = await process.communicate()
        if not out:
            raise RuntimeError(f"undoubt {' '.join(arguments)}: {errors.decode()}")
        return json.loads(out)

    async def sql(self, name: str, *statements: str) -> None:
        """As the superuser, each statement alone."""
        async with await psycopg.AsyncConnection.connect(self.dsns[name], autocommit=True) as connection:
            for statement in statements:
                await connection.execute(statement.encode())


async def begin(http: httpx.AsyncClient, *statements: tuple[str, str], timeout_s: float = 600.0) -> str:
    """A transaction with these statements, each of a participant; its id."""
    answer = await http.post("/v1/transactions", json={"timeout_ms": int(timeout_s * 1000)})
    id_: str = answer.json()["id"]
    for participant, sql in statements:
        body = {"participant": participant, "sql": sql}
        ran = await http.post(f"/v1/transactions/{id_}/statements", json=body)
        if ran.status_code != 200:
            raise RuntimeError(ran.text)
    return id_


def transfer(row: int) -> tuple[tuple[str, str], ...]:
    """A row of each database."""
    return tuple((name, f"update account set balance = balance + 1 where id = {row}") for name in NAMES)


@contextlib.asynccontextmanager
async def system() -> AsyncIterator[System]:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-console-")))
        servers: dict[str, EmbeddedServer] = {}
        dsns: dict[str, str] = {}
        for name in NAMES:
            servers[name] = await stack.enter_async_context(EmbeddedServer())
            dsns[name] = await servers[name].create_database(name)
            async with await psycopg.AsyncConnection.connect(dsns[name], autocommit=True) as connection:
                await connection.execute(TABLES)
        participants = "".join(
            f'[participants.{name}]\ndsn = {json.dumps(dsn)}\nowners = ["postgres"]\nsidecar.sql = true\n'
            for name, dsn in dsns.items()
        )
        port, node_port, *node_ports = free_ports(5)
        nodes = Nodes(folder, keep=False, more=QUICK + participants, ports=node_ports)
        stack.push_async_callback(nodes.close)
        await nodes.start()
        await _with_console(nodes, folder, participants, node_port)
        config = folder / "undoubt.toml"
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(url=nodes.url, port=port) + _tokens("sidecar") + participants)
        sidecar = serving("sidecar", child.SIDECAR, config, folder / "sidecar.log")
        stack.push_async_callback(sidecar.terminate, 10.0)
        await sidecar.start()
        yield System(
            folder,
            servers,
            dsns,
            nodes,
            sidecar,
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{node_port}",
            config,
        )


async def _with_console(nodes: Nodes, folder: Path, participants: str, port: int) -> None:
    """Start one node again, with a console."""
    await nodes.kill(NODE)
    config = folder / f"node-{NODE}.toml"
    text = config.read_text().replace(
        QUICK, f'{QUICK}console = true\n[console]\nlisten = "127.0.0.1:{port}"\n{_tokens("console")}'
    )
    config.write_text(text)
    await nodes.run(NODE)
    await nodes.leader()
