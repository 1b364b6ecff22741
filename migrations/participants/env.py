"""Alembic's entry: runs the participant's migrations on the connection that it is given, or prints them.

Only ``undoubt.participants.postgres.schema`` calls it; there is no alembic.ini.
"""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes.get("connection"),
    # The printed script has its own transaction.
    transactional_ddl=None if not context.is_offline_mode() else False,
    dialect_name="postgresql",
    version_table="participant_migration",
    version_table_schema="undoubt",
)
with context.begin_transaction():
    context.run_migrations()
