"""Servers for a session of tests, a template for each database, and copies of it for each test."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from undoubt.embedded import EmbeddedServer
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.postgres import schema
from undoubt.participants.settings import ParticipantSettings

PREPARED = """
    select gid from pg_catalog.pg_prepared_xacts
    where database operator(pg_catalog.=) pg_catalog.current_database() order by gid"""


def in_database(dsn: str, name: str) -> str:
    """``dsn`` with another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))


@contextlib.contextmanager
def servers(names: Sequence[str], dsns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The dsn of a server for each name: those of ``dsns`` in turn, or embedded ones, which end with the
    block. Raises ``BinariesMissing`` if no PostgreSQL is found."""
    if dsns:
        yield {name: dsns[index % len(dsns)] for index, name in enumerate(names)}
        return
    started: dict[str, EmbeddedServer] = {}
    try:
        for name in names:
            started[name] = EmbeddedServer(durable=False)
            _run(started[name].start)
        yield {name: server.dsn("postgres") for name, server in started.items()}
    finally:
        for server in started.values():
            _run(server.close)


@contextlib.contextmanager
def template(server: str, name: str, make: Callable[[str, str], object]) -> Iterator[str]:
    """The name of a database at ``server`` in which ``make(name, dsn)`` has made the tables, and undoubt its
    own, unless ``make`` has made or restored them."""
    made = f"undoubt_{name}_{secrets.token_hex(4)}"
    with _database(server, made):
        dsn = in_database(server, made)
        make(name, dsn)
        with contextlib.suppress(ParticipantRefused):  # of other owners, from a dump: what needs them says so
            _run(lambda: schema.migrate(name, ParticipantSettings(dsn=dsn)))
        yield made


@contextlib.contextmanager
def copies(servers: Mapping[str, str], templates: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """New databases for one test: their dsns by name. Raises ``LeftInDoubt`` at the end of the block if the
    test has left something prepared; it is rolled back then."""
    with contextlib.ExitStack() as stack:
        dsns = {}
        for name, server in servers.items():
            made = f"{templates[name]}_{secrets.token_hex(4)}"
            stack.enter_context(_database(server, made, templates[name]))
            dsns[name] = in_database(server, made)
        yield dsns
        left = {name: gids for name, dsn in dsns.items() if (gids := _roll_back(dsn))}
        if left:
            raise LeftInDoubt(left)


class LeftInDoubt(AssertionError):
    """A test has left prepared transactions; ``gids`` by name of database."""

    def __init__(self, gids: Mapping[str, Sequence[str]]) -> None:
        super().__init__(
            f"the test has left transactions in doubt: {dict(gids)}; undoubt_recover() resolves them"
        )
        self.gids = dict(gids)


@contextlib.contextmanager
def _database(server: str, name: str, of: str = "template1") -> Iterator[None]:
    identifiers = sql.Identifier(name), sql.Identifier(of)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} template {}").format(*identifiers))
    try:
        yield
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(sql.SQL("drop database {} with (force)").format(identifiers[0]))


def _roll_back(dsn: str) -> list[str]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        gids = [row[0] for row in connection.execute(PREPARED).fetchall()]
        for gid in gids:
            connection.execute(sql.SQL("rollback prepared {}").format(gid))
    return gids


def _run(function: Callable[[], object]) -> None:
    """Run a coroutine function in a loop of its own; the loop that a plugin has set for the thread stays."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(function())  # type: ignore[arg-type]
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
