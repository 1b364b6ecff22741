"""The examples of the sidecar, run as their page says, on what ``undoubt dev`` starts.

Each places one order. ``ok``: it says that it is committed, the order is in ``orders`` and its price was
taken from ``payments``. ``python``: the two services of ``examples/two_services``, the second one with a
sidecar of its own, which is started beside; the money is in both databases, in tables of their own.
``skipped``: a program that it needs is not on this machine. Anything else is what went wrong. ``go`` runs by
``--only go``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from tests.ports import free_ports
from tests.prove.dev import Dev, dev
from tests.prove.processes import ROOT, within

NEEDS: dict[str, tuple[str, ...]] = {
    "python": (),
    "node": ("node", "npm", "curl"),
    "java": ("java", "mvn"),
    "shell": ("bash", "curl", "jq", "psql"),
    "go": ("go",),
}
ALWAYS = ("python", "node", "java", "shell")
LOOK_S = 0.05
ACCOUNTS = (
    "create table account (id int primary key, balance int not null); insert into account values (1, 100)"
)
"""What the two services of Python work on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(NEEDS), default=list(ALWAYS))


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
            said = await (python(one, place) if name == "python" else RUNS[name](place))
    except (RuntimeError, TimeoutError) as error:
        return str(error)
    if said != "committed":
        return f"it said {said!r}"
    after = await state_of(one)
    wanted = (orders, balance) if name == "python" else (orders + 1, balance - 15)
    return "ok" if after == wanted else f"{(orders, balance)} became {after}"


async def state_of(one: Dev) -> tuple[int, int]:
    """How many orders there are, and how much money is left."""
    found = []
    for name, sql in (
        ("orders", "select count(*) from orders"),
        ("payments", "select balance from accounts where name = 'ada'"),
    ):
        found.append(await fetched(one.told["participants"][name], sql))
    return found[0], found[1]


async def python(one: Dev, place: Path) -> str:
    """Also looks at what it did. Raises ``RuntimeError`` if that is not 15 from one account to the other."""
    participants = one.told["participants"]
    for dsn in participants.values():
        await fetched(dsn, ACCOUNTS)
    sidecar_at, orders_at, payments_at = free_ports(3)
    program = str(ROOT / "examples" / "two_services" / "services.py")
    both = {"TOKEN": one.told["token"]}
    payments = {"SIDECAR": f"http://127.0.0.1:{sidecar_at}", "PORT": str(payments_at)} | both
    orders = {"SIDECAR": one.told["sidecar"], "PORT": str(orders_at)} | both
    async with contextlib.AsyncExitStack() as stack:
        words = ("-m", "undoubt", "sidecar", "--config", str(second_sidecar(one, place, sidecar_at)))
        await stack.enter_async_context(serves(sidecar_at, place, *words))
        payments["DATABASE"] = participants["payments"]
        await stack.enter_async_context(serves(payments_at, place, program, "payments", **payments))
        orders["PAYMENTS"] = f"http://127.0.0.1:{payments_at}"
        await stack.enter_async_context(serves(orders_at, place, program, "orders", **orders))
        async with httpx.AsyncClient(timeout=30.0) as client:
            wanted = {"account": 1, "amount": 15}
            answer = await client.post(f"http://127.0.0.1:{orders_at}/order", json=wanted)
    balances = [await fetched(dsn, "select balance from account") for dsn in participants.values()]
    if sorted(balances) != [85, 115]:
        raise RuntimeError(f"{answer.text}: the balances are {balances}")
    return str(answer.json().get("outcome", answer.text))


def second_sidecar(one: Dev, place: Path, port: int) -> Path:
    """The configuration of another sidecar on the ledger of ``undoubt dev``, with the same token."""
    path, shown = place / "second.toml", place / "token"
    shown.touch(mode=0o600)
    shown.write_text(one.told["token"])
    first = one.told["sidecar"].rpartition(":")[2]
    text = Path(one.told["config"]).read_text().replace(f"127.0.0.1:{first}", f"127.0.0.1:{port}")
    path.touch(mode=0o600)
    path.write_text(text.replace("[sidecar]\n", f'[sidecar]\ntoken_file = "{shown}"\n'))
    return path


@contextlib.asynccontextmanager
async def serves(port: int, place: Path, *words: str, **environment: str) -> AsyncIterator[None]:
    """``python words…`` runs inside the block, and answers at that port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=place, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    try:
        async with httpx.AsyncClient() as client:
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    await client.get(f"http://127.0.0.1:{port}/livez")
                    break
                if process.returncode is not None:
                    raise RuntimeError(f"{words[-1]} ended with status {process.returncode}")
                await asyncio.sleep(LOOK_S)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def fetched(dsn: str, sql: str) -> int:
    """The first value; 0 if there is none."""
    connection = await asyncpg.connect(dsn)
    try:
        if sql.startswith("select"):
            return int(await connection.fetchval(sql))
        await connection.execute(sql)
        return 0
    finally:
        await connection.close()


async def go(place: Path) -> str:
    return await run(place, "go", "run", "go/order.go", "dev.json")


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


RUNS: dict[str, Callable[[Path], Awaitable[str]]] = {"shell": shell, "node": node, "java": java, "go": go}
