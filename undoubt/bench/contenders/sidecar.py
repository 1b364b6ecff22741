"""undoubt through a sidecar, its ledger on three nodes: two services, each with a connection to the sidecar.

The sidecar is a process of its own, so that a contender's CPU time is that of the services alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from undoubt.bench.contract import DATABASES, UPDATE, AsyncContender, Places
from undoubt.bench.http_client import HttpAnswer, SidecarConnection
from undoubt.participants.errors import UndoubtError
from undoubt.serve.local import child
from undoubt.serve.local.processes import serving

END_S = 10.0
TRANSACTIONS = "/v1/transactions"

CONFIG = """
[ledger]
url = "{url}"

[sidecar]
socket = "{folder}/http.sock"
drain_s = 0.0
"""
PARTICIPANT = """
[participants.{name}]
dsn = {dsn}
connections_max = {workers}
sidecar.sql = {sql}
"""


class UnexpectedAnswer(UndoubtError):
    """The sidecar gave another answer than the workload expects."""


class Worker(NamedTuple):
    """For each database a connection to the sidecar, as two services would have, and the services' own
    connections; the latter are empty if the sidecar runs the branches."""

    sidecar: list[SidecarConnection]
    own: list[Any]


class Services:
    """Begin, both branches in parallel, commit. ``own``: the services run the branches on connections of
    their own; otherwise the sidecar runs their SQL."""

    def __init__(self, workers: list[Worker], first_row: int, *, own: bool) -> None:
        self._workers = workers
        self._first_row = first_row
        self._run = self._by_service if own else self._by_sidecar

    async def transfer(self, worker: int) -> None:
        us = self._workers[worker]
        first = us.sidecar[0]
        begun = _expect(await first.ask("POST", TRANSACTIONS, {}), 201)
        path = f"{TRANSACTIONS}/{begun['id']}"
        row = self._first_row + worker
        await asyncio.gather(*(self._run(us, number, path, row) for number in range(len(DATABASES))))
        _expect(await first.ask("POST", f"{path}/commit"), 200)

    async def _by_service(self, us: Worker, number: int, path: str, row: int) -> None:
        body = {"participant": DATABASES[number]}
        branch = _expect(await us.sidecar[number].ask("POST", f"{path}/branches", body), 201)
        connection = us.own[number]
        await connection.execute(branch["begin"])
        await connection.execute(UPDATE, row)
        await connection.execute(branch["prepare"])

    async def _by_sidecar(self, us: Worker, number: int, path: str, row: int) -> None:
        body = {"participant": DATABASES[number], "sql": UPDATE, "params": [row]}
        _expect(await us.sidecar[number].ask("POST", f"{path}/statements", body), 200)


def _expect(answer: HttpAnswer, status: int) -> Any:
    if answer.status != status:
        raise UnexpectedAnswer(f"the sidecar answered {answer}")
    return answer.body


@contextlib.asynccontextmanager
async def own_driver(places: Places) -> AsyncIterator[AsyncContender]:
    async with _connected(places, own=True) as contender:
        yield contender


@contextlib.asynccontextmanager
async def through_sidecar(places: Places) -> AsyncIterator[AsyncContender]:
    async with _connected(places, own=False) as contender:
        yield contender


@contextlib.asynccontextmanager
async def _connected(places: Places, *, own: bool) -> AsyncIterator[AsyncContender]:
    folder = Path(places.folder) / places.contender
    folder.mkdir(mode=0o700)
    sql = "false" if own else "true"
    text = CONFIG.format(url=places.cluster, folder=folder)
    for name, dsn in zip(DATABASES, places.dsns, strict=True):
        text += PARTICIPANT.format(name=name, dsn=json.dumps(dsn), workers=places.workers, sql=sql)
    config = folder / "undoubt.toml"
    config.touch(mode=0o600)
    config.write_text(text)
    process = serving("sidecar", child.SIDECAR, config, folder / "sidecar.log")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(process.terminate, END_S)
        await process.start()
        workers = [
            await _worker(stack, places, str(folder / "http.sock"), own) for _ in range(places.workers)
        ]
        yield Services(workers, places.first_row, own=own)


async def _worker(stack: contextlib.AsyncExitStack, places: Places, socket: str, own: bool) -> Worker:
    made = Worker([], [])
    for dsn in places.dsns:
        sidecar = await SidecarConnection.over_socket(socket)
        stack.callback(sidecar.close)
        made.sidecar.append(sidecar)
        if own:
            connection = await asyncpg.connect(dsn)
            stack.push_async_callback(connection.close)
            made.own.append(connection)
    return made
