"""Idempotency keys, and the results of the transactions that have committed with a key.

Revision ID: g004
Revises: g003
"""

from __future__ import annotations

from alembic import op

revision = "g004"
down_revision = "g003"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    create table undoubt_ledger.key (
        key text primary key,
        session bigint not null,                -- the transaction that has claimed the key
        nonce text not null,
        seq bigint not null,
        committed boolean not null default false,
        result bytea not null default '',
        kept_ms bigint,                         -- ledger time of the COMMIT
        check (committed = (kept_ms is not null))
    )
    """,
    "create index key_transaction on undoubt_ledger.key (session, seq)",
    "create index key_kept on undoubt_ledger.key (kept_ms) where committed",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("a ledger is never downgraded: older versions could misread it; restore a backup")
