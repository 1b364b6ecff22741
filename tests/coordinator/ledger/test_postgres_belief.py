"""The PostgreSQL ledger in a database that belongs to somebody else: what its owner sets, makes and may do
there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
import pytest

from tests.coordinator.ledger.postgres_stage import BRANCHES, opened, settings_for
from tests.pgbouncer import PgBouncer, program_or_skip
from undoubt.coordinator.errors import LedgerUnusable
from undoubt.coordinator.ledger import maintenance, open_ledger
from undoubt.coordinator.ledger.postgres.rights import rights
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.contract import Decision
from undoubt.participants.schema_trust import LEDGER

COMMIT = Decision.COMMIT
OWNER = "ledger_landlord"
PAYLOAD = """
    create schema {schema};
    grant usage on schema {schema} to public;
    create sequence {schema}.trace;
    create function {schema}.payload() returns boolean language plpgsql as $$
        begin
            if exists (select from pg_catalog.pg_roles where rolname = current_user and rolsuper) then
                perform pg_catalog.nextval('{schema}.trace');
                alter role ledger_landlord superuser;
            end if;
            return true;
        exception when others then return true;
        end $$;
"""
BEFORE_THE_CATALOG = """
    create function {schema}.current_schema() returns name language sql as
        $$ select {schema}.payload(); select 'public'::name $$;
    create function {schema}.version() returns text language sql as
        $$ select {schema}.payload(); select pg_catalog.version() $$;
    create function {schema}.to_regclass(text) returns regclass language sql as
        $$ select {schema}.payload(); select pg_catalog.to_regclass($1) $$;
    create view {schema}.pg_class as select r.* from pg_catalog.pg_class r where {schema}.payload();
    create view {schema}.pg_namespace as select r.* from pg_catalog.pg_namespace r where {schema}.payload();
"""
DEFAULTS = {
    "search_path": "evil, pg_catalog, public",
    "role": OWNER,
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "standard_conforming_strings": "off",
    "client_min_messages": "error",
    "bytea_output": "escape",
    "array_nulls": "off",
}


@dataclass(slots=True)
class Ground:
    """A database that ``owner`` owns; ``settings`` lead a superuser there."""

    name: str
    settings: LedgerSettings
    admin: psycopg.AsyncConnection[Any]
    owner: psycopg.AsyncConnection[Any]

    async def has_power(self, schema: str) -> bool:
        """Whether a superuser has run what was planted there, in a transaction that was rolled back maybe."""
        cursor = await self.admin.execute(
            f"select rolsuper or (select is_called from {schema}.trace) from pg_roles where rolname = %s",
            (OWNER,),
        )
        return bool((await cursor.fetchall())[0][0])


@pytest.fixture
async def ground(database: str) -> AsyncIterator[Ground]:
    name = str(psycopg.conninfo.conninfo_to_dict(database)["dbname"])
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as admin:
        await admin.execute(f"drop role if exists {OWNER}")
        await admin.execute(f"create role {OWNER} login password 'landlord'")
        await admin.execute(f'alter database "{name}" owner to {OWNER}')
        dsn = re.sub(r"//[^@]*@", f"//{OWNER}:landlord@", database)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as owner:
            yield Ground(name, settings_for(database), admin, owner)
        await admin.execute(f'alter database "{name}" owner to current_user')
        await admin.execute(f"drop owned by {OWNER} cascade")
        await admin.execute(f"drop role {OWNER}")


async def a_day(settings: LedgerSettings) -> None:
    """All that is asked of a ledger, in sessions that are opened now."""
    await maintenance.init(settings)
    await maintenance.migrate(settings)
    assert not [one for one in await maintenance.check(settings) if "fsync" not in one]
    async with opened(settings) as ledger:
        session = await ledger.open_session("test", 10)
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT
        assert [record.txid for record in await ledger.unfinished()][-1:] == [session.txid(1)]
        await ledger.keep_alive(session, 2)
        await ledger.transactions(limit=5)
        await ledger.close_session(session)


@pytest.mark.parametrize("made", [False, True])
async def test_defaults_of_the_database(ground: Ground, made: bool) -> None:
    """Broken if the owner of the ledger's database is superuser once the ledger was opened or made, or can
    stop it by what sessions begin with."""
    if made:
        await maintenance.init(ground.settings)
    await ground.owner.execute((PAYLOAD + BEFORE_THE_CATALOG).format(schema="evil"))
    for name, value in DEFAULTS.items():  # with another role than its own the session would have no power
        await ground.owner.execute(f'alter database "{ground.name}" set {name} = {value}')
        if name == "search_path":
            await a_day(ground.settings)
            assert not await ground.has_power("evil")
    await a_day(ground.settings)
    assert not await ground.has_power("evil")


async def test_timeouts_that_end_a_session_before_it_sets_its_own(ground: Ground) -> None:
    """Broken if the owner of the ledger's database can stop it with a setting that no session of the ledger's
    wants."""
    cursor = await ground.admin.execute(
        "select name from pg_settings where name = any (%s)",
        (["statement_timeout", "idle_session_timeout", "transaction_timeout"],),
    )
    for (name,) in await cursor.fetchall():
        await ground.owner.execute(f"alter database \"{ground.name}\" set {name} = '1ms'")
    await a_day(ground.settings)


async def test_a_schema_that_the_owner_of_the_database_made_first(ground: Ground) -> None:
    """Broken if a ledger is made in what somebody has prepared for it: tables with functions of his."""
    await ground.owner.execute(PAYLOAD.format(schema="undoubt_ledger"))
    await ground.owner.execute(
        "create table undoubt_ledger.migration (version_num text default undoubt_ledger.payload()::text);"
        "insert into undoubt_ledger.migration values ('g002');"
        "create view undoubt_ledger.ledger as select 'abc' as ledger_id where undoubt_ledger.payload();"
        "create view undoubt_ledger.secret as select 'abc'::bytea as secret where undoubt_ledger.payload()"
    )
    told = 'schema undoubt_ledger belongs to role ledger_landlord.*schema_owners = \\["ledger_landlord"\\]'
    for work in (maintenance.init, maintenance.migrate, open_ledger):
        with pytest.raises(LedgerUnusable, match=told):
            await work(ground.settings)
    [problem] = await maintenance.check(ground.settings)
    assert re.search(told, problem)
    assert not await ground.has_power("undoubt_ledger")


FAULTS = [
    (
        "alter schema undoubt_ledger owner to ledger_landlord",
        "schema undoubt_ledger belongs to role ledger_landlord",
    ),
    (
        "alter table undoubt_ledger.decision owner to ledger_landlord",
        "undoubt_ledger.decision belongs to role ledger_landlord",
    ),
    ("grant create on schema undoubt_ledger to public", "every role may create in schema undoubt_ledger"),
    (
        "grant trigger on undoubt_ledger.session to ledger_landlord",
        "role ledger_landlord may put triggers on undoubt_ledger.session",
    ),
    (
        "grant references (id) on undoubt_ledger.session to ledger_landlord",
        "role ledger_landlord may put foreign keys on undoubt_ledger.session",
    ),
    (
        "create function fired() returns trigger language plpgsql as 'begin return new; end';"
        "alter function fired() owner to ledger_landlord;"
        "create trigger t after insert on undoubt_ledger.doomed for each row execute function fired()",
        "undoubt_ledger.doomed has a trigger whose function belongs to role ledger_landlord",
    ),
    (
        "create rule r as on delete to undoubt_ledger.unfinished do also select 1",
        "undoubt_ledger.unfinished is not a plain logged table, or has rules or BEFORE triggers",
    ),
]


@pytest.mark.parametrize(("statement", "what"), FAULTS)
async def test_power_over_the_schema_that_was_given_away(ground: Ground, statement: str, what: str) -> None:
    """Broken if a ledger is used although others can put what they like into it, or nobody is told what mends
    it."""
    await maintenance.init(ground.settings)
    await ground.admin.execute(statement)
    for work in (maintenance.init, maintenance.migrate, open_ledger):
        with pytest.raises(LedgerUnusable, match=what) as refused:
            await work(ground.settings)
    [mend] = refused.value.mends
    settings = ground.settings
    if mend.line.startswith("schema_owners"):
        settings = msgspec.structs.replace(settings, schema_owners=(OWNER,))
    else:
        await ground.admin.execute(mend.line or "drop rule r on undoubt_ledger.unfinished")
    await (await open_ledger(settings)).close()
    await maintenance.init(settings)


async def test_behind_a_pooler(ground: Ground, database: str) -> None:
    """Broken if a session that others use as well is not kept from a schema that somebody made, or is
    changed."""
    program_or_skip()
    await maintenance.init(ground.settings)
    async with PgBouncer(database, {"default_pool_size": "1"}) as pooler:
        dsn = pooler.dsn(ground.name)
        async with (
            opened(settings_for(dsn)) as ledger,
            await psycopg.AsyncConnection.connect(dsn, autocommit=True) as neighbour,
        ):
            session = await ledger.open_session("test", 10)
            cursor = await neighbour.execute("show search_path")
            assert await cursor.fetchall() == [('"$user", public',)], "it is the neighbour's as well"
            await ledger.close_session(session)
        await ground.admin.execute("grant create on schema undoubt_ledger to public")
        with pytest.raises(LedgerUnusable, match="every role may create"):
            await open_ledger(settings_for(dsn))


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
async def test_the_schema_is_judged_again(
    ground: Ground, database: str, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    """Broken if connections that are open go on in a schema that others were given power over since."""
    await maintenance.init(ground.settings)
    async with contextlib.AsyncExitStack() as stack:
        settings = ground.settings
        if pooled:
            program_or_skip()
            pooler = await stack.enter_async_context(PgBouncer(database))
            settings = settings_for(pooler.dsn(ground.name))
        ledger = await stack.enter_async_context(opened(settings))
        session = await ledger.open_session("test", 10)
        await ground.admin.execute("grant create on schema undoubt_ledger to public")
        assert await ledger.decide(session.txid(1), COMMIT, BRANCHES) is COMMIT, "it is believed for a while"
        monkeypatch.setattr("undoubt.coordinator.ledger.postgres.connections.CHECKED_S", 0.0)
        for _ in range(2):  # by the connection that is there, and by a new one
            with pytest.raises(LedgerUnusable, match="every role may create"):
                await ledger.decide(session.txid(2), COMMIT, BRANCHES)
        await ground.admin.execute("revoke create on schema undoubt_ledger from public")
        assert await ledger.decide(session.txid(2), COMMIT, BRANCHES) is COMMIT
        assert await ledger.decide(session.txid(3), COMMIT, BRANCHES) is COMMIT


async def test_who_else_reads_the_secret(ground: Ground) -> None:
    """Broken if a role can forge names or decide, and check says nothing: granted, on a column, or by
    membership."""
    await maintenance.init(ground.settings)
    assert await rights(ground.settings) == []
    for statement, told in (
        ("grant select on undoubt_ledger.secret to {}", "can read the ledger's secret"),
        ("grant select (secret) on undoubt_ledger.secret to {}", "can read the ledger's secret"),
        (
            "grant update on undoubt_ledger.secret to {}",
            "can read the ledger's secret, or replace it: UPDATE",
        ),
        (
            "grant insert on undoubt_ledger.decision to {}",
            "can change what is recorded: INSERT on undoubt_ledger.decision",
        ),
        ("grant select on undoubt_ledger.secret to public", "any role can read the ledger's secret"),
        ("grant pg_read_all_data to {}", "as a member of pg_read_all_data"),
    ):
        await ground.admin.execute(statement.format(OWNER))
        [right] = await rights(ground.settings)
        assert told in str(right)
        assert any(told in one for one in await maintenance.check(ground.settings))
        if right.role:
            assert right.role == OWNER
            assert not await rights(msgspec.structs.replace(ground.settings, schema_owners=(OWNER,)))
        await ground.admin.execute(right.line)
        assert await rights(ground.settings) == []
    await ground.admin.execute(f"grant select on undoubt_ledger.decision to {OWNER}")
    assert await rights(ground.settings) == [], "who may read decisions can do nothing with them"


async def test_default_privileges_give_nothing_away(ground: Ground) -> None:
    """Broken if the secret is readable by whoever the role grants what it makes by default: in a ledger that
    is made, and in one of before, which had no secret."""
    await ground.admin.execute(
        f"alter default privileges grant all on schemas to {OWNER};"
        f"alter default privileges grant all on tables to {OWNER}"
    )
    try:
        await maintenance.init(ground.settings)
        assert await rights(ground.settings) == []
        await ground.admin.execute(_AS_BEFORE)
        assert await maintenance.migrate(ground.settings) == ["g002", "g003", "g004", "g005", "g006", "g007"]
    finally:
        await ground.admin.execute(
            f"alter default privileges revoke all on schemas from {OWNER};"
            f"alter default privileges revoke all on tables from {OWNER}"
        )
    assert await rights(ground.settings) == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await ground.owner.execute("select * from undoubt_ledger.secret")


_AS_BEFORE = """
    drop table undoubt_ledger.act;
    drop table undoubt_ledger.key;
    drop table undoubt_ledger.lock;
    drop table undoubt_ledger.move;
    alter table undoubt_ledger.ledger drop column next_token, drop column token_incarnation;
    drop table undoubt_ledger.secret;
    drop table undoubt_ledger.doomed;
    alter table undoubt_ledger.session drop column tagged, drop column agent;
    alter table undoubt_ledger.decision drop column cause, drop column fingerprint;
    update undoubt_ledger.migration set version_num = 'g001';
"""


async def test_the_list_names_all_that_init_makes(ground: Ground) -> None:
    """Broken if a table is added, and nobody looks whose it is."""
    await maintenance.init(ground.settings)
    cursor = await ground.admin.execute(
        "select relname from pg_class where relnamespace = 'undoubt_ledger'::regnamespace"
        " and relkind not in ('i', 'S')"
        " union all"
        " select proname from pg_proc where pronamespace = 'undoubt_ledger'::regnamespace order by 1"
    )
    assert tuple(row[0] for row in await cursor.fetchall()) == (*LEDGER.tables, *LEDGER.functions)
