"""Creates, upgrades and checks the tables of the PostgreSQL ledger, by commands of an operator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import psycopg
import sqlalchemy

from undoubt.coordinator.errors import LedgerMisconfigured, LedgerMissing, LedgerUnusable
from undoubt.coordinator.ledger import schema
from undoubt.coordinator.ledger.postgres import address, errors, opening
from undoubt.coordinator.ledger.postgres.connections import Connections
from undoubt.coordinator.ledger.postgres.decisions import decode_branches
from undoubt.coordinator.ledger.postgres.rights import rights
from undoubt.coordinator.ledger.postgres.sql import query
from undoubt.coordinator.settings import LedgerSettings
from undoubt.participants.alembic_lock import engine_over
from undoubt.participants.hardened_session import ALONE
from undoubt.participants.ids import new_ledger_id
from undoubt.participants.redact import redact
from undoubt.participants.schema_trust import LEDGER, faults_of, faults_query

T = TypeVar("T")

SCHEMA = "undoubt_ledger"
LOCK = 0x756E646F756274
"""The key of pg_advisory_xact_lock: of two processes that create the ledger at the same time, one waits."""
LOCK_TIMEOUT_S = 10

_FIRST_ROWS = """
    insert into undoubt_ledger.ledger (ledger_id, system, timeline, home)
    select :ledger_id, c.system_identifier,
           pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8),
           (select d.oid::pg_catalog.text from pg_catalog.pg_database d
             where d.datname operator(pg_catalog.=) pg_catalog.current_database())
           operator(pg_catalog.||) '/' operator(pg_catalog.||)
           'undoubt_ledger.ledger'::pg_catalog.regclass::pg_catalog.oid::pg_catalog.text
      from pg_catalog.pg_control_system() c
"""


async def create(settings: LedgerSettings) -> bool:
    """Make the tables if there are none; returns whether they were made. Raises ``LedgerUnusable`` or
    ``LedgerUnavailable``."""
    return bool(await asyncio.to_thread(in_transaction, settings, _created))


async def migrate(settings: LedgerSettings) -> list[str]:
    """Upgrade the tables to this version; returns the applied revisions. Raises ``LedgerMissing``,
    ``LedgerUnusable`` or ``LedgerUnavailable``."""
    return await asyncio.to_thread(in_transaction, settings, _migrated)


def in_transaction(settings: LedgerSettings, work: Callable[[sqlalchemy.Connection, str], T]) -> T:
    """Call ``work`` with a connection and the ledger's URL, in one transaction whose server and schema were
    checked. Raises ``LedgerUnusable`` or ``LedgerUnavailable``."""
    url = redact(settings.url)
    parameters = address.parameters(settings)
    engine = engine_over(
        lambda options: psycopg.connect(**address.with_options(parameters, options)),
        lambda connection: _refuse_standby(connection, url),
    )
    try:
        with engine.begin() as connection:
            _refuse_unbelieved(connection, settings)
            before = names(connection)
            done = work(connection, url)
            _revoke_defaults(connection, before)
            _refuse_unbelieved(connection, settings)
            return done
    except errors.Unbelieved as error:
        raise errors.as_ledger_error(error, url) from error
    except (sqlalchemy.exc.DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
        if getattr(cause, "sqlstate", None) == "42501":
            raise LedgerUnusable(
                f"the role of ledger {url} may not make its tables ({str(cause).strip()}); the owner of"
                f" the database can run this, or: grant create on database …, or: create schema {SCHEMA}"
                " authorization …"
            ) from error
        raise errors.as_ledger_error(error, url) from error
    finally:
        engine.dispose()


def _refuse_standby(connection: psycopg.Connection[Any], url: str) -> None:
    connection.execute(ALONE)
    standby = connection.execute("select pg_catalog.pg_is_in_recovery()").fetchall()
    connection.execute("commit")
    if standby == [(True,)]:
        raise LedgerUnusable(f"the server of ledger {url} is a standby; name the primary")


def _refuse_unbelieved(connection: sqlalchemy.Connection, settings: LedgerSettings) -> None:
    """Raises ``Unbelieved`` if other roles could change the content of the schema. A missing schema is
    accepted."""
    asked = faults_query(LEDGER, settings.schema_owners)
    rows = connection.exec_driver_sql(asked.replace("%", "%%"))  # the name of a role may contain a %
    opening.refuse_unbelieved(faults_of(tuple(row) for row in rows), settings.schema_owners)


def names(connection: sqlalchemy.Connection) -> list[str]:
    """The names of the tables in the schema; empty if there is no schema yet."""
    return list(connection.exec_driver_sql(query("tables")).scalars())


def _revoke_defaults(connection: sqlalchemy.Connection, before: Sequence[str]) -> None:
    """Revoke what ALTER DEFAULT PRIVILEGES has granted to other roles on the new tables, one of which
    contains the secret."""
    lines = connection.exec_driver_sql(query("revoke_defaults"), {"before": list(before)})
    for line in lines.scalars().all():
        connection.exec_driver_sql(line.replace("%", "%%"))


def _created(connection: sqlalchemy.Connection, _: str) -> list[str]:
    if revision(connection) is not None:
        return []
    make(connection, new_ledger_id())
    return list(schema.POSTGRES.revisions)


def make(connection: sqlalchemy.Connection, ledger_id: str) -> None:
    """Make the tables of a new ledger, where there are none; also the schema, if it is missing."""
    run = connection.exec_driver_sql
    if run(f"select pg_catalog.to_regnamespace('{SCHEMA}')").scalar_one() is None:
        run(f"create schema {SCHEMA}")
    schema.POSTGRES.upgrade(connection)
    _revoke_defaults(connection, [])
    connection.execute(sqlalchemy.text(_FIRST_ROWS), {"ledger_id": ledger_id})
    run("insert into undoubt_ledger.clock default values")


def _migrated(connection: sqlalchemy.Connection, url: str) -> list[str]:
    found = revision(connection)
    if found is None:
        raise errors.missing(url)
    missing = schema.POSTGRES.missing(found, f"ledger {url}")
    if missing:
        schema.POSTGRES.upgrade(connection)
    return missing


def revision(connection: sqlalchemy.Connection) -> str | None:
    """The revision of the tables, None if there are none. Until the transaction ends, no other process can
    make or upgrade them."""
    run = connection.exec_driver_sql
    # Any role of the server can take that lock and keep it.
    run(f"set local lock_timeout = '{LOCK_TIMEOUT_S}s'")
    run(f"select pg_catalog.pg_advisory_xact_lock({LOCK})")
    if run("select pg_catalog.to_regclass('undoubt_ledger.migration')").scalar_one() is None:
        return None
    found: str = run("select version_num from undoubt_ledger.migration").scalar_one()
    return found


async def problems(settings: LedgerSettings) -> list[str]:
    """The problems of the ledger and of its server's settings; empty if there are none. Raises
    ``LedgerMissing``, ``LedgerMisconfigured`` or ``LedgerUnavailable``."""
    connections = Connections(settings)
    try:
        ((found_revision,),) = await connections.run("revision") or [(None,)]
        schema.POSTGRES.check(found_revision, f"ledger {connections.url}")
        found = [str(row[0]) for row in await connections.run("problems")]
        found += [f"{right}. To revoke that: {right.line}" for right in await rights(settings)]
        for session, seq, branches in await connections.run("branch_lists"):
            if not _readable(branches):
                found.append(f"the branches of unfinished transaction {session}.{seq} cannot be read")
    except (LedgerMissing, LedgerMisconfigured):
        raise
    except LedgerUnusable as error:
        return [str(error)]
    finally:
        await connections.close()
    return found


def _readable(branches: str) -> bool:
    try:
        return bool(decode_branches(branches)) or branches == "[]"
    except msgspec.MsgspecError:
        return False
