"""No branch prepares or commits what an application has put in its place: every attack on the marker, and on
the statements that look at it, with each driver, in each way, over TLS and behind a pooler.

``attacks`` counts them; ``prepared`` are those after which the branch was prepared, ``committed`` those after
which undoubt committed what was not the branch. ``control`` is what gets through once the guards no longer
compare the marker. ``failures`` also lists honest branches that were refused."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg

from tests.participants import support
from tests.participants.hands import at
from tests.participants.proxy import Proxy, tls_context
from tests.participants.support import SCRIPTS, WRITE, new_gid, participant_at
from tests.pgbouncer import PgBouncer, program
from tests.prove.control import control
from tests.prove.guard_attacks import ATTACKS, REPLACEMENT, SETTING_UP
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Branch, Vote
from undoubt.participants.errors import ParticipantError
from undoubt.participants.postgres import PostgresParticipant

KINDS = ("asyncpg", "psycopg", "psycopg-sync")
ENDINGS = ("prepare", "one phase")
REPLACED = "select balance = 0 from account where id = 2"
MUTANTS = ("guards-do-not-compare",)
SETTINGS = {"max_prepared_transactions": "20"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", default=[""], help="only ways whose name contains one of these")
    parser.add_argument("--no-control", action="store_true", help="do not look for the planted bug")


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    tally = Tally()
    async with AsyncExitStack() as opened:
        for name, kind, dsn in await _ways(opened):
            if any(word in name for word in options.only):
                await attack(name, kind, dsn, tally)
    for failure in tally.failures:
        print(failure, file=sys.stderr)
    result: dict[str, Any] = {
        "attacks": tally.attacks,
        "prepared": tally.prepared,
        "committed": tally.committed,
        "ways": tally.ways,
        "failures": tally.failures[:20],
    }
    holds = tally.attacks > 0 and not tally.failures
    if not options.no_control:
        found = (await control("guard", "--only", "asyncpg direct", "--no-control", mutants=MUTANTS)).result
        result["control"] = found["prepared"] + found["committed"]
        holds = holds and result["control"] >= 1
    return result, holds


class Tally:
    def __init__(self) -> None:
        self.attacks = 0
        self.prepared = 0
        self.committed = 0
        self.ways: list[str] = []
        self.failures: list[str] = []


async def _ways(opened: AsyncExitStack) -> list[tuple[str, str, str]]:
    """Of each way its name, its driver, and a dsn."""
    server = await opened.enter_async_context(_server())
    tls = await opened.enter_async_context(Proxy(server.dsn(), tls=await asyncio.to_thread(tls_context)))
    ways = []
    for kind in KINDS:
        for how in ("", SCRIPTS):
            ways.append((f"{kind}{how} direct", kind + how, server.socket_dsn()))
            ways.append((f"{kind}{how} TLS", kind + how, tls.dsn + "?sslmode=require"))
        if program() is not None:
            ways.append((f"{kind} pooler", kind, ""))
    if program() is not None:
        pooler = await opened.enter_async_context(PgBouncer(server.socket_dsn(), users=("postgres",)))
        ways = [(name, kind, dsn or pooler.dsn("postgres")) for name, kind, dsn in ways]
    return ways


@asynccontextmanager
async def _server() -> AsyncIterator[EmbeddedServer]:
    server = EmbeddedServer(SETTINGS, durable=False)
    await server.start()
    try:
        connection = await asyncpg.connect(server.dsn())
        await connection.execute(SETTING_UP)
        await connection.close()
        yield server
    finally:
        await server.close()


async def attack(way: str, kind: str, dsn: str, tally: Tally) -> None:
    """Every attack in one way, on sessions that are used again and again."""
    support.kind = kind
    watching = await asyncpg.connect(dsn, statement_cache_size=0)
    participant = participant_at(dsn, connections_max=2)
    tally.ways.append(way)
    try:
        await _honest(way, participant, tally)
        for name, statements in ATTACKS.items():
            for ending in ENDINGS:
                tally.attacks += 1
                branch = await participant.begin(new_gid(), timeout_s=30)
                await _play(branch, statements)
                prepared, committed = await _end(branch, ending, watching)
                tally.prepared += prepared
                tally.committed += committed
                if prepared or committed:
                    tally.failures.append(f"{way}: {name}, {ending}: {'prepared ' * prepared}{committed}")
                with contextlib.suppress(asyncpg.PostgresError):
                    await watching.execute("rollback prepared 'mine'")
                await watching.execute("update account set balance = 100")
        await _honest(way, participant, tally)
    finally:
        await participant.close()
        await watching.close()


async def _honest(way: str, participant: PostgresParticipant, tally: Tally) -> None:
    """Twice, so that the second branch begins on a session that was used."""
    for savepoint in (False, True):
        branch = await participant.begin(new_gid(), timeout_s=30)
        await at(branch).execute(WRITE)
        if savepoint:
            await at(branch).execute("savepoint a")
            await at(branch).execute("rollback to savepoint a")
        result = await branch.prepare()
        if result.vote is not Vote.PREPARED or result.evidence is None:
            tally.failures.append(f"{way}: an honest branch was refused: {result}")
        await branch.rollback()
        await branch.release()


async def _play(branch: Branch, statements: tuple[str, ...]) -> None:
    for statement in (WRITE, *statements, REPLACEMENT):
        with contextlib.suppress(Exception):  # whatever the driver raises: the application swallows it
            await at(branch).execute(statement)


async def _end(branch: Branch, ending: str, watching: Any) -> tuple[bool, bool]:
    """Whether the branch was prepared, and whether the replacement was committed."""
    prepared = applied = False
    before = await watching.fetchval(REPLACED)  # where no transaction is left, the application commits itself
    try:
        if ending == "prepare":
            prepared = (await branch.prepare()).vote is Vote.PREPARED
            held = "select count(*) from pg_prepared_xacts where gid = $1"
            prepared = prepared or bool(await watching.fetchval(held, str(branch.gid)))
            if prepared:
                await branch.commit()
        else:
            await branch.commit_one_phase()
            applied = True
    except ParticipantError:
        pass
    finally:
        with contextlib.suppress(ParticipantError):
            await branch.rollback()
        await branch.release()
    return prepared, applied or (not before and await watching.fetchval(REPLACED))
