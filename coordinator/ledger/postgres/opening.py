"""Opens a connection to the ledger's server, checks the server and the roles that could change schema
``undoubt_ledger``, and sets the parameters of the session.

The database may have another owner than the ledger (:mod:`undoubt.participants.hardened_session`): that owner
sets the initial parameters of sessions, and may have made the schema first. SQLAlchemy is not used to
connect, because it calls functions by the search path before the path can be set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from undoubt.coordinator.ledger.postgres import address, errors
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.participants.hardened_session import ALONE, session_settings, startup_timeouts
from undoubt.participants.schema_trust import LEDGER, Fault, faults_of, faults_query, mends, refusal

Driver = psycopg.AsyncConnection[tuple[Any, ...]]
OWNERS = "schema_owners"
"""The name of the setting in the section of the ledger."""
TOO_LOW = frozenset({"off", "local", "remote_write"})
"""Values of synchronous_commit with which an answered COMMIT may be lost."""


@dataclass(frozen=True, slots=True)
class LedgerServerParameters:
    """The relevant parameters of the server. ``pooled``: the next statement may be run by another server
    process."""

    standby: bool
    synchronous_commit: str
    pooled: bool
    faults: tuple[Fault, ...]


async def connect(parameters: Mapping[str, Any], owners: Sequence[str]) -> Driver:
    """A connection in autocommit mode, whose server and schema were checked. Raises what psycopg raises,
    ``Standby``, ``Unsuitable`` and ``Unbelieved``."""
    driver = await _open(parameters)
    version = driver.info.server_version
    try:
        return await _settled(driver, owners)
    except psycopg.Error as error:
        # A timeout that the owner of the database has set may have ended the session before it set its own.
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
    """Read the parameters of the server, in one read-only transaction, since a plain SELECT could wait under
    the defaults of the role. Raises what psycopg raises."""
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
    """Raises ``Standby``, ``Unsuitable`` or ``Unbelieved`` if the ledger must not be used there."""
    if intro.standby:
        raise errors.Standby("its server is a standby (pg_is_in_recovery())")
    refuse_unbelieved(intro.faults, owners)
    if intro.synchronous_commit in TOO_LOW and not intro.pooled:
        raise errors.Unsuitable(
            f"synchronous_commit is {intro.synchronous_commit!r} there, so a recorded decision can be lost:"
            " alter role … set synchronous_commit = on (or alter database …)"
        )


def refuse_unbelieved(faults: Sequence[Fault], owners: Sequence[str]) -> None:
    """Raises ``Unbelieved`` if there are ``faults``."""
    if faults:
        raise errors.Unbelieved(refusal(LEDGER, faults), mends(LEDGER, faults, owners, OWNERS))
