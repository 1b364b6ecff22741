"""Alembic's entry for the SQL ledger's tables. The connection comes from
``undoubt.coordinator.ledger.schema``."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
