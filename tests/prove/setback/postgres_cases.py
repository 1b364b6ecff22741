"""A PostgreSQL ledger: its database copied back, cloned, dropped, or without its schema."""

from __future__ import annotations

from typing import Any

import asyncpg

from tests.prove.setback.world import COMMITTED, NAMES, Told, World, case
from undoubt.config import Settings
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.contract import Ledger


class Books:
    """The database of a ledger, and a copy of it, in the first participant's server."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server = world.servers.servers[NAMES[0]]
        self.name = f"ledger{world.servers.count}"
        self.copy = f"{self.name}_copy"
        self.settings = self.at(self.name)

    def at(self, database: str) -> Settings:
        url = self.server.dsn(database).replace("postgresql://", "postgresql+psycopg://")
        return self.world.settings({"url": url, "request_timeout_s": 20.0})

    async def told(self) -> None:
        await self.server.create_database(self.name)
        await maintenance.init(self.settings.ledger)
        opened: list[Ledger] = [await open_ledger(self.settings.ledger)]

        async def copy() -> Ledger:
            await opened.pop().close()
            await self.run(f'create database "{self.copy}" template "{self.name}"')
            opened.append(await open_ledger(self.settings.ledger))
            return opened[0]

        ledger = await self.world.tell(opened[0], copy)
        await ledger.close()

    async def run(self, *statements: str) -> None:
        connection: Any = await asyncpg.connect(self.server.dsn())
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


@case("postgresql: nothing but a kill")
async def nothing(world: World) -> Told:
    books = Books(world)
    await books.told()
    told = await world.look(books.settings)
    applied = {states for name, states in told.states.items() if name in {"half", "whole"}}
    told.silent += bool(told.said)
    # Its sessions are alive until a whole lifetime has passed: what is decided is finished all the same.
    told.silent += applied != {(COMMITTED, COMMITTED)}
    return told


@case("postgresql: the database is copied back")
async def copied_back(world: World) -> Told:
    """As by a dump that is restored under the old name."""
    books = Books(world)
    await books.told()
    await books.run(
        f'drop database "{books.name}" with (force)',
        f'alter database "{books.copy}" rename to "{books.name}"',
    )
    return await world.look(books.settings)


@case("postgresql: the database is cloned beside it")
async def cloned(world: World) -> Told:
    books = Books(world)
    await books.told()
    return await world.look(books.at(books.copy))


@case("postgresql: the database is missing")
async def dropped(world: World) -> Told:
    books = Books(world)
    await books.told()
    await books.run(f'drop database "{books.name}" with (force)')
    return await world.look(books.settings)


@case("postgresql: the schema is missing")
async def without_schema(world: World) -> Told:
    books = Books(world)
    await books.told()
    connection: Any = await asyncpg.connect(books.server.dsn(books.name))
    await connection.execute("drop schema undoubt_ledger cascade")
    await connection.close()
    return await world.look(books.settings)


@case("postgresql: the database was made anew")
async def made_anew(world: World) -> Told:
    books = Books(world)
    await books.told()
    await books.run(f'drop database "{books.name}" with (force)')
    await books.server.create_database(books.name)
    await maintenance.init(books.settings.ledger)
    return await world.look(books.settings)


@case("postgresql: rows were deleted back to the copy")
async def rows_set_back(world: World) -> Told:
    """As a volume that was set back under the same server: the database, the timeline and the table are
    those of before. A name of a session that was opened since shows it."""
    books = Books(world)
    await books.told()
    connection: Any = await asyncpg.connect(books.server.dsn(books.name))
    last = await connection.fetchval("select max(id) from undoubt_ledger.session")
    for table in ("unfinished", "decision"):
        await connection.execute(
            f"delete from undoubt_ledger.{table} where (session, seq) <> ({last - 1}, 1)"
        )
    await connection.execute("delete from undoubt_ledger.session where id = $1", last)
    await connection.execute("update undoubt_ledger.ledger set next_session = $1", last)
    await connection.close()
    return await world.look(books.settings)
