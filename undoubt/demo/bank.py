"""Transfers money between two databases, and audits it.

``payments`` loses the amount that ``orders`` gains. Each transfer writes its name to both databases, in the
transaction that moves the money, so that the databases themselves show which transfers were committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from undoubt.coordinator.transaction import Transaction

NAMES = ("orders", "payments")
ACCOUNTS = 64
BALANCE = 10_000_000
AMOUNT = 10
LOCK_TIMEOUT_S = 10

SCHEMA = f"""
    create table account (id int primary key, balance bigint not null check (balance >= 0));
    create table transfer (name text primary key);
    insert into account select number, {BALANCE} from generate_series(0, {ACCOUNTS - 1}) as number;
"""  # noqa: S608 - the values are constants


async def set_up(dsn: str) -> None:
    """Create the tables and the money in an empty database."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(SCHEMA)
    finally:
        await connection.close()


async def transfer(tx: Transaction, name: str, account: int, amount: int) -> None:
    """Transfer ``amount`` between the accounts ``account`` of both databases. If the account has less money,
    the transaction is aborted."""
    orders = await tx.branch("orders")
    payments = await tx.branch("payments")
    for branch, change in ((orders, amount), (payments, -amount)):
        await branch.execute("insert into transfer (name) values ($1)", name)
        await branch.execute("update account set balance = balance + $1 where id = $2", change, account)


@contextlib.asynccontextmanager
async def customers(dsn: str, accounts: Iterable[int]) -> AsyncIterator[None]:
    """Other sessions that lock one account each until the block's end. A session whose account is locked by a
    transaction in doubt waits for it. The sessions commit nothing."""
    connections: list[asyncpg.Connection[asyncpg.Record]] = []
    waiting: list[asyncio.Task[str]] = []
    try:
        for account in accounts:
            connections.append(await asyncpg.connect(dsn, server_settings={"application_name": "customer"}))
            await connections[-1].execute("begin; set local lock_timeout = '60s'")
            update = f"update account set balance = balance where id = {account}"  # noqa: S608 - a number
            waiting.append(asyncio.create_task(connections[-1].execute(update)))
        yield
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for connection in connections:
            connection.terminate()


@dataclass(frozen=True, slots=True)
class Books:
    """The content of both databases. ``names`` are the transfers found, by database; ``prepared`` are the
    gids of prepared transactions."""

    money: int
    names: Mapping[str, frozenset[str]]
    prepared: tuple[str, ...]

    @property
    def everywhere(self) -> frozenset[str]:
        return frozenset.intersection(*self.names.values())

    @property
    def somewhere(self) -> frozenset[str]:
        return frozenset.union(*self.names.values())


async def audit(dsns: Mapping[str, str]) -> Books:
    """Read both databases directly, without undoubt. Raises asyncpg's errors, and ``OSError``."""
    read = await asyncio.gather(*(_read(dsn) for dsn in dsns.values()))
    return Books(
        money=sum(money for money, _, _ in read),
        names={name: names for name, (_, names, _) in zip(dsns, read, strict=True)},
        prepared=tuple(gid for _, _, gids in read for gid in gids),
    )


async def _read(dsn: str) -> tuple[int, frozenset[str], list[str]]:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT_S}s'")
        money = await connection.fetchval("select sum(balance)::bigint from account")
        names = await connection.fetch("select name from transfer")
        prepared = await connection.fetch(
            "select gid from pg_prepared_xacts where database = current_database() order by gid"
        )
    finally:
        await connection.close()
    return money, frozenset(row["name"] for row in names), [row["gid"] for row in prepared]
