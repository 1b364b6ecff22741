"""Django's own test runner: blocks work in its databases, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from tests.prove.processes import ROOT
from tests.undoubt.integrations.django.urls import BOTH, write
from tests.undoubt.integrations.web.shop import Shop
from undoubt.errors import UsageError
from undoubt.integrations.django import atomic, coordinator
from undoubt.integrations.pytest.databases import in_database

RUN_S = 300.0
MADE = """
    select datname from pg_database
    where datname like 'test%' and strpos(datname, current_database()) > 0 order by 1"""
"""The runner's databases: their names have that of the participant's database."""

Run = Callable[..., str]


@pytest.fixture
def run(databases: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    """``manage.py test`` with options, over the databases; what it prints."""
    source = tmp_path / "undoubt.toml"
    lines = [f'[ledger]\nurl = "sqlite:///{tmp_path / "ledger.db"}"']
    lines += [f"[participants.{name}]\ndsn = {json.dumps(dsn)}" for name, dsn in databases.items()]
    source.write_text("\n".join(lines))

    def runs(*options: str, **environment: str) -> str:
        place = "tests.undoubt.integrations.django.project"
        words = f"-W ignore -m {place}.manage test {place}.shop --pattern cases.py --noinput".split()
        done = subprocess.run(
            [sys.executable, *words, *options],
            cwd=ROOT,
            env={**os.environ, **environment, "UNDOUBT_TEST_SOURCE": str(source), "TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_S,
        )
        return done.stdout + done.stderr

    yield runs
    for dsn in databases.values():
        with psycopg.connect(dsn, autocommit=True) as admin:
            for (name,) in admin.execute(MADE).fetchall():
                admin.execute(f'drop database "{name}" with (force)'.encode())


def left(databases: dict[str, str]) -> list[list[str]]:
    """The runner's databases, by server."""
    found = []
    for dsn in databases.values():
        with psycopg.connect(dsn, autocommit=True) as admin:
            found.append([row[0] for row in admin.execute(MADE).fetchall()])
    return found


def test_blocks_commit_in_the_databases_of_the_runner(
    run: Run, databases: dict[str, str], tmp_path: Path
) -> None:
    """Broken if each ordinary project is told that its connections lead elsewhere, if its databases or its
    ledger are used, or if undoubt's connections keep the runner from dropping what it has made."""
    said = run()
    assert "Ran 5 tests" in said, said
    assert said.rstrip().splitlines()[-1].startswith("Destroying"), said
    assert "\nOK\n" in said, said
    assert left(databases) == [[], []]
    assert [path.name for path in tmp_path.iterdir()] == ["undoubt.toml"]
    for dsn in databases.values():
        with psycopg.connect(dsn) as connection:
            assert connection.execute("select to_regclass('shop_thing')").fetchall() == [(None,)]


@pytest.mark.parametrize("options", [(), ("--tag", "one")])
def test_the_last_agent_of_the_settings(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Broken if a project that commits by its last agent cannot be tested, or only by all of its tests: the
    runner makes the agent's database only for tests that use it."""
    with (tmp_path / "undoubt.toml").open("a") as source:
        source.write('\n[coordinator]\nprotocol = "last"\nagent = "payments"\n')
    said = run(*options)
    assert "\nOK\n" in said, said
    assert f"Ran {1 if options else 5} test" in said, said


def test_databases_that_are_kept(run: Run, databases: dict[str, str]) -> None:
    """``--keepdb``, and a name that the project has chosen."""
    chosen = f"test_of_{urlsplit(databases['payments']).path[1:]}"
    for options in (["--keepdb"], ["--keepdb"], []):
        said = run(*options, UNDOUBT_TEST_NAME=chosen)
        assert "\nOK\n" in said, said
    assert left(databases) == [[], []]


def test_databases_of_parallel_processes(run: Run, databases: dict[str, str], tmp_path: Path) -> None:
    said = run("--parallel", "2")
    assert "\nOK\n" in said, said
    assert "Cloning test database for alias 'payments'" in said
    assert left(databases) == [[], []]
    assert [path.name for path in tmp_path.iterdir()] == ["undoubt.toml"]


def test_a_name_of_the_runner_outside_of_its_run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken if a program whose settings name another database than the participant's is followed there:
    no recovery would look for its branches."""
    dsn = shop.dsns["payments"]
    name = f"test_{connections.settings['payments']['NAME']}"
    monkeypatch.setattr(settings, "UNDOUBT", {"source": shop.settings})
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"create database {name}".encode())
        try:
            with psycopg.connect(in_database(dsn, name), autocommit=True) as other:
                other.execute("create table payments (id int primary key, account int)")
            connections["payments"].close()
            monkeypatch.setitem(connections.settings["payments"], "NAME", name)
            with pytest.raises(UsageError, match="leads to"), atomic(using=BOTH):
                write(1)
        finally:
            coordinator().close()
            connections["payments"].close()
            admin.execute(f"drop database {name} with (force)".encode())
