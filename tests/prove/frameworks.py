"""The examples of the frameworks, each run by itself on two real servers and a ledger of its own.

Each places two orders by the test client of its framework; the second one swallows the error of its
payment. ``ok``: the program was told that the first one is committed and the second one is not, and the
databases say the same. Anything else is what went wrong."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.ports import free_ports
from tests.prove.processes import ROOT
from tests.servers import fresh_database, new_server

EXAMPLES = ROOT / "examples" / "frameworks"
PLACED = "200 committed\n409 aborted\n"
TOLD = {
    "fastapi": {"fastapi_orders.py": PLACED},
    "django": {"django_orders.py": PLACED},
    "flask": {"flask_orders.py": PLACED, "quart_orders.py": PLACED},
    "celery": {"celery_orders.py": "SUCCESS\nFAILURE\n", "rq_orders.py": "finished\nfailed\n"},
    "zope": {"zope_orders.py": "200 placed\n409 TransactionAborted\n"},
    "sqlmodel": {"sqlmodel_orders.py": "committed\naborted\n"},
    "pytest": {"pytest_orders.py": "6 passed"},
}
"""The programs of each framework, and what they print."""
TABLES = {
    "orders": "create table orders (id bigint generated always as identity primary key, item text not null)",
    "payments": """
        create table accounts (name text primary key, balance int not null check (balance >= 0));
        insert into accounts values ('ada', 100)""",
}
PROGRAM_S = 120.0
LOOK_S = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(TOLD), default=list(TOLD))


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    servers = {name: await asyncio.to_thread(new_server) for name in TABLES}
    try:
        told: dict[str, str] = {}
        for framework in options.only:
            told[framework] = "ok"
            for program in TOLD[framework]:
                async with AsyncExitStack() as stack:
                    dsns = {
                        name: await stack.enter_async_context(fresh_database(server, name))
                        for name, server in servers.items()
                    }
                    if (said := await outcome(framework, program, dsns)) != "ok":
                        told[framework] = f"{program}: {said}"
    finally:
        for server in servers.values():
            await asyncio.to_thread(server.close)
    return told, all(each == "ok" for each in told.values())


async def outcome(framework: str, program: str, dsns: dict[str, str]) -> str:
    """Of one example, in new databases."""
    wanted = TOLD[framework][program]
    for participant, tables in TABLES.items():
        await ask(dsns[participant], tables)
    with tempfile.TemporaryDirectory() as folder:
        configure(Path(folder), dsns)
        async with AsyncExitStack() as stack:
            environment = {}
            if program.startswith("rq_"):
                environment["REDIS_URL"] = await stack.enter_async_context(redis_server(folder))
            said = await run(EXAMPLES / program, Path(folder), environment)
    if framework == "pytest":  # in databases of its own; the last line tells the time too
        return "ok" if said.splitlines()[-1].startswith(wanted) else said
    if said != wanted:
        return f"it said {said!r}"
    placed = await ask(dsns["orders"], "select count(*) from orders")
    left = await ask(dsns["payments"], "select balance from accounts where name = 'ada'")
    return "ok" if (placed, left) == (1, 85) else f"{placed} orders are placed, and {left} is left"


def configure(folder: Path, dsns: dict[str, str]) -> None:
    """Write ``undoubt.toml``."""
    lines = ['[ledger]\nurl = "sqlite:///undoubt.db"']
    lines += [f'[participants.{name}]\ndsn = "{dsn}"' for name, dsn in dsns.items()]
    (folder / "undoubt.toml").write_text("\n".join(lines))


@asynccontextmanager
async def redis_server(folder: str) -> AsyncIterator[str]:
    """The URL of a server that runs inside the block."""
    (port,) = free_ports(1)
    words = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder)
    process = await asyncio.create_subprocess_exec("redis-server", *words, stdout=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(PROGRAM_S):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    await writer.wait_closed()
                    break
                await asyncio.sleep(LOOK_S)
        yield f"redis://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def run(program: Path, folder: Path, environment: dict[str, str]) -> str:
    """Its stdout; its last words on stderr if it fails."""
    words = [str(program)]
    if program.name.startswith("pytest_"):
        words = ["-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={folder}", "-W", "ignore", *words]
    known = {name: value for name, value in os.environ.items() if not name.startswith("UNDOUBT_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**known, **environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        async with asyncio.timeout(PROGRAM_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode() if process.returncode == 0 else err.decode()[-1000:]


async def ask(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        if statement.startswith("select"):
            return await connection.fetchval(statement)
        return await connection.execute(statement)
    finally:
        await connection.close()
