"""A figure counts only if the work was done: as often as was counted, and as often in one database as in the
other."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from undoubt.bench.contract import DATABASES, ROWS
from undoubt.bench.field import Field
from undoubt.participants.errors import UndoubtError


class WrongCount(UndoubtError):
    """What is in a database is not what a contender said that it did."""


async def audit(field: Field, transfers: Mapping[str, int]) -> None:
    """``transfers`` by contender, over all of its turns. Raises :class:`WrongCount`."""
    for database, dsn in zip(DATABASES, field.dsns, strict=True):
        connection = await asyncpg.connect(dsn)
        try:
            for name, first_row in field.first_rows.items():
                found = await connection.fetchval(
                    "select sum(balance)::bigint from account where id >= $1 and id < $1 + $2",
                    first_row,
                    ROWS,
                )
                if found != transfers[name]:
                    raise WrongCount(f"{name} made {transfers[name]} transfers, {database} has {found}")
            prepared = await connection.fetchval(
                "select count(*) from pg_prepared_xacts where database = current_database()"
            )
            if prepared:
                raise WrongCount(f"{prepared} transactions are still prepared in {database}")
        finally:
            await connection.close()
