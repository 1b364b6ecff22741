"""A real PgBouncer before a real server: Debian's program, in a process of its own, on a port of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.ports import free_ports
from undoubt.embedded.places import give, server_user

INSTALL = "apt-get install -y --no-install-recommends pgbouncer"
START_TIMEOUT_S = 30.0

DEFAULTS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "pool_mode": "transaction",
    "auth_type": "trust",
    "default_pool_size": "20",
    "max_client_conn": "500",
    # A database that was down is tried again at once, and whoever waits for it hears of it in time.
    "server_login_retry": "0.2",
    "query_wait_timeout": "10",
    # So that statements of one client land on different servers as often as can be.
    "server_round_robin": "1",
}


def program() -> str | None:
    """Where it is: Debian puts it where only root's PATH leads."""
    return shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


def program_or_skip() -> str:
    """Skips the test where PgBouncer is not installed; in CI, where it must be, fails it."""
    found = program()
    if found is None:
        message = f"PgBouncer is not installed: {INSTALL}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


class PgBouncer:
    """``async with PgBouncer(server.socket_dsn()) as pooler: pooler.dsn("orders")``.

    Every database of the server that the dsn leads to, by its own name. ``settings`` are PgBouncer's, over
    :data:`DEFAULTS`; ``users`` maps who may log in to their passwords, which are the dsn's where none are
    given. It asks its clients for none unless ``settings`` say so.
    """

    def __init__(
        self,
        server_dsn: str,
        settings: Mapping[str, str] | None = None,
        *,
        users: Mapping[str, str] | Sequence[str] = ("postgres",),
    ) -> None:
        self.port = 0
        self._settings = {**DEFAULTS, **(settings or {})}
        server = conninfo_to_dict(server_dsn)
        self._database = f"host={server['host']} port={server['port']}"
        password = str(server.get("password", ""))
        self._users = dict(users) if isinstance(users, Mapping) else dict.fromkeys(users, password)
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> PgBouncer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def dsn(self, database: str, *, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    async def start(self) -> None:
        """Start it, or again after :meth:`kill`, on the same port."""
        binary = program()
        if binary is None:
            raise FileNotFoundError(f"PgBouncer is not installed: {INSTALL}")
        self.port = self.port or free_ports(1)[0]
        folder, user = self._written(), server_user()
        command = [binary, str(folder / "pgbouncer.ini")]
        if (setpriv := shutil.which("setpriv")) is not None:
            command = [setpriv, "--pdeathsig", "KILL", *command]  # never outlives a parent that was killed
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                user=user, group=user, extra_groups=None if user is None else [],
            )  # fmt: skip
        await self._until_it_listens()

    async def kill(self) -> int:
        """SIGKILL; the signal that ended it."""
        process = self._running()
        process.kill()
        return -await asyncio.to_thread(process.wait)

    def freeze(self) -> None:
        """SIGSTOP: it holds what it was sent, and neither answers nor loses it."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    async def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            # Its immediate shutdown: clients are not waited for.
            self._process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._process.wait)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)
            self._folder = None

    @property
    def logins(self) -> int:
        """How many clients have come in, as it tells itself."""
        return self.logged().count("login attempt")

    def logged(self) -> str:
        return "" if self._folder is None else (self._folder / "log").read_text(errors="replace")

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was never started"
        return self._process

    def _written(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="undoubt-pgbouncer-"))
        folder = self._folder
        settings = {"listen_port": self.port, "auth_file": folder / "users.txt", **self._settings}
        lines = ["[databases]", f"* = {self._database}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        (folder / "users.txt").write_text(
            "".join(f'"{user}" "{password}"\n' for user, password in self._users.items())
        )
        give(folder, server_user())
        return folder

    async def _until_it_listens(self) -> None:
        end = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while self._running().poll() is None and asyncio.get_running_loop().time() < end:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                return
        raise RuntimeError(f"PgBouncer did not start: {self.logged()[-2000:]}")
