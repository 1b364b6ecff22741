"""Foreign ground: databases whose owner, or the owner of a schema in them, waits for undoubt to pass."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg

from tests.pgbouncer import PgBouncer
from tests.prove.bank import NAMES
from tests.prove.impostor.attacks import attack, quiet
from tests.prove.impostor.honest import DECIDED, UNDECIDED, Held, Kind
from tests.prove.impostor.people import LANDLORD, SCHEMER, Attacker, Connection
from tests.prove.impostor.plant import plant_before_catalog, plant_in_path
from tests.prove.impostor.scene import Scene
from tests.prove.impostor.waits import functions, wait_for
from undoubt.doctor import examine
from undoubt.embedded import EmbeddedServer
from undoubt.participants.errors import UndoubtError
from undoubt.participants.postgres import schema

ORDERS, PAYMENTS = NAMES
EVIL = "evil"


@dataclass(slots=True)
class Day:
    """What is left in doubt before the attack, for the day after it."""

    aborted: Held
    committed: Held


async def before(scene: Scene, first: str = "") -> Day:
    """``first``: what the application says first in the branches that are to be rolled back."""
    await scene.stop_recovery()
    committed, _ = await scene.dead(DECIDED)
    aborted, _ = await scene.dead(UNDECIDED[scene.stand.protocol], first=first)
    return Day(aborted, committed)


async def day(scene: Scene, left: Day, *, work: bool = True) -> None:
    """All that undoubt does in a database, in sessions that are opened now: recovery, the detector of
    deadlocks, doctor, migrate, prune; and, with ``work``, transactions."""
    await scene.anew()
    waiter = scene.attacker(LANDLORD)
    waiting = [await wait_for(waiter, place, "w", "h", 81) for place in NAMES]
    await scene.start_recovery()
    await scene.expect_recovered(left.aborted, committed=False)
    await scene.expect_recovered(left.committed, committed=True)
    await scene.passes(2)
    await asyncio.sleep(0.5)
    with contextlib.suppress(UndoubtError):
        await examine(scene.settings, older_than_s=0.0)
    for name, settings in scene.settings.participants.items():
        with contextlib.suppress(UndoubtError):
            await schema.migrate(name, settings)
        with contextlib.suppress(UndoubtError):
            await schema.prune(name, settings, older_than_s=86_400.0)
    if work:
        await scene.move(await scene.coordinator(), "the day after")
        await scene.move_one(scene.coordinators[-1])
    await waiter.close()
    await asyncio.gather(*waiting)
    scene.leave(left.aborted)
    scene.leave(left.committed)


async def in_both(scene: Scene, role: str) -> list[tuple[str, Connection]]:
    attacker = scene.attacker(role)
    return [(place, await attacker.at(place)) for place in NAMES]


async def defaults(scene: Scene, settings: dict[str, str], role: str = LANDLORD) -> int:
    """What the owner of the databases makes every new session begin with; how many of these he may set."""
    made = 0
    for _, connection in await in_both(scene, role):
        for name, value in settings.items():
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute(f'alter database "{scene.database}" set {name} = {value}')
                made += 1
    return made


@attack("better matches in public", stands=quiet)
async def in_public(scene: Scene) -> None:
    """With PostgreSQL's own defaults the owner of a database was a superuser after a pass of recovery."""
    left = await before(scene)
    for _, connection in await in_both(scene, LANDLORD):
        await plant_in_path(connection, "public")
    await day(scene, left)


@attack("better matches in a schema with the login role's name", stands=quiet)
async def in_own_schema(scene: Scene) -> None:
    """It comes first in every default search path: "$user"."""
    left = await before(scene)
    for _, connection in await in_both(scene, SCHEMER):
        await plant_in_path(connection, scene.stand.login)
    await day(scene, left)


@attack("a search path of the database with everything before pg_catalog", stands=quiet)
async def before_catalog(scene: Scene) -> None:
    left = await before(scene)
    for _, connection in await in_both(scene, LANDLORD):
        await plant_before_catalog(connection, EVIL)
    await defaults(scene, {"search_path": f"{EVIL}, pg_catalog, public"})
    await day(scene, left)


@attack("sessions that begin serializable, read only, deferrable", stands=quiet)
async def safe_snapshot(scene: Scene) -> None:
    """Recovery waits for a safe snapshot behind the very branch that it is to end."""
    left = await before(scene, "set transaction isolation level serializable")
    await defaults(
        scene,
        {
            "default_transaction_isolation": "serializable",
            "default_transaction_read_only": "on",
            "default_transaction_deferrable": "on",
            "transaction_isolation": "serializable",
            "transaction_read_only": "on",
            "transaction_deferrable": "on",
        },
    )
    await day(scene, left, work=False)


@attack("timeouts of a millisecond", stands=quiet)
async def timeouts(scene: Scene) -> None:
    left = await before(scene)
    names = (
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "transaction_timeout",
    )
    await defaults(scene, dict.fromkeys(names, "'1ms'"))
    await day(scene, left, work=False)


@attack("formats and modes that statements depend on", stands=quiet)
async def formats(scene: Scene) -> None:
    left = await before(scene)
    await defaults(
        scene,
        {
            "datestyle": "'German, DMY'", "intervalstyle": "sql_standard", "timezone": "'Pacific/Chatham'",
            "extra_float_digits": "-15", "bytea_output": "escape", "standard_conforming_strings": "off",
            "backslash_quote": "off", "escape_string_warning": "on", "array_nulls": "off",
            "transform_null_equals": "on", "quote_all_identifiers": "on", "row_security": "off",
            "client_encoding": "'LATIN1'", "client_min_messages": "error", "exit_on_error": "on",
            "check_function_bodies": "off", "plan_cache_mode": "force_generic_plan", "jit_above_cost": "0",
            "enable_indexscan": "off", "stats_fetch_consistency": "snapshot", "synchronous_commit": "off",
            "default_tablespace": "pg_default", "restrict_nonsystem_relation_kind": "'view, foreign-table'",
            "debug_parallel_query": "on", "undoubt.tx": "'nothing'", "application_name": "'undoubt'",
        },
    )  # fmt: skip
    await day(scene, left)


@attack("sessions that begin in another role", stands=quiet)
async def role(scene: Scene) -> None:
    """A superuser's session would run as the attacker, and could end nothing."""
    left = await before(scene)
    await defaults(scene, {"role": LANDLORD, "session_authorization": LANDLORD})
    await day(scene, left, work=False)


@attack(
    "event triggers, casts of types of ours, and other things that only a superuser may make", stands=quiet
)
async def superusers_things(scene: Scene) -> None:
    left = await before(scene)
    for place, connection in await in_both(scene, LANDLORD):
        await plant_in_path(connection, EVIL)
        for statement in (
            f"create function {EVIL}.fired() returns event_trigger language plpgsql as"
            f" $$ begin perform {EVIL}.payload(); end $$",
            f"create event trigger fired on ddl_command_start execute function {EVIL}.fired()",
            f"create event trigger entered on login execute function {EVIL}.fired()",
            f"create cast (text as int) with function {EVIL}.toint(text) as implicit",
            f"alter database \"{scene.database}\" set session_preload_libraries = 'auto_explain'",
            "alter schema undoubt owner to landlord",
            "drop schema undoubt cascade",
            "create table undoubt.mine ()",
            "alter table undoubt.undoubt_branch owner to landlord",
            "create rule r as on insert to undoubt.undoubt_branch do instead nothing",
            "create policy p on undoubt.undoubt_branch using (false)",
            "grant all on undoubt.undoubt_branch to landlord",
            f"create table {EVIL}.refers (gid text references undoubt.undoubt_branch)",
        ):
            with contextlib.suppress(asyncpg.PostgresError):
                await connection.execute(statement)
                if "undoubt." in statement or "schema undoubt" in statement:
                    scene.breach(Kind.OUTCOME, f"at {place} the owner of the database may: {statement}")
    await day(scene, left)


@attack("a schema undoubt that somebody made first", stands=quiet)
async def schema_first(scene: Scene) -> None:
    """Tables and functions in it are its owner's, and decide and run in undoubt's sessions."""
    await _migrated_after(scene, SCHEMER)


@attack("a schema undoubt that the owner of the database made first", stands=quiet)
async def schema_of_owner(scene: Scene) -> None:
    await _migrated_after(scene, LANDLORD)


async def _migrated_after(scene: Scene, role_: str) -> None:
    await scene.in_fresh_databases(role_, _plant_schema)
    for name, settings in scene.settings.participants.items():
        with contextlib.suppress(UndoubtError):
            await schema.migrate(name, settings)
    await _a_day_without_tables(scene)


@attack("a function note_commit in a schema undoubt, where nobody has migrated", stands=quiet)
async def note_first(scene: Scene) -> None:
    await scene.in_fresh_databases(SCHEMER, _plant_schema)
    await _a_day_without_tables(scene)


async def _a_day_without_tables(scene: Scene) -> None:
    await scene.anew()
    await scene.start_recovery()
    coordinator = await scene.coordinator()
    if scene.stand.protocol != "3pc":  # which refuses to begin there, and says why
        await scene.move(coordinator, "without tables of ours")
    await scene.move_one(coordinator)
    await scene.passes(2)
    with contextlib.suppress(UndoubtError):
        await examine(scene.settings, older_than_s=0.0)
    for name, settings in scene.settings.participants.items():
        with contextlib.suppress(UndoubtError):
            await schema.prune(name, settings, older_than_s=1.0)


async def _plant_schema(attacker: Attacker) -> None:
    for place in NAMES:
        connection = await attacker.at(place)
        await plant_in_path(connection, "undoubt")
        await connection.execute(_SCHEMA)


_SCHEMA = """
    grant all on schema undoubt to public;
    create table undoubt.undoubt_commit (txid text, participant text, hash bytea,
        noted_at timestamptz default now());
    create table undoubt.undoubt_branch (gid text primary key, txid text, participant text, members text,
        rule text, state "char", last_elected bigint, last_attempt bigint, hash bytea,
        changed_at timestamptz default now());
    create table undoubt.undoubt_history (id text, system bigint, timeline text);
    grant all on all tables in schema undoubt to public;
    create function undoubt.note_commit(text, text) returns void language sql as
        $$ select undoubt.payload() $$;
    create function undoubt.note_commit(text) returns void language sql as $$ select undoubt.payload() $$;
    create function undoubt.note_commit(bytea) returns void language sql as $$ select undoubt.payload() $$;
    create function undoubt.history() returns text language sql as
        $$ select undoubt.payload(); select 'forged'::text $$;
    create function undoubt.fired() returns trigger language plpgsql as
        $$ begin perform undoubt.payload(); return null; end $$;
    create trigger fired before insert or update or delete on undoubt.undoubt_branch
        for each statement execute function undoubt.fired();
    create trigger fired before insert or update or delete on undoubt.undoubt_commit
        for each statement execute function undoubt.fired();
"""


@attack("functions of undoubt's own, called with a search path of the caller's", stands=quiet)
async def definers(scene: Scene) -> None:
    """They run with the rights of whoever has migrated."""
    for place, connection in await in_both(scene, SCHEMER):
        await plant_before_catalog(connection, EVIL)
        await connection.execute(f"set search_path = {EVIL}, pg_temp, pg_catalog")
        caller = scene.attacker(SCHEMER)
        known = await functions(caller, place)
        for name, count in known:
            arguments = ", ".join(["'a'"] * count)
            for how in ("", f"set search_path = {EVIL}, pg_catalog; ", "set lock_timeout = '1ms'; "):
                with contextlib.suppress(asyncpg.PostgresError):
                    await connection.execute(f"{how}select undoubt.{name}({arguments})")
        if not known:
            scene.breach(Kind.STALL, f"there is no function of undoubt's at {place}")
    await scene.anew()
    await scene.start_recovery()
    await scene.passes(1)


@attack(
    "temporary objects with the names of types and tables, in the application's own session", stands=quiet
)
async def temporary(scene: Scene) -> None:
    """A trigger of somebody else's table makes them; undoubt's statements in that session keep their
    meaning."""
    for _, connection in await in_both(scene, SCHEMER):
        await connection.execute(_TEMPORARY)
    left = await before(scene)
    await scene.anew()
    await scene.start_recovery()
    coordinator = await scene.coordinator()
    for _ in range(2):
        await scene.move_one(coordinator, "insert into market.bids values (1)")
        await scene.move(coordinator, "beside temporary objects")
    await scene.expect_recovered(left.aborted, committed=False)
    await scene.expect_recovered(left.committed, committed=True)
    scene.leave(left.aborted)
    scene.leave(left.committed)


_TEMPORARY = """
    create schema market;
    grant usage on schema market to public;
    create table market.bids (id int);
    grant insert on market.bids to public;
    create function market.makes() returns trigger language plpgsql as $$
        declare each text;
        begin
            foreach each in array array['text', 'name', 'int8', 'int4', 'oid', 'xid8', 'bool', 'float8',
                'interval', 'regprocedure', 'regclass', 'pg_locks', 'pg_stat_activity', 'pg_prepared_xacts',
                'pg_roles', 'pg_proc', 'pg_namespace', 'pg_class', 'pg_database', 'pg_settings',
                'undoubt_commit'] loop
                execute pg_catalog.format('create temporary table if not exists %I (a int)', each);
            end loop;
            return null;
        end $$;
    create trigger makes after insert on market.bids for each row execute function market.makes();
"""


@attack("what another application of the same role has left in a pooler's sessions", stands=quiet)
async def pooled(scene: Scene) -> None:
    """Temporary tables come before all others, and a search path stays: the list of prepared transactions
    would be the neighbour's."""
    left = await before(scene)
    async with AsyncExitStack() as stack:
        dsns = {}
        for place, server in scene.servers.servers.items():
            settings = {"default_pool_size": str(POOLED)}
            pooler = PgBouncer(server.dsn(), settings, users={scene.stand.login: ""})
            await stack.enter_async_context(pooler)
            dsns[place] = pooler.dsn(scene.database, user=scene.stand.login)
            await _litter(dsns[place])
        with scene.through(dsns):
            await day(scene, left)


POOLED = 6
HIDDEN = ("pg_prepared_xacts", "pg_locks", "pg_stat_activity", "pg_roles", "pg_database", "pg_settings",
          "text", "xid8", "name", "bool", "int8", "undoubt_branch", "undoubt_commit")  # fmt: skip


async def _litter(dsn: str) -> None:
    """In every session of that pool."""
    neighbours = [await asyncpg.connect(dsn, statement_cache_size=0) for _ in range(POOLED)]
    for one in neighbours:
        await one.execute("begin")
    for one in neighbours:
        for name in HIDDEN:
            await one.execute(f'create temporary table "{name}" as select 1 as gid')
        await one.execute("set search_path = pg_temp, public, pg_catalog")
    for one in neighbours:
        await one.execute("commit")
        await one.close()


# Servers that undoubt starts by itself.

_INTRUDER = """
import asyncio, os, sys
import asyncpg
if os.geteuid() == 0:
    os.setgid(65533); os.setuid(65533)
async def enter(place):
    connection = await asyncpg.connect(
        host=place, port=int(sys.argv[1]), user="postgres", database="postgres", timeout=5,
        passfile="/nonexistent", ssl=False,
    )
    print(await connection.fetchval("select rolsuper from pg_roles where rolname = current_user"))
    await connection.close()
for place in sys.argv[2:]:
    try:
        asyncio.run(enter(place))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
        pass
"""


@attack("a server that undoubt started, entered by another user of the machine", stands=quiet)
async def embedded(scene: Scene) -> None:
    """Who becomes its superuser runs programs as the server's user."""
    async with EmbeddedServer(durable=False) as server:
        places = ["127.0.0.1", str(server.folder)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _INTRUDER, str(server.port), *places],
            capture_output=True, text=True, check=False, timeout=60, env=environment,
        )  # fmt: skip
    if "True" in ran.stdout:
        scene.breach(Kind.SUPERUSER, "another user of the machine is superuser of an embedded server")
    elif ran.returncode:
        raise RuntimeError(ran.stderr)
