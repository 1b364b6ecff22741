"""A sidecar in a process of its own, in front of two databases."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.ports import free_ports
from tests.undoubt.cli.harness import environment
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.ledger.contract import RecordedDecision
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.ids import TxId

READY_S = 60.0
SERVES = "the sidecar serves"
TOKENS = {
    "shop": ('["transact"]', '["*"]'),
    "other": ('["transact"]', '["orders"]'),
    "watcher": ('["observe"]', "[]"),
    "peer": ('["transact"]', '["*"]'),
    "operator": ('["operate", "observe"]', '["*"]'),
}


def token(name: str) -> str:
    """Of that client."""
    return f"undoubt_{name}_secret"


def configuration(
    folder: Path, ledger: str, databases: Mapping[str, str], port: int, more: str = "", **sidecar: object
) -> Path:
    """``more`` is added at the end, ``sidecar`` to its section."""
    lines = [
        f'[ledger]\nurl = "{ledger}"\nrequest_timeout_s = 20.0',
        "[recovery]\ninterval_s = 0.2",
        "[coordinator]\nsession_ttl_s = 2.0",
        "[sidecar]",
        f'listen = "127.0.0.1:{port}"',
        *(f"{key} = {value}" for key, value in sidecar.items()),
    ]
    for name, (roles, participants) in TOKENS.items():
        digest = hashlib.sha256(token(name).encode()).hexdigest()
        lines.append(
            f'[[sidecar.tokens]]\nname = "{name}"\nsha256 = "{digest}"\nroles = {roles}\n'
            f"participants = {participants}"
        )
    for name, dsn in databases.items():
        lines.append(f'[participants.{name}]\ndsn = "{dsn}"')
        if name == "orders":
            lines.append("sidecar.sql = true")
    path = folder / "undoubt.toml"
    path.write_text("\n".join([*lines, more]) + "\n")
    return path


@dataclass
class Stage:
    """The process, and what its clients need."""

    folder: Path
    socket: Path
    config: Path
    port: int
    databases: Mapping[str, str]
    ledger: str
    process: subprocess.Popen[bytes] | None = None
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def log(self) -> str:
        return (self.folder / "sidecar.log").read_text()

    def start(self) -> None:
        """And wait until it serves."""
        log = (self.folder / "sidecar.log").open("ab")
        began = log.tell()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "undoubt", "sidecar", "--config", str(self.config)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
        log.close()
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the sidecar ended: {self.log}"
            if SERVES.encode() in (self.folder / "sidecar.log").read_bytes()[began:]:
                assert self.unix().get("/readyz").status_code == 200
                return
            time.sleep(0.02)
        raise AssertionError(f"the sidecar is not ready: {self.log}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process = None
        return status

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def unix(self) -> Client:
        """As the sidecar's own user."""
        return self._client(
            httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket))), "http://sidecar"
        )

    def tcp(self, name: str | None = "shop", **headers: str) -> Client:
        """As that client."""
        shown = {} if name is None else {"Authorization": f"Bearer {token(name)}"}
        return self._client(httpx.Client(headers={**shown, **headers}), f"http://127.0.0.1:{self.port}")

    def _client(self, client: httpx.Client, base: str) -> Client:
        client.base_url = httpx.URL(base)
        client.timeout = httpx.Timeout(60.0)
        self.clients.append(client)
        return Client(client)


@dataclass(frozen=True)
class Client:
    """One service's side of the API."""

    http: httpx.Client

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return (
            self.http.post(path, json=body, headers=named)
            if body is not None
            else self.http.post(path, headers=named)
        )

    def delete(self, path: str) -> httpx.Response:
        return self.http.delete(path)

    def begin(self, **body: Any) -> Work:
        """A transaction."""
        answer = self.post("/v1/transactions", body)
        assert answer.status_code == 201, answer.text
        begun = answer.json()
        return Work(self, begun["id"], begun.get("join", ""))


@dataclass(frozen=True)
class Work:
    """A transaction."""

    client: Client
    id: str
    join: str = ""
    """The header with which others join it."""

    @property
    def path(self) -> str:
        return f"/v1/transactions/{self.id}"

    def announce(self, participant: str) -> dict[str, Any]:
        answer = self.client.post(f"{self.path}/branches", {"participant": participant})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def sql(self, sql: str, *params: Any, participant: str = "orders") -> httpx.Response:
        return self.client.post(
            f"{self.path}/statements", {"participant": participant, "sql": sql, "params": params}
        )

    def run(self, sql: str, *params: Any) -> dict[str, Any]:
        answer = self.sql(sql, *params)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def commit(self, **headers: str) -> httpx.Response:
        return self.client.post(f"{self.path}/commit", **headers)

    def rollback(self) -> httpx.Response:
        return self.client.post(f"{self.path}/rollback")

    def show(self, wait_s: int = 0) -> dict[str, Any]:
        headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        answer = self.client.get(self.path, **headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


def prepare(dsn: str, branch: Mapping[str, Any], *statements: str) -> None:
    """What a service with a driver of its own does."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(branch["begin"])
        for statement in statements:
            connection.execute(statement)
        connection.execute(branch["prepare"])


def value(dsn: str, sql: str) -> Any:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(sql).fetchone()
    return None if row is None else row[0]


def recorded(stage: Stage, txid: str) -> RecordedDecision:
    """What the ledger tells another process."""

    async def ask() -> RecordedDecision:
        ledger = await open_ledger(LedgerSettings(url=stage.ledger))
        try:
            return (await ledger.records([TxId.parse(txid)]))[TxId.parse(txid)]
        finally:
            await ledger.close()

    return asyncio.run(ask())


def eventually_none_prepared(dsn: str) -> None:
    """Recovery rolls back what came late."""
    end = time.monotonic() + READY_S
    while value(dsn, "select count(*) from pg_prepared_xacts where database = current_database()"):
        assert time.monotonic() < end, "something stays prepared"
        time.sleep(0.05)


@contextmanager
def staged(
    folder: Path,
    databases: Mapping[str, str],
    ledger: str = "",
    more: str = "",
    *,
    reachable: bool = False,
    secure: bool = False,
    **sidecar: object,
) -> Iterator[Stage]:
    """A running one. The ledger is a new file in ``folder`` unless given. ``reachable``: by other sidecars,
    to which it shows a token; ``secure``: as localhost, by TLS, and it shows them its certificate."""
    [port] = free_ports(1)
    if secure:
        sidecar |= {"url": f'"https://localhost:{port}"', "hosts": '["localhost"]'}
    if reachable:
        (folder / "peer.token").write_text(token("peer") + "\n")
        sidecar |= {"url": f'"http://127.0.0.1:{port}"', "token_file": f'"{folder}/peer.token"'}
    ledger = ledger or f"sqlite:///{folder}/ledger.db"
    # Not in ``folder``, whose name can be longer than the address of a unix socket (unix(7)).
    with tempfile.TemporaryDirectory(prefix="undoubt-") as sockets:
        socket = Path(sockets, "http.sock")
        config = configuration(folder, ledger, databases, port, more, socket=f'"{socket}"', **sidecar)
        stage = Stage(folder, socket, config, port, databases, ledger)
        try:
            stage.start()
            yield stage
        finally:
            stage.close()
