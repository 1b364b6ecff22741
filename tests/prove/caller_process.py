"""A service that transfers money through a sidecar until it has done enough, or dies of its trap.

It runs each branch with its own driver, or sends its SQL through the sidecar. A transfer whose commit was
asked for, and not answered, is asked about at the sidecar that serves then: by GET, or by a repeated commit.

Arguments: socket of the sidecar, dsns as JSON, way to run a branch, the participant whose branch the sidecar
runs in any case (or nothing), trap, tag of its transfer ids, number of workers, transfers per worker. When
all are done it waits for a line on stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import asyncpg

from tests.prove.bank import NAMES
from tests.prove.processes import TIMEOUT_S
from tests.prove.sidecar_cases import CallerStep, Way
from tests.prove.trap import Trap, Trapped, tell
from undoubt.bench.http_client import HttpAnswer, SidecarConnection
from undoubt.coordinator.protocols.steps import reach
from undoubt.serve.local.parent import die_with_parent

LOOK_S = 0.02
TAKE = "update account set balance = balance + $1 where id = $2"
LEAVE = "insert into transfer (id) values ($1)"


class NotCommitted(Exception):
    """The sidecar refused something before the commit was asked for: nothing can commit."""


@dataclass(frozen=True)
class Bank:
    """What all workers share."""

    socket: str
    dsns: dict[str, str]
    way: Way
    agent: str
    observe: Trapped

    async def connect(self) -> SidecarConnection:
        """To the sidecar that serves now, or will soon."""
        end_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return await SidecarConnection.over_socket(self.socket)
            except OSError:
                if time.monotonic() > end_s:
                    raise
                await asyncio.sleep(LOOK_S)


class Transfer:
    """One, from begin to its answer. ``number`` chooses among the ways to say the same."""

    def __init__(self, bank: Bank, sidecar: SidecarConnection, account: int, name: str, number: int) -> None:
        self._bank = bank
        self._sidecar = sidecar
        self._account = account
        self._name = name
        self._number = number
        self.path = ""
        self.asked = False
        """The commit has been sent."""

    async def run(self) -> HttpAnswer:
        """The answer to the commit. Raises ``ConnectionError``, :class:`NotCommitted`."""
        begun = await self._ask("POST", "/v1/transactions", {})
        self.path = f"/v1/transactions/{begun['id']}"
        await self._reach(CallerStep.AFTER_BEGIN, begun["id"])
        for name, amount in zip(NAMES, (-10, 10), strict=True):
            if self._bank.way is Way.OWN_DRIVER and name != self._bank.agent:
                await self._branch(name, amount)
            else:
                await self._statements(name, amount)
        answering = self._sidecar.send("POST", f"{self.path}/commit")
        self.asked = True
        await self._reach(CallerStep.COMMIT_ASKED, begun["id"])
        return await answering

    async def _branch(self, name: str, amount: int) -> None:
        branch = await self._ask("POST", f"{self.path}/branches", {"participant": name})
        await self._reach(CallerStep.AFTER_ANNOUNCE, branch["gid"])
        connection = await asyncpg.connect(self._bank.dsns[name])
        try:
            await self._script(connection, branch, "begin")
            await connection.execute(TAKE, amount, self._account)
            await connection.execute(LEAVE, self._name)
            await self._reach(CallerStep.AFTER_SQL, branch["gid"])
            await self._script(connection, branch, "prepare")
        finally:
            connection.terminate()
        await self._reach(CallerStep.AFTER_PREPARE, branch["gid"])

    async def _script(self, connection: Any, branch: dict[str, Any], which: str) -> None:
        """In one simple query, or one statement after the other."""
        scripts = [branch[which]] if self._number % 2 else branch[f"{which}_statements"]
        for statement in scripts:
            await connection.execute(statement)

    async def _statements(self, name: str, amount: int) -> None:
        for sql, params in ((TAKE, [amount, self._account]), (LEAVE, [self._name])):
            await self._ask(
                "POST", f"{self.path}/statements", {"participant": name, "sql": sql, "params": params}
            )
        shown = await self._ask("GET", self.path)
        [gid] = [each["gid"] for each in shown["branches"] if each["participant"] == name]
        await self._reach(CallerStep.AFTER_SQL, gid)

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self._sidecar.ask(method, path, body)
        if answer.status >= 300:
            raise NotCommitted(f"{method} {path}: {answer}")
        return answer.body

    async def _reach(self, step: CallerStep, subject: str) -> None:
        await reach(self._bank.observe, step, subject)

    async def find_out(self) -> HttpAnswer:
        """What has become of it: asked until somebody knows."""
        end_s = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(ConnectionError):
                sidecar = await self._bank.connect()
                try:
                    answer = await self._asked_again(sidecar)
                finally:
                    sidecar.close()
                unknown = answer.status in {202, 503} or answer.body.get("state") in {"unknown", "committing"}
                if not unknown or time.monotonic() > end_s:
                    return answer
            await asyncio.sleep(LOOK_S)

    async def _asked_again(self, sidecar: SidecarConnection) -> HttpAnswer:
        if self._number % 2:
            return await sidecar.ask("POST", f"{self.path}/commit")
        return await sidecar.ask("GET", self.path, Prefer="wait=1")


async def work(bank: Bank, tag: str, worker: int, workers: int, count: int) -> None:
    sidecar = await bank.connect()
    for number in range(count):
        name = f"{tag}-{worker}-{number}"
        tell(begun=name)
        # Rows of its own: what a dead sidecar has left prepared holds its locks until recovery ends it.
        account = worker + workers * number
        transfer = Transfer(bank, sidecar, account, name, worker + number)
        try:
            answer = await transfer.run()
        except (NotCommitted, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            # The database ends a session whose transaction waits for too long, as `begin` told it.
            tell(aborted=name, why=f"{type(error).__name__}: {error}")
        except ConnectionError as error:
            if transfer.asked:
                judge(name, await transfer.find_out())
            else:
                tell(aborted=name, why=str(error))
            sidecar = await bank.connect()
        else:
            judge(name, await transfer.find_out() if answer.status == 202 else answer)
            await reach(bank.observe, CallerStep.AFTER_ANSWER, transfer.path.rpartition("/")[2])


def judge(name: str, answer: HttpAnswer) -> None:
    """What an application would take this answer for."""
    outcome = answer.body.get("outcome") or answer.body.get("state")
    match answer.status, outcome:
        case 200, "committed":
            tell(acknowledged=name)
        case (409, "aborted") | (200, "aborted"):
            tell(aborted=name, why=str(answer.body))
        case _:
            tell(unknown=name, why=str(answer))


async def main(
    socket: str, dsns: str, way: str, agent: str, trap: str, tag: str, workers: int, count: int
) -> None:
    bank = Bank(socket, json.loads(dsns), Way(way), agent, Trapped(Trap.decode(trap)))
    await asyncio.gather(*(work(bank, tag, worker, workers, count) for worker in range(workers)))
    tell(ended=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    die_with_parent()
    socket, dsns, way, agent, trap, tag, workers, count = sys.argv[1:]
    asyncio.run(main(socket, dsns, way, agent, trap, tag, int(workers), int(count)))
