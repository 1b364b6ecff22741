"""The client that works beside the attacks, as a service should: it keeps its connection, waits as long as it
is told to, and asks again for what it was not answered."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from types import TracebackType

import httpx
import psycopg

from tests.prove.hostile.world import LOOK_S, VICTIM, World
from tests.undoubt.sidecar.stage import Client, prepare

BOUND_S = 10.0
"""How long a transaction of it may take, with all that it has to wait and ask again for."""
ACCOUNTS = range(1, 11)


class Friend:
    """Moves money from ``orders`` to ``payments`` until the block ends."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._works)
        self.transactions = 0
        self.slowest_s = 0.0

    def __enter__(self) -> Friend:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _works(self) -> None:
        client = self._world.client(VICTIM)
        while not self._stop.is_set():
            account = ACCOUNTS[self.transactions % len(ACCOUNTS)]
            with self._world.quiet:
                began = time.monotonic()
                try:
                    self._transfer(client, account, began + BOUND_S)
                except (httpx.HTTPError, psycopg.Error, AssertionError) as error:
                    self._stalls(f"{type(error).__name__}: {error}")
                took = time.monotonic() - began
            self.transactions += 1
            self.slowest_s = max(self.slowest_s, took)
            if took > BOUND_S:
                self._stalls(f"a transaction took {took:.1f} s")
            time.sleep(LOOK_S)

    def _transfer(self, client: Client, account: int, end: float) -> None:
        world = self._world
        begun = self._asks(client, "POST", "/v1/transactions", {"timeout_ms": 20_000}, end)
        path = f"/v1/transactions/{begun['id']}"
        take = f"update account set balance = balance - 1 where id = {account}"
        self._asks(client, "POST", f"{path}/statements", {"participant": "orders", "sql": take}, end)
        branch = self._asks(client, "POST", f"{path}/branches", {"participant": "payments"}, end)
        give = f"update account set balance = balance + 1 where id = {account}"
        prepare(world.stage.databases["payments"], branch, give)
        answer = self._asks(client, "POST", f"{path}/commit", None, end)
        assert answer["outcome"] == "committed", answer
        world.committed += 1
        world.moved("orders", account, -1)
        world.moved("payments", account, 1)

    def _asks(self, client: Client, method: str, path: str, body: object, end: float) -> dict[str, object]:
        """Again after 429, and where the server ended a connection that was kept. Raises ``AssertionError``
        with any other answer."""
        while True:
            with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
                answer = client.http.request(method, path, json=body)
                if answer.status_code != 429 or time.monotonic() > end:
                    assert answer.status_code < 300, f"{method} {path}: {answer.text}"
                    return dict(answer.json())
                time.sleep(float(answer.headers["retry-after"]))

    def _stalls(self, what: str) -> None:
        print(f"stalled: {what}", file=sys.stderr)
        self._world.stalled.append(what)
