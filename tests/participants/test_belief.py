"""Schema ``undoubt`` is used only if nobody but trusted roles can change what it means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest
import pytest_asyncio

from tests.participants.hands import at
from tests.participants.support import KEY, WRITE, Database, new_gid, participant_at
from tests.pgbouncer import PgBouncer
from undoubt.embedded import EmbeddedServer
from undoubt.participants.contract import Evidence, Settled, Vote, XactStatus
from undoubt.participants.errors import ParticipantRefused
from undoubt.participants.findings import Finding, Severity
from undoubt.participants.ids import Gid, Protocol
from undoubt.participants.postgres import PostgresParticipant, schema
from undoubt.participants.schema_trust import PARTICIPANT
from undoubt.participants.settings import ParticipantSettings
from undoubt.participants.three_phase import Charter, Termination

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

PAYLOAD = """
    create schema undoubt;
    create function undoubt.payload() returns boolean language plpgsql as $$
        begin
            if exists (select from pg_catalog.pg_roles where rolname = current_user and rolsuper) then
                alter role landlord superuser;
            end if;
            return true;
        exception when others then return true;
        end $$;
    create function undoubt.fired() returns trigger language plpgsql as
        $$ begin perform undoubt.payload(); return new; end $$;
    create function undoubt.note_commit(bytea) returns void language sql as $$ select undoubt.payload() $$;
    create function undoubt.note_commit(text) returns void language sql as $$ select undoubt.payload() $$;
    create function undoubt.is_noted(bytea) returns boolean language sql as $$ select undoubt.payload() $$;
    create function undoubt.history() returns void language sql as $$ select undoubt.payload() $$;
    create function undoubt.current_history() returns text language sql as
        $$ select undoubt.payload()::text $$;
    create function undoubt.same(text, text) returns boolean language sql as $$ select undoubt.payload() $$;
    create operator undoubt.= (leftarg = text, rightarg = text, function = undoubt.same);
    create table undoubt.participant_migration (version_num text default undoubt.payload()::text);
    insert into undoubt.participant_migration values ('p003');
    create table undoubt.undoubt_history (one boolean, id text, system bigint, timeline text);
    create table undoubt.undoubt_note (hash bytea default undoubt.payload()::text::bytea,
        noted_at timestamptz default now());
    create table undoubt.undoubt_commit (txid text, participant text, noted_at timestamptz);
"""
BRANCHES = """create table undoubt.{name} (gid text primary key, txid text, participant text, members text,
    rule text, state "char", last_elected bigint, last_attempt bigint, note bytea,
    changed_at timestamptz default now() check (undoubt.payload()));"""
KINDS_OF_TABLE = {
    "trigger": BRANCHES.format(name="undoubt_branch")
    + """create trigger fired before insert or update or delete on undoubt.undoubt_branch
        for each row execute function undoubt.fired();""",
    "view": BRANCHES.format(name="real")
    + "create view undoubt.undoubt_branch as select * from undoubt.real where undoubt.payload();",
    "rule": BRANCHES.format(name="undoubt_branch")
    + """create rule r as on insert to undoubt.undoubt_branch
        do instead select undoubt.payload();""",
}


@pytest_asyncio.fixture
async def landlord(database: Database, server: EmbeddedServer) -> AsyncIterator[Connection]:
    """The owner of the database, who is no superuser."""
    await database.admin.execute(
        f"create role landlord login; alter database {database.name} owner to landlord;"
        "grant all on account to landlord"
    )
    connection = await asyncpg.connect(server.dsn(database.name, user="landlord"))
    yield connection
    await connection.close()
    await database.admin.execute(
        f"alter database {database.name} owner to postgres; drop owned by landlord cascade;drop role landlord"
    )


def three() -> Gid:
    return replace(new_gid(), protocol=Protocol.THREE_PHASE).tagged(KEY)


def charter(gid: Gid) -> Charter:
    return Charter((gid, replace(gid, branch=2, participant="q").tagged(KEY)), Termination.QUORUM)


async def found(participant: PostgresParticipant) -> list[Finding]:
    """What ``participants check`` says of the schema."""
    return [one for one in await participant.check() if one.check == "schema"]


async def is_superuser(database: Database) -> bool:
    return bool(await database.admin.fetchval("select rolsuper from pg_roles where rolname = 'landlord'"))


async def one_phase(participant: PostgresParticipant) -> None:
    branch = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    assert await branch.commit_one_phase() is Settled.APPLIED
    await branch.release()


@pytest.mark.parametrize("table", list(KINDS_OF_TABLE))
async def test_a_schema_that_the_owner_of_the_database_made_first(
    database: Database,
    landlord: Connection,
    participant: PostgresParticipant,
    table: str,
) -> None:
    """Broken if whoever owns a database is superuser once undoubt has worked in it."""
    await landlord.execute(PAYLOAD + KINDS_OF_TABLE[table])
    settings = ParticipantSettings(dsn=database.dsn)
    for act in (
        schema.migrate("p", settings),
        schema.prune("p", settings, older_than_s=0.0),
        schema.restored("p", settings),
    ):
        with pytest.raises(
            ParticipantRefused, match=r"schema undoubt belongs to role landlord.*undoubt doctor"
        ):
            await act
    gid = three()
    for call in (
        participant.states.enlist(gid, charter(gid), KEY.note(gid)),
        participant.states.read(gid),
        participant.states.unfinished(),
        participant.states.stale(0.0, 0.0),
        participant.states.forget([gid]),
        participant.states.bury(gid, charter(gid)),
    ):
        with pytest.raises(ParticipantRefused, match="belongs to role landlord"):
            await call
    await one_phase(participant)
    branch = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    prepared = await branch.prepare()
    assert prepared.vote is Vote.PREPARED
    assert prepared.evidence is not None
    assert prepared.evidence.history is None
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    with pytest.raises(ParticipantRefused, match="belongs to role landlord"):
        await participant.evidence(Evidence(prepared.evidence.xid, history="someones"))
    findings = await found(participant)
    assert {one.severity for one in findings} == {Severity.PROBLEM}
    assert "schema undoubt belongs to role landlord" in findings[0].what
    assert "a superuser's rights" in findings[0].why
    assert findings[0].fix == 'schema_owners = ["landlord"]'
    assert not await is_superuser(database)
    assert await database.balance() == 80


FAULTS = [
    ("alter schema undoubt owner to landlord", "schema undoubt belongs to role landlord"),
    (
        "alter table undoubt.undoubt_branch owner to landlord",
        "undoubt.undoubt_branch belongs to role landlord",
    ),
    (
        "alter function undoubt.note_commit(bytea) owner to landlord",
        "undoubt.note_commit belongs to role landlord",
    ),
    (
        "create function undoubt.note_commit(text) returns void language sql as 'select';"
        "alter function undoubt.note_commit(text) owner to landlord",
        "undoubt.note_commit belongs to role landlord",
    ),
    ("grant create on schema undoubt to landlord", "role landlord may create in schema undoubt"),
    ("grant create on schema undoubt to public", "every role may create in schema undoubt"),
    (
        "grant trigger on undoubt.undoubt_note to landlord",
        "role landlord may put triggers on undoubt.undoubt_note",
    ),
    (
        "grant references on undoubt.undoubt_note to landlord",
        "role landlord may put foreign keys on undoubt.undoubt_note",
    ),
    (
        "grant references (gid), references (txid) on undoubt.undoubt_branch to public",
        "every role may put foreign keys on undoubt.undoubt_branch",
    ),
    (
        "create table referring (gid text references undoubt.undoubt_branch (gid));"
        "alter table referring owner to landlord",
        "a foreign key of a table that belongs to role landlord refers to undoubt.undoubt_branch",
    ),
    (
        "create function fired() returns trigger language plpgsql as 'begin return new; end';"
        "alter function fired() owner to landlord;"
        "create trigger t after insert on undoubt.undoubt_branch for each row execute function fired()",
        "undoubt.undoubt_branch has a trigger whose function belongs to role landlord",
    ),
    (
        "create function mute() returns trigger language plpgsql as 'begin return null; end';"
        "create trigger t before insert on undoubt.undoubt_note for each row execute function mute()",
        "undoubt.undoubt_note is not a plain logged table, or has rules or BEFORE triggers",
    ),
    (
        "alter table undoubt.undoubt_note set unlogged",
        "undoubt.undoubt_note is not a plain logged table, or has rules or BEFORE triggers",
    ),
    (
        "create rule r as on delete to undoubt.undoubt_note do also select 1",
        "undoubt.undoubt_note is not a plain logged table, or has rules or BEFORE triggers",
    ),
    (
        "drop table undoubt.undoubt_history cascade;"
        "create view undoubt.undoubt_history as select 'a' as id, 1::bigint as system, '1' as timeline",
        "undoubt.undoubt_history is not a plain logged table, or has rules or BEFORE triggers",
    ),
]


@pytest.mark.parametrize(("statement", "what"), FAULTS)
async def test_power_over_the_schema_that_was_given_away(
    noted: Database,
    landlord: Connection,
    participant: PostgresParticipant,
    statement: str,
    what: str,
) -> None:
    """Broken if a schema that undoubt made is believed although others can put what they like into it."""
    [fine] = await found(participant)
    assert fine.severity is Severity.OK
    await noted.admin.execute(statement)
    [finding] = await found(participant)
    assert (finding.severity, finding.what) == (Severity.PROBLEM, what)
    with pytest.raises(ParticipantRefused, match=what):
        await schema.migrate("p", ParticipantSettings(dsn=noted.dsn))
    fresh = participant_at(noted.dsn)
    with pytest.raises(ParticipantRefused, match=what):
        await fresh.states.unfinished()
    await one_phase(fresh)
    assert await noted.admin.fetchval("select count(*) from undoubt.undoubt_note") == 0
    if finding.fix is None:
        await noted.admin.execute("drop table referring")
        [mended] = await found(fresh)
    elif finding.fix.startswith("schema_owners"):
        trusted = participant_at(noted.dsn, schema_owners=("landlord",))
        [mended] = await found(trusted)
        await trusted.close()
    else:
        await noted.admin.execute(finding.fix)
        if finding.fix.startswith("DROP"):
            await schema.migrate("p", ParticipantSettings(dsn=noted.dsn))
        [mended] = await found(fresh)
    assert mended.severity is Severity.OK
    await fresh.close()


async def test_foreign_keys_run_code_of_others(
    noted: Database, landlord: Connection, participant: PostgresParticipant
) -> None:
    """Why a right to put foreign keys is power over the schema: PostgreSQL casts each value with the rights
    of the owner of the table that is referred to."""
    await noted.admin.execute(
        "grant usage on schema undoubt to landlord; grant references on undoubt.undoubt_history to landlord;"
        "grant create on schema public to landlord"
    )
    await landlord.execute(
        "create type public.key as (v boolean);"
        "create function public.made(public.key) returns boolean language plpgsql as"
        " $$ begin alter role landlord superuser; return ($1).v; end $$;"
        "create cast (public.key as boolean) with function public.made(public.key) as implicit;"
        "create table public.referring (k public.key references undoubt.undoubt_history (one))"
    )
    await noted.admin.execute(
        "insert into undoubt.undoubt_history (id) values ('any') on conflict do nothing"
    )
    assert {one.severity for one in await found(participant)} == {Severity.PROBLEM}
    await landlord.execute("insert into public.referring values (row(true)::public.key)")
    assert await is_superuser(noted)


async def test_a_schema_made_anew_under_open_sessions(
    noted: Database,
    landlord: Connection,
    participant: PostgresParticipant,
) -> None:
    """Broken if sessions go on with what they have looked at before it was dropped and made by another."""
    gid = three()
    assert await participant.states.enlist(gid, charter(gid), KEY.note(gid))
    branch = await participant.begin(gid, timeout_s=30, key=KEY)
    await at(branch).execute(WRITE)
    lone = await participant.begin(new_gid(), timeout_s=30, key=KEY)
    await at(lone).execute("update account set balance = balance - 10 where id = 2")
    await noted.admin.execute("drop schema undoubt cascade")
    await landlord.execute(PAYLOAD + KINDS_OF_TABLE["trigger"])
    voted = await branch.prepare()
    assert voted.vote is Vote.ABORT
    assert "schema undoubt" in str(voted.reason)
    await branch.release()
    with pytest.raises(Exception, match="schema undoubt"):
        await lone.commit_one_phase()
    await lone.release()
    for call in (
        participant.states.enlist(gid, charter(gid), KEY.note(gid)),
        participant.states.unfinished(),
        participant.states.bury(gid, charter(gid)),
    ):
        with pytest.raises(ParticipantRefused, match="belongs to role landlord"):
            await call
    assert not await is_superuser(noted)
    assert await noted.balance() == await noted.balance(2) == 100
    await one_phase(participant)


async def test_a_schema_of_the_role_that_logs_in(
    database: Database,
    landlord: Connection,
    server: EmbeddedServer,
) -> None:
    """Broken if the usual case is refused: the role of the dsn has migrated, or a superuser has."""
    dsn = server.dsn(database.name, user="landlord")
    await schema.migrate("p", ParticipantSettings(dsn=dsn))
    own = participant_at(dsn)
    [finding] = await found(own)
    assert finding.severity is Severity.OK
    assert await own.states.unfinished() == []
    assert await own.evidence(Evidence(1, history="another")) is XactStatus.UNKNOWN
    await own.close()


async def test_default_privileges_give_nothing_away(
    database: Database,
    landlord: Connection,
    participant: PostgresParticipant,
) -> None:
    """Broken if tables that migrate makes are not believed, because of what the role grants by default."""
    await database.admin.execute(
        "alter default privileges grant all on schemas to landlord;"
        "alter default privileges grant all on tables to landlord"
    )
    try:
        await schema.migrate("p", ParticipantSettings(dsn=database.dsn))
    finally:
        await database.admin.execute(
            "alter default privileges revoke all on schemas from landlord;"
            "alter default privileges revoke all on tables from landlord"
        )
    [finding] = await found(participant)
    assert (finding.severity, finding.what) == (
        Severity.OK,
        "schema undoubt belongs to roles that are trusted",
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await landlord.execute("insert into undoubt.undoubt_note (hash) values ('')")


async def test_behind_a_pooler(
    database: Database,
    landlord: Connection,
    pooler: PgBouncer,
) -> None:
    """Broken if a session that others use as well is not kept from a schema that somebody made."""
    await landlord.execute(PAYLOAD + KINDS_OF_TABLE["trigger"])
    participant = participant_at(pooler.dsn(database.name))
    await one_phase(participant)
    with pytest.raises(ParticipantRefused, match="belongs to role landlord"):
        await participant.states.unfinished()
    with pytest.raises(ParticipantRefused, match="belongs to role landlord"):
        await schema.migrate("p", ParticipantSettings(dsn=pooler.dsn(database.name)))
    assert {one.severity for one in await found(participant)} == {Severity.PROBLEM}
    await participant.close()
    assert not await is_superuser(database)


async def test_a_schema_made_anew_behind_a_pooler(
    noted: Database,
    landlord: Connection,
    pooler: PgBouncer,
) -> None:
    """Broken if PREPARE asks for the history there, which is asked for with each branch, and runs what
    another has put in the place of the schema that was looked at."""
    participant = participant_at(pooler.dsn(noted.name))
    gid = three()
    assert await participant.states.enlist(gid, charter(gid), KEY.note(gid))
    branches = [await participant.begin(each, timeout_s=30, key=KEY) for each in (gid, new_gid())]
    for number, branch in enumerate(branches, 1):
        await at(branch).execute(f"update account set balance = balance - 10 where id = {number}")
    await noted.admin.execute("drop schema undoubt cascade")
    await landlord.execute(PAYLOAD + KINDS_OF_TABLE["trigger"])
    for branch in branches:
        voted = await branch.prepare()
        assert voted.vote is Vote.ABORT
        assert "schema undoubt" in str(voted.reason)
        await branch.release()
    assert not await is_superuser(noted)
    await one_phase(participant)
    await participant.close()
    assert not await is_superuser(noted)


async def test_the_lists_name_all_that_migrate_makes(noted: Database) -> None:
    """Broken if a table or a function is added, and nobody looks whose it is."""
    tables = await noted.admin.fetch(
        "select relname from pg_class c where relnamespace = 'undoubt'::regnamespace and relkind <> 'i'"
        # The sequence of an identity column belongs to its table's owner, and cannot be given to another.
        " and not exists (select from pg_depend where objid = c.oid and deptype = 'i' and relkind = 'S')"
        " order by 1"
    )
    functions = await noted.admin.fetch(
        "select distinct proname from pg_proc where pronamespace = 'undoubt'::regnamespace order by 1"
    )
    assert (tuple(row[0] for row in tables), tuple(row[0] for row in functions)) == (
        PARTICIPANT.tables,
        PARTICIPANT.functions,
    )
