"""The agent of last-agent commit to which a session is bound.

Revision ID: g006
Revises: g005
"""

from __future__ import annotations

from alembic import op

revision = "g006"
down_revision = "g005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null: the session is bound to none. As JSON: see postgres/codec.py.
    op.execute("alter table undoubt_ledger.session add column agent text")


def downgrade() -> None:
    raise RuntimeError("a ledger is never downgraded: older versions could misread it; restore a backup")
