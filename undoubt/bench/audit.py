"""Checks that the counted transfers were made.

Each database must have as many transfers of a contender as the contender counted, and no prepared
transactions."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg

from undoubt.bench.contract import DATABASES, ROWS
from undoubt.bench.field import Field
from undoubt.participants.errors import UndoubtError


class WrongCount(UndoubtError):
    """A database does not have the transfers that a contender counted."""


async def audit(field: Field, transfers: Mapping[str, int]) -> None:
    """Compare both databases with ``transfers``, the number for each contender over all its turns. Raises
    :class:`WrongCount`."""
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
