"""An application that has packages named ``coordinator``, ``participants`` and ``recovery`` uses undoubt, and
both find their own.

undoubt is installed in three ways, each in a virtual environment of its own: editable, from a wheel made of
the tree, from a wheel made of the sdist. In each the application's packages stand before undoubt on
``sys.path``, and after it. A layout fails if a transaction of two databases does not commit there, if a
command of undoubt does not run, or if one of the names means something else to the application than its own
package."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import venv
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg

from tests.mutants.__main__ import copy
from undoubt.embedded import EmbeddedServer

ROOMS = ("coordinator", "participants", "recovery")
PLACES = ("before", "after")

PROGRAM = """
import asyncio, importlib, sys

place, application, folder, *dsns = sys.argv[1:]
if place == "before":
    sys.path.insert(0, application)
else:
    sys.path.append(application)

import undoubt
import undoubt.sync
from undoubt.integrations.sqlalchemy import Session

for room in ("coordinator", "participants", "recovery"):
    own = importlib.import_module(room)
    assert own.OWNER == "the application", own
    ours = importlib.import_module("undoubt." + room)
    assert not hasattr(ours, "OWNER"), ours

async def main():
    settings = {
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "participants": {name: {"dsn": dsn} for name, dsn in zip(("orders", "payments"), dsns)},
    }
    async with undoubt.connect(settings, create=True) as coordinator:
        async with coordinator.transaction() as tx:
            for name in ("orders", "payments"):
                await (await tx.branch(name)).execute("insert into note values (1)")

asyncio.run(main())
print(undoubt.__file__)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=["editable", "tree", "sdist"], help="ways to install it")


async def main(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    failures: list[str] = []
    layouts = 0
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="undoubt-shadowed-")))
        server = await stack.enter_async_context(EmbeddedServer(durable=False))
        application = make_application(folder / "application")
        for way in given.only:
            place = folder / way
            python = await asyncio.to_thread(_install, way, place)
            for order in PLACES:
                layouts += 1
                dsns = [await _database(server, f"{way}_{order}_{number}") for number in (1, 2)]
                failures += await asyncio.to_thread(_try, python, place, order, application, dsns)
                failures += [
                    f"{way}, {order}: {dsn} has {n} rows" for dsn in dsns if (n := await _rows(dsn)) != 1
                ]
    told = {"layouts": layouts, "failed": len(failures), "failures": failures}
    return told, not failures


def make_application(folder: Path) -> Path:
    for room in ROOMS:
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text('OWNER = "the application"\n')
    return folder


def _install(way: str, place: Path) -> Path:
    """The Python of a new environment in which undoubt is installed in that way."""
    place.mkdir()
    source = place / "source"
    source.mkdir()
    copy(source)
    venv.create(place / "venv", with_pip=True)
    python = place / "venv/bin/python"
    match way:
        case "editable":
            _run([python, *PIP, "install", "--editable", source])
        case "tree":
            _run([python, *PIP, "wheel", "--no-deps", "--wheel-dir", place, source])
            _run([python, *PIP, "install", *place.glob("*.whl")])
        case "sdist":
            _run([python, *PIP, "install", "build"])
            _run([python, "-m", "build", "--sdist", "--outdir", place, source])
            _run([python, *PIP, "wheel", "--no-deps", "--wheel-dir", place, *place.glob("*.tar.gz")])
            _run([python, *PIP, "install", *place.glob("*.whl")])
        case _:
            raise ValueError(way)
    return python


PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    ended = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {ended.stderr.strip()[-2000:]}")
    return ended.stdout


def _try(python: Path, place: Path, order: str, application: Path, dsns: list[str]) -> list[str]:
    """What is wrong there."""
    work = place / order
    work.mkdir()
    (work / "undoubt.toml").write_text(f'[ledger]\nurl = "sqlite:///{work}/ledger.db"\n')
    try:
        told = _run([python, "-c", PROGRAM, order, application, work, *dsns], cwd=work)
        if place.name != "editable" and "site-packages" not in told:
            return [f"{place.name}, {order}: undoubt came from {told.strip()}"]
        env = ["env", f"PYTHONPATH={application}"] if order == "before" else []
        _run([*env, python.with_name("undoubt"), "ledger", "check"], cwd=work)
    except RuntimeError as error:
        return [f"{place.name}, {order}: {error}"]
    return []


async def _database(server: EmbeddedServer, name: str) -> str:
    dsn = await server.create_database(name)
    connection = await asyncpg.connect(dsn)
    await connection.execute("create table note (n int)")
    await connection.close()
    return dsn


async def _rows(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("select count(*) from note"))
    finally:
        await connection.close()
