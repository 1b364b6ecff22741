"""Which backend a ledger's URL names."""

from __future__ import annotations

from pathlib import Path

from coordinator.errors import LedgerUnusable
from coordinator.ledger.contract import Ledger
from coordinator.settings import LedgerSettings
from participants.redact import redact

SQLITE = "sqlite:///"


async def open_ledger(settings: LedgerSettings) -> Ledger:
    """Open the ledger that ``settings.url`` names, creating an embedded one that is not there yet.

    Raises ``LedgerUnusable`` and ``LedgerLocked``, which say what to do.
    """
    from coordinator.ledger.sqlite.ledger import SqliteLedger  # noqa: PLC0415 - each backend only where named

    return await SqliteLedger.open(sqlite_path(settings.url), settings)


def sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///`` URL; three slashes begin a relative path, four an absolute one, as in
    SQLAlchemy's. Raises ``LedgerUnusable`` for any other URL."""
    if not url.startswith(SQLITE) or len(url) == len(SQLITE) or ":memory:" in url:
        raise LedgerUnusable(f"ledger URL {redact(url)!r} is not supported; known: sqlite:///path/to/file.db")
    return Path(url.removeprefix(SQLITE))
