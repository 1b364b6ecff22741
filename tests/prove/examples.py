"""The examples of the sidecar, run as their page says, on what ``undoubt dev`` starts.

Each places one order. ``ok``: it says that it is committed, the order is in ``orders`` and its price was
taken from ``payments``. ``skipped``: a program that it needs is not on this machine. Anything else is what
went wrong."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from tests.prove.dev import Dev, dev
from tests.prove.processes import ROOT, within

NEEDS = {"shell": ("bash", "curl", "jq", "psql"), "node": ("node", "npm", "curl"), "java": ("java", "mvn")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(NEEDS), default=list(NEEDS))


async def main(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    told = {}
    async with dev() as one:
        await one.ready()
        place = one.folder / "sidecar"
        shutil.copytree(ROOT / "examples" / "sidecar", place)
        (place / "dev.json").write_text(json.dumps(one.told))
        for name in options.only:
            told[name] = await outcome(one, name, place)
    return told, all(each == "ok" for each in told.values())


async def outcome(one: Dev, name: str, place: Path) -> str:
    """Of one example."""
    if missing := [program for program in NEEDS[name] if shutil.which(program) is None]:
        return f"skipped: no {', '.join(missing)}"
    orders, balance = await state_of(one)
    try:
        async with within(name):
            said = await RUNS[name](place)
    except (RuntimeError, TimeoutError) as error:
        return str(error)
    if said != "committed":
        return f"it said {said!r}"
    after = await state_of(one)
    return "ok" if after == (orders + 1, balance - 15) else f"{(orders, balance)} became {after}"


async def state_of(one: Dev) -> tuple[int, int]:
    """How many orders there are, and how much money is left."""
    found = []
    for name, sql in (
        ("orders", "select count(*) from orders"),
        ("payments", "select balance from accounts where name = 'ada'"),
    ):
        connection = await asyncpg.connect(one.told["participants"][name])
        try:
            found.append(int(await connection.fetchval(sql)))
        finally:
            await connection.close()
    return found[0], found[1]


async def shell(place: Path) -> str:
    return await run(place, "bash", "order.sh", "dev.json")


async def java(place: Path) -> str:
    maven = ("mvn", "-q", "-B", "-Dstyle.color=never", "-f", "java", "compile", "exec:java")
    said = await run(place, *maven, f"-Dexec.args={place}/dev.json")
    return said.replace("\x1b[0m", "").strip()  # Maven resets colours even so


async def node(place: Path) -> str:
    await run(place, "npm", "install", "--silent", "--prefix", "node")
    async with service(place) as address:
        order = json.dumps({"item": "a lamp", "price": 15})
        answer = await run(place, "curl", "-sS", "-X", "POST", f"{address}/orders", "--json", order)
    return str(json.loads(answer).get("outcome", answer))


@contextlib.asynccontextmanager
async def service(place: Path) -> AsyncIterator[str]:
    """The address of the Node.js service, which runs inside the block."""
    process = await asyncio.create_subprocess_exec(
        "node", "node/service.js", "dev.json", cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def run(place: Path, *words: str) -> str:
    """Its stdout. Raises ``RuntimeError`` with what it said if it fails."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        raise RuntimeError(
            f"{words[0]} ended with status {process.returncode}: {(out + err).decode()[-1000:]}"
        )
    return out.decode().strip()


RUNS: dict[str, Callable[[Path], Awaitable[str]]] = {"shell": shell, "node": node, "java": java}
