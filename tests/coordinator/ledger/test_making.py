"""A SQLite ledger whose making was interrupted is made again by the next start, without an operator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from undoubt.coordinator import ledger as ledgers
from undoubt.coordinator.errors import LedgerMissing, LedgerUnusable
from undoubt.coordinator.ledger import maintenance
from undoubt.coordinator.ledger.sqlite import anchored
from undoubt.coordinator.ledger.sqlite.store import upgrade
from undoubt.coordinator.settings import LedgerSettings

KILLED = """
import asyncio, json, os, signal, sqlite3, sys
from pathlib import Path
import alembic.command, sqlalchemy
from undoubt.coordinator import errors
from undoubt.coordinator.ledger import durable, open_ledger
from undoubt.coordinator.ledger.sqlite import ledger, owner, restoring
from undoubt.coordinator.settings import LedgerSettings

folder = Path(sys.argv[1])

def open_at(path, create):
    async def opened():
        settings = LedgerSettings(url=f"sqlite:///{path}", request_timeout_s=20.0)
        found = await open_ledger(settings, create=create)
        await found.open_session("application", 5.0)
        await found.close()
        return found.ledger_id
    try:
        return asyncio.run(opened())
    except errors.LedgerMissing:
        return "missing"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

def killed_before(step, at):
    # Each call that opens, renames or removes a file of the ledger, and each SQL statement, is one step.
    left = step
    def count(*_):
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    def hook(event, args):
        if event in {"open", "os.rename", "os.remove", "sqlite3.connect"}:
            if str(args[0]).startswith(str(at)):
                count()
    connect = sqlite3.connect
    def traced(*args, **named):
        connection = connect(*args, **named)
        connection.set_trace_callback(count)
        return connection
    sqlite3.connect = sqlite3.dbapi2.connect = traced
    sys.addaudithook(hook)
    open_at(at / "ledger.db", True)

def forked(work):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = work()
        os.write(write, str(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    return os.waitpid(child, 0)[1], answer

step, told = 0, []
while True:
    at = folder / str(step)
    at.mkdir()
    status, _ = forked(lambda: killed_before(step, at))
    if not os.WIFSIGNALED(status):
        break
    files = sorted(f"{each.name} {each.stat().st_size > 0}" for each in at.iterdir() if each.is_file())
    starts = (False, True, False)
    opened = forked(lambda: json.dumps([open_at(at / "ledger.db", create) for create in starts]))
    looked, made, again = json.loads(opened[1])
    rest = sorted(each.name for each in at.iterdir() if "making" in each.name)
    told.append([step, files, looked, made, again, rest])
    step += 1
print(json.dumps(told))
"""


def settings_of(path: Path) -> LedgerSettings:
    return LedgerSettings(url=f"sqlite:///{path}", request_timeout_s=20.0)


@pytest.mark.timeout(600)
async def test_a_process_that_is_killed_at_any_step_needs_no_operator(tmp_path: Path) -> None:
    """Broken if a crash leaves a file that is neither a ledger nor made again, or a ledger without anchor."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout)
    assert len(told) > 30, "the steps were not counted"
    unfinished = 0
    for step, files, looked, made, again, rest in told:
        assert len(made) == 10, (step, files, made)
        assert looked in {"missing", made}, (step, files, looked)
        assert again == made, (step, files, again)
        assert not rest, (step, files, rest)
        assert looked == "missing" or "ledger.db.anchor True" in files, (step, files)
        unfinished += looked == "missing"
    assert 10 < unfinished < len(told)


def _empty(path: Path) -> None:
    path.touch()


def _one_table(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table alembic_version (version_num varchar(32) not null primary key)")


def _no_revision(path: Path) -> None:
    upgrade(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("delete from alembic_version")


@pytest.mark.parametrize("left", [_empty, _one_table, _no_revision])
async def test_what_an_older_version_left_half_made_is_made_again(
    tmp_path: Path, left: Callable[[Path], None]
) -> None:
    """Broken if an operator is needed, or if looking at such a file and opening it give different answers."""
    path = tmp_path / "ledger.db"
    left(path)
    before = path.read_bytes()
    for look in (ledgers.open_ledger, maintenance.check, maintenance.migrate):
        with pytest.raises(LedgerMissing, match=r"no ledger at .*ledger init"):
            await look(settings_of(path))
    with pytest.raises(LedgerMissing, match="no ledger at"):
        await maintenance.restore(settings_of(path), None)
    assert path.read_bytes() == before
    info = await maintenance.init(settings_of(path))
    ledger = await ledgers.open_ledger(settings_of(path))
    assert ledger.ledger_id == info.ledger_id
    assert [act.verb for act in await ledger.acts(limit=10)] == ["ledger init"]
    await ledger.close()
    assert await maintenance.check(settings_of(path)) == []


async def test_a_file_with_records_is_never_taken_for_half_made(tmp_path: Path) -> None:
    """Broken if damage to one small table makes an empty ledger of one that has decided."""
    path = tmp_path / "ledger.db"
    await (await ledgers.open_ledger(settings_of(path), create=True)).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("delete from alembic_version")
    anchor = anchored.path_of(path)
    kept = anchor.read_bytes()
    for content in (kept, None):
        if content is None:
            anchor.unlink()
        before = path.read_bytes()
        with pytest.raises(LedgerUnusable, match="damaged at the revision") as told:
            await ledgers.open_ledger(settings_of(path), create=True)
        assert not isinstance(told.value, LedgerMissing)
        assert path.read_bytes() == before


async def test_an_anchor_with_an_entry_shows_that_an_empty_file_was_a_ledger(tmp_path: Path) -> None:
    """Broken if a file whose content was lost is taken for one whose making was never finished."""
    path = tmp_path / "ledger.db"
    await (await ledgers.open_ledger(settings_of(path), create=True)).close()
    path.unlink()
    _no_revision(path)
    with pytest.raises(LedgerMissing, match=r"ledger\.db\.anchor beside it shows that there was one"):
        await ledgers.open_ledger(settings_of(path), create=True)
