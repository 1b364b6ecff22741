"""A user's tests get databases with their tables, crashes where they name them, and no leftovers."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.prove.processes import ROOT
from tests.servers import Server
from undoubt.errors import UsageError
from undoubt.integrations.extras import needs
from undoubt.integrations.pytest.crash import NotReached, crash_at

HEAD = """
import os
import psycopg
import pytest
import undoubt
import undoubt.sync

@pytest.fixture(scope="session")
def undoubt_schema():
    def make(name, dsn):
        with psycopg.connect(dsn) as connection:
            connection.execute("create table note (id int primary key)")
    return make

def write(settings, number=1):
    with undoubt.sync.connect(settings) as coordinator, coordinator.transaction() as tx:
        for name in coordinator.participants:
            tx.branch(name).execute(f"insert into note values ({number})")

async def write_async():
    async with undoubt.connect() as coordinator, coordinator.transaction() as tx:
        for name in ("orders", "payments"):
            await (await tx.branch(name)).execute("insert into note values (1)")

def ids(databases):
    found = []
    for dsn in databases.values():
        with psycopg.connect(dsn) as connection:
            found.append([row[0] for row in connection.execute("select id from note")])
    return found
"""


@pytest.fixture
def run(tmp_path: Path, postgres: Server, other_postgres: Server) -> Callable[..., str]:
    """Runs tests of a user, on servers that run already; the end of what pytest prints."""

    def runs(body: str, *options: str) -> str:
        (tmp_path / "test_user.py").write_text(HEAD + body)
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-c",
            os.devnull,
            f"--rootdir={tmp_path}",
            "-W",
            "ignore",
        ]
        words += [f"--undoubt-dsn={server.dsn()}" for server in (postgres, other_postgres)]
        done = subprocess.run(
            [*words, *options, "test_user.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        return done.stdout + done.stderr

    return runs


def test_each_test_has_databases_of_its_own(run: Callable[..., str]) -> None:
    said = run("""
@pytest.mark.parametrize("each", [1, 2])
def test_one(each, undoubt_settings, undoubt_databases):
    assert ids(undoubt_databases) == [[], []]
    write(undoubt_settings)
    assert ids(undoubt_databases) == [[1], [1]]

def test_its_coordinator(undoubt_coordinator):
    assert undoubt_coordinator.participants == ("orders", "payments")
""")
    assert "3 passed" in said, said


def test_the_databases_have_the_tables_of_undoubt(run: Callable[..., str]) -> None:
    """Broken if a test of messages or guarded locks is told to migrate databases that it did not make, or
    finds the messages of another test."""
    said = run("""
@pytest.mark.parametrize("each", [1, 2])
def test_messages_and_locks(each, undoubt_coordinator, undoubt_databases):
    with undoubt_coordinator.lock("shop", timeout=60) as lock, undoubt_coordinator.transaction() as tx:
        for name in undoubt_databases:
            lock.guard(tx.branch(name))
            tx.publish(name, {"item": "a lamp"})
    for dsn in undoubt_databases.values():
        with psycopg.connect(dsn) as connection:
            assert connection.execute("select count(*) from undoubt.undoubt_outbox").fetchall() == [(1,)]
""")
    assert "2 passed" in said, said


def test_a_last_agent_crashes(run: Callable[..., str]) -> None:
    """Broken if the steps of last-agent commit have no crash, or recovery leaves what it has to end."""
    said = run("""
@pytest.mark.parametrize("step", ["before_agent", "after_agent"])
def test_a_crash(step, crash_at, undoubt_settings, undoubt_databases, undoubt_recover):
    undoubt_settings["coordinator"] |= {"protocol": "last", "agent": "payments"}
    crash_at(step, write, undoubt_settings)
    undoubt_recover()
    assert ids(undoubt_databases) == ([[], []] if step == "before_agent" else [[1], [1]])
""")
    assert "2 passed" in said, said


def test_tables_that_the_schema_brings_along_are_kept(run: Callable[..., str]) -> None:
    """Broken if a dump of production, with the tables of another owner, stops the tests."""
    said = run("""
def owner(name):
    return f"undoubt_plugin_{os.getpid()}_{name}"

@pytest.fixture(scope="session")
def undoubt_schema():
    def make(name, dsn):
        with psycopg.connect(dsn) as connection:
            connection.execute(f"create role {owner(name)}")
            connection.execute(f"create schema undoubt authorization {owner(name)}")
            connection.execute("create table note (id int primary key)")
    return make

@pytest.fixture(scope="session", autouse=True)
def owners_are_dropped(undoubt_servers):
    yield
    for name, dsn in undoubt_servers.items():
        with psycopg.connect(dsn) as connection:
            connection.execute(f"drop role {owner(name)}")

def test_writes(undoubt_settings, undoubt_databases):
    write(undoubt_settings)
    assert ids(undoubt_databases) == [[1], [1]]
""")
    assert "1 passed" in said, said


def test_a_process_dies_where_the_test_says(run: Callable[..., str]) -> None:
    """Before the decision nothing is committed after recovery, afterwards all is; also from a coroutine,
    through ``UNDOUBT_CONFIG``, and beside a coordinator of the test's own."""
    said = run("""
@pytest.mark.parametrize(("step", "left"), [("before_decide", []), ("after_decide", [1])])
def test_crash(step, left, crash_at, undoubt_settings, undoubt_databases, undoubt_recover):
    crash_at(step, write, undoubt_settings)
    undoubt_recover()
    assert ids(undoubt_databases) == [left, left]

def test_coroutine(crash_at, undoubt_config, undoubt_databases, undoubt_recover):
    crash_at("after_decide", write_async)
    undoubt_recover()
    assert ids(undoubt_databases) == [[1], [1]]

def test_beside(crash_at, undoubt_coordinator, undoubt_settings, undoubt_databases, undoubt_recover):
    crash_at("after_prepare", write, undoubt_settings, nth=2)
    undoubt_recover()
    assert ids(undoubt_databases) == [[], []]
""")
    assert "4 passed" in said, said


def test_a_test_that_leaves_something_in_doubt_fails(run: Callable[..., str]) -> None:
    said = run("""
def test_left(crash_at, undoubt_settings):
    crash_at("before_decide", write, undoubt_settings)

def test_next(undoubt_settings, undoubt_databases):
    write(undoubt_settings)
""")
    assert "2 passed, 1 error" in said, said
    assert "undoubt_recover() resolves them" in said


def test_the_participants_are_those_of_the_settings(run: Callable[..., str]) -> None:
    said = run(
        """
def test_names(undoubt_settings, undoubt_databases):
    write(undoubt_settings)
    assert list(undoubt_databases) == ["a", "b", "c"]
    assert ids(undoubt_databases) == [[1], [1], [1]]
""",
        "-o",
        "undoubt_participants=a b c",
    )
    assert "1 passed" in said, said


def test_a_step_that_is_not_reached_is_told() -> None:
    """A crash that did not happen would prove nothing."""
    with pytest.raises(NotReached, match="the function has returned"):
        crash_at("before_decide", lambda: None)
    with pytest.raises(NotReached, match="ZeroDivisionError"):
        crash_at("before_decide", lambda: 1 / 0)
    with pytest.raises(NotReached, match=r"within 0\.1 s"):
        crash_at("before_decide", signal.pause, timeout=0.1)
    with pytest.raises(UsageError, match="before_decide, before_"):
        crash_at("before_decision", lambda: None)


def test_a_missing_library_is_told_with_its_extra() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match=r"pip install 'undoubt\[fastapi\]'") as raised,
        needs("fastapi"),
    ):
        importlib.import_module("undoubt.no_such_module")
    assert raised.value.name == "undoubt.no_such_module"


def test_undoubt_imports_no_framework() -> None:
    """They are optional, and some of them are slow to import."""
    names = [
        "celery",
        "django",
        "fastapi",
        "flask",
        "pytest",
        "quart",
        "rq",
        "sqlmodel",
        "transaction",
        "zope",
    ]
    program = f"import sys, undoubt, undoubt.sync; print([each for each in {names} if each in sys.modules])"
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert said.stdout == "[]\n"
