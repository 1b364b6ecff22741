"""The SQL ledger's tables: which revision a file has, and Alembic to bring it to the newest.

The revisions live in ``migrations/ledger`` of a checkout and in ``undoubt/migrations/ledger`` of an installed
wheel. SQLAlchemy and Alembic take a third of a second to import; a ledger that is at the newest revision is
opened without them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.errors import LedgerUnusable
from participants.migrating import ALONE

if TYPE_CHECKING:
    from alembic.config import Config

NEWEST = "0001"
"""Equals Alembic's head of ``migrations/ledger``."""

REVISIONS = ("0001",)
"""Everything up to ``NEWEST``, oldest first."""


def folder() -> Path:
    """Where the revisions are. Raises ``LedgerUnusable`` if this installation has lost them."""
    root = Path(__file__).resolve().parents[2]
    for candidate in (root / "migrations" / "ledger", root / "undoubt" / "migrations" / "ledger"):
        if (candidate / "env.py").exists():
            return candidate
    raise LedgerUnusable(f"the ledger's migrations are missing beneath {root}; install undoubt again")


def check_revision(found: str | None, url: str) -> None:
    """Raise ``LedgerUnusable`` unless a ledger at revision ``found`` can be worked with."""
    if found == NEWEST:
        return
    if found in REVISIONS:
        raise LedgerUnusable(
            f"{url} has the tables of an older version ({found}, this one needs {NEWEST});"
            " stop everything that uses it, then run: undoubt ledger migrate"
        )
    raise LedgerUnusable(
        f"{url} was written by a newer version of undoubt (tables {found}, this one knows {NEWEST});"
        " upgrade undoubt"
    )


def upgrade(sqlalchemy_url: str) -> None:
    """Bring the tables at that URL to the newest revision. Nobody else may have them open."""
    import sqlalchemy  # noqa: PLC0415 - see the module
    from alembic import command  # noqa: PLC0415

    engine = sqlalchemy.create_engine(sqlalchemy_url, poolclass=sqlalchemy.pool.NullPool)
    with ALONE, engine.begin() as connection:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, NEWEST)
    engine.dispose()


def alembic_config() -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    return config
