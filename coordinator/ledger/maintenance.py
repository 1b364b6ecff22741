"""The maintenance of a ledger by an operator: create, upgrade, check, back up, restore, export the secret.

A SQLite ledger must not be in use while it is upgraded, checked or restored."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import ModuleType

from undoubt.coordinator.errors import LedgerLocked, LedgerMissing, LedgerUnusable
from undoubt.coordinator.ledger import schema, secret_file, urls
from undoubt.coordinator.ledger.acting import DONE, acting, new_act
from undoubt.coordinator.ledger.contract import Act, LedgerInfo
from undoubt.coordinator.ledger.disk import usable
from undoubt.coordinator.ledger.move_mark import gone, lives
from undoubt.coordinator.ledger.postgres import tables
from undoubt.coordinator.ledger.postgres.ledger import PostgresLedger
from undoubt.coordinator.ledger.sqlite import anchored, ledger_files, restoring, store
from undoubt.coordinator.ledger.sqlite.alone import alone
from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger
from undoubt.coordinator.ledger.sqlite.owner import rebuilt
from undoubt.coordinator.ledger.sqlite.restoring import RestoredLedger, Restoring
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.errors import UsageError


async def init(settings: LedgerSettings, *, note: str = "", verb: str = "ledger init") -> LedgerInfo:
    """Create the ledger if it does not exist; returns its description. The creation is recorded as an act
    with ``verb``. Raises ``LedgerError``, and ``LedgerMissing`` if something shows that a ledger was there
    before."""
    made = False
    if urls.backend_of(settings.url) == urls.POSTGRES:
        made = await tables.create(settings)
    elif urls.backend_of(settings.url) == urls.ETCD:
        made = bool(await _etcd().create(settings))
    ledger = await urls.open_ledger(settings, create=True)  # a cluster is made by `undoubt cluster init`
    try:
        if isinstance(ledger, SqliteLedger):
            made = ledger.owned is not None and ledger.owned.made
        if made:
            await ledger.record_act(new_act(verb, ledger.ledger_id, note, result=DONE))
        return await ledger.info()
    finally:
        await ledger.close()


def _etcd() -> ModuleType:
    """The module for the maintenance of a ledger in etcd. Raises ``LedgerMisconfigured`` if its library is
    not installed."""
    try:
        from undoubt.coordinator.ledger.etcd import creation  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        raise urls.needs_extra(error) from error
    return creation


async def put_aside(settings: LedgerSettings) -> str | None:
    """Rename the remaining files of a SQLite ledger whose file is missing or has no tables, so that a new
    ledger can be made there. Returns the new name, if there was a file to keep. Raises ``UsageError`` if
    there is a ledger, ``LedgerLocked``, ``LedgerUnusable``."""
    _only_sqlite(settings, "is made in its database", "`undoubt cluster init`", "is made in its etcd")
    return await asyncio.to_thread(
        alone, urls.sqlite_path(settings.url).resolve(), _put_aside, must_exist=False
    )


def _put_aside(path: Path) -> str | None:
    if store.revision(path) is not None:
        raise UsageError(f"there is a ledger at {path}, so it is not lost; nothing was changed")
    kept = ledger_files.move_aside(path)
    anchored.path_of(path).unlink(missing_ok=True)
    return kept


async def export_secret(settings: LedgerSettings, path: Path, *, note: str = "") -> None:
    """Write the secret of a ledger to ``path``, for use if the ledger is lost; recorded as an act. Raises
    ``UsageError``, ``LedgerLocked`` if another process owns the SQLite ledger, ``LedgerError``."""
    ledger = await urls.open_ledger(settings)
    try:
        match ledger:
            case PostgresLedger():
                secret = ledger.secret
            case SqliteLedger() if ledger.leads:
                secret = ledger.secret
            case SqliteLedger():
                raise LedgerLocked("the ledger is in use: stop that process first, or take a backup")
            case _ if urls.backend_of(settings.url) == urls.ETCD:
                secret = _etcd().secret_of(ledger)
            case _:
                raise UsageError("a cluster's secret is in its backups: `undoubt cluster backup`")
        async with acting(ledger, new_act("ledger init --export-secret", path, note)):
            secret_file.write(path, ledger.ledger_id, secret)
    finally:
        await ledger.close()


async def is_missing(settings: LedgerSettings) -> bool:
    """Whether there is no ledger at the URL. Raises ``LedgerError`` if there is one that cannot be opened."""
    try:
        ledger = await urls.open_ledger(settings)
    except LedgerMissing:
        return True
    await ledger.close()
    return False


async def migrate(settings: LedgerSettings, *, note: str = "") -> list[str]:
    """Bring the tables to this version; returns the applied revisions, oldest first. The act is recorded
    afterwards: older tables may have no column or table for it. Raises ``LedgerLocked`` if any process has
    the SQLite ledger open, ``LedgerMissing`` and ``LedgerUnusable``."""
    _no_cluster(settings, "brings its nodes up to date by itself")
    if urls.backend_of(settings.url) == urls.ETCD:
        raise UsageError("a ledger in etcd has no tables: there is only one form of its keys")
    if urls.backend_of(settings.url) == urls.POSTGRES:
        applied = await tables.migrate(settings)
    else:
        applied = await asyncio.to_thread(alone, urls.sqlite_file(settings.url), _migrate)
    if applied:
        await _record(settings, new_act("ledger migrate", " ".join(applied), note, result=DONE))
    return applied


async def _record(settings: LedgerSettings, act: Act) -> None:
    ledger = await urls.open_ledger(settings)
    try:
        await ledger.record_act(act)
    finally:
        await ledger.close()


async def backup(settings: LedgerSettings, path: Path, *, note: str = "") -> int:
    """Write a backup of a SQLite ledger to the absolute ``path``, also while the ledger is in use; returns
    its size in bytes. Raises ``UsageError``, also for other ledgers, and ``LedgerError``."""
    _only_sqlite(
        settings,
        "is backed up with its database, by pg_dump or a base backup",
        "`undoubt cluster backup`",
        "is backed up with its etcd, by etcdctl snapshot save",
    )
    ledger = await SqliteLedger.open(urls.sqlite_path(settings.url), settings, create=False)
    try:
        async with acting(ledger, new_act("ledger backup", path, note), needed=False):
            return await ledger.backup(path)
    finally:
        await ledger.close()


async def before_restore(settings: LedgerSettings, file: Path) -> Restoring:
    """Which ledger a restore from ``file`` would make, and which is there. Changes nothing. Raises
    ``UsageError``, ``LedgerUnusable``."""
    _only_sqlite(settings, *_RESTORED)
    return await asyncio.to_thread(restoring.before_restore, urls.sqlite_file(settings.url), file)


async def restore(
    settings: LedgerSettings, file: Path | None, *, note: str = "", other_ledger: bool = False
) -> RestoredLedger:
    """Restore a SQLite ledger from the backup ``file``, or, with None, accept the ledger's file, or the etcd
    of a ledger, as it is; a new incarnation begins. ``other_ledger``: ``file`` may be a backup of another
    ledger than the one that is there, which is given up. Raises ``UsageError``, ``LedgerLocked`` if any
    process has the ledger open, ``LedgerUnusable``, ``LedgerMissing``."""
    if file is None and urls.backend_of(settings.url) == urls.ETCD:
        accepted: RestoredLedger = await _etcd().accept(
            settings, new_act("ledger restore", "etcd as it is", note, result=DONE)
        )
        return accepted
    _only_sqlite(settings, *_RESTORED)
    path = urls.sqlite_file(settings.url)
    act = new_act("ledger restore", file or "the file as it is", note, result=DONE)

    def work(path: Path) -> RestoredLedger:
        if file is None:
            return restoring.as_it_is(path, act)
        return restoring.from_backup(path, file, act, other_ledger=other_ledger)

    return await asyncio.to_thread(alone, path, work, must_exist=file is None)


def _no_cluster(settings: LedgerSettings, instead: str) -> None:
    if urls.backend_of(settings.url) == urls.RAFT:
        raise UsageError(f"the ledger is kept by a cluster, which {instead}")


_RESTORED = (
    "detects by itself that it was restored",
    "`undoubt cluster restore`",
    "is restored with its etcd, by etcdutl snapshot restore; then run `undoubt ledger restore` without file",
)
"""What to do instead of restoring a file, for :func:`_only_sqlite`."""


def _only_sqlite(settings: LedgerSettings, postgres: str, cluster: str, etcd: str) -> None:
    match urls.backend_of(settings.url):
        case urls.SQLITE:
            pass
        case urls.POSTGRES:
            raise UsageError(f"a PostgreSQL ledger {postgres}")
        case urls.ETCD:
            raise UsageError(f"a ledger in etcd {etcd}")
        case _:
            raise UsageError(f"the ledger is kept by a cluster: {cluster}")


async def check(settings: LedgerSettings) -> list[str]:
    """Read a whole SQLite ledger and verify all checksums, or check the rows and the server of a PostgreSQL
    ledger, or the keys and the members of an etcd. Returns the problems found. Changes nothing. Raises
    ``LedgerLocked`` if any process has the SQLite ledger open, ``LedgerMissing`` and
    ``LedgerUnavailable``."""
    _no_cluster(settings, "is checked by `undoubt cluster status` and `undoubt doctor`")
    if urls.backend_of(settings.url) == urls.POSTGRES:
        return await tables.problems(settings)
    if urls.backend_of(settings.url) == urls.ETCD:
        problems: list[str] = await _etcd().problems(settings)
        return problems
    return await asyncio.to_thread(alone, urls.sqlite_file(settings.url), _check)


def _migrate(path: Path) -> list[str]:
    found = store.revision(path)
    store.check_tables(path, found)
    missing = schema.SQLITE.missing(found, f"ledger {path}")
    if missing:
        store.upgrade(path)
    return missing


def _check(path: Path) -> list[str]:
    try:
        with usable(path):
            opened = store.SqliteStore(path)
    except LedgerMissing:
        raise
    except LedgerUnusable as error:
        return [str(error)]
    try:
        with usable(path):
            problems = opened.problems()
            loaded = opened.load()
            mark = rebuilt(loaded, path).state.move
            problems += [str(gone(mark))] if mark is not None and not lives(mark) else []
            problems += anchored.problems(path, loaded)
    except LedgerUnusable as error:
        return [str(error)]
    finally:
        opened.close()
    return problems
