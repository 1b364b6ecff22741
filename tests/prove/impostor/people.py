"""Who attacks, and how names are forged.

An attacker is a role of the database servers with its own connections and nothing else: no ledger, no file,
no process of undoubt's. What it knows it reads as that role, in ``pg_prepared_xacts`` and
``pg_stat_activity``.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

Connection = Any
"""asyncpg's; its generic arguments say nothing here."""

MALLORY = "mallory"
"""May connect. Nothing else was ever granted to it."""
LANDLORD = "landlord"
"""Owns the databases, and no table or schema of undoubt's or of the application's."""
SCHEMER = "schemer"
"""May create schemas in the databases, and owns what it creates."""
ATTACKERS = (MALLORY, LANDLORD, SCHEMER)

APP = "teller"
"""The login role of the honest participants, with the smallest set of rights."""
CHIEF = "chief"
"""The other login role of the honest participants: a superuser."""

HUGE = 9 * 10**18
"""A number that fits into a name, and that nothing may ever be sized by."""

SAFE = {
    "search_path": "pg_catalog", "role": "none", "lock_timeout": "10s", "statement_timeout": "0",
    "transaction_timeout": "0", "idle_session_timeout": "0", "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed", "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
}  # fmt: skip
"""What no owner of a database is to have a say in, while it is looked at."""

_TXID = re.compile(r"(\d+)-([0-9a-f]+)\.(\d+)")
_NUMBERS = re.compile(r"undoubt:[^:]+:(\d+)\.(\d+)[~@]")
"""Of a transaction, in an application_name, which does not tell the nonce."""


@dataclass(frozen=True, slots=True)
class Name:
    """A branch's name in its parts. ``tag`` is None where names have none."""

    ledger: str
    protocol: str
    session: int
    nonce: str
    seq: int
    branch: int
    participant: str
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> Name | None:
        """None if it is nobody's of undoubt."""
        parts = text.split(":")
        if len(parts) not in {6, 7} or parts[0] != "undoubt":
            return None
        matched = _TXID.fullmatch(parts[3])
        if matched is None:
            return None
        session, nonce, seq = int(matched[1]), matched[2], int(matched[3])
        tag = parts[6] if len(parts) == 7 else None
        return cls(parts[1], parts[2], session, nonce, seq, int(parts[4]), parts[5], tag)

    @property
    def txid(self) -> str:
        return f"{self.session}-{self.nonce}.{self.seq}"

    def __str__(self) -> str:
        text = f"undoubt:{self.ledger}:{self.protocol}:{self.txid}:{self.branch}:{self.participant}"
        return text if self.tag is None else f"{text}:{self.tag}"


def forged(seen: Name, **parts: Any) -> list[str]:
    """All that can be made of a name that was seen with other ``parts``: without a tag, with the tag of the
    name that was seen, with one drawn at random. Where names have no tag there is one way only."""
    fields = {name: getattr(seen, name) for name in Name.__slots__} | parts
    ways = [None] if seen.tag is None else [None, seen.tag, drawn_like(seen.tag)]
    return [str(Name(**(fields | {"tag": tag}))) for tag in ways]


def drawn_like(tag: str) -> str:
    """Another tag of the same length and alphabet."""
    letters = (
        "0123456789abcdef" if set(tag) <= set("0123456789abcdef") else "abcdefghijklmnopqrstuvwxyz234567"
    )
    return "".join(secrets.choice(letters) for _ in tag)


class Attacker:
    """One role's connections; ``dsns`` are by place: a participant's name for its database, and that with
    ``/`` behind it for another database of the same server."""

    def __init__(self, role: str, dsns: dict[str, str]) -> None:
        self.role = role
        self._dsns = dsns
        self._open: dict[str, Connection] = {}
        self._all: list[Connection] = []
        self._busy: dict[str, asyncio.Lock] = {}

    async def at(self, place: str) -> Connection:
        """Its usual connection there."""
        known = self._open.get(place)
        if known is None or known.is_closed():
            known = self._open[place] = await self.new(place)
        return known

    async def new(self, place: str, *, application_name: str = "") -> Connection:
        """One more."""
        settings = {
            **SAFE,
            "application_name": application_name,
            "search_path": "public",
            "lock_timeout": "60s",
        }
        connection = await asyncpg.connect(self._dsns[place], server_settings=settings)
        self._all.append(connection)
        return connection

    async def prepare(self, place: str, gid: str, *statements: str) -> bool:
        """PREPARE a transaction of that name which has a transaction id; whether it could."""
        async with self._lock(place):
            return await self._prepare(await self.at(place), gid, statements)

    @staticmethod
    async def _prepare(connection: Connection, gid: str, statements: Sequence[str]) -> bool:
        try:
            await connection.execute("begin")
            await connection.execute("select pg_current_xact_id()")
            for statement in statements:
                await connection.execute(statement)
            await connection.execute(f"prepare transaction '{gid}'")
        except asyncpg.PostgresError:
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute("rollback")
            return False
        return True

    async def end(self, place: str, gid: str, verb: str) -> bool:
        """COMMIT or ROLLBACK PREPARED; False if there is no such branch any more."""
        async with self._lock(place):
            try:
                await (await self.at(place)).execute(f"{verb} prepared '{gid}'")
            except asyncpg.PostgresError:
                return False
        return True

    def _lock(self, place: str) -> asyncio.Lock:
        """Its usual connection there does one thing after the other."""
        return self._busy.setdefault(place, asyncio.Lock())

    async def seen(self, place: str) -> list[Name]:
        """Every name of undoubt's that is prepared on that server, for everybody to read."""
        async with self._lock(place):
            rows = await (await self.at(place)).fetch("select gid from pg_prepared_xacts order by prepared")
        return [name for row in rows if (name := Name.parse(row["gid"])) is not None]

    async def names_of_sessions(self, place: str) -> list[str]:
        """The application_names of that server's sessions, for everybody to read."""
        rows = await (await self.at(place)).fetch(
            "select application_name from pg_stat_activity where application_name like 'undoubt:%'"
        )
        return [row["application_name"] for row in rows]

    async def tries(self, place: str, *statements: str) -> int:
        """Each for itself; how many it was allowed."""
        connection, allowed = await self.at(place), 0
        for statement in statements:
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute(statement)
                allowed += 1
        return allowed

    async def close(self) -> None:
        """Whatever is open is rolled back."""
        for connection in self._all:
            connection.terminate()
        self._all.clear()
        self._open.clear()


def parts_of(txid: str) -> tuple[int, str, int]:
    """Session, nonce and number of a transaction."""
    found = _TXID.fullmatch(txid)
    if found is None:
        raise ValueError(txid)
    return int(found[1]), found[2], int(found[3])


def numbers_in(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Session and number of the transactions that application_names tell of."""
    for name in names:
        if (found := _NUMBERS.match(name)) is not None:
            yield int(found[1]), int(found[2])


@contextlib.asynccontextmanager
async def admin(dsn: str) -> AsyncIterator[Connection]:
    """A superuser's connection, for setting up and for looking: never an attacker's."""
    connection = await asyncpg.connect(dsn, server_settings=SAFE)
    try:
        yield connection
    finally:
        await connection.close()
