"""Creates, upgrades and prunes the tables in a participant's database, which two-phase commit does not need.

``undoubt.undoubt_note`` has one row per one-phase commit, and one per branch of three-phase commit: the hash
of the branch's proof. If the table exists, a COMMIT whose answer was lost can be proved or disproved
(:mod:`undoubt.participants.postgres.one_phase`); without it the result is more often ``OutcomeUnknown``. It
costs one small insert per transaction with a single participant. ``undoubt.undoubt_branch`` has three-phase
commit's rows (:mod:`undoubt.participants.postgres.three_phase`), ``undoubt.undoubt_agent`` last-agent
commit's (:mod:`undoubt.participants.postgres.last_agent`). ``undoubt.undoubt_commit`` has the notes of
version 0.1.0."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undoubt.participants.alembic_lock import ALONE, engine_over
from undoubt.participants.errors import ParticipantRefused, ParticipantUnavailable
from undoubt.participants.postgres.dsn import read_dsn
from undoubt.participants.postgres.dsn_values import REFUSED_VALUE, driver_refusal
from undoubt.participants.postgres.schema_check import refused
from undoubt.participants.postgres.sql import query
from undoubt.participants.postgres.sqlstate import LOCK_NOT_AVAILABLE
from undoubt.participants.schema_trust import PARTICIPANT, Fault, faults_of, faults_query

if TYPE_CHECKING:
    import psycopg
    from alembic.config import Config
    from sqlalchemy import Connection, Engine

    from undoubt.participants.settings import ParticipantSettings

_HEAD = """\
-- Run it as the role that should own these tables. Fails if schema undoubt exists: check its owner then.
begin;
set local search_path = pg_catalog, pg_temp;
create schema undoubt;"""
_LOCK = 0x756E646F756274
"""Advisory lock that keeps two migrations apart: "undoubt" in ASCII."""


async def migrate(participant: str, settings: ParticipantSettings) -> list[str]:
    """Bring the tables up to date. Returns the revisions that were applied, oldest first, none if the tables
    were up to date. The dsn's user must be allowed to create a schema in the database. Raises
    ``ParticipantRefused``, ``ParticipantUnavailable``."""
    return await asyncio.to_thread(_migrate, participant, settings)


def script() -> str:
    """The migrations as plain SQL, from an empty database to the newest tables, for a DBA to read and run."""
    from alembic import command  # noqa: PLC0415

    written = io.StringIO()
    with ALONE:
        command.upgrade(_config(written), "head", sql=True)
    return f"{_HEAD}\n\n{written.getvalue().strip()}\n\n{_taking_back()}\n\ncommit;\n"


def _taking_back() -> str:
    return (
        "do $$ declare line pg_catalog.text; begin for line in\n"
        f"{query('take_back_defaults')}\nloop execute line; end loop; end $$;"
    )


async def prune(
    participant: str, settings: ParticipantSettings, *, older_than_s: float, lost_ledger: str = ""
) -> int:
    """Delete notes of commits that are older than ``older_than_s`` seconds, and than an hour; returns their
    number. Rows of locks that were not guarded for so long, and for a week, are deleted too. The dsn's user
    must own the table. A note is looked up within seconds after a lost answer, so that a day is long
    enough.

    ``lost_ledger``: the id of a ledger that no longer exists, and of which nothing is prepared. Its rows of
    last-agent commit that are older than that, and than a week, are deleted and counted too."""
    return await asyncio.to_thread(_prune, participant, settings, older_than_s, lost_ledger)


async def agent_ledgers(participant: str, settings: ParticipantSettings) -> dict[str, int]:
    """The ids of the ledgers that have rows of last-agent commit in the database, with the number of rows; no
    more than 100 ledgers."""
    return await asyncio.to_thread(_agent_ledgers, participant, settings)


async def restored(participant: str, settings: ParticipantSettings) -> str:
    """Draw a new history id in any case; returns it. The dsn's user must own the tables. This is for a server
    that was cloned, or set back to a snapshot of its disk: both keep system identifier and timeline. Evidence
    of branches that were prepared before belongs to another history afterwards."""
    return await asyncio.to_thread(_restored, participant, settings)


def _restored(participant: str, settings: ParticipantSettings) -> str:
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    engine = _engine(participant, settings)
    try:
        with engine.begin() as connection:
            _refuse_unbelieved(connection, participant, settings)
            for statement in ("draw_durably", "forget_history", "draw_history"):
                connection.exec_driver_sql(query(statement))
        with engine.connect() as connection:
            drawn = connection.exec_driver_sql(query("drawn_history")).scalar_one()
    except DBAPIError as error:
        raise _translated(participant, error) from error
    finally:
        engine.dispose()
    return str(drawn)


def _migrate(participant: str, settings: ParticipantSettings) -> list[str]:
    from alembic import command  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from sqlalchemy import text  # noqa: PLC0415
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    config = _config()
    engine = _engine(participant, settings)
    wait_ms = max(round(settings.statement_timeout_s * 1000), 1)
    try:
        with ALONE, engine.connect() as connection:
            # Every role of the server may take this lock, and may hold it for ever.
            connection.execute(text(f"set local lock_timeout = '{wait_ms}ms'"))
            connection.execute(text("select pg_catalog.pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            # Without IF NOT EXISTS: otherwise another role that creates the schema first would own it.
            if fresh := not _refuse_unbelieved(connection, participant, settings):
                connection.execute(text("create schema undoubt"))
            config.attributes["connection"] = connection
            before = None if fresh else _revision(connection)
            command.upgrade(config, "head")
            scripts = ScriptDirectory.from_config(config)
            applied = [one.revision for one in scripts.iterate_revisions("head", before or "base")]
            if fresh:
                for line in connection.exec_driver_sql(query("take_back_defaults")).scalars().all():
                    connection.exec_driver_sql(line.replace("%", "%%"))
            _refuse_unbelieved(connection, participant, settings)
            connection.commit()
    except DBAPIError as error:
        raise _translated(participant, error) from error
    finally:
        engine.dispose()
    return applied[::-1]


def _revision(connection: Connection) -> str | None:
    """The revision of the tables; None if there are no tables yet."""
    from sqlalchemy import text  # noqa: PLC0415

    there = connection.execute(
        text("select pg_catalog.to_regclass('undoubt.participant_migration')")
    ).scalar_one()
    if there is None:
        return None
    found = connection.execute(
        text("select version_num from undoubt.participant_migration")
    ).scalar_one_or_none()
    return None if found is None else str(found)


def _config(output: io.StringIO | None = None) -> Config:
    from alembic.config import Config  # noqa: PLC0415

    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    return config


def _prune(
    participant: str, settings: ParticipantSettings, older_than_s: float, lost_ledger: str = ""
) -> int:
    with _believed(participant, settings) as connection:
        return _delete(connection, older_than_s, lost_ledger)


def _agent_ledgers(participant: str, settings: ParticipantSettings) -> dict[str, int]:
    with _believed(participant, settings) as connection:
        if not _exists(connection, "undoubt_agent"):
            return {}
        rows = connection.exec_driver_sql(query("agent_ledgers"))
        return {row.ledger: int(row.rows) for row in rows}


@contextlib.contextmanager
def _believed(participant: str, settings: ParticipantSettings) -> Iterator[Connection]:
    """A transaction. Raises ``ParticipantRefused`` if schema ``undoubt`` is not to be believed."""
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    engine = _engine(participant, settings)
    try:
        with engine.begin() as connection:
            _refuse_unbelieved(connection, participant, settings)
            yield connection
    except DBAPIError as error:
        raise _translated(participant, error) from error
    finally:
        engine.dispose()


def _exists(connection: Connection, table: str) -> bool:
    found = connection.exec_driver_sql(f"select pg_catalog.to_regclass('undoubt.{table}') is not null")
    return bool(found.scalar_one())


def _refuse_unbelieved(connection: Connection, participant: str, settings: ParticipantSettings) -> bool:
    """Whether schema ``undoubt`` exists. Raises ``ParticipantRefused`` if it is not to be believed."""
    if connection.exec_driver_sql(query("schema")).scalar_one() is None:
        return False
    if faults := _faults(connection, settings):
        raise refused(participant, faults)
    return True


def _faults(connection: Connection, settings: ParticipantSettings) -> tuple[Fault, ...]:
    asked = faults_query(PARTICIPANT, settings.schema_owners)
    rows = connection.exec_driver_sql(asked.replace("%", "%%"))  # a role's name may contain one
    return faults_of(tuple(row) for row in rows)


def _delete(connection: Connection, older_than_s: float, lost_ledger: str) -> int:
    driver = connection.connection.cursor()
    try:
        deleted = 0
        for name in ("prune", "prune_old"):
            driver.execute(query(name).replace("$1", "%s"), (older_than_s,))
            deleted += int(driver.rowcount)
        if _exists(connection, "undoubt_lock"):
            driver.execute(query("prune_locks").replace("$1", "%s"), (older_than_s,))
        if lost_ledger and _exists(connection, "undoubt_agent"):
            statement = query("prune_agent").replace("$1", "%s").replace("$2", "%s")
            driver.execute(statement, (older_than_s, lost_ledger))
            deleted += int(driver.rowcount)
        return deleted
    finally:
        driver.close()


def _engine(participant: str, settings: ParticipantSettings) -> Engine:
    import psycopg  # noqa: PLC0415

    address = read_dsn(participant, settings.dsn)
    password = None
    if settings.password_file is not None and not address.has_password:
        password = Path(settings.password_file).expanduser().read_text("utf-8").split("\n", 1)[0]

    def connect(options: str) -> psycopg.Connection[Any]:
        try:
            return psycopg.connect(
                address.for_libpq(options=options, client_encoding="UTF8"),
                password=password,
                connect_timeout=int(settings.connect_timeout_s),
            )
        except REFUSED_VALUE as error:
            # Without its cause, whose text may show a password.
            raise driver_refusal(participant, error, address.resolved, password) from None

    return engine_over(connect)


def _folder() -> Path:
    """The folder of the migrations, in the source tree or in an installed wheel, which has them in
    ``undoubt``."""
    root = Path(__file__).resolve().parents[2]
    installed = root / "undoubt" / "migrations" / "participants"
    return installed if installed.is_dir() else root / "migrations" / "participants"


def _translated(participant: str, error: Exception) -> ParticipantRefused | ParticipantUnavailable:
    cause = getattr(error, "orig", None) or error
    sqlstate = getattr(cause, "sqlstate", None)
    message = f"its tables could not be changed: {str(cause).strip()}"
    if sqlstate == LOCK_NOT_AVAILABLE:
        message += f"; another migration runs, or a session holds a lock on them or advisory lock {_LOCK}"
        return ParticipantUnavailable(participant, message, sqlstate=sqlstate)
    if sqlstate is None or sqlstate[:2] in {"08", "53", "57"}:
        return ParticipantUnavailable(participant, message, sqlstate=sqlstate)
    return ParticipantRefused(participant, message, sqlstate=sqlstate)
