"""Alembic's entry for the tables of the PostgreSQL ledger. ``undoubt.coordinator.ledger.schema`` passes the
connection."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=None,
    version_table="migration",
    version_table_schema="undoubt_ledger",
)
with context.begin_transaction():
    context.run_migrations()
