"""Runs one PostgreSQL server as a child process; only the user of this process can log in to it.

A superuser can run programs through the server, and every local user can connect to a port of 127.0.0.1. So
TCP requires a random password; only the unix socket, in a folder that no other user may enter, requires none.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from undoubt.embedded.binaries import bin_folder
from undoubt.embedded.passwords import give_password, process_password, verifier
from undoubt.embedded.places import DEAD, children, give, new_place, remove_place, server_user, state
from undoubt.participants.errors import UndoubtError

if TYPE_CHECKING:
    import asyncpg

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
PORT_ATTEMPTS_MAX = 5

DEFAULTS = {
    "max_prepared_transactions": "100",
    "max_connections": "120",
    "shared_buffers": "32MB",
    "logging_collector": "off",
    "dynamic_shared_memory_type": "mmap",  # in the data folder: a kill leaves nothing behind
    "listen_addresses": "127.0.0.1",
}


class ServerFailed(UndoubtError):
    """A server did not start, stop or initialise; the message ends with the server's log."""


class EmbeddedServer:
    """``async with EmbeddedServer() as server: server.dsn("postgres")``.

    ``settings`` are PostgreSQL's settings; they override :data:`DEFAULTS`. ``durable=False`` switches fsync
    off, for tests that crash no server. ``hba`` are lines of pg_hba.conf before the default lines, which
    require a password over TCP and none over the socket in ``folder``. With ``keep`` the server and its data
    stay after this process has ended. ``port``: a free port if 0. The superuser is ``postgres``, with
    ``password``. Usable from any event loop of this process.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        durable: bool = True,
        hba: Sequence[str] = (),
        keep: bool = False,
        port: int = 0,
    ) -> None:
        self.settings = {**DEFAULTS, **({} if durable else {"fsync": "off"}), **(settings or {})}
        self.hba = list(hba)
        self.keep = keep
        self.password = process_password()
        self.port = port
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guarded = False
        """Whether the superuser has been given its password."""

    async def __aenter__(self) -> EmbeddedServer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        """The process id of the postmaster. Raises :class:`ServerFailed` if it was never started."""
        if self._process is None:
            raise ServerFailed("the server is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status of the last postmaster, minus the signal if one ended it; None while it runs."""
        return None if self._process is None else self._process.poll()

    def dsn(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """A dsn for TCP, with the password. A role without a password is given the server's password first.
        If the role has another password, or does not exist yet, the dsn has none."""
        ours = user == "postgres" or (self.running and give_password(self.socket_dsn(), user, self.password))
        password = f":{self.password}" if ours else ""
        return (
            f"postgresql://{quote(user, safe='')}{password}@127.0.0.1:{self.port}/{quote(database, safe='')}"
        )

    def socket_dsn(self, database: str = "postgres", *, user: str = "postgres") -> str:
        """A dsn for the socket in ``folder``, without a password. Only this process's user can use it."""
        who, what = quote(user, safe=""), quote(database, safe="")
        return f"postgresql://{who}@/{what}?host={quote(str(self.folder), safe='')}&port={self.port}"

    async def start(self) -> EmbeddedServer:
        """Start the server, also again after :meth:`stop` or :meth:`kill`, with the same data and port.

        Raises :class:`ServerFailed`, ``BinariesMissing``.
        """
        if self.folder is None:
            self.folder = await asyncio.to_thread(self._new_folder)
        fixed_port = self.port != 0
        for attempt in range(PORT_ATTEMPTS_MAX):
            self.port = self.port or _free_port()
            self._launch(self.folder)
            if await self._answers():
                return self
            logged = self._logged()
            if fixed_port or "Address already in use" not in logged or attempt == PORT_ATTEMPTS_MAX - 1:
                raise ServerFailed(f"PostgreSQL did not start: {logged}")
            self.port = 0
        return self

    async def stop(self) -> None:
        """Stop the server by a fast shutdown: open transactions are rolled back, prepared ones stay. Raises
        :class:`ServerFailed`."""
        if self.running and self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                await self.kill()
                raise ServerFailed(f"PostgreSQL did not stop: {self._logged()}") from None

    async def kill(self) -> int:
        """Send SIGKILL to the postmaster and to all processes that it has started, like a power failure: no
        backend finishes its work. Returns the signal that ended the postmaster."""
        process = self._process
        if process is None:
            raise ServerFailed("the server is not running")
        # A stopped postmaster starts no more children, and does not react to the death of a child.
        process.send_signal(signal.SIGSTOP)
        while state(process.pid) not in {"T", *DEAD}:
            await asyncio.sleep(0)
        started = children(process.pid)
        for child in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.kill()
        returncode = await asyncio.to_thread(process.wait)
        while any(state(child) not in DEAD for child in started):
            await asyncio.sleep(0.005)
        return -returncode

    async def close(self) -> None:
        """Stop the server and remove its data, unless ``keep`` is set and the server runs."""
        if self.keep and self.running:
            return
        await self.stop()
        if self.folder is not None:
            await asyncio.to_thread(remove_place, self.folder)
            self.folder = None

    async def create_database(self, name: str, *, owner: str = "postgres") -> str:
        """Create an empty database, and return its owner's DSN. An ``owner`` that does not exist is created,
        as an ordinary role that may log in."""
        import asyncpg  # noqa: PLC0415 - `undoubt.errors` imports this module, and every command imports `undoubt.errors`

        connection = await asyncpg.connect(self.socket_dsn())
        try:
            if not await connection.fetchval(
                "select exists (select from pg_roles where rolname = $1)", owner
            ):
                await connection.execute(f'create role "{owner}" login')
            await connection.execute(f'create database "{name}" owner "{owner}"')
        finally:
            await connection.close()
        return self.dsn(name, user=owner)

    def _new_folder(self) -> Path:
        folder = new_place("server", keep=self.keep)
        user = server_user()
        shutil.copytree(_template(), folder / "data", symlinks=True, copy_function=shutil.copyfile)
        (folder / "data" / "pg_hba.conf").write_text(
            "\n".join([*self.hba, "local all all trust", "host all all 127.0.0.1/32 scram-sha-256"]) + "\n"
        )
        give(folder, user)
        return folder

    def _launch(self, folder: Path) -> None:
        # In the thread of the caller: the parent-death signal is sent when the thread that started the child
        # ends (prctl(2), PR_SET_PDEATHSIG).
        options = [f"{name}={value}" for name, value in self.settings.items()]
        options += [f"port={self.port}", f"unix_socket_directories={folder}"]
        programs = bin_folder() if not self.keep else bin_folder(folder)
        command = [str(programs / "postgres"), "-D", str(folder / "data")]
        for option in options:
            command += ["-c", option]
        user = server_user()
        if not self.keep and (setpriv := shutil.which("setpriv")) is not None:
            # A server must end also if its parent is killed. SIGQUIT is PostgreSQL's immediate shutdown.
            command = [setpriv, "--pdeathsig", "QUIT", *command]
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    async def _answers(self) -> bool:
        import asyncpg  # noqa: PLC0415 - as above

        end = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while self.running:
            try:
                connection = await asyncpg.connect(self.socket_dsn(), timeout=START_TIMEOUT_S)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                if asyncio.get_running_loop().time() > end:
                    await self.kill()
                    return False
                await asyncio.sleep(0.02)
            else:
                try:
                    await self._guard(connection)
                finally:
                    await connection.close()
                return True
        return False

    async def _guard(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Give the superuser its password, once. A standby has its primary's password, which is the same."""
        if not self._guarded and not await connection.fetchval("select pg_is_in_recovery()"):
            await connection.execute(f"alter role postgres password '{verifier(self.password)}'")
        self._guarded = True

    def _logged(self) -> str:
        if self.folder is None:
            return ""
        return (self.folder / "log").read_text(errors="replace")[-2000:]


@functools.cache
def _template() -> Path:
    """An initialised data folder, from which the data of servers is copied; one per process."""
    place = new_place("template")
    data, user = place / "data", server_user()
    give(place, user)
    command = [str(bin_folder() / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    command += ["--locale=C.UTF-8", "--no-sync", "--no-instructions"]
    run_program(command)
    return data


def run_program(command: Sequence[str]) -> None:
    """Run a program of PostgreSQL as the user of the servers. Raises :class:`ServerFailed`."""
    user = server_user()
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    if ended.returncode != 0:
        raise ServerFailed(f"{command[0]} failed: {(ended.stdout + ended.stderr)[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
