"""The product has no dead code, and uv.lock has all its dependencies."""

from __future__ import annotations

import tomllib

from tests.house.dead import dead
from tests.house.tree import ROOT


def test_nothing_is_dead() -> None:
    """Broken if the product has code that is never called: it takes readers' time."""
    assert dead() == []


def test_the_lock_has_every_dependency() -> None:
    """Broken if ``uv.lock`` lacks a dependency: with uv, ``make test`` installs only what ``uv.lock`` has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {
        "".join(c if c.isalnum() or c in "-_." else " " for c in each).split()[0].lower() for each in wanted
    }
    locked = {each["name"] for each in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    assert names - locked == set()
