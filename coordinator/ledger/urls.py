"""Which backend a ledger's URL names."""

from __future__ import annotations

from pathlib import Path

from coordinator.errors import LedgerUnusable
from coordinator.ledger.contract import Ledger
from coordinator.settings import LedgerSettings
from participants.redact import redact

SQLITE = "sqlite:///"
RAFT = "raft://"


async def open_ledger(settings: LedgerSettings) -> Ledger:
    """Open the ledger that ``settings.url`` names, creating an embedded one that is not there yet.

    Raises ``LedgerUnusable``, ``LedgerLocked`` and ``LedgerUnavailable``, which say what to do.
    """
    if settings.url.startswith(RAFT):
        from coordinator.ledger.cluster.ledger import ClusterLedger  # noqa: PLC0415 - as below

        return await ClusterLedger.open(settings)
    from coordinator.ledger.sqlite.ledger import SqliteLedger  # noqa: PLC0415 - each backend only where named

    return await SqliteLedger.open(sqlite_path(settings.url), settings)


def sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///`` URL; three slashes begin a relative path, four an absolute one, as in
    SQLAlchemy's. Raises ``LedgerUnusable`` for any other URL."""
    if not url.startswith(SQLITE) or len(url) == len(SQLITE) or ":memory:" in url:
        raise LedgerUnusable(
            f"ledger URL {redact(url)!r} is not supported here; known: sqlite:///path/to/file.db,"
            " raft://host:7400,host:7400,host:7400"
        )
    return Path(url.removeprefix(SQLITE))
