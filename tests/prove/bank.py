"""The workload of the proofs and how it is audited: money that moves between two databases.

Participant ``orders`` loses what participant ``payments`` gains; each transfer leaves its id in both. The
audit reads the databases directly, and shares no code with what moved the money.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import psycopg

from undoubt.errors import UndoubtError

NAMES = ("orders", "payments")
ACCOUNTS = 64
BALANCE = 1_000_000

TRANSFER_ERRORS = (
    UndoubtError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    psycopg.Error,
    OSError,
)
"""What a :func:`transfer` may raise before its commit begins. Anything else is a fault of the program that
runs it: it has to end, since a run in which nothing commits proves nothing."""

SCHEMA = """
    create table account (id int primary key, balance bigint not null);
    create table transfer (id text primary key);
    insert into account select generate_series(0, %d), %d;
""" % (ACCOUNTS - 1, BALANCE)  # noqa: UP031 - braces are SQL's here


async def set_up(dsns: Mapping[str, str]) -> None:
    for dsn in dsns.values():
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(SCHEMA)
        finally:
            await connection.close()


async def transfer(tx: Any, account: int, transfer_id: str) -> None:
    """One transfer between rows of that number, in an undoubt transaction."""
    for name, amount in zip(NAMES, (-10, 10), strict=True):
        branch = await tx.branch(name)
        await _execute(branch, "update account set balance = balance + $1 where id = $2", amount, account)
        await _execute(branch, "insert into transfer (id) values ($1)", transfer_id)


async def _execute(branch: Any, sql: str, *args: object) -> None:
    """In the words of the driver that the branch is of."""
    if isinstance(branch, psycopg.AsyncConnection):
        await branch.execute(re.sub(r"\$\d", "%s", sql), args)
    else:
        await branch.execute(sql, *args)


@dataclass(slots=True)
class Audit:
    """What is wrong, by transfer id or gid; all empty if nothing is."""

    half_applied: list[str] = field(default_factory=list)
    acknowledged_lost: list[str] = field(default_factory=list)
    aborted_applied: list[str] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    money: int = 0
    """Total over both databases minus what it was: 0."""

    @property
    def clean(self) -> bool:
        return not (
            self.half_applied or self.acknowledged_lost or self.aborted_applied or self.prepared or self.money
        )


async def audit(dsns: Mapping[str, str], acknowledged: Iterable[str], aborted: Iterable[str]) -> Audit:
    """Compare the databases with one another and with what the application was told."""
    found = Audit(money=-len(dsns) * ACCOUNTS * BALANCE)
    applied: list[set[str]] = []
    for dsn in dsns.values():
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("set lock_timeout = '5s'")
            applied.append({row["id"] for row in await connection.fetch("select id from transfer")})
            found.money += await connection.fetchval("select sum(balance)::bigint from account")
            found.prepared += [
                row["gid"]
                for row in await connection.fetch(
                    "select gid from pg_prepared_xacts where database = current_database()"
                )
            ]
        finally:
            await connection.close()
    everywhere, somewhere = set.intersection(*applied), set.union(*applied)
    found.half_applied = sorted(somewhere - everywhere)
    found.acknowledged_lost = sorted(set(acknowledged) - everywhere)
    found.aborted_applied = sorted(set(aborted) & somewhere)
    return found


async def rows_left(dsn: str) -> list[str]:
    """The keys of the rows of COMMITs at the agent of last-agent commit."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("select key from undoubt.undoubt_agent where decision = 'commit'")
    finally:
        await connection.close()
    return [row["key"].hex() for row in rows]


async def transfers(dsns: Mapping[str, str]) -> set[str]:
    """Those that some database has applied."""
    found: set[str] = set()
    for dsn in dsns.values():
        connection = await asyncpg.connect(dsn)
        try:
            found |= {row["id"] for row in await connection.fetch("select id from transfer")}
        finally:
            await connection.close()
    return found
