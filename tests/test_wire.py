"""Some of ``make prove PROOF=wire``, and the proxy that it strikes with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from tests.prove.wire_cases import SCENES, Case, Scene, Work
from tests.prove.wire_doors import NAMES, ORDERS, PAYMENTS, RATES
from tests.prove.wire_proxy import Fault, Place, Strike, Wire
from tests.prove.wire_run import Trial, Verdicts
from tests.servers import Server, fresh_database

QUICK: list[Fault] = [each for each in Fault if each not in {Fault.LATE, Fault.SILENCE, Fault.HOLE}]
"""Those that nobody waits out."""

Dsns = dict[str, str]


@pytest.fixture
async def dsns(postgres: Server, other_postgres: Server) -> AsyncIterator[Dsns]:
    servers = {ORDERS: postgres, PAYMENTS: other_postgres, RATES: postgres}
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(fresh_database(servers[name], name)) for name in NAMES}


async def strike(scene: Scene, dsns: Dsns, folder: Path, *wanted: tuple[str, list[Fault]]) -> int:
    """Each fault at each message that contains its text, up to the first that is told or done wrong; how many
    there were."""
    verdicts = Verdicts()
    async with Trial(scene, dsns, {"url": f"sqlite:///{folder}/ledger.db"}, verdicts) as trial:
        heard = await trial.measure()
        for text, faults in wanted:
            for target, place, label in heard:
                for fault in faults if text in label else []:
                    await trial.run(Case(target, place, label, fault))
                    assert verdicts.failures == []
        await trial.audit()
    assert (verdicts.failures, verdicts.prepared_after, verdicts.missed) == ([], 0, 0)
    return verdicts.runs


@pytest.mark.parametrize("door", ["asyncpg", "psycopg", "sync"])
async def test_a_fault_at_prepare_and_at_commit_prepared(door: str, dsns: Dsns, tmp_path: Path) -> None:
    """Broken if an answer that was lost is taken for a yes or a no, what arrives late stays prepared, or a
    connection that was lost is used again."""
    runs = await strike(
        Scene(door),
        dsns,
        tmp_path,
        ("when current_user", [Fault.ANSWER_LOST, Fault.LATE, Fault.CUT_BEFORE, Fault.OUTLIVES]),
        ("commit prepared", [Fault.SILENCE, Fault.ANSWER_LOST, Fault.HALF, Fault.DELAYED]),
    )
    assert runs == 16


@pytest.mark.parametrize("door", ["asyncpg", "psycopg", "Session"])
async def test_a_fault_at_a_commit_in_one_phase(door: str, dsns: Dsns, tmp_path: Path) -> None:
    """Broken if a COMMIT whose answer was lost is told as done or undone, and is the other."""
    scene = Scene(door, work=Work.ONE_PHASE)
    runs = await strike(scene, dsns, tmp_path, ("select case when", QUICK))
    assert runs == 2 * len(QUICK), "the writer's COMMIT and the reader's"


async def test_every_scene_has_a_name_of_its_own() -> None:
    """``--only`` chooses by name."""
    assert len({str(scene) for scene in SCENES}) == len(SCENES)


def message(kind: bytes, content: bytes = b"") -> bytes:
    return kind + (4 + len(content)).to_bytes(4, "big") + content


async def test_what_is_held_back_belongs_to_the_transaction_before() -> None:
    """Broken if messages behind one that is late, on a connection that its server has ended meanwhile, count
    as messages of the next transaction."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Wire(f"host=127.0.0.1 port={port}") as wire:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(wire.parameters["port"]))
            wire.arm(Strike("P", Fault.LATE, hold_s=0.3))
            startup = (196608).to_bytes(4, "big")
            parse = message(b"P", b"\0select 1\0\0\0")
            writer.write((8).to_bytes(4, "big") + startup + parse + message(b"B", b"\0\0") + message(b"S"))
            while not wire.struck:
                await asyncio.sleep(0.01)
            wire.arm(None)
            over.set()
            assert await reader.read() == b""
            while wire.kept:  # until everything that was read from the client has been passed on
                await asyncio.sleep(0.01)
            assert (wire.heard, wire.to_nobody) == ([], [])
            writer.close()


ARRIVES = set(Fault) - {Fault.CUT_BEFORE, Fault.HALF, Fault.HOLE}
ANSWERED = {Fault.DELAYED, Fault.LATE}


@pytest.mark.parametrize("fault", list(Fault))
async def test_the_proxy_strikes_as_it_says(fault: Fault, database: str) -> None:
    """Broken if the proof above believes that a message arrived, or an answer was lost, that was not."""
    admin = await asyncpg.connect(database)
    await admin.execute("create table t (id int)")
    async with Wire(database) as wire:
        to = wire.parameters
        struck = await asyncpg.connect(
            host=to["host"], port=int(to["port"]), user=to["user"], password=to.get("password"),
            database=to["dbname"],
        )  # fmt: skip
        wire.arm(Strike(Place(0, "Q", "insert into t values (?)", 1), fault, hold_s=0.05))
        await struck.execute("insert into t values (0)")
        assert not wire.struck
        insert = asyncio.create_task(struck.execute("insert into t values (1)"))
        done, _ = await asyncio.wait(
            [insert], timeout=30 if fault not in {Fault.SILENCE, Fault.HOLE} else 0.2
        )
        assert (wire.struck, [label for _, label in wire.heard]) == (True, [
            "Q insert into t values (0)", "Q insert into t values (1)",
        ])  # fmt: skip
        if fault in {Fault.SILENCE, Fault.HOLE}:
            assert not done, "it hears nothing"
            assert wire.kept
            wire.heal()
        if fault in ANSWERED:
            await insert
        else:
            with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
                await insert
        struck.terminate()
        while not wire.settled:
            await asyncio.sleep(0.01)
        assert await admin.fetchval("select count(*) from t") == 1 + (fault in ARRIVES)
    await admin.close()
