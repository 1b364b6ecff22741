"""Two databases in which each order is a row in both, and steps at which their commit is disturbed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings

TABLES = {
    "orders": "create table orders (id int primary key, item text not null default 'a lamp')",
    "payments": """
        create table accounts (id int primary key); insert into accounts values (1);
        create table payments (
            id int primary key, account int not null references accounts deferrable initially deferred)""",
}
NOBODY = 404
"""An account that does not exist, which PostgreSQL notices at PREPARE."""
INSERTS = {
    "orders": "insert into orders (id) values ({})",
    "payments": "insert into payments (id, account) values ({}, {})",
}
LOOK_S = 0.02
WAIT_S = 30.0


@dataclass
class Shop:
    """``observe`` is the observer of the coordinator."""

    dsns: dict[str, str]
    settings: dict[str, Any]
    timeout_s: float = 30.0
    """Of the transactions."""
    seen: list[str] = field(default_factory=list)
    hold_at: str = ""
    """The step at which commits wait for ``go_on``."""
    held: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    roll_back_at: str = ""
    """The step at which somebody rolls the branch of ``payments`` back by hand."""
    after: list[int] = field(default_factory=list)
    """What background tasks have done."""

    def make_tables(self) -> None:
        for name, dsn in self.dsns.items():
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(TABLES[name])

    def make_last_agent(self, name: str) -> None:
        """Coordinators that are opened from here on use last-agent commit."""
        for each, dsn in self.dsns.items():
            asyncio.run(schema.migrate(each, ParticipantSettings(dsn=dsn)))
        self.settings["coordinator"] = {"protocol": "last", "agent": name}

    async def observe(self, step: Any, subject: str) -> None:
        self.seen.append(str(step))
        if str(step) == self.roll_back_at:
            await asyncio.to_thread(self.roll_back)
        if str(step) == self.hold_at:
            self.held.set()
            await asyncio.to_thread(self.go_on.wait, WAIT_S)

    def roll_back(self) -> None:
        for gid in self.prepared("payments"):
            with psycopg.connect(self.dsns["payments"], autocommit=True) as connection:
                connection.execute(f"rollback prepared '{gid}'")

    def prepared(self, *names: str) -> list[str]:
        sql = "select gid from pg_prepared_xacts where database = current_database()"
        return [row[0] for name in names or self.dsns for row in self.rows(name, sql)]

    def rows(self, name: str, sql: str) -> list[Any]:
        with psycopg.connect(self.dsns[name], autocommit=True) as connection:
            return connection.execute(sql).fetchall()

    def ids(self) -> tuple[list[int], list[int]]:
        """The orders in both databases, as everybody sees them."""
        found = [
            [row[0] for row in self.rows(name, f"select id from {name} order by id")] for name in self.dsns
        ]
        return found[0], found[1]

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Raises ``TimeoutError``."""
        end = time.monotonic() + WAIT_S
        while not what():
            if time.monotonic() > end:
                raise TimeoutError(what)
            time.sleep(LOOK_S)


def statements(number: int, account: int = 1) -> dict[str, str]:
    """What an order writes, by participant."""
    return {
        "orders": INSERTS["orders"].format(number),
        "payments": INSERTS["payments"].format(number, account),
    }
