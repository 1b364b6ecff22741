"""A new connection to the ledger's server: who answers, whose schema ``undoubt_ledger`` is, and what a
session of ours sets.

The database may belong to somebody else than the ledger (:mod:`undoubt.participants.foreign_ground`): its
owner sets what sessions begin with, and may have made the schema first. SQLAlchemy is not asked to connect,
because it looks for functions along the search path before anybody can set one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from undoubt.coordinator.ledger.postgres import address, errors
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.participants.believed import LEDGER, Fault, faults_of, faults_query, mends, refusal
from undoubt.participants.foreign_ground import ALONE, session_settings, startup_timeouts

Driver = psycopg.AsyncConnection[tuple[Any, ...]]
OWNERS = "schema_owners"
"""In the section of the ledger."""
TOO_LOW = frozenset({"off", "local", "remote_write"})
"""Values of synchronous_commit with which an answered COMMIT may be lost."""


@dataclass(frozen=True, slots=True)
class LedgerServerParameters:
    """What the server says of itself. ``pooled``: the next statement may go to another server process."""

    standby: bool
    synchronous_commit: str
    pooled: bool
    faults: tuple[Fault, ...]


async def connect(parameters: Mapping[str, Any], owners: Sequence[str]) -> Driver:
    """A connection, in autocommit, whose server and schema were looked at. Raises what psycopg raises,
    ``Standby``, ``Unsuitable`` and ``Unbelieved``."""
    driver = await _open(parameters)
    version = driver.info.server_version
    try:
        return await _settled(driver, owners)
    except psycopg.Error as error:
        # A timeout that the database's owner has set may have ended it before it set that.
        insisting = address.with_options(parameters, startup_timeouts(version))
        try:
            return await _settled(await _open(insisting), owners)
        except psycopg.Error:
            raise error from None


async def _open(parameters: Mapping[str, Any]) -> Driver:
    return await psycopg.AsyncConnection.connect(**parameters, autocommit=True, prepare_threshold=None)


async def _settled(driver: Driver, owners: Sequence[str]) -> Driver:
    try:
        intro = await introduce(driver, owners)
        check(intro, owners)
        if not intro.pooled:
            await driver.execute(session_settings(driver.info.server_version))
            driver.prepare_threshold = 1
    except BaseException:
        await driver.close()
        raise
    return driver


async def introduce(driver: Driver, owners: Sequence[str]) -> LedgerServerParameters:
    """In one transaction that only reads, since a plain SELECT could wait under the role's defaults. Raises
    what psycopg raises."""
    script = "; ".join((ALONE, query("introduce"), faults_query(LEDGER, owners), "commit"))
    cursor = await driver.execute(script, prepare=False)
    answers = []
    while True:
        if cursor.description is not None:
            answers.append(await cursor.fetchall())
        if not cursor.nextset():
            break
    [(standby, synchronous_commit, pid)], faults = answers
    pooled = pid != driver.info.backend_pid
    return LedgerServerParameters(standby, synchronous_commit, pooled, faults_of(faults))


def check(intro: LedgerServerParameters, owners: Sequence[str]) -> None:
    """Raises ``Standby``, ``Unsuitable`` or ``Unbelieved``."""
    if intro.standby:
        raise errors.Standby("its server is a standby (pg_is_in_recovery())")
    refuse_unbelieved(intro.faults, owners)
    if intro.synchronous_commit in TOO_LOW and not intro.pooled:
        raise errors.Unsuitable(
            f"synchronous_commit is {intro.synchronous_commit!r} there, with which a recorded decision can be"
            " lost: alter role … set synchronous_commit = on (or alter database …)"
        )


def refuse_unbelieved(faults: Sequence[Fault], owners: Sequence[str]) -> None:
    """Raises ``Unbelieved`` if there are any."""
    if faults:
        raise errors.Unbelieved(refusal(LEDGER, faults), mends(LEDGER, faults, owners, OWNERS))
