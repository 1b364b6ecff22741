"""The tables of the SQL ledgers: the revision that a database has, and its upgrade to the newest with
Alembic.

Each backend has its own tree of revisions, in ``migrations/`` of a checkout and in
``undoubt/migrations/`` of an installed wheel. SQLAlchemy and Alembic take a third of a second to import; a
SQLite ledger at the newest revision is opened without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from undoubt.coordinator.errors import LedgerUnusable
from undoubt.participants.alembic_lock import ALONE

if TYPE_CHECKING:
    import sqlalchemy
    from alembic.config import Config


@dataclass(frozen=True, slots=True)
class Tree:
    """The revisions of one backend. ``name`` is the name of the folder; ``revisions`` are all of them, oldest
    first, up to Alembic's head."""

    name: str
    revisions: tuple[str, ...]

    @property
    def newest(self) -> str:
        return self.revisions[-1]

    def folder(self) -> Path:
        """The folder of the revisions. Raises ``LedgerUnusable`` if it is missing in this installation."""
        root = Path(__file__).resolve().parents[2]
        for candidate in (root / "migrations" / self.name, root / "undoubt" / "migrations" / self.name):
            if (candidate / "env.py").exists():
                return candidate
        raise LedgerUnusable(f"the ledger's migrations are missing beneath {root}; install undoubt again")

    def check(self, found: str | None, where: str) -> None:
        """Raise ``LedgerUnusable`` unless ``found`` is the newest revision. ``where`` names the ledger in the
        message."""
        if found == self.newest:
            return
        if found in self.revisions:
            raise LedgerUnusable(
                f"{where} has the tables of an older version ({found}; this version needs {self.newest});"
                " stop all processes that use it, then run: undoubt ledger migrate"
            )
        raise LedgerUnusable(
            f"{where} was written by a newer version of undoubt (tables {found}; this version"
            f" has {self.newest}); upgrade undoubt"
        )

    def missing(self, found: str | None, where: str) -> list[str]:
        """The revisions that a ledger at ``found`` (None: without tables) lacks, oldest first. Raises
        ``LedgerUnusable`` if the ledger has the tables of a newer version."""
        if found is None:
            return list(self.revisions)
        if found not in self.revisions:
            self.check(found, where)
        return list(self.revisions[self.revisions.index(found) + 1 :])

    def upgrade(self, connection: sqlalchemy.Connection) -> None:
        """Upgrade the tables to the newest revision, in the transaction of ``connection``."""
        from alembic import command  # noqa: PLC0415 - see the module

        config = self.alembic_config()
        config.attributes["connection"] = connection
        with ALONE:
            command.upgrade(config, self.newest)

    def alembic_config(self) -> Config:
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(self.folder()).replace("%", "%%"))
        return config


SQLITE = Tree("ledger", ("0001",))
POSTGRES = Tree("ledger_postgres", ("g001", "g002", "g003", "g004", "g005", "g006", "g007"))
