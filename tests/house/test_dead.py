"""No dead code, and the lock that uv installs from is of what is asked for."""

from __future__ import annotations

import tomllib

from tests.house.dead import dead
from tests.house.tree import ROOT


def test_nothing_is_dead() -> None:
    """Whatever nobody calls is read by everybody who looks for what happens."""
    assert dead() == []


def test_the_lock_has_every_dependency() -> None:
    """With uv, ``make test`` installs what ``uv.lock`` says and nothing else."""
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
