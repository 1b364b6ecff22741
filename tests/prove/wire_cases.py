"""What ``wire`` strikes at: scenes, and the cases of each, one for every message and fault."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from tests.prove.wire_doors import (
    ORDERS,
    PAYMENTS,
    AsyncDoor,
    AsyncSessionDoor,
    Door,
    PsycopgSessionDoor,
    SessionDoor,
    SyncDoor,
)
from tests.prove.wire_proxy import Fault, Place

DOORS: dict[str, tuple[type[Door], str]] = {
    "asyncpg": (AsyncDoor, "asyncpg"),
    "psycopg": (AsyncDoor, "psycopg"),
    "sync": (SyncDoor, "psycopg"),
    "Session": (SessionDoor, "psycopg"),
    "AsyncSession": (AsyncSessionDoor, "asyncpg"),
    "AsyncSession-psycopg": (PsycopgSessionDoor, "psycopg"),
}
"""The doors by name, and the driver of undoubt's own sessions."""


class Work(enum.StrEnum):
    """During what the fault strikes."""

    TRANSFER = "transfer"
    ONE_PHASE = "one phase"
    """A transfer within one database."""
    RECOVER_COMMITTED = "recovery of a commit"
    """All participants were out of reach from the decision on; now recovery reaches them through the wire."""
    RECOVER_ABORTED = "recovery of an abort"
    """The same from the first vote on."""


_RECOVERIES = (Work.RECOVER_COMMITTED, Work.RECOVER_ABORTED)


@dataclass(frozen=True, slots=True)
class Scene:
    """``cold``: with a coordinator whose connections are yet to be opened. ``noted``: the databases have
    undoubt's own tables, as three-phase commit wants them. ``faults``: how many a message meets, all of them
    over all scenes; the parts of the extended protocol, which travel with their Sync or Flush, meet fewer."""

    door: str
    protocol: str = "2pc"
    ledger: str = "sqlite"
    work: Work = Work.TRANSFER
    cold: bool = False
    noted: bool = False
    faults: int = len(Fault)

    def __str__(self) -> str:
        words = [self.door, self.protocol, self.ledger, str(self.work)]
        words += ["cold"] if self.cold else []
        words += ["noted"] if self.noted else []
        return ", ".join(words)

    @property
    def writers(self) -> tuple[str, ...]:
        return (ORDERS,) if self.work is Work.ONE_PHASE else (ORDERS, PAYMENTS)

    @property
    def recovers(self) -> bool:
        return self.work in _RECOVERIES


@dataclass(frozen=True, slots=True)
class Case:
    """``fault`` at message ``place`` (which says ``label``) on the wire to ``target``."""

    target: str
    place: Place
    label: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault} at {self.target} {self.place} ({self.label})"


_MANY, _ONE = 3, 1

SCENES: tuple[Scene, ...] = (
    # Those on one cluster come one after another: they begin first.
    Scene("asyncpg", ledger="raft", protocol="paxos", faults=_MANY),
    *(
        Scene(door, ledger="raft", protocol="paxos", faults=_ONE)
        for door in ("psycopg", "sync", "Session", "AsyncSession")
    ),
    Scene("asyncpg"),
    Scene("psycopg"),
    *(Scene(door, faults=_MANY) for door in ("sync", "Session", "AsyncSession")),
    Scene("AsyncSession-psycopg", faults=_ONE),
    Scene("asyncpg", protocol="3pc", noted=True, faults=_MANY),
    *(
        Scene(door, protocol="3pc", noted=True, faults=_ONE)
        for door in ("psycopg", "sync", "Session", "AsyncSession")
    ),
    *(Scene(door, cold=True, faults=_ONE) for door in ("asyncpg", "psycopg", "Session", "AsyncSession")),
    *(Scene(door, work=Work.ONE_PHASE, faults=_MANY) for door in ("asyncpg", "psycopg")),
    *(Scene(door, work=Work.ONE_PHASE, noted=True, faults=_MANY) for door in ("asyncpg", "psycopg")),
    Scene("sync", work=Work.ONE_PHASE, noted=True, faults=_ONE),
    Scene("asyncpg", ledger="postgresql", faults=_ONE),
    Scene("psycopg", ledger="postgresql", protocol="3pc", noted=True, faults=_ONE),
    *(Scene(door, work=work, faults=_ONE) for door in ("asyncpg", "psycopg") for work in _RECOVERIES),
    *(Scene("asyncpg", protocol="3pc", noted=True, work=work, faults=_ONE) for work in _RECOVERIES),
)

_PARTS = {"P", "D", "B", "E", "C"}
"""Parse, Describe, Bind, Execute, Close."""
_INTRODUCTION = "pg_is_in_recovery()"
"""Undoubt's first words on a connection. On one of the application's, what comes before is not undoubt's."""


def cases(scene: Scene, heard: Sequence[tuple[str, Place, str]]) -> list[Case]:
    """One for each message and fault, of what was heard in a run of ``scene`` without faults."""
    if scene.cold and "Session" in scene.door:
        heard = _introduced(heard)
    if scene.recovers:
        heard = [each for each in heard if each[0] in scene.writers]
    every, found = list(Fault), []
    for number, (target, place, label) in enumerate(heard, SCENES.index(scene)):
        wanted = scene.faults if label[:1] not in _PARTS else -(-scene.faults // 5)
        # Neighbours meet different ones, and so do the same messages of neighbouring scenes.
        faults = [every[(number + 3 * step) % len(every)] for step in range(wanted)]
        found += [Case(target, place, label, fault) for fault in faults]
    return found


def _introduced(heard: Sequence[tuple[str, Place, str]]) -> list[tuple[str, Place, str]]:
    known: set[tuple[str, int]] = set()
    found = []
    for target, place, label in heard:
        if _INTRODUCTION in label:
            known.add((target, place.connection))
        if (target, place.connection) in known:
            found.append((target, place, label))
    return found
