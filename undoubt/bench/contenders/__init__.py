"""The contenders by name. A contender is imported only in its own process.

In the order of :data:`CONTENDERS`:

=================  ===========================================================================================
:mod:`.plain`      commits with asyncpg: two unrelated commits, and two-phase commit without a log.
:mod:`.twophase`   commits with SQLAlchemy's own ``twophase=True``.
:mod:`.product`    commits with undoubt, its ledger in SQLite.
:mod:`.clustered`  commits with undoubt, its ledger on three nodes, by each protocol.
:mod:`.sidecar`    commits over HTTP through a sidecar, with branches run in both ways.
=================  ===========================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

from undoubt.bench.contract import Style


class ContenderEntry(NamedTuple):
    """The location of a contender: ``attribute`` of ``module``, called with its ``Places``. ``cluster``:
    whether it needs the three nodes, which such contenders share."""

    module: str
    attribute: str
    style: Style
    about: str
    cluster: bool = False


CONTENDERS: dict[str, ContenderEntry] = {
    "local": ContenderEntry("undoubt.bench.contenders.plain", "local", Style.TASKS, "two unrelated commits"),
    "naive": ContenderEntry(
        "undoubt.bench.contenders.plain",
        "naive",
        Style.TASKS,
        "hand-written two-phase commit on asyncpg, without any log: unsafe",
    ),
    "sqlalchemy": ContenderEntry(
        "undoubt.bench.contenders.twophase",
        "twophase",
        Style.THREADS,
        "SQLAlchemy's twophase=True, without any log: unsafe",
    ),
    "undoubt-sqlite": ContenderEntry(
        "undoubt.bench.contenders.product", "sqlite", Style.TASKS, "undoubt, its ledger in SQLite"
    ),
    "undoubt-sqlite-sync": ContenderEntry(
        "undoubt.bench.contenders.product",
        "sqlite_sync",
        Style.THREADS,
        "undoubt.sync, its ledger in SQLite",
    ),
    "undoubt-raft": ContenderEntry(
        "undoubt.bench.contenders.clustered",
        "two_phase",
        Style.TASKS,
        "undoubt, its ledger on three nodes",
        cluster=True,
    ),
    "undoubt-raft-sync": ContenderEntry(
        "undoubt.bench.contenders.clustered",
        "two_phase_sync",
        Style.THREADS,
        "undoubt.sync, its ledger on three nodes",
        cluster=True,
    ),
    "undoubt-raft-3pc": ContenderEntry(
        "undoubt.bench.contenders.clustered",
        "three_phase",
        Style.TASKS,
        "three-phase commit, the ledger on three nodes",
        cluster=True,
    ),
    "undoubt-raft-paxos": ContenderEntry(
        "undoubt.bench.contenders.clustered",
        "paxos",
        Style.TASKS,
        "Paxos Commit, the ledger on three nodes",
        cluster=True,
    ),
    "undoubt-last": ContenderEntry(
        "undoubt.bench.contenders.clustered",
        "last_agent",
        Style.TASKS,
        "last-agent commit, the ledger on three nodes",
        cluster=True,
    ),
    "undoubt-sidecar": ContenderEntry(
        "undoubt.bench.contenders.sidecar",
        "own_driver",
        Style.TASKS,
        "undoubt sidecar, branches run by the services, the ledger on three nodes",
        cluster=True,
    ),
    "undoubt-sidecar-sql": ContenderEntry(
        "undoubt.bench.contenders.sidecar",
        "through_sidecar",
        Style.TASKS,
        "undoubt sidecar, branches run by the sidecar, the ledger on three nodes",
        cluster=True,
    ),
}

DEFAULT = ("local", "naive", "sqlalchemy", "undoubt-sqlite", "undoubt-sqlite-sync", "undoubt-raft")
"""The contenders that take part by default."""
