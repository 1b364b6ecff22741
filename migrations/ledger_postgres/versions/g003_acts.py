"""The acts of operators: user, time, reason and result.

Revision ID: g003
Revises: g002
"""

from __future__ import annotations

from alembic import op

revision = "g003"
down_revision = "g002"
branch_labels = None
depends_on = None

TABLE = """
    create table undoubt_ledger.act (
        number bigint generated always as identity unique,
        id text primary key,                    -- drawn by the acting process
        verb text not null,
        subject text not null,
        at float8 not null,                     -- seconds since 1970, clock of the acting process
        who text not null,
        note text not null,
        result text not null                    -- empty: begun, and no result was recorded
    )
"""


def upgrade() -> None:
    op.execute(TABLE)


def downgrade() -> None:
    raise RuntimeError("a ledger is never downgraded: older versions could misread it; restore a backup")
