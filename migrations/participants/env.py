"""Alembic's entry: runs the migrations of the participant's side on the connection that it is handed.

Only ``participants.postgres.schema`` calls it; there is no alembic.ini.
"""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="participant_migration",
    version_table_schema="undoubt",
)
with context.begin_transaction():
    context.run_migrations()
