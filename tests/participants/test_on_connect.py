"""The hook for new connections: what it sets lasts, what it leaves does not, its errors are told."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from tests.participants.hands import at
from tests.participants.support import WRITE, Database, new_gid, participant_at
from undoubt.participants.contract import Settled, Vote, Work
from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable, UsageError
from undoubt.participants.settings import ParticipantSettings

KINDS = ("asyncpg", "psycopg", "psycopg-sync")

Hook = Callable[[Any], Any]


class Marked(dict[str, Any]):
    """A JSON object as the application wants it."""


def loads(text: str | bytes) -> Any:
    return Marked(json.loads(text))


def hook_of(kind: str, steps: Callable[[Any], list[Any]], seen: list[Any] | None = None) -> Hook:
    """A hook of that kind of connection, which carries out the statements and calls that ``steps`` gives."""

    def call(connection: Any, step: Any) -> Any:
        return connection.execute(step) if isinstance(step, str) else step()

    async def of_coroutines(connection: Any) -> None:
        if seen is not None:
            seen.append(connection)
        for step in steps(connection):
            result = call(connection, step)
            if asyncio.iscoroutine(result):
                await result

    def plain(connection: Any) -> None:
        if seen is not None:
            seen.append(connection)
        for step in steps(connection):
            call(connection, step)

    return plain if kind == "psycopg-sync" else of_coroutines


def json_codec(connection: Any) -> list[Any]:
    if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
        return [lambda: set_json_loads(loads, connection)]
    return [lambda: connection.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=loads)]


async def test_what_it_sets_holds_in_every_branch(database: Database, kind: str) -> None:
    """Broken if a codec has to be set in each branch, which costs asyncpg its connection each time."""
    seen: list[Any] = []
    participant = participant_at(database.dsn, connections_max=1, on_connect=hook_of(kind, json_codec, seen))
    pids = set()
    for how in ("commit", "rollback", "commit"):
        branch = await participant.begin(new_gid(), timeout_s=30)
        pids.add(at(branch).get_server_pid())
        assert type(await at(branch).fetchval("""select '{"a": 1}'::json""")) is Marked
        if how == "commit":
            assert await branch.commit_one_phase() is Settled.APPLIED
        else:
            await branch.rollback()
        await branch.release()
    assert (len(pids), len(seen)) == (1, 1)
    await participant.in_doubt()
    assert len(seen) == 1, "undoubt's own sessions have no use for it"
    await participant.close()


LEFT = {
    "set": ("set search_path = nowhere", "select current_setting('search_path') = 'nowhere'"),
    "transaction": ("begin", "select false"),
    "failed": ("begin; savepoint a; select 1", "select false"),
    "lock": (
        "select pg_advisory_lock(7)",
        "select exists (select from pg_locks where locktype = 'advisory')",
    ),
    "table": ("create temp table t (x int)", "select to_regclass('pg_temp.t') is not null"),
    "statement": (
        'prepare "my own" as select 1',
        "select exists (select from pg_prepared_statements where from_sql)",
    ),
    "role": ("set role pg_monitor", "select current_user = 'pg_monitor'"),
    "marker": ("set undoubt.tx = 'mine'", "select current_setting('undoubt.tx') = 'mine'"),
    "name": ("set application_name = 'mine'", "select current_setting('application_name') = 'mine'"),
}


@pytest.mark.parametrize("what", LEFT)
async def test_what_it_leaves_is_gone(database: Database, kind: str, what: str) -> None:
    """Broken if a branch begins inside another transaction, or its guards find what the hook has set."""
    statement, probe = LEFT[what]
    participant = participant_at(database.dsn, on_connect=hook_of(kind, lambda _: [statement]))
    branch = await participant.begin(new_gid(), timeout_s=30)
    assert await at(branch).fetchval(probe) is False
    await at(branch).execute(WRITE)
    assert await branch.poll() is Work.WRITES
    result = await branch.prepare()
    assert (result.vote, result.evidence is not None) == (Vote.PREPARED, True)
    assert await branch.commit() is Settled.APPLIED
    await branch.release()
    assert await database.balance() == 90
    await participant.close()


class Wrong(psycopg.adapt.Loader):
    def load(self, data: Any) -> Any:
        return f"<{bytes(data).decode()}>"


def wrong_codecs(connection: Any) -> list[Any]:
    """Of types that undoubt itself reads."""
    names = ("text", "int8", "bool", "int4", "float8")
    if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
        return [lambda name=name: connection.adapters.register_loader(name, Wrong) for name in names]
    return [
        lambda name=name: connection.set_type_codec(
            name, schema="pg_catalog", encoder=str, decoder=lambda text: f"<{text}>"
        )
        for name in names
    ]


@pytest.mark.parametrize("where", ["hook", "branch"])
async def test_codecs_of_any_type_leave_undoubts_own_questions_alone(
    database: Database, kind: str, where: str
) -> None:
    """Broken if a marker that the application's codec reads counts as lost, or a transaction id as none."""
    hook = hook_of(kind, wrong_codecs)
    participant = participant_at(database.dsn, on_connect=hook if where == "hook" else None)
    branch = await participant.begin(new_gid(), timeout_s=30)
    if where == "branch":
        result = hook(branch.connection)
        if asyncio.iscoroutine(result):
            await result
    assert await at(branch).fetchval("select 'x'::text") == "<x>"
    await at(branch).execute("select pg_current_xact_id()")
    assert await branch.poll() is Work.WRITES
    assert (await branch.prepare()).vote is Vote.PREPARED
    await branch.rollback()
    await branch.release()
    after = await participant.begin(new_gid(), timeout_s=30)
    assert await after.poll() is Work.READ_ONLY
    await after.rollback()
    await after.release()
    await participant.close()


async def test_a_global_adapter_of_psycopg_leaves_undoubts_own_questions_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an application registers for its whole process."""
    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    monkeypatch.setattr(psycopg.postgres, "adapters", adapters)
    adapters.register_loader("text", Wrong)
    adapters.register_loader("bool", Wrong)
    participant = participant_at(database.dsn)
    assert list(await participant.in_doubt()) == []
    branch = await participant.begin(new_gid(), timeout_s=30)
    assert await branch.poll() is Work.READ_ONLY
    await branch.rollback()
    await branch.release()
    await participant.close()


async def test_what_a_branch_changes_is_its_own(database: Database, kind: str) -> None:
    """The hook's codecs are copied for it."""
    if kind == "asyncpg":
        # There the connection that a branch has changed is closed (test_connection).
        participant = participant_at(database.dsn, on_connect=hook_of(kind, json_codec))
        branch = await participant.begin(new_gid(), timeout_s=30)
        await branch.connection.reset_type_codec("json", schema="pg_catalog")
    else:
        participant = participant_at(
            database.dsn,
            on_connect=hook_of(kind, lambda lent: [lambda: setattr(lent, "row_factory", dict_row)]),
        )
        branch = await participant.begin(new_gid(), timeout_s=30)
        assert branch.connection.row_factory is dict_row
        branch.connection.adapters.register_loader("json", Wrong)
        set_json_loads(loads, branch.connection)
    await branch.rollback()
    await branch.release()
    after = await participant.begin(new_gid(), timeout_s=30)
    value = await at(after).fetchval("select '{}'::json")
    assert type(value) is (Marked if kind == "asyncpg" else dict)
    await after.rollback()
    await after.release()
    await participant.close()


def test_what_is_no_function_is_refused_at_once(database: Database) -> None:
    with pytest.raises(UsageError, match="on_connect must be a function"):
        participant_at(database.dsn, on_connect=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["raises", "sql", "closes"])
async def test_its_errors_are_told_as_its_own(database: Database, kind: str, how: str) -> None:
    """Broken if they look like a refusal of the server's, or the half set up connection is lent."""
    steps: dict[str, Callable[[Any], list[Any]]] = {
        "raises": lambda _: [lambda: dict[str, int]()["key"]],
        "sql": lambda _: ["select no_such_column"],
        "closes": lambda connection: [connection.close],
    }
    participant = participant_at(database.dsn, on_connect=hook_of(kind, steps[how]))
    with pytest.raises((ParticipantRefused, ParticipantUnavailable), match="its on_connect") as raised:
        await participant.begin(new_gid(), timeout_s=30)
    told = {"raises": "KeyError: 'key'", "sql": "no_such_column"}.get(how, "on_connect")
    assert told in str(raised.value)
    assert participant.pool.size == 0
    await participant.close()


async def test_one_that_only_makes_a_generator(database: Database, kind: str) -> None:
    """Broken if connections are lent that nobody has set up."""

    def generates(connection: Any) -> Iterator[None]:
        yield

    participant = participant_at(database.dsn, on_connect=generates)
    with pytest.raises(ParticipantRefused, match="returned a generator"):
        await participant.begin(new_gid(), timeout_s=30)
    await participant.close()


async def test_a_function_of_the_other_kind(database: Database, kind: str) -> None:
    """A synchronous one is called everywhere. An asynchronous one would be awaited
    by nobody in a synchronous participant, and connections lent that nobody has set up."""
    seen: list[Any] = []
    other = "asyncpg" if kind == "psycopg-sync" else "psycopg-sync"
    participant = participant_at(database.dsn, on_connect=hook_of(other, lambda _: [], seen))
    if kind == "psycopg-sync":
        with pytest.raises(ParticipantRefused, match="its on_connect"):
            await participant.begin(new_gid(), timeout_s=30)
        assert participant.pool.size == 0
    else:
        branch = await participant.begin(new_gid(), timeout_s=30)
        assert len(seen) == 1
        await branch.rollback()
        await branch.release()
    await participant.close()


async def test_one_that_does_not_end(database: Database, kind: str) -> None:
    """It may take as long as connecting, statements of it included, and no longer."""
    participant = participant_at(
        database.dsn,
        connect_timeout_s=2,
        on_connect=hook_of(kind, lambda _: ["select pg_sleep(600)"]),
    )
    with pytest.raises(ParticipantUnavailable, match=r"on_connect .* did not end within connect_timeout_s"):
        await participant.begin(new_gid(), timeout_s=30)
    await participant.close()
    sleeping = "select count(*) from pg_stat_activity where query like '%pg_sleep(600)%' and state = 'active'"
    while await database.admin.fetchval(sleeping + " and pid <> pg_backend_pid()"):
        await asyncio.sleep(0.01)


async def test_the_connection_is_lent_to_it_only_until_it_returns(database: Database, kind: str) -> None:
    """Kept, it would work inside somebody's branch."""
    seen: list[Any] = []
    participant = participant_at(database.dsn, on_connect=hook_of(kind, lambda _: ["select 1"], seen))
    branch = await participant.begin(new_gid(), timeout_s=30)
    [kept] = seen
    with pytest.raises(UsageError, match="after the end of the hook"):
        result = kept.execute("select 1")
        await result
    await branch.rollback()
    await branch.release()
    await participant.close()


async def test_synchronous_hooks_have_a_thread(database: Database, kind: str) -> None:
    """The event loop serves everybody else meanwhile."""
    threads: list[threading.Thread] = []

    def hook(connection: Any) -> Any:
        threads.append(threading.current_thread())

    participant = participant_at(database.dsn, on_connect=hook)
    branch = await participant.begin(new_gid(), timeout_s=30)
    assert (threads[0] is threading.current_thread()) == (kind != "psycopg-sync")
    await branch.rollback()
    await branch.release()
    await participant.close()


async def test_init_of_the_settings(database: Database, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function by its name; a hook given in code goes before it."""
    seen: list[str] = []
    module = ModuleType("test_hooks_of_an_application")
    module.init = lambda _: seen.append("init")  # type: ignore[attr-defined]
    module.no_function = 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for function in (None, lambda _: seen.append("on_connect")):
        participant = participant_at(database.dsn, init=f"{module.__name__}:init", on_connect=function)
        branch = await participant.begin(new_gid(), timeout_s=30)
        await branch.rollback()
        await branch.release()
        await participant.close()
    assert seen == ["init", "on_connect"]
    for name, tells in (
        (f"{module.__name__}:nothing", "cannot be imported: AttributeError"),
        (f"{module.__name__}:no_function", "is not a function"),
        ("no_such_module:init", "cannot be imported: ModuleNotFoundError"),
    ):
        participant = participant_at(database.dsn, init=name)
        with pytest.raises(ParticipantRefused, match=f"its init = '{name}' {tells}"):
            await participant.begin(new_gid(), timeout_s=30)
        assert list(await participant.in_doubt()) == [], "recovery needs no module of the application's"
        await participant.close()


@pytest.mark.parametrize("init", ["", "module", "module:", ":f", "a module:f", "module:f()", "module:a.b"])
def test_a_name_that_cannot_be_one_is_refused_at_once(init: str) -> None:
    with pytest.raises(ValueError, match="module:function"):
        ParticipantSettings(dsn="host=x", init=init)


def test_connections_idle_s_is_no_negative_number() -> None:
    with pytest.raises(ValueError, match="connections_idle_s"):
        ParticipantSettings(dsn="host=x", connections_idle_s=-1)
