"""The mark of a move of the ledger, and decisions of which only the decision is known.

Revision ID: g007
Revises: g006
"""

from __future__ import annotations

from alembic import op

revision = "g007"
down_revision = "g006"
branch_labels = None
depends_on = None

STATEMENTS = (
    # As long as the ledger does not live here, the table "ledger" has the name "sealed_ledger": see
    # moving/postgres.py.
    """
    create table undoubt_ledger.move (
        only_row boolean primary key default true check (only_row),
        id text not null,
        place text not null,                    -- the URL of the other place
        at float8 not null,                     -- seconds since 1970, clock of the moving process
        phase text not null check (phase in ('sealed', 'moved', 'arriving', 'arrived'))
    )
    """,
    # Not null: the ledger was moved here, and of the branches only this is known. Then the columns protocol,
    # branches and decided_at mean nothing.
    "alter table undoubt_ledger.decision add column fingerprint bigint",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("a ledger is never downgraded: older versions could misread it; restore a backup")
