"""A table with one row for each one-phase commit, which proves a COMMIT whose answer was lost.

The row is written by a function with the rights of its owner: the application can write the row in any role
that it has set in its branch, and cannot change the table otherwise."""

from __future__ import annotations

from alembic import op

revision = "p001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        create table undoubt.undoubt_commit (
            txid text not null,
            participant text not null,
            noted_at timestamptz not null default clock_timestamp(),
            primary key (txid, participant)
        )
        """
    )
    op.execute("create index undoubt_commit_noted_at on undoubt.undoubt_commit (noted_at)")
    op.execute(
        """
        create function undoubt.note_commit(txid text, participant text) returns void
            language sql security definer set search_path = pg_catalog, pg_temp
            as $$ insert into undoubt.undoubt_commit (txid, participant) values ($1, $2) $$
        """
    )
    op.execute("grant usage on schema undoubt to public")
    op.execute("grant select on undoubt.undoubt_commit to public")
    op.execute("grant execute on function undoubt.note_commit(text, text) to public")


def downgrade() -> None:
    op.execute("drop function undoubt.note_commit(text, text)")
    op.execute("drop table undoubt.undoubt_commit")
