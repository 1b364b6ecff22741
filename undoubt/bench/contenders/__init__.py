"""The contenders by name, each imported only in its own process."""

from __future__ import annotations

from typing import NamedTuple

from undoubt.bench.contract import Style


class Entry(NamedTuple):
    """Where a contender is: ``attribute`` of ``module``, called with its ``Places``."""

    module: str
    attribute: str
    style: Style
    about: str


_HERE = __name__

CONTENDERS: dict[str, Entry] = {
    "local": Entry(f"{_HERE}.plain", "local", Style.TASKS, "two commits that know nothing of each other"),
    "naive": Entry(
        f"{_HERE}.plain", "naive", Style.TASKS, "two-phase commit by hand on asyncpg, without any log: unsafe"
    ),
    "sqlalchemy": Entry(
        f"{_HERE}.twophase", "twophase", Style.THREADS, "SQLAlchemy's twophase=True, without any log: unsafe"
    ),
    "undoubt-sqlite": Entry(f"{_HERE}.product", "sqlite", Style.TASKS, "undoubt, its ledger in SQLite"),
}
