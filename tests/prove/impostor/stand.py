"""The servers that everything stands on, and the databases of one scene."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.prove.bank import NAMES, SCHEMA
from tests.prove.impostor.people import APP, ATTACKERS, CHIEF, LANDLORD, SCHEMER, Attacker, admin
from tests.prove.nodes import Nodes
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.settings import LedgerSettings
from undoubt.embedded import EmbeddedServer
from undoubt.participants.postgres.schema import migrate
from undoubt.participants.settings import ParticipantSettings

SETTINGS = {
    "max_prepared_transactions": "300",
    "max_connections": "200",
    "listen_addresses": "127.0.0.1",
    "deadlock_timeout": "30s",  # what a server sees by itself must not end what a forger lets wait
}
TABLES = """
    create table single (id text primary key);
    grant select, insert, update, delete on account, transfer, single to teller;
"""
LET_IN = [f"host all {','.join((*ATTACKERS, APP, CHIEF))} 127.0.0.1/32 trust"]


@dataclass(frozen=True, slots=True)
class Stand:
    """What the honest side of a scene is made of."""

    ledger: str
    """``sqlite``, ``postgresql`` or ``raft``."""
    protocol: str
    """``2pc``, ``3pc`` or ``paxos``."""
    login: str = APP
    """The participants' login role: with the smallest rights, or a superuser."""
    driver: str = "asyncpg"
    termination: str = "quorum"
    quiet: bool = False
    """No tellers are at work."""

    def __str__(self) -> str:
        rule = f" {self.termination}" if self.protocol == "3pc" else ""
        return f"{self.ledger} {self.protocol}{rule} as {self.login}{' (quiet)' if self.quiet else ''}"


class Servers:
    """One PostgreSQL server for each participant, with every role; a cluster of nodes once it is wanted."""

    def __init__(self) -> None:
        self.servers: dict[str, EmbeddedServer] = {}
        self.honest: set[str] = set()
        """Ids of honest transactions, of all that have used these servers."""
        self.nodes: Nodes | None = None
        self._folder = Path()
        self._stack = AsyncExitStack()
        self._count = 0

    async def build(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-impostor-")))
        for name in NAMES:
            server = EmbeddedServer(SETTINGS, durable=False, hba=LET_IN)
            self.servers[name] = await stack.enter_async_context(server)
            async with admin(server.dsn()) as root:
                for role in (*ATTACKERS, APP):
                    await root.execute(f"create role {role} login")
                await root.execute(f"create role {CHIEF} login superuser")

    def dsn(self, place: str, database: str, role: str) -> str:
        """``place`` is a participant's name."""
        return f"postgresql://{role}@127.0.0.1:{self.servers[place].port}/{database}"

    def admin_dsn(self, place: str, database: str) -> str:
        return self.servers[place].dsn(database)

    async def databases(self, stand: Stand, *, tables: bool = True) -> str:
        """A database in each server, of one new name; ``tables``: undoubt's own are made there."""
        self._count += 1
        database = f"bank{self._count}"
        for place, server in self.servers.items():
            async with admin(server.dsn()) as root:
                await root.execute(f'create database "{database}" owner {LANDLORD}')
            async with admin(server.dsn(database)) as root:
                await root.execute("set search_path = public")
                await root.execute(SCHEMA)
                await root.execute(TABLES)
                await root.execute(f'grant create on database "{database}" to {SCHEMER}, {APP}')
                for function in ("pg_control_system()", "pg_current_wal_lsn()", "pg_walfile_name(pg_lsn)"):
                    await root.execute(f"grant execute on function {function} to {APP}")
            if tables:
                await migrate(place, ParticipantSettings(dsn=self.dsn(place, database, stand.login)))
        return database

    def attacker(self, role: str, database: str) -> Attacker:
        here = {place: self.dsn(place, database, role) for place in self.servers}
        beside = {f"{place}/": self.dsn(place, "postgres", role) for place in self.servers}
        return Attacker(role, {"ledger": self.dsn(NAMES[0], f"{database}_ledger", role), **here, **beside})

    async def ledger(self, stand: Stand, database: str) -> dict[str, object]:
        """The settings of a ledger for that scene; a new one, unless it is the cluster's."""
        if stand.ledger == "sqlite":
            return {"url": f"sqlite:///{self._folder}/{database}.db"}
        if stand.ledger == "raft":
            nodes = await self.cluster()
            return {"url": f"raft://{nodes.url}", "request_timeout_s": 10.0}
        name = f"{database}_ledger"
        async with admin(self.servers[NAMES[0]].dsn()) as root:
            await root.execute(f'create database "{name}" owner {LANDLORD}')
            await root.execute(f'grant create on database "{name}" to {stand.login}, {SCHEMER}')
        url = self.dsn(NAMES[0], name, stand.login).replace("postgresql://", "postgresql+psycopg://")
        await maintenance.init(LedgerSettings(url=url, request_timeout_s=30.0))
        return {"url": url}

    async def cluster(self) -> Nodes:
        """Three nodes, all of them alive: begun anew where any has died."""
        if self.nodes is None or self.dead_nodes():
            self._count += 1
            folder = self._folder / f"nodes-{self._count}"
            folder.mkdir()
            self.nodes = Nodes(folder, election_s=1.0)
            self._stack.push_async_callback(self.nodes.close)
            await self.nodes.begin()
            await self.nodes.start(*self.nodes.addresses)
            await self.nodes.leading()
        return self.nodes

    def dead_nodes(self) -> list[int]:
        """Those that have ended by themselves."""
        running = {} if self.nodes is None else self.nodes.running
        return [number for number, process in running.items() if process.returncode is not None]
