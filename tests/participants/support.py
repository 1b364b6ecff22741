"""What the tests of this room share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from undoubt.participants.contract import Branch, Claim
from undoubt.participants.ids import Gid, Protocol, SessionKey, TxId
from undoubt.participants.postgres import PostgresParticipant
from undoubt.participants.postgres.connecting import Handles
from undoubt.participants.postgres.on_connect import OnConnect
from undoubt.participants.settings import ParticipantSettings

LEDGER = "testledger"
NONCE = "0123456789abcdef"
KEY = SessionKey(b"the key of this session")
SETTINGS = {"lock_timeout": "20s"}

SCRIPTS = "+scripts"
WAYS = ("", SCRIPTS)
"""What follows the driver in :data:`kind`: undoubt's own statements are pipelined, or sent as scripts."""

kind = "asyncpg"
"""Of the participants that :func:`participant_at` makes; ``asyncpg``, ``psycopg`` or ``psycopg-sync``, and
one of :data:`WAYS`."""

_seqs = itertools.count(1)


@dataclass
class Database:
    """``admin`` is a superuser's connection to it, for looking from outside."""

    name: str
    dsn: str
    admin: asyncpg.Connection[asyncpg.Record]

    async def balance(self, account: int = 1) -> int:
        """As everybody else sees it."""
        return int(await self.admin.fetchval("select balance from account where id = $1", account))

    async def prepared(self) -> list[str]:
        """The gids of this database."""
        rows = await self.admin.fetch("select gid from pg_prepared_xacts where database = current_database()")
        return [row["gid"] for row in rows]


def new_gid(branch: int = 1, participant: str = "p", *, ledger: str = LEDGER) -> Gid:
    """Of a transaction that no other test has."""
    return Gid(ledger, Protocol.TWO_PHASE, TxId(1, NONCE, next(_seqs)), branch, participant)


def claim(branch: Branch, pid: int = 0) -> Claim:
    """What the session of ``branch``, begun with :data:`KEY`, says of itself; without ``pid`` behind a
    pooler."""
    txid = branch.gid.txid
    return Claim(txid.session, txid.seq, pid, KEY.backend(txid, pid))


def participant_at(dsn: str, *, on_connect: OnConnect | None = None, **settings: Any) -> PostgresParticipant:
    """Participant ``p``, with short timeouts unless told."""
    options = {"statement_timeout_s": 10.0, "connect_timeout_s": 10.0, "connections_max": 8, **settings}
    options.setdefault("pipeline", not kind.endswith(SCRIPTS))
    driver, _, sync = kind.removesuffix(SCRIPTS).partition("-")
    settings_ = ParticipantSettings(dsn=dsn, driver=driver, **options)
    handles: Handles = "sync" if sync else "async"
    return PostgresParticipant("p", settings_, ledger_id=LEDGER, handles=handles, on_connect=on_connect)


WRITE = "update account set balance = balance - 10 where id = 1"


@asynccontextmanager
async def unreachable_standby(database: Database) -> AsyncIterator[None]:
    """Meanwhile every commit of that server waits for a synchronous standby that does not exist."""
    probe = await asyncpg.connect(database.dsn, server_settings={"synchronous_commit": "on"})
    await database.admin.execute("alter system set synchronous_standby_names = 'nobody'")
    try:
        await database.admin.execute("select pg_reload_conf()")
        # The checkpointer spreads the word: the setting holds once a commit is seen waiting.
        while True:
            task = asyncio.create_task(probe.execute("update account set balance = balance where id = 2"))
            while not task.done() and not await waits_for_standby(database, probe.get_server_pid()):
                await asyncio.sleep(0.005)
            if not task.done():
                await database.admin.execute("select pg_cancel_backend($1)", probe.get_server_pid())
                await task
                break
        yield
    finally:
        await database.admin.execute("alter system reset synchronous_standby_names")
        await database.admin.execute("select pg_reload_conf()")
        await probe.close()


async def waits_for_standby(database: Database, pid: int) -> bool:
    """Whether that backend waits in its commit."""
    return bool(
        await database.admin.fetchval(
            "select exists (select from pg_stat_activity where wait_event = 'SyncRep' and pid = $1)", pid
        )
    )


async def run_on(dsn: str, statement: str) -> object:
    """One statement on a connection of its own: a query's value, or a command's tag."""
    connection = await asyncpg.connect(dsn)
    try:
        if statement.startswith("select"):
            return await connection.fetchval(statement)
        return await connection.execute(statement)
    finally:
        await connection.close()
