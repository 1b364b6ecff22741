"""SQL that would end its branch, outlive it, or become somebody else. The attacker may run SQL in a database
of its own; what it must not do is to commit a part of a transaction by itself."""

from __future__ import annotations

from typing import Any

from tests.prove.hostile.attacks_who import begun, ended
from tests.prove.hostile.wire import post
from tests.prove.hostile.world import ATTACKER, World
from tests.undoubt.sidecar.stage import token

ENDS = (
    "commit", "COMMIT WORK", "end", "end transaction", "rollback", "abort", "abort work", "commit and chain",
    "rollback and chain", "rollback and no chain", " \t\n\r\f\vcommit", ";commit", "; ;; commit",
    "/* x */ commit",
    "/* /* nested */ */commit", "-- x\ncommit", "--\r\ncommit", "CoMmIt", "commit;",
    "prepare transaction 'mine'",
    "prepare/**/transaction 'mine'", "PREPARE\nTRANSACTION 'mine'", "/*'*/end/*'*/", "commit prepared 'mine'",
    "rollback prepared 'mine'", "rollback work", "rollback transaction", "begin", "start transaction",
    "begin isolation level serializable", "commit --", "end;--", "/**/;/**/commit",
)  # fmt: skip
BECOMES = (
    "set session authorization postgres", "set role postgres", "set session authorization default",
    "reset role",
    "set local role pg_read_all_data", "set local session authorization postgres",
    "alter role postgres set search_path = scratch", "create role mallory superuser",
    "grant postgres to current_user",
    "alter system set fsync = off", "create database other", "create extension dblink", "reset all",
    "discard all",
    "deallocate all", "set undoubt.tx = 'x'", "set local undoubt.tx = ''",
    "set application_name = 'undoubt:x'",
    "set local transaction_read_only = on", "set transaction isolation level serializable",
    "set lock_timeout = 0",
    "set idle_in_transaction_session_timeout = 0", "set local synchronous_commit = off",
)  # fmt: skip
REACHES = (
    "copy notes to stdout", "copy notes from stdin", "copy notes to program 'id'",
    "copy notes from '/etc/passwd'",
    "copy (select 1) to '/tmp/undoubt-hostile'", "select pg_read_file('/etc/passwd')",
    "select lo_import('/etc/passwd')",
    "listen x", "unlisten *", "notify x", "create temp table t (x int)",
    "declare c cursor with hold for select 1",
    "vacuum", "create index concurrently on notes (tag)", "cluster", "checkpoint", "load 'plpgsql'",
    "lock table notes", "select pg_advisory_lock(1)", "savepoint one", "release one", "rollback to one",
    "do $$ begin commit; end $$", "do $$ begin rollback; end $$", "do $$ begin execute 'commit'; end $$",
    "call pg_temp.x()", "select 1; commit", "select 1; select 2", "", " ", ";", "--", "/* open", "'",
    '"', "$$", "\\",
    "select * from pg_stat_activity", "select * from pg_prepared_xacts", "select gid from pg_prepared_xacts",
    "select pg_sleep(0.01)", "select repeat('x', 100000000)", "select * from generate_series(1, 1000000)",
    "select 1/0", "select pg_terminate_backend(pg_backend_pid())",
    "select pg_cancel_backend(pg_backend_pid())",
    "select convert_from('\\xff', 'LATIN1')", "set client_encoding = 'LATIN1'",
    "set client_encoding = 'SQL_ASCII'",
    "set bytea_output = 'escape'", "select $1", "select $65535", "select $99999999999", "execute x",
    "prepare x as select 1",
    "prepare transaction_ as select 1", "values (null)", "table notes", "select", "select 'a' as \"\"",
    "select xmlparse(content '<a/>')", "explain analyze commit", "explain select 1", "select chr(0)",
    "select e'\\x00'",
    "alter table notes owner to postgres",
)  # fmt: skip
TOO_MUCH = "select repeat('x', 100000) from generate_series(1, 1000)"
REFUSED = 40
"""Each of so many transactions has read as much as it may when its answer is refused."""
VALUES: tuple[Any, ...] = (
    None, "", "a\0b", "\ud800", [], [[]], [[1], [2, 3]], [[[[[[[1]]]]]]], {}, {"type": "int4"},
    {"type": "x", "value": 1},
    {"type": "jsonb", "value": {"a": "\0"}}, {"type": "jsonb", "value": "\ud800"},
    {"type": "bytea", "value": "\\xz"},
    {"type": "int4", "value": 10**30}, 1e308, -1e-308, 10**400, True, [None], ["\0"],
    {"type": "json[]", "value": [{}]},
    {"type": "record", "value": "(1)"}, {"type": "cstring", "value": "x"}, {"type": "internal", "value": "x"},
    {"type": "regclass", "value": "pg_authid"}, {"type": "text[]", "value": "{"}, "'; drop table notes; --",
)  # fmt: skip


def sql(world: World) -> None:
    """Each statement in a transaction that has written, and that is then committed. What is written there is
    committed if, and only if, the answer to the commit says so."""
    for number, statement in enumerate((*ENDS, *BECOMES, *REACHES)):
        _in_between(world, f"sql {number}", statement)
    for number in range(REFUSED):
        _in_between(world, f"refused {number}", TOO_MUCH)
    _values(world)
    _too_many(world)


def _in_between(world: World, tag: str, statement: str) -> None:
    mine = token(ATTACKER)
    id_ = begun(world)
    tx = f"/v1/transactions/{id_}"

    def write(what: str) -> dict[str, object]:
        return {"participant": "scratch", "sql": f"insert into notes values ('{what}')"}

    asked = {"participant": "scratch", "sql": statement, "params": []}
    answers = world.ask(
        post(f"{tx}/statements", write(f"{tag} before"), token=mine),
        post(f"{tx}/statements", asked, token=mine),
        post(f"{tx}/statements", write(f"{tag} after"), token=mine),
        post(f"{tx}/commit", token=mine),
    )
    if answers[-1].status == 200:
        world.committed += 1
        for answer, when in ((answers[0], "before"), (answers[2], "after")):
            if answer.status == 200:
                world.notes[f"{tag} {when}"] += 1
    else:
        ended(world, id_)


def _values(world: World) -> None:
    mine = token(ATTACKER)
    id_ = begun(world)
    tx = f"/v1/transactions/{id_}"
    for value in VALUES:
        for statement in ("select $1", "select $1::text", "select $1::int", "insert into notes values ($1)"):
            asked = {"participant": "scratch", "sql": statement, "params": [value]}
            world.ask(
                post(f"{tx}/statements", {"participant": "scratch", "sql": "savepoint one"}, token=mine),
                post(f"{tx}/statements", asked, token=mine),
                post(f"{tx}/statements", {"participant": "scratch", "sql": "rollback to one"}, token=mine),
            )
    ended(world, id_)


def _too_many(world: World) -> None:
    """Parameters, rows, branches."""
    mine = token(ATTACKER)
    for body in (
        {"sql": "select 1", "params": [1] * 70_000},
        {"sql": "select " + ",".join(f"${n}" for n in range(1, 2000)), "params": ["x"] * 1999},
        {"sql": "select " + "(" * 20_000 + "1" + ")" * 20_000},
        {"sql": "select " + "1," * 40_000 + "1"},
        {"sql": "x" * 90_000},
    ):
        id_ = begun(world)
        world.ask(post(f"/v1/transactions/{id_}/statements", {"participant": "scratch", **body}, token=mine))
        ended(world, id_)
    id_ = begun(world)
    announce = post(f"/v1/transactions/{id_}/branches", {"participant": "scratch"}, token=mine)
    world.ask(*[announce] * 100)
    ended(world, id_)
