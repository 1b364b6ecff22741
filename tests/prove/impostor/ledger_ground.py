"""The PostgreSQL ledger's database, as its owner and others who may enter it see it."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import msgspec

import undoubt
from tests.prove.bank import NAMES
from tests.prove.impostor.attacks import attack, quiet
from tests.prove.impostor.ground import EVIL
from tests.prove.impostor.honest import Kind
from tests.prove.impostor.people import LANDLORD, MALLORY, SCHEMER, Connection, admin
from tests.prove.impostor.plant import loot, plant_before_catalog, plant_in_path
from tests.prove.impostor.scene import Scene
from tests.prove.impostor.waits import ADVISORY
from undoubt.coordinator.coordinator import Coordinator
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.postgres.ledger import PostgresLedger

PLACE = "ledger"
DAY_S = 30.0
POSTGRES = frozenset({"postgresql"})


@attack("better matches in public, in the database of the ledger", stands=quiet, ledgers=POSTGRES)
async def ledger_in_public(scene: Scene) -> None:
    connection = await _at_ledger(scene)
    await plant_in_path(connection, "public")
    await _day(scene)


@attack("better matches in the ledger role's own schema", stands=quiet, ledgers=POSTGRES)
async def ledger_own_schema(scene: Scene) -> None:
    connection = await scene.attacker(SCHEMER).at(PLACE)
    await plant_in_path(connection, scene.stand.login)
    await _day(scene)


@attack("a search path of the ledger's database", stands=quiet, ledgers=POSTGRES)
async def ledger_before_catalog(scene: Scene) -> None:
    connection = await _at_ledger(scene)
    await plant_before_catalog(connection, EVIL)
    await _ledger_defaults(scene, connection, {"search_path": f"{EVIL}, pg_catalog, public"})
    await _day(scene)


@attack("defaults of the ledger's database", stands=quiet, ledgers=POSTGRES)
async def ledger_defaults(scene: Scene) -> None:
    connection = await _at_ledger(scene)
    settings = {
        "default_transaction_isolation": "serializable", "default_transaction_read_only": "on",
        "default_transaction_deferrable": "on", "intervalstyle": "sql_standard", "datestyle": "'German'",
        "standard_conforming_strings": "off", "bytea_output": "escape", "array_nulls": "off",
        "client_min_messages": "error", "role": LANDLORD, "statement_timeout": "'1ms'",
        "lock_timeout": "'1ms'", "idle_session_timeout": "'1ms'", "transaction_timeout": "'1ms'",
        "idle_in_transaction_session_timeout": "'1ms'",
    }  # fmt: skip
    await _ledger_defaults(scene, connection, settings)
    await _day(scene)


@attack("a schema undoubt_ledger that the owner of the database made first", stands=quiet, ledgers=POSTGRES)
async def ledger_schema_first(scene: Scene) -> None:
    """A ledger that is made in it, or is taken for one, runs what stands in the place of its tables."""
    name = f"{scene.database}_first"
    async with admin(scene.servers.admin_dsn(NAMES[0], "postgres")) as root:
        await root.execute(f'create database "{name}" owner {LANDLORD}')
    connection = await asyncpg.connect(scene.servers.dsn(NAMES[0], name, LANDLORD))
    try:
        await plant_in_path(connection, "undoubt_ledger")
        await connection.execute(_SCHEMA)
    finally:
        await connection.close()
    url = scene.servers.dsn(NAMES[0], name, scene.stand.login)
    settings = msgspec.structs.replace(
        scene.settings.ledger, url=url.replace("postgresql://", "postgresql+psycopg://")
    )
    for work in (maintenance.init, maintenance.migrate, open_ledger, maintenance.check):
        with contextlib.suppress(undoubt.UndoubtError):
            async with asyncio.timeout(DAY_S):
                if isinstance(await work(settings), PostgresLedger):
                    scene.breach(Kind.OUTCOME, "a ledger is opened that somebody else has made up")
    async with admin(scene.servers.admin_dsn(NAMES[0], name)) as root:
        for who, what in await loot(root):
            scene.breach(Kind.SUPERUSER, f"{who} ran an attacker's code: {what}")
    async with admin(scene.servers.admin_dsn(NAMES[0], "postgres")) as root:
        await root.execute(f'drop database "{name}" with (force)')


_SCHEMA = """
    grant all on schema undoubt_ledger to public;
    create table undoubt_ledger.migration (version_num text);
    insert into undoubt_ledger.migration values ('g006');
    create function undoubt_ledger.read(text) returns text language sql as
        $$ select undoubt_ledger.payload(); select $1 $$;
    create view undoubt_ledger.ledger as select undoubt_ledger.read('madeup') as ledger_id;
    create view undoubt_ledger.secret as select undoubt_ledger.read('secret')::bytea as secret;
    grant all on all tables in schema undoubt_ledger to public;
"""


@attack("the secret of the ledger, read in its database", stands=quiet, ledgers=POSTGRES)
async def ledger_secret(scene: Scene) -> None:
    for role_ in (LANDLORD, SCHEMER, MALLORY):
        connection = await scene.attacker(role_).at(PLACE)
        tables = await connection.fetch("select tablename from pg_tables where schemaname = 'undoubt_ledger'")
        for row in tables:
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.fetch(f'select * from undoubt_ledger."{row["tablename"]}"')
                scene.breach(Kind.SUPERUSER, f"{role_} reads undoubt_ledger.{row['tablename']}")
        if not tables:
            scene.breach(Kind.STALL, "the ledger has no tables to be read")


@attack("the advisory lock of the ledger's tables, held", stands=quiet, ledgers=POSTGRES)
async def ledger_lock(scene: Scene) -> None:
    connection = await scene.attacker(MALLORY).at(PLACE)
    await connection.execute(f"select pg_advisory_lock({ADVISORY})")
    made = asyncio.create_task(maintenance.init(scene.settings.ledger))
    done, _ = await asyncio.wait({made}, timeout=12.0)
    if not done:
        scene.breach(Kind.STALL, "creating a ledger waits for an attacker's lock for more than 12 s")
    await connection.execute("select pg_advisory_unlock_all()")
    with contextlib.suppress(undoubt.UndoubtError):
        await made


async def _at_ledger(scene: Scene) -> Connection:
    return await scene.attacker(LANDLORD).at(PLACE)


async def _ledger_defaults(scene: Scene, connection: Connection, settings: dict[str, str]) -> None:
    for name, value in settings.items():
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute(f'alter database "{scene.database}_ledger" set {name} = {value}')


async def _day(scene: Scene) -> None:
    """All that is asked of a ledger, in sessions that are opened now."""
    ledger = None
    try:
        async with asyncio.timeout(DAY_S):
            ledger = await open_ledger(scene.settings.ledger)
            made = Coordinator(ledger, scene.registry, scene.settings.coordinator)
            async with made:
                await scene.move(made, "with the ledger as it is now")
                await asyncio.sleep(0.2)
                await ledger.info()
                await ledger.sessions()
                await ledger.heuristics(include_forgotten=True)
                for info in await ledger.transactions(limit=5):
                    await ledger.transaction(info.txid)
            await maintenance.migrate(scene.settings.ledger)
            await maintenance.check(scene.settings.ledger)
            await maintenance.init(scene.settings.ledger)
    except (undoubt.UndoubtError, TimeoutError) as error:
        scene.breach(Kind.STALL, f"the ledger cannot be used: {type(error).__name__}: {error}")
    finally:
        if ledger is not None:
            await ledger.close()
