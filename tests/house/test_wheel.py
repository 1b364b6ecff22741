"""The wheel contains one package with all rooms and their data, and no other files."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.house.tree import ROOMS, ROOT, files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The wheel's files."""
    place = tmp_path_factory.mktemp("wheel")
    build = ["sh", ".ci/build", str(place)]
    ended = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (wheel,) = place.glob("undoubt-*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_owns_only_the_rooms(names: set[str]) -> None:
    """Broken if the wheel has a top-level ``coordinator``, ``tests`` or ``migrations``: it would hide the
    package of an application."""
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"undoubt"}


def test_the_wheel_has_every_file_of_the_rooms(names: set[str]) -> None:
    """Broken if the wheel lacks a module, a query file or a type marker."""
    parts = [
        path.relative_to(ROOT).as_posix() for path in files() if path.relative_to(ROOT).parts[0] in ROOMS
    ]
    ours = {part if part.startswith("undoubt/") else f"undoubt/{part}" for part in parts}
    assert ours
    assert ours - names == set()


def test_the_wheel_carries_the_migrations(names: set[str]) -> None:
    """Broken if the wheel lacks the migrations: an installed undoubt could not create a ledger."""
    wanted = {
        f"undoubt/{path.relative_to(ROOT).as_posix()}"
        for path in files()
        if path.relative_to(ROOT).parts[0] == "migrations"
    }
    assert "undoubt/migrations/ledger/env.py" in wanted
    assert wanted - names == set()


def test_the_wheel_has_nothing_besides(names: set[str]) -> None:
    """Broken if a local file (a cache, a ledger, a key) is published."""
    ours = {path.relative_to(ROOT).as_posix() for path in files()}
    stray = {
        name
        for name in names
        if ".dist-info/" not in name and name not in ours and name.removeprefix("undoubt/") not in ours
    }
    assert stray == set()


def test_the_wheel_carries_its_licence(names: set[str]) -> None:
    """Broken if the wheel lacks a copy of the licence, which Apache-2.0 §4 requires."""
    assert [name for name in names if Path(name).name == "LICENSE"] != []
