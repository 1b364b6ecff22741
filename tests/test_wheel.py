"""The suite on the installed wheel, beside an application that has packages named as undoubt's rooms.

The tests lie in a folder of their own, without the tree. Their environment holds the wheel, and beside it, by
a path file, what the development environment has installed; the tree's editable undoubt is not among that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.mutants.__main__ import copy
from tests.prove.processes import ROOT
from tests.prove.shadowed import PIP, ROOMS, make_application

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PARTS = (
    "tests/coordinator/raft",
    "tests/coordinator/paxos",
    "tests/coordinator/ledger/test_sqlite.py",
    "tests/coordinator/test_formats.py",
    "tests/coordinator/test_two_phase.py",
    "tests/scenarios",
    "tests/recovery",
    "tests/undoubt/test_end_to_end.py",
)
"""Of every room; all of the suite takes too long."""
PASSED_MIN = 600
MODULES_MIN = 100

PLUGIN = """
import importlib, json, os, sys

import pytest

ROOMS = ("coordinator", "participants", "recovery")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    paths = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    ours = {name: path for name, path in paths.items() if name.partition(".")[0] == "undoubt" and path}
    theirs = {room: importlib.import_module(room).OWNER for room in ROOMS}
    name = os.environ.get("PYTEST_XDIST_WORKER", "main")
    with open(os.path.join(os.environ["WHERE"], name + ".json"), "w") as file:
        json.dump({"ours": ours, "theirs": theirs}, file)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    ended = subprocess.run(
        [*map(str, command)], cwd=cwd, env=given | environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, (ended.stdout[-5000:], ended.stderr[-3000:])
    return ended.stdout


def installed(place: Path) -> Path:
    """The Python of a new environment with the wheel in it."""
    source = place / "source"
    source.mkdir()
    copy(source)
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", place, source, cwd=place)
    venv.create(place / "venv", with_pip=True)
    python = place / "venv/bin/python"
    run(python, *PIP, "install", "--no-deps", *place.glob("undoubt-*.whl"), cwd=place)
    packages = next((place / "venv/lib").glob("python3*/site-packages"))
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_suite_on_the_installed_wheel(tmp_path: Path) -> None:
    """Broken if undoubt works in the tree and not where it is installed: a file that the wheel lacks, an
    import that only the tree satisfies, or one that an application's own packages satisfy."""
    python = installed(tmp_path)
    app = make_application(tmp_path / "application")
    (app / "where.py").write_text(PLUGIN)
    suite, where = tmp_path / "suite", tmp_path / "where"
    suite.mkdir()
    where.mkdir()
    (tmp_path / "source/tests").rename(suite / "tests")
    (suite / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "shared").symlink_to(ROOT.parent / "shared")  # outside cases, which CI requires
    told = run(
        python, "-m", "pytest", "-q", "-m", "not slow", "-n", "2", "--dist", "worksteal", "--tb=short",
        "-p", "where", *PARTS, cwd=suite, PYTHONPATH=str(app), WHERE=str(where),
    )  # fmt: skip
    passed = int(told.splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed >= PASSED_MIN, told[-2000:]
    found = [json.loads(path.read_text()) for path in where.glob("gw*.json")]
    assert len(found) == 2
    site = str(tmp_path / "venv")
    for one in found:
        assert len(one["ours"]) >= MODULES_MIN
        assert [name for name, path in one["ours"].items() if not path.startswith(site)] == []
        assert one["theirs"] == dict.fromkeys(ROOMS, "the application")
