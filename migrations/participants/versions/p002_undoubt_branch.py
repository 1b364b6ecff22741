"""The table of three-phase commit, with one row for each branch.

The rows decide how transactions end, so only undoubt's own roles may use them: the owner (the role that runs
the migration) and roles with ``select, insert, update, delete`` on the table."""

from __future__ import annotations

from alembic import op

revision = "p002"
down_revision = "p001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create table undoubt.undoubt_branch (
            gid text primary key,
            txid text not null,
            participant text not null,
            members text not null,
            rule text not null,
            state "char" not null check (state in ('q', 'w', 'p', 'a')),
            last_elected bigint not null,
            last_attempt bigint not null check (last_attempt <= last_elected),
            changed_at timestamptz not null default clock_timestamp()
        )
        """
    )


def downgrade() -> None:
    op.execute("drop table undoubt.undoubt_branch")
