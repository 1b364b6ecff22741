"""Chooses the backend that a ledger's URL names, and opens the ledger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from undoubt.coordinator.errors import LedgerMisconfigured
from undoubt.coordinator.ledger.contract import Create, Ledger
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.redact import redact

SQLITE = "sqlite"
POSTGRES = "postgresql+psycopg"
RAFT = "raft"


async def open_ledger(settings: LedgerSettings, *, create: Create = False, serves: bool = False) -> Ledger:
    """Open the ledger that ``settings.url`` names. ``create``: whether a SQLite ledger that does not exist
    may be made, if nothing shows that it existed before. ``serves``: whether this process runs transactions
    or recovery. Only then a new incarnation may begin for a SQLite ledger that was set back; a process that
    only looks refuses it, and leaves the proof as it is.

    Raises ``LedgerMisconfigured``, ``LedgerUnusable`` (including ``LedgerMissing``), ``LedgerLocked`` and
    ``LedgerUnavailable``; the messages say what to do.
    """
    return await _OPENERS[backend_of(settings.url)](settings, create, serves=serves)


async def _open_sqlite(settings: LedgerSettings, create: Create, *, serves: bool) -> Ledger:
    from undoubt.coordinator.ledger.sqlite.ledger import SqliteLedger  # noqa: PLC0415 - each backend only where named

    return await SqliteLedger.open(sqlite_path(settings.url), settings, create=create, serves=serves)


async def _open_postgres(settings: LedgerSettings, _: Create, **_also: bool) -> Ledger:
    from undoubt.coordinator.ledger.postgres.ledger import PostgresLedger  # noqa: PLC0415 - as above

    return await PostgresLedger.open(settings)


async def _open_cluster(settings: LedgerSettings, _: Create, **_also: bool) -> Ledger:
    from undoubt.coordinator.ledger.cluster.ledger import ClusterLedger  # noqa: PLC0415 - as above

    return await ClusterLedger.open(settings)


class _Opener(Protocol):
    async def __call__(self, settings: LedgerSettings, create: Create, /, *, serves: bool) -> Ledger: ...


_OPENERS: dict[str, _Opener] = {
    SQLITE: _open_sqlite,
    POSTGRES: _open_postgres,
    RAFT: _open_cluster,
}


def backend_of(url: str) -> str:
    """The scheme of a URL that has a backend. Raises ``LedgerMisconfigured`` for any other."""
    scheme = url.partition("://")[0]
    if scheme in _OPENERS:
        return scheme
    if scheme in {"postgresql", "postgres"}:
        raise LedgerMisconfigured(f"ledger URL {redact(url)!r} must begin with {POSTGRES}://")
    raise _unsupported(url)


def sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///`` URL; three slashes begin a relative path, four an absolute path, as in
    SQLAlchemy. Raises ``LedgerMisconfigured`` for any other URL, and if the path is a folder."""
    head = f"{SQLITE}:///"
    if not url.startswith(head) or len(url) == len(head) or ":memory:" in url:
        raise _unsupported(url)
    path = url.removeprefix(head)
    if os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir() it raises nothing
        raise LedgerMisconfigured(f"ledger.url must name a file, and {path} is a folder")
    return Path(path)


def sqlite_file(url: str) -> Path:
    """The file of a ``sqlite:///`` URL with symbolic links resolved: the lock, the anchor and the WAL are
    beside it. A circle of links is not resolved."""
    return Path(os.path.realpath(sqlite_path(url)))


def _unsupported(url: str) -> LedgerMisconfigured:
    return LedgerMisconfigured(
        f"ledger URL {redact(url)!r} is not supported here; known: sqlite:///path/to/file.db,"
        " postgresql+psycopg://user@host:5432/database, raft://host:7400,host:7400,host:7400"
    )
