"""Starts two servers with a database each and a ledger, and writes a configuration that names them.

The ledger is a cluster of three nodes, or one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from undoubt.config import Settings, load
from undoubt.demo import bank
from undoubt.embedded import EmbeddedServer
from undoubt.embedded.places import new_place, remove_place
from undoubt.serve.local.nodes import Nodes

SESSION_TTL_S = 2.0
"""Short, so that the demo does not wait long until the lease of a dead coordinator has ended."""

OWNER = "bank"
"""The role that owns the databases and as which undoubt connects: a role without special rights."""

CONFIG = """\
# Written by `undoubt demo`.
[ledger]
url = "{url}"

[coordinator]
session_ttl_s = {ttl}

[participants.orders]
dsn = "{orders}"

[participants.payments]
dsn = "{payments}"
"""

SQLITE = "sqlite:///ledger.db"

END = """\
# Stop the servers of `undoubt demo --keep`, and remove its files.
for process in {nodes}; do kill -KILL $process; done
kill -INT {pids}
for tenth in $(seq 100); do
    ls {folders} 2>/dev/null | grep -q postmaster.pid || break
    sleep 0.1
done
rm -r {remove}
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """The demo's processes and files. ``servers`` and ``dsns`` are by participant's name; ``nodes`` are the
    ledger's nodes, None if the ledger is a file."""

    folder: Path
    servers: dict[str, EmbeddedServer]
    dsns: dict[str, str]
    nodes: Nodes | None = None

    @property
    def config(self) -> Path:
        return self.folder / "undoubt.toml"

    def settings(self) -> Settings:
        return load(self.config, env={})

    def keep(self, keep: bool) -> None:
        for server in self.servers.values():
            server.keep = keep


@contextlib.asynccontextmanager
async def stage(*, keep: bool, cluster: bool = False) -> AsyncIterator[Stage]:
    """Start all processes with their files in a new folder, and remove all of it at the end of the block;
    with ``keep`` only if the block fails. ``cluster``: the ledger is kept by three nodes. Raises
    ``ServerFailed``, ``BinariesMissing``, ``NodeFailed``."""
    folder = new_place("demo", keep=keep)
    # All servers are made before the first is started: if one fails, all of them are removed.
    servers = {name: EmbeddedServer(keep=keep) for name in bank.NAMES}
    built = Stage(folder, servers, {}, Nodes(folder, keep=keep) if cluster else None)
    try:
        for server in built.servers.values():
            await server.start()
        for name, server in built.servers.items():
            await server.create_database(name, owner=OWNER)
            built.dsns[name] = server.socket_dsn(name, user=OWNER)
            await bank.set_up(built.dsns[name])
        if built.nodes is not None:
            await built.nodes.start()
        url = SQLITE if built.nodes is None else built.nodes.url
        built.config.write_text(CONFIG.format(url=url, ttl=SESSION_TTL_S, **built.dsns))
        yield built
    except BaseException:
        built.keep(False)
        keep = False
        raise
    finally:
        if built.nodes is not None and not keep:
            await built.nodes.close()
        await asyncio.gather(*(server.close() for server in built.servers.values()))
        if not keep:
            await asyncio.to_thread(remove_place, folder)


def next_commands(built: Stage) -> list[tuple[str, str]]:
    """Commands to try with a kept stage, each after its purpose."""
    option = f"--config {built.config}"
    undoubt = "undoubt" if shutil.which("undoubt") else str(Path(sys.executable).with_name("undoubt"))
    cluster = [] if built.nodes is None else [("the ledger's nodes", f"{undoubt} cluster status {option}")]
    return [
        *cluster,
        ("the content of the databases", f'psql "{built.dsns["orders"]}" -c "table transfer limit 5"'),
        ("the latest transactions", f"{undoubt} tx list {option}"),
        (
            "crash one more coordinator",
            f"{sys.executable} -m undoubt.demo.worker {built.config} 1 before_decide more",
        ),
        ("see what that has left in doubt", f"{undoubt} indoubt list {option}"),
        ("resolve it", f"{undoubt} recover --once {option}"),
        ("end it all", f"sh {_end_script(built)}"),
    ]


def _end_script(built: Stage) -> Path:
    """Write the script that ends the demo beside the configuration, and return its path."""
    servers = built.servers.values()
    nodes = [] if built.nodes is None else built.nodes.pids.values()
    script = built.folder / "end"
    script.write_text(
        END.format(
            nodes=" ".join(map(str, nodes)),
            pids=" ".join(str(server.pid) for server in servers),
            folders=" ".join(f"{server.folder}/data" for server in servers),
            remove=" ".join(str(folder) for folder in (*(server.folder for server in servers), built.folder)),
        )
    )
    return script
